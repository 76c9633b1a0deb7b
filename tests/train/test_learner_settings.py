"""Every setting of training, events and processes, on their way from a user to the loop."""

from dataclasses import fields

import numpy as np
import pytest
from tests.train.examples import wide
from tests.train.test_record import Kept

import polytask.train.network_learner as module
from polytask.core.errors import InputError
from polytask.jobs.comparing import fixed_parameters
from polytask.registry import learner_class, learner_names
from polytask.settings import load_settings
from polytask.train import CrossStitchLearner, HardSharingLearner, TrainSettings
from polytask.train.parallel import Processes

NETWORKS = sorted(name for name, (where, _) in learner_names().items() if where.startswith("polytask.train."))
OTHERS = {
    "learning_rate": 1e-2,
    "weight_decay": 0.0,
    "batch_size": 32,
    "max_epochs": 3,
    "patience": 2,
    "clip": 0.5,
    "schedule": "cosine",
    "least_steps": 4,
    "device": "cpu",
    "sampling": "balanced",
    "groups": "ill",
    "temperature": 3.0,
    "missing": "unbiased",
    "accumulate": 2,
    "precision": "bfloat16",
    "warm_up": 1,
    "average": 0.9,
    "on_nonfinite": "stop",
}
"""Another value than the default for every setting that a learner has; own_rows goes with other samplings."""
KEPT_BACK = {"checkpoint_seconds"}


@pytest.fixture
def fits(monkeypatch):
    """The keyword arguments of every fit."""
    seen, fit = [], module.fit

    def watched(*args, **options):
        seen.append(options)
        return fit(*args, **options)

    monkeypatch.setattr(module, "fit", watched)
    return seen


def test_another_value_of_every_setting_is_tried_here():
    assert set(OTHERS) | {"own_rows"} | KEPT_BACK == {field.name for field in fields(TrainSettings)}
    assert all(value != getattr(TrainSettings(), name) for name, value in OTHERS.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_learner_has_every_setting_with_its_default(name):
    learner = learner_class(name)()
    for field in fields(TrainSettings):
        if field.name not in KEPT_BACK:
            assert getattr(learner, field.name) == field.default, field.name


def test_every_setting_reaches_the_loop(fits):
    data = wide(80)
    HardSharingLearner(widths="8", **OTHERS).fit(data)
    HardSharingLearner(widths="8", max_epochs=1, device="cpu", own_rows=False).fit(data)
    assert fits[0]["settings"] == TrainSettings(**OTHERS)
    assert fits[1]["settings"].own_rows is False


def test_events_and_processes_reach_the_loop_and_networks_trained_first_train_together_too(fits):
    kept, alone = Kept(), Processes()
    learner = CrossStitchLearner(widths="8", max_epochs=2, device="cpu", start="single-task")
    learner.fit(wide(80), record=kept, processes=alone)
    assert [options["processes"] for options in fits] == [alone, alone]
    assert [event["event"] for event in kept.events] == ["start", "epoch", "epoch", "end"]
    assert "train" in kept.events[1]


def written(tmp_path, line):
    path = tmp_path / "c.yaml"
    path.write_text(f"data: houses.csv\ntargets: [price]\nmethods:\n  hard-sharing:\n    {line}\n")
    return load_settings(path)


@pytest.mark.parametrize("name", OTHERS)
def test_every_setting_can_be_written_into_the_settings_file(name, tmp_path):
    more = {"sampling": "groups: ill", "groups": "sampling: balanced"}.get(name, "dropout: 0.1")
    settings = written(tmp_path, f"{name}: {OTHERS[name]}\n    {more}")
    assert fixed_parameters(settings, "hard-sharing")[name] == OTHERS[name]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("sampling: balanced", 'sampling="balanced" needs groups'),
        ("sampling: proportinal", 'Did you mean "proportional"'),
        ("sampling: 3", 'unknown sampling "3"'),
        ("temperature: 0", "temperature must be a positive number, got 0"),
        ("temperature: hot", "'hot' is not a number"),
        ("missing: unbaised", 'Did you mean "unbiased"'),
        ("accumulate: 0", "accumulate must be at least 1"),
        ("accumulate: 1.5", "1.5 should be like the default, 1"),
        ("precision: half", 'unknown precision "half"'),
        ("warm_up: 200", "warm_up must be 0 or more epochs, fewer than max_epochs"),
        ("average: 1", "average must lie between 0 and 1"),
        ("average: high", "average must lie between 0 and 1 or be None, got 'high'"),
        ("clip: -1", "clip must be positive"),
        ("own_rows: maybe", "own_rows must be True, False or None, got 'maybe'"),
        ("on_nonfinite: halt", 'unknown on_nonfinite "halt"'),
        ("least_steps: 0", "least_steps must be at least 1"),
    ],
)
def test_bad_values_are_answered_with_their_place_before_anything_is_read(line, told, tmp_path):
    with pytest.raises(InputError, match=r"c\.yaml:\d+ methods\.hard-sharing") as caught:
        fixed_parameters(written(tmp_path, line), "hard-sharing")
    assert told in str(caught.value)


def test_values_of_a_wrong_type_are_refused_when_settings_are_made():
    for name, value in (("accumulate", 1.5), ("batch_size", True), ("warm_up", "2"), ("learning_rate", "fast")):
        with pytest.raises(InputError, match=name):
            TrainSettings(**{name: value})
    assert TrainSettings(batch_size=np.int64(16)).batch_size == 16


def test_a_network_that_takes_its_levels_in_turn_refuses_other_samplings():
    with pytest.raises(InputError, match='sampling is "uniform"; this network takes its levels in turn'):
        learner_class("joint-many-task")(sampling="uniform")
