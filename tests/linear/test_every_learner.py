"""What holds for every learner of linear models that relates tasks: fit, saved relations, units, wrong fields."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.linear.examples import long, wide

from polytask.core.data import TaskData
from polytask.core.errors import InputError
from polytask.linear import (
    AlternatingStructureLearner,
    ClusteredTasksLearner,
    GaussianMixtureTasksLearner,
    GraphGuidedFusedLassoLearner,
    GroupingOverlapLearner,
    LearnedTaskGroupsLearner,
    LinearModel,
    RobustMultiTaskLearner,
    TaskCovarianceLearner,
    TaskHierarchyLearner,
    TraceNormLearner,
    TreeGuidedGroupLassoLearner,
)

COVARIANCE = {"coefficients", "task covariance", "task tree"}
RELATIONS = {
    AlternatingStructureLearner: COVARIANCE | {"task correlation"},
    ClusteredTasksLearner: COVARIANCE | {"task correlation"},
    GaussianMixtureTasksLearner: {"task tree"},
    GraphGuidedFusedLassoLearner: COVARIANCE | {"task graph"},
    GroupingOverlapLearner: COVARIANCE | {"task correlation"},
    LearnedTaskGroupsLearner: COVARIANCE | {"task groups"},
    RobustMultiTaskLearner: COVARIANCE | {"task correlation"},
    TaskCovarianceLearner: COVARIANCE | {"task correlation"},
    TaskHierarchyLearner: {"task tree"},
    TraceNormLearner: COVARIANCE | {"task correlation"},
    TreeGuidedGroupLassoLearner: COVARIANCE | {"task groups", "guiding tree"},
}
PRIORS = (GaussianMixtureTasksLearner, TaskHierarchyLearner)
"""Learners without alpha; their wide data have no classes, which the mixture refuses."""


@pytest.fixture(params=RELATIONS, ids=lambda kind: kind.__name__)
def learner(request):
    return request.param


@pytest.mark.parametrize("intercepts", ["own", "coupled"])
def test_predictions_beat_the_constant_on_every_task(learner, intercepts):
    for data in (wide(binary=learner not in PRIORS), long()):
        model = learner(intercepts=intercepts).fit(data)
        for task in data.tasks:
            labels = data.labels[task.name]
            scores = model.predict(data)[task.name][labels.rows]
            constant = np.tile(task.constant_scores(labels.values), (len(labels.rows), 1))
            assert task.losses(scores, labels.values).mean() < 0.7 * task.losses(constant, labels.values).mean()


def test_what_was_learned_about_the_tasks_is_saved_with_the_model(learner):
    data = long() if learner in PRIORS else wide()
    model = learner().fit(data)
    description, arrays = model.state()
    again = LinearModel.from_state(data.tasks, json.loads(json.dumps(description)), arrays)
    assert RELATIONS[learner] <= set(model.relations())
    for name, relation in model.relations().items():
        np.testing.assert_allclose(again.relations()[name].values, relation.values)
        assert again.relations()[name].rows == relation.rows
    assert model.relations()["task tree"].rows[:2] == data.names[:2]


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
    data = wide(missing=0.0, binary=learner not in PRIORS)
    scores = learner().fit(data).predict(data)["up"]
    table = np.column_stack([data.labels[task.name].values for task in data.tasks])
    table[:, 0] *= 1000.0
    other = TaskData.from_columns(data.tasks, data.inputs, table)
    found = learner().fit(other).predict(other)["up"]
    np.testing.assert_allclose(found, 1000.0 * scores, rtol=1e-5 if learner in PRIORS else 1e-6)


def test_wrong_fields_are_named(learner):
    with pytest.raises(InputError, match='intercepts must be "own" or "coupled"'):
        learner(intercepts="free")
    if learner not in PRIORS:
        with pytest.raises(InputError, match="alpha must be a positive number"):
            learner(alpha=0.0)
