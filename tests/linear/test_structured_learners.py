"""Learners that share along a tree, a graph or groups: same as their estimators, what they learn, wrong fields."""

from __future__ import annotations

import numpy as np
import pytest
from tests.linear.examples import long, standardised, wide

from polytask.core.errors import InputError
from polytask.linear import (
    GraphGuidedFusedLasso,
    GraphGuidedFusedLassoLearner,
    LearnedTaskGroups,
    LearnedTaskGroupsLearner,
    TreeGuidedGroupLasso,
    TreeGuidedGroupLassoLearner,
)


def test_scores_are_those_of_the_estimators():
    data = long()
    X, y, number = standardised(data)
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


def test_wrong_fields_are_named():
    with pytest.raises(InputError, match="root_height must be from 0 to 1"):
        TreeGuidedGroupLassoLearner(root_height=2.0)
    with pytest.raises(InputError, match="gamma must be a positive number"):
        GraphGuidedFusedLassoLearner(gamma=0.0)
    with pytest.raises(InputError, match="n_groups must be a positive number"):
        LearnedTaskGroupsLearner(n_groups=0)
