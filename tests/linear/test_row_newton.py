"""Newton's method on the norms of rows: the optimum of coordinate descent, rows that leave, rows not asked for."""

from __future__ import annotations

import numpy as np
import pytest

from polytask.linear.solvers.descent import _pass, optimality
from polytask.linear.solvers.row_newton import newton


def quadratic(seed, T, d, *, collinear=False):
    """Gram matrices by feature, patterns, scales and linear terms of tasks with rows of their own."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(T, 3 * d, d))
    if collinear:
        X[:, :, -1] = -X[:, :, 0]
        X[:, :, -2] = X[:, :, :3].sum(axis=2)
    W = rng.normal(size=(T, d)) * (np.arange(d) < d - 2)
    grams = np.einsum("tnd,tne->tde", X, X) / X.shape[1]
    y = np.einsum("tnd,td->tn", X, W) + rng.normal(size=X.shape[:2])
    linear = np.einsum("tnd,tn->td", X, y) / X.shape[1]
    scale = rng.uniform(0.5, 2.0, size=T)
    return np.ascontiguousarray(grams.transpose(1, 0, 2)), np.arange(T), scale, scale[:, None] * linear


def started(problem, alpha, passes):
    """W, its gradient and norms after some passes of coordinate descent from 0."""
    by_feature, pattern, scale, linear = problem
    W, gradient = np.zeros_like(linear), -linear.copy()
    norms, buffers = np.zeros(linear.shape[1]), np.zeros((3, len(linear)))
    for _ in range(passes):
        _pass(by_feature, pattern, scale, alpha, W, gradient, norms, False, buffers)
    return W, gradient, norms


@pytest.mark.parametrize("T", [1, 4, 80, 200])
@pytest.mark.parametrize("share", [0.5, 0.05])
def test_the_optimum_is_that_of_many_passes_of_coordinate_descent(T, share):
    problem = quadratic(0, T, 9)
    alpha = share * np.linalg.norm(problem[3], axis=0).max()
    long, _, _ = started(problem, alpha, 5000)
    W, gradient, norms = started(problem, alpha, 0)
    buffers, rounds = np.zeros((3, T)), 0
    while rounds == 0 or optimality(W, gradient, alpha) > 1e-9 * alpha:
        _pass(*problem[:3], alpha, W, gradient, norms, False, buffers)  # rows that are missing come in
        assert 0 < newton(*problem, alpha, np.flatnonzero(norms), 1e-11, W, gradient, norms) < 15
        rounds += 1
    assert rounds <= 3
    np.testing.assert_allclose(W, long, atol=1e-8)
    np.testing.assert_allclose(norms, np.linalg.norm(W, axis=0), atol=1e-12)
    product = np.einsum("jtd,tj->td", problem[0], W) * problem[2][:, None]
    np.testing.assert_allclose(gradient, product - problem[3], atol=1e-10)


def test_collinear_columns_end_at_an_optimum():
    problem = quadratic(1, 30, 8, collinear=True)
    alpha = 0.02 * np.linalg.norm(problem[3], axis=0).max()
    W, gradient, norms = started(problem, alpha, 3)
    used = np.flatnonzero(norms > 1e-6 * norms.max())
    assert newton(*problem, alpha, used, 1e-10, W, gradient, norms) > 0
    kept = norms > 0
    assert optimality(W[:, kept].copy(), gradient[:, kept].copy(), alpha) < 1e-6 * alpha


def test_rows_that_the_optimum_does_not_use_leave():
    problem = quadratic(2, 12, 7)
    alpha = 0.5 * np.linalg.norm(problem[3], axis=0).max()
    long = started(problem, alpha, 3000)[0]
    W = np.random.default_rng(3).normal(size=long.shape)
    gradient = np.einsum("jtd,tj->td", problem[0], W) * problem[2][:, None] - problem[3]
    norms = np.linalg.norm(W, axis=0)
    assert newton(*problem, alpha, np.arange(7), 1e-11, W, gradient, norms) > 0
    assert not W[:, ~long.any(axis=0)].any()
    np.testing.assert_allclose(W, long, atol=1e-7)


def test_other_rows_are_left_as_they_are():
    problem = quadratic(4, 6, 6)
    alpha = 0.1 * np.linalg.norm(problem[3], axis=0).max()
    W, gradient, norms = started(problem, alpha, 1)
    fixed = W[:, 4].copy()
    used = np.array([0, 1, 3])
    assert newton(*problem, alpha, used, 1e-11, W, gradient, norms) > 0
    np.testing.assert_array_equal(W[:, 4], fixed)
    product = np.einsum("jtd,tj->td", problem[0], W) * problem[2][:, None]
    np.testing.assert_allclose(gradient, product - problem[3], atol=1e-10)
    assert optimality(W[:, used].copy(), gradient[:, used].copy(), alpha) < 1e-9 * alpha
