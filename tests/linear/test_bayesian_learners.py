"""Learners that learn the prior of the tasks: same as their estimators, refusals, wrong fields."""

from __future__ import annotations

import numpy as np
import pytest
from tests.linear.examples import long, standardised

from polytask.core.data import TaskData
from polytask.core.errors import InputError
from polytask.core.task import Binary, Regression
from polytask.linear import (
    GaussianMixtureTasks,
    GaussianMixtureTasksLearner,
    TaskHierarchyLearner,
)


def test_mixture_learner_is_the_estimator_on_standardised_targets_and_reports_the_clusters():
    data = long()
    X, y, number = standardised(data)
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


def test_wrong_fields_are_named():
    with pytest.raises(InputError, match="n_clusters must be at least 0"):
        GaussianMixtureTasksLearner(n_clusters=-1)
    with pytest.raises(InputError, match="covariance must be one of"):
        GaussianMixtureTasksLearner(covariance="banded")
