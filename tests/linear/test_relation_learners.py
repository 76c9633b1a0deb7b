"""Learners of task relationships: same as their estimators, what they have learned, odd tasks, units."""

from __future__ import annotations

import json

import numpy as np
import pytest

from polytask.core.data import TaskData
from polytask.core.errors import InputError
from polytask.core.task import Binary, Multiclass, Regression
from polytask.linear import (
    AlternatingStructureLearner,
    ClusteredTasksLearner,
    GroupingOverlapLearner,
    LinearModel,
    RobustMultiTaskLearner,
    TaskCovariance,
    TaskCovarianceLearner,
    TraceNorm,
    TraceNormLearner,
)

LEARNERS = [
    AlternatingStructureLearner,
    ClusteredTasksLearner,
    GroupingOverlapLearner,
    RobustMultiTaskLearner,
    TaskCovarianceLearner,
    TraceNormLearner,
]


def wide(seed=0, n=150, missing=0.2):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 5))
    signal = X @ rng.normal(size=5)
    Y = np.column_stack([100 + 20 * (signal + rng.normal(size=n)), -3 * signal + rng.normal(size=n), signal > 0.3])
    Y = Y.astype(float)
    Y[rng.random(Y.shape) < missing] = np.nan
    tasks = (Regression("up"), Regression("down"), Binary("yes", (), ("0", "1")))
    return TaskData.from_columns(tasks, {"numeric": X}, Y)


def long(seed=0, tasks=10, each=14):
    rng = np.random.default_rng(seed)
    task = np.repeat(np.arange(tasks), each)
    X = rng.normal(size=(len(task), 3))
    centre = np.array([[2.0, 0.0, 0.0], [0.0, -2.0, 1.0]])[np.arange(tasks) % 2]
    level = 3.0 * rng.normal(size=tasks)
    y = 50 + 10 * (np.einsum("nd,nd->n", X, centre[task]) + level[task] + 0.3 * rng.normal(size=len(task)))
    return TaskData.from_stacked([Regression(f"school {t}") for t in range(tasks)], {"numeric": X}, task, y)


@pytest.fixture(params=LEARNERS, ids=lambda kind: kind.__name__)
def learner(request):
    return request.param


@pytest.mark.parametrize("intercepts", ["own", "coupled"])
def test_predictions_beat_the_constant_on_every_task(learner, intercepts):
    for data in (wide(), long()):
        model = learner(intercepts=intercepts).fit(data)
        for task in data.tasks:
            labels = data.labels[task.name]
            scores = model.predict(data)[task.name][labels.rows]
            constant = np.tile(task.constant_scores(labels.values), (len(labels.rows), 1))
            assert task.losses(scores, labels.values).mean() < 0.7 * task.losses(constant, labels.values).mean()


def test_what_was_learned_about_the_tasks_is_saved_with_the_model(learner):
    data = wide()
    model = learner().fit(data)
    description, arrays = model.state()
    again = LinearModel.from_state(data.tasks, json.loads(json.dumps(description)), arrays)
    assert {"coefficients", "task correlation", "task covariance", "task tree"} <= set(model.relations())
    for name, relation in model.relations().items():
        np.testing.assert_allclose(again.relations()[name].values, relation.values)
        assert again.relations()[name].rows == relation.rows
    assert model.relations()["task covariance"].rows == ("up", "down", "yes")


def test_opposed_targets_are_reported_as_opposed():
    correlation = TaskCovarianceLearner().fit(wide()).relations()["task correlation"].values
    assert correlation[0, 1] < -0.9
    assert correlation[0, 2] > 0.9


def test_clusters_of_tasks_are_reported():
    clusters = ClusteredTasksLearner(n_clusters=2).fit(long()).relations()["clusters"]
    even = clusters.values[:, ::2]
    assert (even == even[:, :1]).all()
    assert (clusters.values[:, 1::2] == 1 - even[:, :1]).all()


def test_scores_of_trace_norm_and_covariance_are_those_of_the_estimators():
    data = long()
    X = np.asarray(data.inputs["numeric"])
    y, number = np.empty(data.n_rows), np.empty(data.n_rows, dtype=int)
    for t, task in enumerate(data.tasks):
        labels = data.labels[task.name]
        y[labels.rows] = (labels.values - labels.values.mean()) / labels.values.std()
        number[labels.rows] = t
    top = TraceNorm().alpha_max(X, y, tasks=number)
    for fit, alone in (
        (TraceNormLearner(alpha=0.1).fit(data), TraceNorm(0.1 * top)),
        (TaskCovarianceLearner(0.02, 0.03).fit(data), TaskCovariance(0.02, 0.03)),
    ):
        alone.set_params(tol=1e-4).fit(X, y, tasks=number)
        for t, task in enumerate(data.tasks):
            scale = data.labels[task.name].values.std()
            np.testing.assert_allclose(fit.coef[:, t] / scale, alone.coef_[t], atol=1e-9)


def test_a_task_without_labels_gets_the_common_level_when_intercepts_are_coupled(learner):
    data = long()
    some = {task.name: data.labels[task.name] for task in data.tasks}
    empty = data.labels["school 3"]
    some["school 3"] = type(empty)(empty.rows[:0], empty.values[:0])
    partial = TaskData(data.tasks, data.inputs, some)
    for intercepts in ("own", "coupled"):
        scores = learner(intercepts=intercepts).fit(partial).predict(partial)["school 3"]
        assert np.isfinite(scores).all()


def test_units_of_a_target_do_not_matter(learner):
    data = wide(missing=0.0)
    scores = learner().fit(data).predict(data)
    table = np.column_stack([data.labels[task.name].values for task in data.tasks]) * [1000.0, 1.0, 1.0]
    other = TaskData.from_columns(data.tasks, data.inputs, table)
    np.testing.assert_allclose(learner().fit(other).predict(other)["up"], 1000.0 * scores["up"], rtol=1e-6)


def test_clusters_refuse_multiclass_tasks_and_wrong_fields_are_named(learner):
    task = Multiclass("kind", (), ("a", "b", "c"))
    assert "no common mean" in str(ClusteredTasksLearner().refuses(task))
    with pytest.raises(InputError, match='intercepts must be "own" or "coupled"'):
        learner(intercepts="free")
    with pytest.raises(InputError, match="alpha must be a positive number"):
        learner(alpha=0.0)
