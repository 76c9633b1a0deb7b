"""Learners that share along a tree, a graph or groups: same as their estimators, what they learn, wrong fields."""

from __future__ import annotations

import json

import numpy as np
import pytest

from polytask.core.data import TaskData
from polytask.core.errors import InputError
from polytask.core.task import Binary, Regression
from polytask.linear import (
    GraphGuidedFusedLasso,
    GraphGuidedFusedLassoLearner,
    LearnedTaskGroups,
    LearnedTaskGroupsLearner,
    LinearModel,
    TreeGuidedGroupLasso,
    TreeGuidedGroupLassoLearner,
)

LEARNERS = [GraphGuidedFusedLassoLearner, LearnedTaskGroupsLearner, TreeGuidedGroupLassoLearner]
OWN = {
    GraphGuidedFusedLassoLearner: {"task graph"},
    LearnedTaskGroupsLearner: {"task groups"},
    TreeGuidedGroupLassoLearner: {"task groups", "guiding tree"},
}


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
    assert OWN[learner] | {"coefficients", "task covariance", "task tree"} <= set(model.relations())
    for name, relation in model.relations().items():
        np.testing.assert_allclose(again.relations()[name].values, relation.values)
        assert again.relations()[name].rows == relation.rows


def test_scores_are_those_of_the_estimators():
    data = long()
    X = np.asarray(data.inputs["numeric"])
    y, number = np.empty(data.n_rows), np.empty(data.n_rows, dtype=int)
    for t, task in enumerate(data.tasks):
        labels = data.labels[task.name]
        y[labels.rows] = (labels.values - labels.values.mean()) / labels.values.std()
        number[labels.rows] = t
    top = TreeGuidedGroupLasso(root_height=0.8).alpha_max(X, y, tasks=number)
    most = GraphGuidedFusedLasso().alpha_max(X, y, tasks=number)
    for fit, alone in (
        (TreeGuidedGroupLassoLearner(0.1, 0.8).fit(data), TreeGuidedGroupLasso(0.1 * top, root_height=0.8)),
        (GraphGuidedFusedLassoLearner(0.1, 0.2).fit(data), GraphGuidedFusedLasso(0.1 * most, 0.2 * most)),
        (LearnedTaskGroupsLearner(2, 0.02).fit(data), LearnedTaskGroups(2, 0.02)),
    ):
        alone.set_params(tol=1e-4).fit(X, y, tasks=number)
        for t, task in enumerate(data.tasks):
            scale = data.labels[task.name].values.std()
            np.testing.assert_allclose(fit.coef[:, t] / scale, alone.coef_[t], atol=1e-9)


def test_groups_of_tasks_are_reported():
    groups = LearnedTaskGroupsLearner(n_groups=2).fit(long()).relations()["task groups"].values
    assert (groups[:, ::2] == groups[:, :1]).all()
    assert (groups[:, 1::2] == 1 - groups[:, :1]).all()


def test_opposed_targets_are_joined_by_a_negative_edge():
    graph = GraphGuidedFusedLassoLearner().fit(wide()).relations()["task graph"].values
    assert graph[0, 1] < -0.9
    assert graph[0, 2] > 0.9


def test_units_of_a_target_do_not_matter(learner):
    data = wide(missing=0.0)
    scores = learner().fit(data).predict(data)
    table = np.column_stack([data.labels[task.name].values for task in data.tasks]) * [1000.0, 1.0, 1.0]
    other = TaskData.from_columns(data.tasks, data.inputs, table)
    np.testing.assert_allclose(learner().fit(other).predict(other)["up"], 1000.0 * scores["up"], rtol=1e-6)


def test_wrong_fields_are_named(learner):
    with pytest.raises(InputError, match="alpha must be a positive number"):
        learner(alpha=0.0)
    with pytest.raises(InputError, match='intercepts must be "own" or "coupled"'):
        learner(intercepts="free")
    with pytest.raises(InputError, match="root_height must be from 0 to 1"):
        TreeGuidedGroupLassoLearner(root_height=2.0)
    with pytest.raises(InputError, match="gamma must be a positive number"):
        GraphGuidedFusedLassoLearner(gamma=0.0)
    with pytest.raises(InputError, match="n_groups must be a positive number"):
        LearnedTaskGroupsLearner(n_groups=0)
