"""DirtyModel: its two limits, the unique sum of its parts, and the objective of MALSAR."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest

from polytask.linear import DirtyModel, SimultaneousLasso, TaskLasso
from polytask.linear.penalties.block import EntryNorm, RowMaximum
from polytask.linear.solvers.proximal import solve_proximal


@pytest.mark.parametrize("ratio", [5.0, 5.5, 100.0])
def test_with_a_dear_shared_part_it_is_the_lasso(problems, ratio):
    X, y, tasks = problems.stacked(0)  # 5 tasks
    model = DirtyModel(0.1 * ratio, 0.1, tol=1e-13).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(model.coef_, TaskLasso(0.1, tol=1e-13).fit(X, y, tasks=tasks).coef_, atol=1e-8)
    assert not model.shared_coef_.any()


@pytest.mark.parametrize("ratio", [1.0, 0.9, 0.01])
def test_with_a_dear_own_part_it_is_the_simultaneous_lasso(problems, ratio):
    X, y, tasks = problems.stacked(1)
    model = DirtyModel(0.3, 0.3 / ratio, tol=1e-13).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(model.coef_, SimultaneousLasso(0.3, tol=1e-13).fit(X, y, tasks=tasks).coef_, atol=1e-8)
    assert not model.own_coef_.any()


def test_strictly_between_the_limits_both_parts_are_used(problems):
    X, y, tasks = problems.stacked(2)
    model = DirtyModel(0.1, 0.04).fit(X, y, tasks=tasks)
    assert model.shared_coef_.any()
    assert model.own_coef_.any()


def test_the_sum_of_the_parts_is_unique_though_the_parts_are_not(problems):
    X, y, tasks = problems.stacked(3)
    model = DirtyModel(0.2, 0.1, tol=1e-13).fit(X, y, tasks=tasks)  # ratio 2: any level between two magnitudes
    _, layout = model._begin(X, y, tasks, None)
    losses = model._losses(layout.blocks, 5, 6, fit_intercept=True)
    parts = []
    for seed in (0, 1):
        start = np.random.default_rng(seed).normal(size=(2, 5, 6))
        found = solve_proximal(losses, [RowMaximum(0.2), EntryNorm(0.1)], tol=1e-11, max_steps=50_000, start=start)
        np.testing.assert_allclose(found.W, model.coef_, atol=1e-4)
        parts.append(found.parts)
    assert np.abs(parts[0] - parts[1]).max() > 0.01


def test_objective_is_that_of_malsar_up_to_the_factor_of_its_loss():
    # Least_Dirty: sum_t ||y_t - X_t (p_t + q_t)||² + rho1 ||P||_{1,inf} + rho2 ||Q||_{1,1}, no intercept
    rng = np.random.default_rng(4)
    n, T, d = 20, 3, 5
    X, Y = rng.normal(size=(T, n, d)), rng.normal(size=(T, n))
    rho1, rho2 = 9.0, 5.0
    P, Q = cp.Variable((T, d)), cp.Variable((T, d))
    loss = sum(cp.sum_squares(Y[t] - X[t] @ (P[t] + Q[t])) for t in range(T))
    problem = cp.Problem(cp.Minimize(loss + rho1 * cp.sum(cp.max(cp.abs(P), axis=0)) + rho2 * cp.sum(cp.abs(Q))))
    problem.solve(solver="CLARABEL")
    tasks = np.repeat(np.arange(T), n)
    model = DirtyModel(rho1 / (2 * n), rho2 / (2 * n), fit_intercept=False, tol=1e-13)
    model.fit(X.reshape(-1, d), Y.ravel(), tasks=tasks)
    np.testing.assert_allclose(model.coef_, (P + Q).value, atol=1e-4)
    rest = Y - np.einsum("tnd,td->tn", X, model.coef_)
    reached = np.square(rest).sum() + rho1 * np.abs(model.shared_coef_).max(axis=0).sum()
    reached += rho2 * np.abs(model.own_coef_).sum()
    assert reached == pytest.approx(problem.value, rel=1e-6)
