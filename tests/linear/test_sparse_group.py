"""SparseGroup: both ends of l1_ratio, and sparsity within features between them."""

from __future__ import annotations

import numpy as np
import pytest

from polytask.linear import BlockSparse, SparseGroup, TaskLasso


@pytest.mark.parametrize(("ratio", "end"), [(0.0, BlockSparse), (1.0, TaskLasso)])
def test_the_ends_are_the_row_sparse_model_and_the_lasso(problems, ratio, end):
    X, y, tasks = problems.stacked(0)
    model = SparseGroup(0.15, ratio, tol=1e-12).fit(X, y, tasks=tasks)
    other = end(0.15, tol=1e-12).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(model.coef_, other.coef_, atol=1e-5)
    assert SparseGroup(0.15, ratio).alpha_max(X, y, tasks=tasks) == pytest.approx(end().alpha_max(X, y, tasks=tasks))


def test_planted_features_with_some_of_the_tasks_each_are_found():
    rng = np.random.default_rng(1)
    W = np.zeros((6, 12))
    W[:4, 0], W[2:, 1], W[:, 2] = 2.0, -2.0, 1.5
    X = rng.normal(size=(300, 12))
    Y = X @ W.T + 0.1 * rng.normal(size=(300, 6))
    model = SparseGroup(0.3, 0.7, tol=1e-8).fit(X, Y)
    np.testing.assert_array_equal(model.coef_ != 0, W != 0)


def test_a_solution_keeps_the_optimality_conditions_of_the_definition(problems):
    X, y, tasks = problems.stacked(2)
    model = SparseGroup(0.4, 0.5, tol=1e-13).fit(X, y, tasks=tasks)
    W = model.coef_
    rest = np.einsum("nd,nd->n", X, W[tasks]) + model.intercept_[tasks] - y
    G = np.zeros_like(W)
    np.add.at(G, tasks, rest[:, None] * X / np.bincount(tasks)[tasks][:, None])
    for j in range(W.shape[1]):
        shrunken = np.sign(G[:, j]) * np.maximum(np.abs(G[:, j]) - 0.2, 0.0)
        norm = np.linalg.norm(W[:, j])
        if norm == 0:
            assert np.linalg.norm(shrunken) <= 0.2 * (1 + 1e-6)
        else:
            used = W[:, j] != 0
            expected = -0.2 * np.sign(W[used, j]) - 0.2 * W[used, j] / norm
            np.testing.assert_allclose(G[used, j], expected, atol=1e-5)
            assert (np.abs(G[~used, j]) <= 0.2 + 1e-6).all()
