"""ElasticBlockSparse: scikit-learn's MultiTaskElasticNet, the model without ridge, alike columns."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import MultiTaskElasticNet

from polytask.linear import BlockSparse, ElasticBlockSparse


@pytest.mark.parametrize("ridge", [0.01, 0.5])
def test_one_input_matrix_is_scikit_learns_multi_task_elastic_net(ridge):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 8)) + 2.0
    Y = X @ rng.normal(size=(8, 4)) + rng.normal(size=(60, 4))
    ours = ElasticBlockSparse(0.6, ridge=ridge, tol=1e-12).fit(X, Y)
    theirs = MultiTaskElasticNet(0.6 + ridge, l1_ratio=0.6 / (0.6 + ridge), tol=1e-12, max_iter=100_000).fit(X, Y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-5)


def test_without_ridge_it_is_the_row_sparse_model(problems):
    X, y, tasks = problems.stacked(1)
    ours = ElasticBlockSparse(0.2, ridge=0.0, tol=1e-12).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(ours.coef_, BlockSparse(0.2, tol=1e-12).fit(X, y, tasks=tasks).coef_, atol=1e-5)


def test_equal_columns_share_their_coefficients(problems):
    X, y, tasks = problems.stacked(2)
    X = np.column_stack([X, X[:, 0]])
    W = ElasticBlockSparse(0.1, ridge=0.1, tol=1e-12).fit(X, y, tasks=tasks).coef_
    assert W[:, 0].all()
    np.testing.assert_allclose(W[:, 0], W[:, -1], atol=1e-5)
