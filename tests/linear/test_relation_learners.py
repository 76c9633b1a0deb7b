"""Learners of task relationships: same as their estimators, what they have learned, odd tasks."""

from __future__ import annotations

import numpy as np
from tests.linear.examples import long, standardised, wide

from polytask.core.task import Multiclass
from polytask.linear import (
    ClusteredTasksLearner,
    TaskCovariance,
    TaskCovarianceLearner,
    TraceNorm,
    TraceNormLearner,
)


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
    X, y, number = standardised(data)
    top = TraceNorm().alpha_max(X, y, tasks=number)
    for fit, alone in (
        (TraceNormLearner(alpha=0.1).fit(data), TraceNorm(0.1 * top)),
        (TaskCovarianceLearner(0.02, 0.03).fit(data), TaskCovariance(0.02, 0.03)),
    ):
        alone.set_params(tol=1e-4).fit(X, y, tasks=number)
        for t, task in enumerate(data.tasks):
            scale = data.labels[task.name].values.std()
            np.testing.assert_allclose(fit.coef[:, t] / scale, alone.coef_[t], atol=1e-9)


def test_clusters_refuse_multiclass_tasks():
    assert "no common mean" in str(ClusteredTasksLearner().refuses(Multiclass("kind", (), ("a", "b", "c"))))
