"""Kernel learners: same as their estimators, units, odd tasks, coupled levels, state, sizes they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest

from polytask import registry
from polytask.core.data import Labels, TaskData
from polytask.core.errors import InputError
from polytask.core.task import Binary, Multiclass, Ordinal, Regression
from polytask.linear import (
    GaussianProcessLearner,
    KernelModel,
    MultiTaskGaussianProcess,
    TaskKernelRidge,
    TaskKernelRidgeLearner,
)
from polytask.linear.model import Design

LEARNERS = [
    TaskKernelRidgeLearner(),
    TaskKernelRidgeLearner(task_kernel="learned"),
    TaskKernelRidgeLearner(intercepts="coupled", kernel="matern32"),
    GaussianProcessLearner(n_restarts=1),
]


def wide(seed=0, n=60, missing=0.2):
    rng = np.random.default_rng(seed)
    X, codes = rng.normal(size=(n, 2)), rng.integers(0, 3, size=(n, 1))
    signal = np.sin(2 * X[:, 0]) + (codes[:, 0] == 1)
    Y = np.column_stack([100 + 20 * (signal + 0.2 * rng.normal(size=n)), -3 * signal + 0.3 * rng.normal(size=n)])
    Y[rng.random(Y.shape) < missing] = np.nan
    return TaskData.from_columns(
        (Regression("up"), Regression("down")), {"numeric": X, "categorical": codes}, Y, cardinalities=(3,)
    )


def long(seed=0, tasks=8, each=12):
    rng = np.random.default_rng(seed)
    task = np.repeat(np.arange(tasks), each)
    X = rng.normal(size=(len(task), 2))
    y = 50 + 10 * (np.sin(2 * X[:, 0]) + 0.3 * rng.normal(size=tasks)[task] + 0.1 * rng.normal(size=len(task)))
    return TaskData.from_stacked([Regression(f"school {t}") for t in range(tasks)], {"numeric": X}, task, y)


@pytest.fixture(params=LEARNERS, ids=repr)
def learner(request):
    return request.param


def test_they_are_in_the_registry_under_their_names():
    assert registry.learner_class("task-kernel-ridge") is TaskKernelRidgeLearner
    assert registry.learner_class("gaussian-process") is GaussianProcessLearner
    assert registry.model_class("KernelModel") is KernelModel


def test_tuning_draws_fields_that_fit(learner):
    rng = np.random.default_rng(0)
    for _ in range(20):
        drawn = type(learner)(**{name: where.sample(rng) for name, where in learner.search_space().items()})
    assert np.isfinite(drawn.fit(long(tasks=3)).predict(long(tasks=3))["school 0"]).all()


def test_predictions_beat_the_constant_by_far_on_non_linear_tasks(learner):
    for data in (wide(n=160), long(each=24)):
        train, new = data.rows(np.arange(0, data.n_rows, 2)), data.rows(np.arange(1, data.n_rows, 2))
        scores = learner.fit(train).predict(new)
        ratios = []
        for task in data.tasks:
            labels = new.labels[task.name]
            ratios.append(np.square(scores[task.name][labels.rows, 0] - labels.values).mean() / labels.values.var())
        assert np.mean(ratios) < 0.5


def test_scores_are_those_of_the_estimators():
    data = wide()
    X, Y = Design.of(data).matrix(data), data.columns()
    mean, std = np.nanmean(Y, axis=0), np.nanstd(Y, axis=0)
    seen = ~np.isnan(Y).all(axis=1)
    ridge = TaskKernelRidge(0.02, mu=0.5, length_scale=2 * np.sqrt(5)).fit(X[seen], ((Y - mean) / std)[seen])
    process = MultiTaskGaussianProcess(rank=1, n_restarts=1, random_state=4).fit(X[seen], Y[seen])
    for found, expected in (
        (TaskKernelRidgeLearner(0.02, mu=0.5, length_scale=2.0).fit(data), ridge.predict(X) * std + mean),
        (GaussianProcessLearner(rank=1, n_restarts=1).fit(data, seed=4), process.predict(X)),
    ):
        scores = found.predict(data)
        np.testing.assert_allclose(np.column_stack([scores["up"], scores["down"]]), expected, rtol=1e-3)


def test_state_is_plain_and_gives_the_same_model_back(learner):
    data = wide()
    model = learner.fit(data)
    description, arrays = model.state()
    again = KernelModel.from_state(data.tasks, json.loads(json.dumps(description)), arrays)
    for name, scores in model.predict(data).items():
        np.testing.assert_array_equal(again.predict(data)[name], scores)
    assert {"task covariance", "task correlation", "task tree"} <= set(again.relations())
    assert again.relations()["task covariance"].rows == ("up", "down")


def test_damaged_state_is_refused():
    data = wide()
    description, arrays = TaskKernelRidgeLearner().fit(data).state()
    with pytest.raises(InputError, match="do not fit"):
        KernelModel.from_state(data.tasks, description, arrays | {"rows": arrays["rows"][:-1]})
    with pytest.raises(InputError, match='kernel "cubic"'):
        KernelModel.from_state(data.tasks, description | {"kernel": "cubic"}, arrays)


def test_opposed_targets_are_reported_as_opposed():
    for learner in (TaskKernelRidgeLearner(task_kernel="learned"), GaussianProcessLearner(n_restarts=1)):
        assert learner.fit(wide()).relations()["task correlation"].values[0, 1] < -0.8


def test_prediction_works_in_pieces_and_on_no_rows(learner, monkeypatch):
    data = wide()
    model = learner.fit(data)
    whole = model.predict(data.without_labels())
    monkeypatch.setattr("polytask.linear.kernel_learners._CHUNK", 300)
    for name, scores in model.predict(data).items():
        np.testing.assert_allclose(scores, whole[name])
    assert all(len(scores) == 0 for scores in model.predict(data.rows(np.zeros(0, dtype=np.int64))).values())


def test_odd_tasks_predict_their_constant_and_do_not_disturb_the_others(learner):
    data = wide()
    odd = dict(data.labels) | {
        "constant": Labels(np.arange(9), np.full(9, 0.1)),
        "single": Labels(np.array([7]), np.array([42.0])),
        "empty": Labels(np.zeros(0, dtype=np.int64), np.zeros(0)),
    }
    tasks = (*data.tasks, *(Regression(name) for name in ("constant", "single", "empty")))
    model = learner.fit(TaskData(tasks, data.inputs, odd, data.features, data.cardinalities))
    scores, alone = model.predict(data), learner.fit(data).predict(data)
    for name in data.names:
        np.testing.assert_allclose(scores[name], alone[name], atol=1e-9)
    for name, value in (("constant", 0.1), ("single", 42.0), ("empty", 0.0)):
        np.testing.assert_allclose(scores[name], value)
    bare = learner.fit(data.without_labels())
    assert all(np.isfinite(part).all() for part in bare.predict(data).values())


def test_with_coupled_levels_a_task_without_labels_gets_what_the_others_share():
    data = long()
    labels = dict(data.labels)
    truth = labels["school 3"]
    labels["school 3"] = Labels(truth.rows[:0], truth.values[:0])
    model = TaskKernelRidgeLearner(1e-3, mu=0.05, intercepts="coupled").fit(TaskData(data.tasks, data.inputs, labels))
    found = model.predict(data)["school 3"][truth.rows, 0]
    assert np.corrcoef(found, truth.values)[0, 1] > 0.8
    # the same as giving the task no weight in the estimator: a label far from any other row changes nothing here
    scores = np.column_stack(list(model.predict(data).values()))
    others = np.delete(scores, 3, axis=1)
    assert np.abs(scores[:, 3] - others.mean(axis=1)).max() < 0.2 * scores.std()


def test_kinds_without_squared_errors_are_refused_with_the_reason():
    for learner in (TaskKernelRidgeLearner(), GaussianProcessLearner()):
        assert learner.refuses(Regression("y")) is None
        for task in (
            Binary("b", (), ("no", "yes")),
            Multiclass("m", (), ("a", "b", "c")),
            Ordinal("o", (), ("a", "b", "c")),
        ):
            assert "no probabilities" in learner.refuses(task)
    data = TaskData.from_columns(
        (Binary("b", (), ("no", "yes")),), {"numeric": np.eye(4)}, np.array([[0.0], [1.0], [0.0], [1.0]])
    )
    with pytest.raises(InputError, match='task "b" cannot be learned'):
        GaussianProcessLearner().fit(data)


def test_too_many_labels_are_refused_and_counted_by_rows_where_every_row_has_every_label(learner, monkeypatch):
    monkeypatch.setattr(type(learner), "largest", 70)
    full = wide(missing=0.0)  # 60 rows, 120 labels
    learner.fit(full)
    with pytest.raises(InputError, match=r"96 labels, but .* takes at most 70: its cost grows with their cube"):
        learner.fit(long())
    monkeypatch.setattr(type(learner), "largest", 50)
    with pytest.raises(InputError, match="60 rows with every label"):
        learner.fit(full)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (TaskKernelRidgeLearner, {"alpha": 0.0}, "alpha must be a positive number"),
        (TaskKernelRidgeLearner, {"length_scale": -1.0}, "length_scale must be a positive number"),
        (TaskKernelRidgeLearner, {"task_kernel": "graph"}, "task_kernel must be one of mean, learned"),
        (TaskKernelRidgeLearner, {"intercepts": "free"}, "intercepts must be one of own, coupled"),
        (GaussianProcessLearner, {"rank": -1}, "rank must be a whole number"),
        (GaussianProcessLearner, {"n_restarts": 0}, "n_restarts must be a whole number"),
        (GaussianProcessLearner, {"kernel": "rbs"}, "kernel must be one of"),
    ],
)
def test_wrong_fields_are_named(kind, settings, message):
    with pytest.raises(InputError, match=message):
        kind(**settings)
