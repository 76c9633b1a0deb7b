import json
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
from tests.train.examples import schools, wide

from polytask.core.data import Labels, TaskData
from polytask.core.errors import InputError, ModelRefusedError
from polytask.core.learner import task_losses
from polytask.registry import learner_class, model_class
from polytask.train import HardSharingLearner, NetworkModel, SingleTaskNetworkLearner, SoftSharingLearner

LEARNERS = [SingleTaskNetworkLearner, HardSharingLearner, SoftSharingLearner]
QUICK = {"max_epochs": 8, "widths": "8", "device": "cpu"}


@pytest.fixture(scope="module", params=LEARNERS, ids=lambda kind: kind.__name__)
def learned(request):
    data = wide(300, missing=0.2, categorical=True)
    return request.param(**QUICK).fit(data, seed=1), data


def test_names_of_the_command_line():
    assert learner_class("single-task-network") is SingleTaskNetworkLearner
    assert learner_class("hard-sharing") is HardSharingLearner
    assert learner_class("soft-sharing") is SoftSharingLearner
    assert model_class("NetworkModel") is NetworkModel


@pytest.mark.parametrize("kind", LEARNERS)
def test_the_search_space_names_fields_and_every_draw_is_accepted(kind):
    assert is_dataclass(kind)
    space = kind.search_space()
    assert set(space) <= {field.name for field in fields(kind)}
    rng = np.random.default_rng(0)
    for _ in range(20):
        drawn = {name: distribution.sample(rng) for name, distribution in space.items()}
        assert replace(kind(), **drawn) == kind(**drawn)


def test_predictions_beat_the_best_constant_in_target_units(learned):
    model, data = learned
    test = wide(300, missing=0.2, categorical=True)
    losses = task_losses(test, model.predict(data.without_labels()))
    for task in data.tasks:
        values = data.labels[task.name].values
        scores = np.tile(task.constant_scores(values), (len(values), 1))
        assert losses[task.name] < 0.95 * task.losses(scores, values).mean()


def test_predictions_are_float64_for_every_row_and_do_not_read_labels(learned):
    model, data = learned
    scores = model.predict(data)
    blind = model.predict(data.without_labels())
    for task in data.tasks:
        assert scores[task.name].dtype == np.float64
        assert scores[task.name].shape == (data.n_rows, task.n_outputs)
        np.testing.assert_array_equal(scores[task.name], blind[task.name])


def test_a_model_built_from_its_state_predicts_the_same(learned):
    model, data = learned
    description, arrays = model.state()
    copy = NetworkModel.from_state(model.tasks, json.loads(json.dumps(description, allow_nan=False)), arrays)
    for name, scores in model.predict(data).items():
        np.testing.assert_allclose(copy.predict(data)[name], scores, rtol=1e-6, atol=1e-9)
    assert copy.history() == model.history()
    assert {name: item.to_json() for name, item in copy.relations().items()} == {
        name: item.to_json() for name, item in model.relations().items()
    }


def test_a_state_that_does_not_fit_is_refused(learned):
    model, _ = learned
    description, arrays = model.state()
    with pytest.raises(ModelRefusedError, match=r"unknown network.*Available"):
        NetworkModel.from_state(
            model.tasks, {**description, "network": {**description["network"], "network": "x"}}, arrays
        )
    wrong = {**arrays, "network.heads.linear.stack.bias": np.zeros(3)}
    with pytest.raises(ModelRefusedError, match="does not describe a network"):
        NetworkModel.from_state(model.tasks, description, wrong)
    with pytest.raises(ModelRefusedError, match="does not describe a network"):
        NetworkModel.from_state(model.tasks, description, {})


def test_history_is_plain_and_the_relations_are_correlations_of_the_tasks(learned):
    model, data = learned
    history = model.history()
    json.dumps(history, allow_nan=False)
    assert set(history["train"]) == set(history["valid"]) == set(data.names)
    assert all(len(curve) == len(history["epoch"]) for curve in history["valid"].values())
    assert 1 <= history["best_epoch"] <= len(history["epoch"])
    alike = model.relations()["predictions"]
    assert alike.rows == ("height", "ill", "health")  # a multiclass prediction is not one number
    np.testing.assert_allclose(np.diag(alike.values), 1.0)
    np.testing.assert_allclose(alike.values, alike.values.T)


def test_data_encoded_otherwise_are_refused(learned):
    model, data = learned
    with pytest.raises(InputError, match="trained on 5 numeric columns"):
        model.predict(replace(data, inputs={**data.inputs, "numeric": data.inputs["numeric"][:, :3]}))
    with pytest.raises(InputError, match="the encoder of training"):
        model.predict(replace(data, cardinalities=(3, 6)))


@pytest.mark.parametrize("kind", LEARNERS)
def test_same_seed_same_predictions_bit_for_bit(kind):
    data = wide(150, missing=0.3)
    first, again, other = (kind(**QUICK, dropout=0.2).fit(data, seed=seed).predict(data) for seed in (4, 4, 5))
    for name in data.names:
        assert first[name].tobytes() == again[name].tobytes()
        assert first[name].tobytes() != other[name].tobytes()


@pytest.mark.parametrize("kind", LEARNERS)
def test_a_task_without_training_labels_is_predicted_by_its_constant(kind):
    data = wide(120)
    none = Labels(np.zeros(0, dtype=np.int64), np.zeros(0))
    thinner = TaskData(data.tasks, data.inputs, {**data.labels, "health": none, "height": none})
    model = kind(**QUICK).fit(thinner, valid=data, seed=0)
    scores = model.predict(data)
    assert (scores["height"] == 0).all()
    np.testing.assert_allclose(scores["health"], np.tile(data.task("health").constant_scores(np.zeros(0)), (120, 1)))
    assert np.ptp(scores["ill"]) > 0
    assert "health" not in model.history()["train"]


@pytest.mark.parametrize("kind", LEARNERS)
@pytest.mark.parametrize("missing", [0.5, 0.99])
def test_few_labels_give_finite_predictions(kind, missing):
    data = wide(200, missing=missing)
    for scores in kind(**QUICK).fit(data, seed=0).predict(data).values():
        assert np.isfinite(scores).all()


@pytest.mark.parametrize("kind", LEARNERS)
def test_long_form_predicts_every_task_for_every_row(kind):
    data = schools((40, 25, 60))
    model = kind(**{**QUICK, "max_epochs": 30, "learning_rate": 0.02}).fit(data, seed=0)
    scores = model.predict(data)
    assert all(part.shape == (125, 1) for part in scores.values())
    losses = task_losses(data, scores)
    assert all(losses[name] < 0.7 * data.labels[name].values.var() for name in data.names)


@pytest.mark.parametrize("kind", LEARNERS)
@pytest.mark.parametrize("rows", [1, 2, 9, 12])
def test_tiny_tables_are_learned_without_a_crash(kind, rows):
    data = wide(300).rows(np.arange(rows))
    for scores in kind(**QUICK).fit(data, seed=0).predict(data).values():
        assert np.isfinite(scores).all()


@pytest.mark.parametrize("kind", LEARNERS)
def test_constant_targets_and_a_single_class_are_predicted_as_such(kind):
    data = wide(100, tasks=2)
    rows = np.arange(100)
    flat = TaskData(
        data.tasks,
        data.inputs,
        {"height": Labels(rows, np.full(100, 7.0)), "ill": Labels(rows, np.ones(100))},
    )
    scores = kind(**QUICK).fit(flat, seed=0).predict(flat)
    np.testing.assert_allclose(scores["height"], 7.0, atol=0.5)
    assert (scores["ill"] > 1).all()


def test_without_validation_data_a_fifth_of_the_rows_is_held_out():
    data = wide(100)
    alone = HardSharingLearner(**QUICK).fit(data, seed=2)
    train, valid = data.split((0.8, 0.2), seed=2)
    given = HardSharingLearner(**QUICK).fit(train, valid=valid, seed=2)
    np.testing.assert_array_equal(alone.predict(data)["height"], given.predict(data)["height"])


def test_a_linear_network_is_what_no_hidden_layer_means():
    data = wide(200, tasks=1)
    model = SingleTaskNetworkLearner(widths="", device="cpu", max_epochs=5).fit(data)
    x = data.inputs["numeric"]
    middle = replace(data, inputs={"numeric": (x + x[::-1]) / 2})
    scores = model.predict(data)["height"]
    np.testing.assert_allclose(model.predict(middle)["height"], (scores + scores[::-1]) / 2, rtol=1e-5)


def test_the_uncertainty_balancer_trains_another_model():
    data = wide(150)
    equal, uncertain = (
        HardSharingLearner(**QUICK, balancer=name).fit(data).predict(data)["ill"] for name in ("equal", "uncertainty")
    )
    assert not np.allclose(equal, uncertain)


def test_strong_soft_sharing_makes_encoders_move_together():
    data = wide(200, tasks=3)
    alike = {}
    for strength in (0.0, 100.0):
        model = SoftSharingLearner(**QUICK, strength=strength).fit(data)
        values = model.relations()["encoder_changes"].values
        alike[strength] = values[np.triu_indices(3, 1)].min()
    assert alike[100.0] > 0.9 > alike[0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"balancer": "uncertanty"}, 'Did you mean "uncertainty"'),
        ({"widths": "64x64"}, 'widths is "64x64"'),
        ({"learning_rate": 0.0}, "learning_rate must be a positive"),
    ],
)
def test_bad_fields_are_refused_when_the_learner_is_made(options, message):
    with pytest.raises(InputError, match=message):
        HardSharingLearner(**options)


def test_a_negative_strength_is_refused():
    with pytest.raises(InputError, match="strength is -1"):
        SoftSharingLearner(strength=-1.0)


@pytest.mark.parametrize("kind", LEARNERS)
def test_no_learner_refuses_a_kind_of_task(kind):
    assert all(kind().refuses(task) is None for task in wide(10).tasks)
