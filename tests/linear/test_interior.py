"""The interior-point method of l1/linf: roots, agreement with coordinate descent, wide problems near interpolation."""

from __future__ import annotations

import numpy as np
import pytest

from polytask.linear import SimultaneousLasso
from polytask.linear.solvers import feature_norms
from polytask.linear.solvers.interior import interior_levels, root_of
from polytask.linear.solvers.losses import Curvature


def quadratic(seed, T=4, n=12, k=8, shared=False):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(1 if shared else T, n, k))
    pattern = np.zeros(T, dtype=np.int64) if shared else np.arange(T)
    scale = rng.uniform(0.5, 2.0, size=T) / n
    linear = np.einsum("tnk,tn->tk", X[pattern], rng.normal(size=(T, n))) * scale[:, None]
    return Curvature(np.matmul(X.swapaxes(1, 2), X), pattern, scale), linear


def objective(curvature, linear, alpha, ridge, W):
    smooth = 0.5 * (W * curvature.times(W)).sum() - (W * linear).sum() + 0.5 * ridge * np.square(W).sum()
    return smooth + alpha * np.abs(W).max(axis=0).sum()


def gap_of(curvature, linear, alpha, ridge, W):
    """The duality gap at the gradient scaled into the dual ball, with the Hessian's inverse (n > k)."""
    slope = curvature.times(W) - linear + ridge * W
    theta = slope / max(1.0, np.abs(slope).sum(axis=0).max() / alpha)
    dual = 0.0
    for t, number in enumerate(curvature.pattern):
        H = curvature.scale[t] * curvature.grams[number] + ridge * np.eye(len(linear[t]))
        back = linear[t] + theta[t]
        dual -= 0.5 * back @ np.linalg.solve(H, back)
    return objective(curvature, linear, alpha, ridge, W) - dual


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("alpha", [0.02, 0.3, 1.0])
def test_the_gap_closes_from_any_start(shared, ridge, alpha):
    curvature, linear = quadratic(0, shared=shared)
    for start in (np.zeros_like(linear), np.random.default_rng(1).normal(size=linear.shape)):
        W = interior_levels(
            curvature, alpha, ridge, linear, start, lambda W: gap_of(curvature, linear, alpha, ridge, W) <= 1e-10
        )
        assert gap_of(curvature, linear, alpha, ridge, W) <= 1e-10


def test_a_goal_beyond_rounding_ends_the_method():
    curvature, linear = quadratic(2)
    W = interior_levels(curvature, 0.1, 0.0, linear, np.zeros_like(linear), lambda _: False)
    assert abs(gap_of(curvature, linear, 0.1, 0.0, W)) <= 1e-11


@pytest.mark.parametrize("rank", [0, 3, 9])
def test_roots_have_as_many_rows_as_the_matrix_has_rank(rank):
    X = np.random.default_rng(3).normal(size=(rank, 9))
    root = root_of(X.T @ X)
    assert root.shape == (rank, 9)
    np.testing.assert_allclose(root.T @ root, X.T @ X, atol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_many_more_features_than_rows_end_in_few_passes_with_exact_ties_and_zeros(shared, monkeypatch):
    rng = np.random.default_rng(4)
    n, d, T = 25, 150, 6
    X = rng.normal(size=(n if shared else n * T, d))
    X[:, 7] = 0.0
    tasks = None if shared else np.repeat(np.arange(T), n)
    y = rng.normal(size=(n, T)) if shared else rng.normal(size=n * T)
    alpha = 0.002 * SimultaneousLasso(1.0).alpha_max(X, y, tasks)
    monkeypatch.setattr(feature_norms, "_INTERIOR", 2)
    model = SimultaneousLasso(alpha, tol=1e-10, max_iter=100).fit(X, y, tasks=tasks)  # warns where it does not end
    size = np.abs(model.coef_)
    assert not size[:, 7].any()
    used = size.any(axis=0)
    assert ((size == size.max(axis=0)) & used).sum() / used.sum() > 1
    monkeypatch.setattr(feature_norms, "_INTERIOR", 10**9)
    descended = SimultaneousLasso(alpha, tol=1e-7, max_iter=50_000).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(size.max(axis=0).sum(), np.abs(descended.coef_).max(axis=0).sum(), rtol=1e-3)
    assert model.n_iter_ < descended.n_iter_
