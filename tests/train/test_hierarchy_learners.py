import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from tests.train.examples import schools, wide

from polytask.core.data import TaskData
from polytask.core.errors import InputError
from polytask.core.task import Multiclass, Regression
from polytask.deep import BranchedEncoder, Encoder, HardSharing
from polytask.deep.somp import thin_encoder
from polytask.registry import learner_class
from polytask.train import (
    AdaptiveSharingLearner,
    HardSharingLearner,
    JointManyTaskLearner,
    LearnedBranchingLearner,
    LowSupervisionLearner,
    NetworkModel,
)
from polytask.train.levels import linearly_explained, parse_levels, task_levels
from polytask.train.network_learner import Run

LEARNERS = {
    "adaptive-sharing": AdaptiveSharingLearner,
    "learned-branching": LearnedBranchingLearner,
    "low-supervision": LowSupervisionLearner,
    "joint-many-task": JointManyTaskLearner,
}
QUICK = {"max_epochs": 4, "widths": "8-6", "device": "cpu"}


@pytest.mark.parametrize(("name", "kind"), LEARNERS.items())
def test_the_command_line_knows_it_and_every_draw_of_its_search_space_is_accepted(name, kind):
    assert learner_class(name) is kind
    space = kind.search_space()
    assert set(space) <= {field.name for field in fields(kind)}
    rng = np.random.default_rng(0)
    for _ in range(20):
        drawn = {key: distribution.sample(rng) for key, distribution in space.items()}
        assert replace(kind(), **drawn) == kind(**drawn)


@pytest.mark.parametrize("kind", LEARNERS.values())
def test_a_model_built_from_its_state_predicts_the_same(kind):
    data = wide(150, missing=0.2, categorical=True)
    model = kind(**QUICK).fit(data, seed=1)
    description, arrays = model.state()
    copy = NetworkModel.from_state(model.tasks, json.loads(json.dumps(description, allow_nan=False)), arrays)
    for name, scores in model.predict(data).items():
        np.testing.assert_allclose(copy.predict(data)[name], scores, rtol=0, atol=1e-6)
    assert {name: item.to_json() for name, item in copy.relations().items()} == {
        name: item.to_json() for name, item in model.relations().items()
    }


@pytest.mark.parametrize("kind", LEARNERS.values())
@pytest.mark.parametrize(
    "data", [schools((30, 20, 25)), wide(60, missing=0.9), wide(9)], ids=["long", "sparse", "tiny"]
)
def test_long_sparse_and_tiny_tables_are_learned(kind, data):
    for scores in kind(**QUICK).fit(data, seed=0).predict(data).values():
        assert np.isfinite(scores).all()


def test_images_are_learned_by_every_one_of_them():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, size=(40, 1, 8, 8)).astype(np.uint8)
    tasks = (Regression("mean"), Multiclass("corner", classes=("a", "b", "c")))
    columns = np.stack([images.mean(axis=(1, 2, 3)), images[:, 0, 0, 0] // 86], axis=1).astype(float)
    data = TaskData.from_columns(tasks, {"image": images}, columns)
    for name, kind in LEARNERS.items():
        options = {"wide": 2} if name == "adaptive-sharing" else {}
        model = kind(**{**QUICK, "widths": "6", "max_epochs": 2}, channels="3-4", **options).fit(data, seed=0)
        assert np.isfinite(model.predict(data)["corner"]).all(), name


# -- levels ----------------------------------------------------------------------------------------


def curved(n=400):
    """Three tasks: a line, a line with noise, and a curve that no line explains."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3))
    columns = np.stack([x[:, 0] * x[:, 1], x[:, 0] + 0.01 * rng.normal(size=n), x[:, 1] + rng.normal(size=n)], axis=1)
    return TaskData.from_columns([Regression(name) for name in ("curve", "line", "noise")], {"numeric": x}, columns)


def test_tasks_that_a_line_explains_sit_lowest():
    explained = linearly_explained(curved())
    assert explained["line"] > 0.99 > explained["noise"] > 0.3 > 0.05 > explained["curve"]
    assert task_levels("auto", curved(), 3) == {"line": 1, "noise": 2, "curve": 3}
    assert task_levels("order", curved(), 3) == {"curve": 1, "line": 2, "noise": 3}


def test_codes_of_categories_and_classes_take_part_in_the_linear_fit():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, size=(200, 1))
    tasks = (Multiclass("colour", classes=("a", "b", "c", "d")), Regression("noise"))
    columns = np.stack([(codes[:, 0] * 3 + 1) % 4, rng.normal(size=200)], axis=1).astype(float)
    data = TaskData.from_columns(
        tasks, {"numeric": rng.normal(size=(200, 1)), "categorical": codes}, columns, cardinalities=(4,)
    )
    explained = linearly_explained(data)
    assert explained["colour"] == pytest.approx(1.0)
    assert explained["noise"] < 0.1


def test_pure_noise_is_not_explained_by_many_columns_and_few_or_constant_labels_not_at_all():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 40))
    columns = np.stack([rng.normal(size=60), np.ones(60), np.where(np.arange(60) < 30, x[:, 0], np.nan)], axis=1)
    data = TaskData.from_columns([Regression(name) for name in "abc"], {"numeric": x}, columns)
    explained = linearly_explained(data)
    assert explained["a"] < 0.5
    assert explained["b"] == 0.0
    assert explained["c"] == 0.0  # fewer labels than columns


@pytest.mark.parametrize(("tasks", "levels"), [(1, [3]), (2, [2, 3]), (3, [1, 2, 3]), (7, [1, 1, 2, 2, 3, 3, 3])])
def test_tasks_are_spread_evenly_and_the_last_level_is_used(tasks, levels):
    data = schools((12,) * tasks)
    assert sorted(task_levels("order", data, 3).values()) == levels
    assert set(task_levels("order", data, 0).values()) == {0}


def test_levels_can_be_given():
    assert parse_levels("a b=1; c = 2") == {"a b": 1, "c": 2}
    assert parse_levels("auto") is None
    model = LowSupervisionLearner(**QUICK, levels="curve=2; line=1; noise=1").fit(curved())
    assert model.network.levels == (2, 1, 1)


@pytest.mark.parametrize("kind", [LowSupervisionLearner, JointManyTaskLearner])
def test_levels_that_cannot_be_are_refused(kind):
    with pytest.raises(InputError, match=r'levels is "low"; give "auto", "order" or'):
        kind(levels="low")
    with pytest.raises(InputError, match='levels has no entry for the task "noise"'):
        kind(**QUICK, levels="curve=1; line=1").fit(curved())
    with pytest.raises(InputError, match=r"the stages are 0 … 2"):
        kind(**QUICK, levels="curve=1; line=1; noise=3").fit(curved())


# -- contained special cases -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "learner",
    [
        AdaptiveSharingLearner(**QUICK, alpha=0.0),
        LowSupervisionLearner(**QUICK, levels="height=2; ill=2; health=2; colour=2"),
        LearnedBranchingLearner(**QUICK, n_branches=1),
    ],
    ids=lambda learner: type(learner).__name__,
)
def test_settings_that_leave_one_trunk_give_the_model_of_hard_sharing(learner):
    data = wide(150, missing=0.2)
    hard = HardSharingLearner(**QUICK).fit(data, seed=3).predict(data)
    for name, scores in learner.fit(data, seed=3).predict(data).items():
        assert scores.tobytes() == hard[name].tobytes()


def test_a_wide_start_is_the_thinned_trunk_of_a_trained_shared_network():
    data, valid = wide(150), wide(50, seed=1)
    learner = AdaptiveSharingLearner(**QUICK, wide=3)
    network, description = learner._start(data, valid, Run(seed=4))
    assert description["widths"] == [8, 6]
    teacher = HardSharingLearner(**{**QUICK, "widths": "24-18"}).fit(data, valid=valid, seed=4).network
    assert isinstance(teacher, HardSharing)
    stages = {name: teacher.trunk.stages[name].copy(0) for name in teacher.trunk.names}
    wide_encoder = Encoder(stages, n_features=18, channels=teacher.trunk.channels)
    expected = BranchedEncoder(thin_encoder(wide_encoder, (8, 6)), 1).state_dict()
    for name, value in network.trunk.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_phases_share_the_epochs_unless_their_length_is_given():
    data = wide(40)
    assert AdaptiveSharingLearner(max_epochs=60)._description(data)["phase_epochs"] == 20
    assert AdaptiveSharingLearner(max_epochs=60, phase_epochs=7)._description(data)["phase_epochs"] == 7
    assert AdaptiveSharingLearner(max_epochs=1)._description(data)["phase_epochs"] == 1


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (AdaptiveSharingLearner, {"alpha": -1.0}, "alpha is -1"),
        (AdaptiveSharingLearner, {"phase_epochs": -1}, "phase_epochs is -1"),
        (AdaptiveSharingLearner, {"wide": 0}, "wide is 0"),
        (AdaptiveSharingLearner, {"balancer": "pcgrad"}, "pcgrad"),
        (JointManyTaskLearner, {"balancer": "pcgrad"}, "pcgrad"),
        (JointManyTaskLearner, {"delta": -1.0}, "delta is -1"),
        (LearnedBranchingLearner, {"n_branches": 0}, "n_branches is 0"),
        (LearnedBranchingLearner, {"widths": ""}, "at least one hidden layer"),
    ],
)
def test_bad_fields_are_refused_when_the_learner_is_made(kind, options, message):
    with pytest.raises(InputError, match=message):
        kind(**options)
