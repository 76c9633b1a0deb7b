"""SimultaneousLasso: ties of the largest coefficients and the subgradients of the definition."""

from __future__ import annotations

import numpy as np
import pytest

from polytask.linear import SimultaneousLasso


def gradient(model, X, y, tasks):
    """The gradient of the losses, row by row."""
    rest = np.einsum("nd,nd->n", X, model.coef_[tasks]) + model.intercept_[tasks] - y
    found = np.zeros_like(model.coef_)
    np.add.at(found, tasks, rest[:, None] * X / np.bincount(tasks)[tasks][:, None])
    return found


@pytest.mark.parametrize("alpha", [0.05, 0.3, 1.0])
def test_active_features_reach_their_maximum_and_have_subgradients_of_l1_norm_alpha(problems, alpha):
    X, y, tasks = problems.stacked(0, noise=2.0)
    model = SimultaneousLasso(alpha, tol=1e-13).fit(X, y, tasks=tasks)
    G = gradient(model, X, y, tasks)
    active = model.coef_.any(axis=0)
    assert active.any()
    size = np.abs(model.coef_)
    for j in np.flatnonzero(active):
        top = size[:, j] == size[:, j].max()
        np.testing.assert_allclose(np.abs(G[:, j]).sum(), alpha, rtol=1e-5)
        np.testing.assert_allclose(G[~top, j], 0.0, atol=1e-5 * alpha)  # all of it lies on the largest
        assert (G[top, j] * model.coef_[top, j] <= 1e-5 * alpha * size[top, j]).all()
    assert (np.abs(G[:, ~active]).sum(axis=0) <= alpha * (1 + 1e-6)).all()


def test_coefficients_of_a_feature_tie_exactly_at_its_maximum(problems):
    X, y, tasks = problems.stacked(1, noise=2.0)
    W = SimultaneousLasso(0.6, tol=1e-10).fit(X, y, tasks=tasks).coef_
    size = np.abs(W[:, W.any(axis=0)])
    assert ((size == size.max(axis=0)).sum(axis=0) >= 2).all()


def test_a_feature_is_used_by_all_tasks_or_by_none(problems):
    X, y, tasks = problems.stacked(2, noise=2.0)
    used = SimultaneousLasso(3.0).fit(X, y, tasks=tasks).coef_ != 0
    assert (used.all(axis=0) | ~used.any(axis=0)).all()
    assert not used.all()
