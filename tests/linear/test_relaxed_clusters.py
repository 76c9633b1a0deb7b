"""RelaxedClusters: CMTL equals cASO, identity at projections, optimum, limits."""

from __future__ import annotations

import doctest

import cvxpy as cp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

import polytask.linear.relaxed_clusters as module
from polytask.core.errors import InputError
from polytask.linear import RelaxedClusters


def quadratic(W, M, alpha, eta):
    """The penalty for a given M over tasks."""
    return 0.5 * alpha * eta * (1 + eta) * np.trace(W.T @ np.linalg.inv(eta * np.eye(len(M)) + M) @ W)


def test_for_a_projection_the_penalty_is_the_k_means_cost_plus_ridge():
    rng = np.random.default_rng(0)
    W = rng.normal(size=(6, 4))
    F, _ = np.linalg.qr(rng.normal(size=(6, 2)))
    M, alpha, eta = F @ F.T, 0.7, 0.3
    cost = alpha / 2 * (np.trace(W.T @ W) - np.trace(W.T @ M @ W)) + alpha * eta / 2 * np.trace(W.T @ W)
    assert quadratic(W, M, alpha, eta) == pytest.approx(cost)


@pytest.mark.parametrize("d", [3, 9])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_relating_tasks_and_relating_features_give_the_same_coefficients(problems, d, k):
    X, y, tasks = problems.stacked(1, d=d, rank=3)
    models = [
        RelaxedClusters(0.3, k, ridge=0.02, side=side, tol=1e-12).fit(X, y, tasks=tasks)
        for side in ("tasks", "features")
    ]
    np.testing.assert_allclose(models[0].coef_, models[1].coef_, atol=1e-5)
    eta = 0.02 / 0.3
    W = models[0].coef_
    over_tasks = quadratic(W, models[0].projection_, 0.3, eta)
    over_features = quadratic(W.T, models[1].projection_, 0.3, eta)
    assert over_tasks == pytest.approx(over_features, rel=1e-6)
    assert over_tasks == pytest.approx(models[0]._penalties(*W.shape)[0].value(W), rel=1e-6)


@pytest.mark.parametrize("side", ["tasks", "features"])
@pytest.mark.parametrize("k", [1, 3, 4])
def test_the_relaxed_projection_lies_between_nothing_and_all_and_has_trace_k(problems, side, k):
    X, y, tasks = problems.stacked(2)
    M = RelaxedClusters(0.3, k, side=side).fit(X, y, tasks=tasks).projection_
    values = np.linalg.eigvalsh(M)
    assert values.min() > -1e-9
    assert values.max() < 1 + 1e-9
    assert np.trace(M) == pytest.approx(k)


@pytest.mark.parametrize("k", [1, 2])
def test_optimum_is_that_of_a_general_convex_solver(problems, k):
    X, y, tasks = problems.stacked(3)
    alpha, ridge, T, d = 0.3, 0.05, 5, 6
    eta = ridge / alpha
    model = RelaxedClusters(alpha, k, ridge=ridge, tol=1e-9).fit(X, y, tasks=tasks)

    def penalty(parts):
        M, R = cp.Variable((T, T), symmetric=True), cp.Variable((d, d), symmetric=True)
        W = parts[0]
        constraints = [M >> 0, np.eye(T) >> M, cp.trace(M) == k]
        constraints.append(cp.bmat([[R, W.T], [W, eta * np.eye(T) + M]]) >> 0)
        return 0.5 * alpha * eta * (1 + eta) * cp.trace(R), constraints

    best = problems.optimum(X, y, tasks, penalty)
    value = model._penalties(T, d)[0].value(model.coef_)
    assert problems.loss(model, X, y, tasks) + value == pytest.approx(best, rel=1e-5)


def test_as_many_clusters_as_tasks_are_ridge(problems):
    X, y, tasks = problems.stacked(4)
    model = RelaxedClusters(0.5, 5, ridge=0.2, tol=1e-13).fit(X, y, tasks=tasks)
    for t in range(5):
        mine = tasks == t
        alone = Ridge(alpha=0.2 * mine.sum()).fit(X[mine], y[mine])
        np.testing.assert_allclose(model.coef_[t], alone.coef_, atol=1e-5)


def test_planted_clusters_show_in_the_projection(problems):
    X, y, tasks, label = problems.clusters(5)
    model = RelaxedClusters(1.0, 3, ridge=0.01).fit(X, y, tasks=tasks)
    inside, outside = model.projection_[label[:, None] == label], model.projection_[label[:, None] != label]
    assert inside.mean() > 0.6 / 8
    assert abs(outside.mean()) < 0.2 / 8


def test_wrong_settings_are_named(problems):
    X, y, tasks = problems.stacked(6)
    for change, message in (
        ({"side": "rows"}, 'side must be "tasks" or "features"'),
        ({"ridge": 0.0}, "ridge must be a positive number"),
        ({"n_clusters": 1.5}, "n_clusters must be a whole number"),
    ):
        with pytest.raises(InputError, match=message):
            RelaxedClusters(**change).fit(X, y, tasks=tasks)


def test_examples_in_the_docstring_hold():
    assert doctest.testmod(module).failed == 0
