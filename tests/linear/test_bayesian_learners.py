"""Learners that learn the prior of the tasks: same as their estimators, saved relations, refusals, units."""

from __future__ import annotations

import json

import numpy as np
import pytest

from polytask.core.data import TaskData
from polytask.core.errors import InputError
from polytask.core.task import Binary, Regression
from polytask.linear import (
    GaussianMixtureTasks,
    GaussianMixtureTasksLearner,
    LinearModel,
    TaskHierarchyLearner,
)

LEARNERS = [GaussianMixtureTasksLearner, TaskHierarchyLearner]


def long(seed=0, tasks=10, each=14):
    rng = np.random.default_rng(seed)
    task = np.repeat(np.arange(tasks), each)
    X = rng.normal(size=(len(task), 3))
    centre = np.array([[2.0, 0.0, 0.0], [0.0, -2.0, 1.0]])[np.arange(tasks) % 2]
    level = 3.0 * rng.normal(size=tasks)
    y = 50 + 10 * (np.einsum("nd,nd->n", X, centre[task]) + level[task] + 0.3 * rng.normal(size=len(task)))
    return TaskData.from_stacked([Regression(f"school {t}") for t in range(tasks)], {"numeric": X}, task, y)


def wide(seed=0, n=120, missing=0.2):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 4))
    signal = X @ rng.normal(size=4)
    Y = np.column_stack([100 + 20 * (signal + rng.normal(size=n)), -3 * signal + rng.normal(size=n)])
    Y[rng.random(Y.shape) < missing] = np.nan
    return TaskData.from_columns((Regression("up"), Regression("down")), {"numeric": X}, Y)


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
    data = long()
    model = learner().fit(data)
    description, arrays = model.state()
    again = LinearModel.from_state(data.tasks, json.loads(json.dumps(description)), arrays)
    assert "task tree" in model.relations()
    for name, relation in model.relations().items():
        np.testing.assert_allclose(again.relations()[name].values, relation.values)
    assert model.relations()["task tree"].rows[:2] == ("school 0", "school 1")


def test_mixture_learner_is_the_estimator_on_standardised_targets_and_reports_the_clusters():
    data = long()
    X = np.asarray(data.inputs["numeric"])
    y, number = np.empty(data.n_rows), np.empty(data.n_rows, dtype=int)
    for t, task in enumerate(data.tasks):
        labels = data.labels[task.name]
        y[labels.rows] = (labels.values - labels.values.mean()) / labels.values.std()
        number[labels.rows] = t
    fit = GaussianMixtureTasksLearner().fit(data)
    alone = GaussianMixtureTasks().fit(X, y, number)
    for t, task in enumerate(data.tasks):
        np.testing.assert_allclose(fit.coef[:, t] / data.labels[task.name].values.std(), alone.coef_[t], atol=1e-6)
    clusters = fit.relations()["clusters"].values
    assert clusters.shape == (2, 10)
    np.testing.assert_allclose(clusters[0], np.arange(10) % 2 == 0, atol=0.01)


def test_hierarchy_takes_classes_and_the_mixture_says_why_not():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(150, 3))
    signal = X @ [2.0, -1.0, 0.5]
    Y = np.column_stack([signal + rng.normal(size=150), signal + 0.5 * rng.normal(size=150) > 0]).astype(float)
    tasks = (Regression("number"), Binary("class", (), ("no", "yes")))
    data = TaskData.from_columns(tasks, {"numeric": X}, Y)
    scores = TaskHierarchyLearner().fit(data).predict(data)["class"][:, 0]
    assert ((scores > 0) == (Y[:, 1] > 0.5)).mean() > 0.85
    assert "squared loss" in str(GaussianMixtureTasksLearner().refuses(tasks[1]))
    assert GaussianMixtureTasksLearner().refuses(tasks[0]) is None


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
    table = np.column_stack([data.labels[task.name].values for task in data.tasks]) * [1000.0, 1.0]
    other = TaskData.from_columns(data.tasks, data.inputs, table)
    scores = learner().fit(data).predict(data)["up"]
    np.testing.assert_allclose(learner().fit(other).predict(other)["up"], 1000.0 * scores, rtol=1e-5)


def test_wrong_fields_are_named(learner):
    with pytest.raises(InputError, match='intercepts must be "own" or "coupled"'):
        learner(intercepts="free")
    with pytest.raises(InputError, match="n_clusters must be at least 0"):
        GaussianMixtureTasksLearner(n_clusters=-1)
    with pytest.raises(InputError, match="covariance must be one of"):
        GaussianMixtureTasksLearner(covariance="banded")
