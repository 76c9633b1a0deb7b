"""Feature augmentation: its inner products, and three routes to the mean-regularised model."""

from __future__ import annotations

import doctest

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import issparse
from sklearn.linear_model import LogisticRegression, Ridge

import polytask.linear.feature_augmentation as module
from polytask.core.errors import InputError
from polytask.linear import FeatureAugmentation, MeanRegularised, TaskKernelRidge


@pytest.mark.parametrize("mu", [0.0, 0.3, 1.0, 50.0, np.inf])
def test_inner_products_are_the_mean_task_kernel(problems, mu):
    X, _, tasks = problems.stacked()
    Z = FeatureAugmentation(mu).fit_transform(X, tasks=tasks)
    rho = 1 / (1 + mu)
    expected = (rho + (1 - rho) * (tasks[:, None] == tasks)) * (X @ X.T)
    np.testing.assert_allclose((Z @ Z.T).toarray(), expected, atol=1e-12)


@pytest.mark.parametrize("mu", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("alpha", [0.003, 0.5])
def test_quadratic_kernel_and_feature_map_routes_agree(problems, mu, alpha):
    X, y, tasks = problems.stacked()
    new, of = problems.stacked(1)[0], problems.stacked(1)[2]
    share = 1 / np.bincount(tasks)[tasks]
    quadratic = MeanRegularised(alpha, mu, fit_intercept=False).fit(X, y, tasks=tasks).predict(new, of)
    kernel = TaskKernelRidge(alpha, mu=mu, kernel="linear", fit_intercept=False).fit(X, y, tasks=tasks)
    augment = FeatureAugmentation(mu, sparse_output=False).fit(X, tasks=tasks)
    ridge = Ridge(alpha, fit_intercept=False, solver="cholesky")
    ridge.fit(augment.transform(X, tasks), y, sample_weight=share)
    np.testing.assert_allclose(kernel.predict(new, of), quadratic, atol=1e-8)
    np.testing.assert_allclose(ridge.predict(augment.transform(new, of)), quadratic, atol=1e-8)


@pytest.mark.parametrize("intercepts", ["own", "coupled", "common"])
def test_quadratic_and_kernel_routes_agree_with_every_kind_of_intercept(problems, intercepts):
    X, y, tasks = problems.stacked(2)
    new, of = problems.stacked(3)[0], problems.stacked(3)[2]
    quadratic = MeanRegularised(0.05, 0.3, intercepts=intercepts).fit(X, y, tasks=tasks)
    kernel = TaskKernelRidge(0.05, mu=0.3, kernel="linear", intercepts=intercepts).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(kernel.predict(new, of), quadratic.predict(new, of), atol=1e-8)


def test_a_logistic_regression_on_augmented_features_is_the_mean_regularised_one(problems):
    X, y, tasks = problems.stacked(4)
    y = (y > np.median(y)).astype(float)
    alpha, mu = 0.05, 0.4
    augment = FeatureAugmentation(mu).fit(X, tasks=tasks)
    theirs = LogisticRegression(C=1 / alpha, fit_intercept=False, tol=1e-12, max_iter=10_000)
    theirs.fit(augment.transform(X, tasks), y, sample_weight=1 / np.bincount(tasks)[tasks])
    ours = MeanRegularised(alpha, mu, loss="logistic", fit_intercept=False).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(
        theirs.decision_function(augment.transform(X, tasks)), ours.task_scores(X, tasks), atol=1e-5
    )


def test_output_is_sparse_or_dense_and_its_columns_are_named(problems):
    X, _, tasks = problems.stacked()
    names = np.array(["a", "b", "c", "d", "e"])[tasks]
    sparse = FeatureAugmentation(0.2).fit(X, tasks=names)
    dense = FeatureAugmentation(0.2, sparse_output=False).fit(X, tasks=names)
    assert issparse(sparse.transform(X, names))
    assert sparse.transform(X, names).nnz == 2 * X.size
    np.testing.assert_array_equal(sparse.transform(X, names).toarray(), dense.transform(X, names))
    out = sparse.get_feature_names_out(["age", "sex", "x2", "x3", "x4", "x5"]).tolist()
    assert out[:2] == ["common__age", "common__sex"]
    assert out[6] == "a__age"
    assert len(out) == 36


def test_tasks_may_be_a_column_of_the_frame():
    frame = pd.DataFrame({"x": [1.0, 2.0, 3.0], "school": ["a", "b", "a"]})
    augment = FeatureAugmentation(1.0, sparse_output=False).fit(frame, tasks="school")
    expected = FeatureAugmentation(1.0, sparse_output=False).fit_transform(frame[["x"]], tasks=frame["school"])
    np.testing.assert_array_equal(augment.transform(frame), expected)


def test_wrong_use_is_named(problems):
    X, _, tasks = problems.stacked()
    augment = FeatureAugmentation().fit(X, tasks=tasks)
    with pytest.raises(InputError, match="tasks is missing"):
        augment.transform(X)
    with pytest.raises(InputError, match="task 9 was not among the 5 tasks"):
        augment.transform(X[:1], tasks=[9])
    with pytest.raises(InputError, match="mu must be a number of at least 0"):
        FeatureAugmentation(-1.0).fit(X)


def test_examples_in_the_docstring_hold():
    assert doctest.testmod(module).failed == 0
