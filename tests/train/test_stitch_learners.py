"""Learners of networks that exchange features, and of the trace norm."""

import numpy as np
import pytest
import torch
from tests.train.examples import schools, wide

from polytask.balance import Equal
from polytask.core.errors import InputError
from polytask.deep import CrossStitch, Sluice, mlp
from polytask.train import CrossStitchLearner, SluiceLearner, TraceNormSharingLearner, TrainSettings, fit
from polytask.train.loop import _Loop

QUICK = {"max_epochs": 3, "widths": "8", "device": "cpu"}
TOWERS = [CrossStitchLearner, SluiceLearner]


def settings(**changes):
    return TrainSettings(**{"max_epochs": 1, "batch_size": 64, "least_steps": 1, "device": "cpu", **changes})


def networks(data, **options):
    return [kind(data.tasks, mlp(5, (8, 8)), **options) for kind in (CrossStitch, Sluice)]


def test_mixing_weights_learn_at_their_rate_and_do_not_decay():
    data = wide(40)
    for network in networks(data, mixing_rate=30.0):
        loop = _Loop(network, Equal(4), data, None, settings(weight_decay=0.1), 0, torch.device("cpu"), None)
        mixing = {id(p) for p in network.mixing_parameters()}
        (group,) = [g for g in loop.optimiser.param_groups if {id(p) for p in g["params"]} & mixing]
        assert {id(p) for p in group["params"]} == mixing
        assert (group["scale"], group["weight_decay"]) == (30.0, 0.0)
        loop.advance()
        assert group["lr"] == 30.0 * settings().learning_rate


@pytest.mark.parametrize("number", [0, 1])
def test_the_first_step_of_a_mixing_weight_is_its_rate_times_the_learning_rate(number):
    data = wide(40)
    network = networks(data, mixing_rate=30.0)[number]
    start = [weight.detach().clone() for weight in network.mixing_parameters()]
    fit(network, Equal(4), data, settings=settings(learning_rate=1e-4, weight_decay=0.9, clip=None))
    for before, after in zip(start, network.mixing_parameters(), strict=True):
        steps = (after - before).abs()
        torch.testing.assert_close(steps, torch.full_like(steps, 30.0 * 1e-4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("learner", TOWERS)
@pytest.mark.parametrize("data", [wide(80, missing=0.3), schools()], ids=["wide", "long"])
def test_a_start_from_trained_networks_is_better_at_first_and_is_reproducible(learner, data, tmp_path):
    options = {**QUICK, "max_epochs": 6, "own_weight": 0.9, "learning_rate": 1e-2}
    trained = learner(start="single-task", **options).fit(data, seed=1)
    together = learner(**options).fit(data, seed=1)
    first = [np.mean([curve[0] for curve in model.history()["train"].values()]) for model in (trained, together)]
    assert first[0] < first[1]
    again = learner(start="single-task", **options).fit(data, seed=1, checkpoint=tmp_path)
    for name, scores in trained.predict(data).items():
        assert again.predict(data)[name].tobytes() == scores.tobytes()


def test_settings_reach_the_network_and_its_relations_are_told():
    data = wide(60)
    stitch = CrossStitchLearner(granularity="channel", own_weight=0.7, mixing_rate=3.0, **QUICK).fit(data)
    assert (stitch.network.granularity, stitch.network.mixing_rate) == ("channel", 3.0)
    assert stitch.network.mixing["layer1"].shape == (4, 4, 8)
    sluice = SluiceLearner(subspaces=4, orthogonality=0.2, **QUICK).fit(data)
    assert (sluice.network.subspaces, sluice.network.orthogonality) == (4, 0.2)
    assert set(sluice.relations()) == {"mixing_layer1", "layers", "predictions"}
    trace = TraceNormSharingLearner(form="tt", strength=0.2, **QUICK).fit(data)
    assert (trace.network.form, trace.network.strength) == ("tt", 0.2)
    assert set(trace.relations()) == {"encoder_changes", "factors", "predictions"}


@pytest.mark.parametrize(
    ("learner", "options", "words"),
    [
        (CrossStitchLearner, {"granularity": "unit"}, "granularity"),
        (CrossStitchLearner, {"own_weight": 2.0}, "own_weight is 2.0"),
        (CrossStitchLearner, {"mixing_rate": -1.0}, "mixing_rate is -1.0"),
        (CrossStitchLearner, {"start": "single"}, 'Did you mean "single-task"'),
        (CrossStitchLearner, {"balancer": "nothing"}, "unknown balancer"),
        (SluiceLearner, {"subspaces": 3}, "subspaces is 3"),
        (SluiceLearner, {"orthogonality": -1.0}, "orthogonality is -1.0"),
        (TraceNormSharingLearner, {"strength": -1.0}, "strength is -1.0"),
        (TraceNormSharingLearner, {"form": "tuck"}, 'Did you mean "tucker"'),
        (TraceNormSharingLearner, {"balancer": "pcgrad"}, "shares none"),
    ],
)
def test_impossible_settings_are_refused(learner, options, words):
    with pytest.raises(InputError, match=words):
        learner(**options)
