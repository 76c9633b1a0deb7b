"""TaskLasso: scikit-learn's Lasso, ElasticNet and LogisticRegression, task by task."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression

from polytask.linear import TaskLasso


def test_one_input_matrix_is_scikit_learns_lasso_of_every_column():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 8)) + 2.0
    Y = X @ rng.normal(size=(8, 4)) + rng.normal(size=(60, 4))
    ours, theirs = TaskLasso(0.3, tol=1e-12).fit(X, Y), Lasso(0.3, tol=1e-12).fit(X, Y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-5)
    assert ((ours.coef_ != 0) == (theirs.coef_ != 0)).all()


def test_with_a_ridge_it_is_scikit_learns_elastic_net():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(60, 8))
    Y = X @ rng.normal(size=(8, 4)) + rng.normal(size=(60, 4))
    ours = TaskLasso(0.3, ridge=0.2, tol=1e-12).fit(X, Y)
    theirs = ElasticNet(0.5, l1_ratio=0.6, tol=1e-12).fit(X, Y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)


def test_logistic_loss_is_scikit_learns_l1_logistic_regression():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(120, 6))
    y = (X @ rng.normal(size=6) + rng.normal(size=120) > 0).astype(float)
    ours = TaskLasso(0.03, loss="logistic", tol=1e-12).fit(X, y)
    theirs = LogisticRegression(l1_ratio=1.0, C=1 / (0.03 * 120), solver="saga", tol=1e-9, max_iter=50_000).fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-4)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-4)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_tasks_do_not_know_of_each_other(problems, ridge):
    X, y, tasks = problems.stacked(3)
    together = TaskLasso(0.1, ridge=ridge, tol=1e-12).fit(X, y, tasks=tasks)
    for t in range(5):
        alone = TaskLasso(0.1, ridge=ridge, tol=1e-12).fit(X[tasks == t], y[tasks == t])
        np.testing.assert_allclose(together.coef_[t], alone.coef_[0], atol=1e-6)
