"""Every exported learner keeps the contract that ``compare`` runs on: one table, the same tests for all."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from polytask import Binary, Labels, Multiclass, Ordinal, Regression, TaskData
from polytask.core.learner import Model, task_losses
from polytask.registry import learner_class, learner_names, model_class

LEARNERS = sorted(learner_names())
TASKS = (
    Regression("height"),
    Regression("weight"),
    Binary("smoker", classes=("no", "yes")),
    Ordinal("health", classes=("poor", "fair", "good")),
    Multiclass("region", classes=("north", "south", "west")),
)


def mixed_data(n: int = 160, seed: int = 0) -> TaskData:
    """Encoded rows with five tasks of every kind; labels missing at random."""
    rng = np.random.default_rng(seed)
    numeric = rng.normal(size=(n, 4))
    codes = rng.integers(0, 4, size=(n, 2))
    signal = numeric @ np.array([1.0, -1.0, 0.5, 0.0]) + 0.5 * (codes[:, 0] == 1)
    targets = np.column_stack(
        [
            170 + 8 * signal + rng.normal(size=n),
            70 + 5 * signal + rng.normal(size=n),
            signal + rng.logistic(size=n) > 0,
            np.digitize(signal + rng.normal(size=n), [-0.7, 0.7]),
            np.argmax(np.column_stack([signal, -signal, 0 * signal]) + rng.gumbel(size=(n, 3)), axis=1),
        ]
    ).astype(float)
    targets[rng.random(targets.shape) < 0.2] = np.nan
    return TaskData.from_columns(
        TASKS,
        {"numeric": numeric, "categorical": codes},
        targets,
        features={"numeric": ("a", "b", "c", "d"), "categorical": ("colour", "shape")},
        cardinalities=(4, 4),
    )


def fast(name: str):
    """The learner with its defaults, apart from a short training for networks."""
    learner = learner_class(name)
    fields = {field.name for field in dataclasses.fields(learner)}
    return learner(**({"max_epochs": 15} if "max_epochs" in fields else {}))


def learnable(name: str, data: TaskData) -> TaskData:
    learner = fast(name)
    return data.only([task.name for task in data.tasks if learner.refuses(task) is None])


@pytest.fixture(scope="module")
def parts():
    return mixed_data().split((0.6, 0.2, 0.2), seed=1)


@pytest.fixture(scope="module", params=LEARNERS)
def fitted(request, parts):
    train, valid, test = (learnable(request.param, part) for part in parts)
    return request.param, fast(request.param).fit(train, valid=valid, seed=3), train, valid, test


def test_a_refusal_is_a_reason_in_words(parts):
    for name in LEARNERS:
        reasons = [fast(name).refuses(task) for task in TASKS]
        assert any(reason is None for reason in reasons), name
        assert all(reason is None or len(reason) > 10 for reason in reasons), name


def test_it_predicts_finite_scores_of_the_agreed_shape_for_every_row(fitted):
    name, model, _, _, test = fitted
    assert isinstance(model, Model)
    scores = model.predict(test.without_labels())
    assert list(scores) == list(test.names)
    for task in test.tasks:
        assert scores[task.name].shape == (test.n_rows, task.n_outputs), name
        assert scores[task.name].dtype == np.float64
        assert np.isfinite(scores[task.name]).all()


def test_it_learns_more_than_a_constant(fitted):
    name, model, train, _, _ = fitted
    scores = model.predict(train)
    constant = {
        task.name: np.tile(task.constant_scores(train.labels[task.name].values), (train.n_rows, 1))
        for task in train.tasks
    }
    learnt, trivial = task_losses(train, scores), task_losses(train, constant)
    ratios = [learnt[task] / trivial[task] for task in learnt]
    assert np.mean(ratios) < 0.95, (name, ratios)


def test_its_state_is_json_and_arrays_and_builds_the_same_model(fitted):
    name, model, _, _, test = fitted
    description, arrays = model.state()
    again = model_class(type(model).__name__).from_state(model.tasks, json.loads(json.dumps(description)), arrays)
    for task, scores in model.predict(test).items():
        np.testing.assert_allclose(again.predict(test)[task], scores, rtol=0, atol=1e-6, err_msg=name)


def test_same_seed_same_bytes(fitted):
    name, model, train, valid, test = fitted
    twin = fast(name).fit(train, valid=valid, seed=3)
    for task, scores in model.predict(test).items():
        assert twin.predict(test)[task].tobytes() == scores.tobytes(), name


def test_a_task_without_a_single_label_does_no_harm(fitted):
    name, _, train, valid, test = fitted
    first = train.names[0]
    empty = Labels(np.zeros(0, dtype=np.int64), np.zeros(0))
    bare = dataclasses.replace(train, labels={**train.labels, first: empty})
    model = fast(name).fit(bare, valid=valid, seed=3)
    for scores in model.predict(test).values():
        assert np.isfinite(scores).all(), name


def test_a_task_with_one_class_or_a_constant_target_does_no_harm(fitted):
    name, _, train, valid, test = fitted
    labels = {task: Labels(old.rows, np.full(len(old), old.values[0])) for task, old in train.labels.items()}
    model = fast(name).fit(dataclasses.replace(train, labels=labels), valid=valid, seed=3)
    for task in test.tasks:
        scores = model.predict(test)[task.name]
        assert np.isfinite(scores).all(), name
        if task.kind == "regression":
            np.testing.assert_allclose(scores, labels[task.name].values[0], atol=0.5, err_msg=name)


def test_one_task_alone_can_be_learnt(fitted):
    name, _, train, valid, test = fitted
    first = [train.names[0]]
    model = fast(name).fit(train.only(first), valid=valid.only(first), seed=3)
    assert list(model.predict(test.only(first))) == first


def test_its_relations_and_history_are_plain_and_finite(fitted):
    name, model, train, _, _ = fitted
    for relation in model.relations().values():
        assert np.isfinite(relation.values).all(), name
    history = model.history()
    json.dumps(history, allow_nan=False)
    if history:
        assert set(history) >= {"epoch", "train", "valid"}
        for side in ("train", "valid"):
            assert set(history[side]) <= set(train.names)
            assert all(len(curve) == len(history["epoch"]) for curve in history[side].values()), name
