import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.train.examples import wide

from polytask.balance import Equal
from polytask.core.data import TaskData
from polytask.core.errors import ModelRefusedError
from polytask.core.task import Binary
from polytask.deep import AdaptiveSharing, HardSharing, mlp
from polytask.storage import load_model, save_model
from polytask.train import AdaptiveSharingLearner, TrainSettings, fit
from polytask.train.loop import _Loop

SETTINGS = TrainSettings(max_epochs=12, batch_size=64, device="cpu", learning_rate=1e-2, patience=4)


def pairs(n=400, seed=0):
    """Four binary tasks; two ask for one hidden thing, two for another, each noisy on rows of its own kind."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5))
    hard = rng.random((2, n)) < 0.35  # rows on which a pair is pure noise
    noise = rng.normal(size=(2, n))
    hidden = np.where(hard, 6 * noise, np.stack([x[:, 0], x[:, 1]]) * 3)
    columns = np.stack([hidden[0] > 0, hidden[1] > 0, hidden[0] < 0, hidden[1] > 0.2], axis=1).astype(float)
    tasks = tuple(Binary(name, classes=("no", "yes")) for name in ("a1", "b1", "a2", "b2"))
    return TaskData.from_columns(tasks, {"numeric": x}, columns)


def trunk():
    return mlp(5, (8, 6), seed=0)


def grown(settings=SETTINGS, **options):
    network = AdaptiveSharing(pairs().tasks, trunk(), **{"alpha": 8.0, "phase_epochs": 3, **options})
    return fit(network, Equal(4), pairs(), pairs(seed=1), settings=settings, seed=2)


def test_tasks_that_find_the_same_rows_difficult_stay_together():
    fitted = grown()
    assert fitted.network.tree.tolist() == [[0] * 4, [0, 1, 0, 1], [0, 1, 0, 1]]
    plain = sum(p.numel() for p in HardSharing(pairs().tasks, trunk()).parameters())
    assert plain < sum(p.numel() for p in fitted.network.parameters()) < 4 * plain


def test_until_its_first_split_it_trains_as_hard_sharing_does():
    hard = fit(HardSharing(pairs().tasks, trunk()), Equal(4), pairs(), pairs(seed=1), settings=SETTINGS, seed=2)
    fitted = grown()
    np.testing.assert_array_equal(fitted.valid_curve[:3], hard.valid_curve[:3])
    np.testing.assert_array_equal(fitted.train_curve[:3], hard.train_curve[:3])
    assert not (fitted.valid_curve[3] == hard.valid_curve[3]).all()


def test_when_nothing_is_worth_a_split_the_whole_fit_is_that_of_hard_sharing():
    """Being asked leaves no trace, though it looks at the best weights, not the last ones."""
    overfitting = TrainSettings(max_epochs=40, batch_size=64, device="cpu", learning_rate=5e-2, patience=6)
    hard = fit(HardSharing(pairs().tasks, trunk()), Equal(4), pairs(), pairs(seed=1), settings=overfitting, seed=2)
    asked = int(hard.best_epoch[0]) + 4
    for phase_epochs in (asked, None):
        fitted = grown(overfitting, alpha=0.0, phase_epochs=phase_epochs)
        assert int(fitted.network.junction) == 0
        np.testing.assert_array_equal(fitted.valid_curve, hard.valid_curve)
        state = fitted.network.state_dict()
        assert all(value.equal(state[name]) for name, value in hard.network.state_dict().items())


def loop_at(epoch):
    network = AdaptiveSharing(pairs().tasks, trunk(), alpha=8.0, phase_epochs=2)
    loop = _Loop(network, Equal(4), pairs(), pairs(seed=1), SETTINGS, 2, torch.device("cpu"), None)
    while loop.epoch < epoch:
        loop.advance()
    return loop


def test_new_branches_go_on_with_the_moments_of_what_they_copy_and_old_parameters_with_theirs():
    loop = loop_at(1)
    while not (loop.epoch == 1 and loop.step == loop.sampler.steps - 1):
        loop.advance()
    loop.update()
    before = {name: dict(loop.optimiser.state[p]) for name, p in loop.network.named_parameters()}
    loop.step += 1
    loop.close_epoch()
    assert [stage.n > 1 for stage in loop.network.trunk.stages.values()] == [False, False, True]
    optimised = {id(p) for group in loop.optimiser.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in loop.network.parameters()}
    for name, parameter in loop.network.named_parameters():
        state = loop.optimiser.state[parameter]
        assert state["step"] == before[name]["step"] == 2 * loop.sampler.steps
        for moment in ("exp_avg", "exp_avg_sq"):
            for branch in range(len(state[moment])):
                source = branch if state[moment].shape == before[name][moment].shape else 0
                assert state[moment][branch].equal(before[name][moment][source]), name


def test_growth_starts_from_the_best_epoch_and_patience_counts_anew():
    overfitting = TrainSettings(max_epochs=200, batch_size=64, device="cpu", learning_rate=5e-2, patience=3)
    fitted = grown(overfitting, phase_epochs=None)
    hard = fit(HardSharing(pairs().tasks, trunk()), Equal(4), pairs(), pairs(seed=1), settings=overfitting, seed=2)
    stop = len(hard.valid_curve)
    assert stop == hard.best_epoch[0] + 1 + 3 < len(fitted.valid_curve)
    assert [stage.n for stage in fitted.network.trunk.stages.values()][-1] == 2
    constant = _Loop(
        fitted.network, Equal(4), pairs(), pairs(seed=1), SETTINGS, 0, torch.device("cpu"), None
    ).stopping.constant_loss
    scores = (fitted.valid_curve / constant).mean(axis=1)
    assert scores.argmin() == fitted.best_epoch[0]
    assert len(scores) - stop >= 3  # another lease of patience


def test_what_was_best_before_a_split_is_kept_when_nothing_better_follows():
    """A split changes no score, so the best of all phases is the best of the fit."""
    first = TrainSettings(max_epochs=2, batch_size=64, device="cpu", learning_rate=1e-2)
    fitted = grown(TrainSettings(max_epochs=30, batch_size=64, device="cpu", learning_rate=1e-2), phase_epochs=2)
    alone = grown(first, phase_epochs=2)
    np.testing.assert_array_equal(fitted.valid_curve[:2], alone.valid_curve)
    assert fitted.valid_curve.mean(axis=1).min() <= alone.valid_curve.mean(axis=1).min()


def test_no_split_is_made_after_the_last_epoch():
    for epochs, branches in ((3, 1), (4, 2)):
        fitted = grown(TrainSettings(max_epochs=epochs, batch_size=64, device="cpu", learning_rate=1e-2))
        assert [stage.n for stage in fitted.network.trunk.stages.values()][-1] == branches


def test_a_saved_model_that_grew_predicts_the_same_in_a_new_process(tmp_path):
    data = pairs()
    learner = AdaptiveSharingLearner(widths="8-6", max_epochs=9, device="cpu", alpha=8.0)
    model = learner.fit(data, valid=pairs(seed=5), seed=0)
    assert max(model.network.tree.flatten().tolist()) > 0
    save_model(tmp_path / "model", model, encoder_state={}, schema={}, meta={})
    script = """
import sys, json, numpy as np
from polytask.storage import load_model
sys.path.insert(0, sys.argv[2])
from tests.train.test_growth import pairs
model = load_model(sys.argv[1]).model
scores = model.predict(pairs(seed=9))
print(json.dumps([model.network.tree.tolist(), {name: value.tolist() for name, value in scores.items()}]))
"""
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "model"), root],
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tree, scores = json.loads(done.stdout)
    assert tree == model.network.tree.tolist()
    for name, values in model.predict(pairs(seed=9)).items():
        np.testing.assert_allclose(scores[name], values, rtol=0, atol=1e-6)
    assert load_model(tmp_path / "model").model.relations()["branches"].kind == "tree"


def test_a_damaged_tree_is_refused_when_a_model_is_loaded():
    data = wide(80)
    model = AdaptiveSharingLearner(widths="8-6", max_epochs=2, device="cpu").fit(data)
    description, arrays = model.state()
    arrays["network.tree"] = np.array([[0] * 4, [0, 1, 0, 1], [0] * 4])
    with pytest.raises(ModelRefusedError, match="branches may part but never meet"):
        type(model).from_state(model.tasks, description, arrays)
