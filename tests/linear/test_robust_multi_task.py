"""RobustMultiTask: optimum, limits, planted outlier tasks."""

from __future__ import annotations

import doctest

import cvxpy as cp
import numpy as np
import pytest

import polytask.linear.robust_multi_task as module
from polytask.core.errors import InputError
from polytask.linear import BlockSparse, RobustMultiTask, TraceNorm


def penalty_of(model):
    own = model.outlier * np.linalg.norm(model.own_coef_, axis=1).sum()
    if model.shared == "low-rank":
        return model.alpha * np.linalg.svd(model.shared_coef_, compute_uv=False).sum() + own
    return model.alpha * np.linalg.norm(model.shared_coef_, axis=0).sum() + own


@pytest.mark.parametrize("shared", ["low-rank", "features"])
@pytest.mark.parametrize(("alpha", "outlier"), [(0.2, 0.15), (0.02, 0.03), (0.4, 0.05)])
def test_optimum_is_that_of_a_general_convex_solver(problems, shared, alpha, outlier):
    X, y, tasks = problems.stacked()
    model = RobustMultiTask(alpha, outlier, shared=shared, tol=1e-9).fit(X, y, tasks=tasks)

    def penalty(parts):
        norm = cp.normNuc(parts[0]) if shared == "low-rank" else cp.mixed_norm(parts[0].T, 2, 1)
        return alpha * norm + outlier * cp.mixed_norm(parts[1], 2, 1), []

    best = problems.optimum(X, y, tasks, penalty, parts=2)
    assert problems.loss(model, X, y, tasks) + penalty_of(model) == pytest.approx(best, rel=1e-5)
    np.testing.assert_allclose(model.coef_, model.shared_coef_ + model.own_coef_)


@pytest.mark.parametrize(("shared", "alone"), [("low-rank", TraceNorm), ("features", BlockSparse)])
def test_when_outliers_cost_too_much_the_shared_part_is_the_whole_model(problems, shared, alone):
    X, y, tasks = problems.stacked(2)
    robust = RobustMultiTask(0.1, 1e3, shared=shared, tol=1e-12).fit(X, y, tasks=tasks)
    assert not robust.own_coef_.any()
    assert not robust.outliers_.any()
    np.testing.assert_allclose(robust.coef_, alone(0.1, tol=1e-12).fit(X, y, tasks=tasks).coef_, atol=1e-5)


def test_when_sharing_costs_too_much_every_task_has_its_own_part(problems):
    X, y, tasks = problems.stacked(3)
    robust = RobustMultiTask(1e3, 0.1, tol=1e-12).fit(X, y, tasks=tasks)
    assert not robust.shared_coef_.any()
    for t in range(5):  # each task alone with its norm penalised: optimality of the definition
        mine = tasks == t
        x, v = X[mine] - X[mine].mean(axis=0), y[mine] - y[mine].mean()
        w = robust.coef_[t]
        gradient = x.T @ (x @ w - v) / mine.sum()
        np.testing.assert_allclose(gradient, -0.1 * w / np.linalg.norm(w), atol=1e-4)


@pytest.mark.parametrize("shared", ["low-rank", "features"])
def test_planted_outlier_tasks_are_the_ones_with_a_part_of_their_own(shared):
    rng = np.random.default_rng(4)
    T, d, n = 20, 10, 60
    W = np.zeros((T, d))
    W[:, :2] = rng.normal(size=(T, 1)) * [1.0, -1.0] + 0.3
    W[:, :2] /= np.linalg.norm(W[:, :2], axis=1, keepdims=True)
    W[[3, 11]] = 0.0
    W[[3, 11], 2:] = 2.0 * rng.normal(size=(2, d - 2))
    tasks = np.repeat(np.arange(T), n)
    X = rng.normal(size=(T * n, d))
    y = np.einsum("nd,nd->n", X, W[tasks]) + 0.1 * rng.normal(size=T * n)
    alpha, outlier = (1.2, 0.6) if shared == "low-rank" else (0.6, 0.5)
    model = RobustMultiTask(alpha, outlier, shared=shared, tol=1e-8).fit(X, y, tasks=tasks)
    assert np.flatnonzero(model.outliers_).tolist() == [3, 11]
    assert model.relations_["outliers"].values[3, 1] > 1.0


def test_wrong_settings_are_named(problems):
    X, y, tasks = problems.stacked(5)
    with pytest.raises(InputError, match='shared must be "low-rank" or "features"'):
        RobustMultiTask(shared="both").fit(X, y, tasks=tasks)
    with pytest.raises(InputError, match="outlier must be a positive number"):
        RobustMultiTask(outlier=0.0).fit(X, y, tasks=tasks)


def test_examples_in_the_docstring_hold():
    assert doctest.testmod(module).failed == 0
