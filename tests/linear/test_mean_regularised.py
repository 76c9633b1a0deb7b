"""MeanRegularised: three routes to one solution, limits, intercepts, optimality."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, Ridge

import polytask.linear.mean_regularised as module
from polytask.core.errors import InputError
from polytask.linear import MeanRegularised


def stacked(seed=0, sizes=(30, 12, 50, 5), d=7):
    rng = np.random.default_rng(seed)
    tasks = np.repeat(np.arange(len(sizes)), sizes)
    X = rng.normal(size=(len(tasks), d)) + 1.0
    common = rng.normal(size=d)
    W = common + 0.4 * rng.normal(size=(len(sizes), d))
    y = np.einsum("nd,nd->n", X, W[tasks]) + rng.normal(size=len(tasks)) + tasks
    order = rng.permutation(len(tasks))
    return X[order], y[order], tasks[order]


def feature_map(X, tasks, rho):
    """Daumé's map: x -> (x sqrt(rho); 0 … x sqrt(1 - rho) … 0)."""
    n_tasks = tasks.max() + 1
    own = np.zeros((len(X), n_tasks, X.shape[1]))
    own[np.arange(len(X)), tasks] = X * np.sqrt(1 - rho)
    return np.column_stack([X * np.sqrt(rho), own.reshape(len(X), -1)])


def centred(values, tasks):
    means = np.array([values[tasks == t].mean(axis=0) for t in range(tasks.max() + 1)])
    return values - means[tasks]


@pytest.mark.parametrize("mu", [0.01, 0.5, 1.0, 30.0])
@pytest.mark.parametrize("alpha", [1e-3, 0.5])
@pytest.mark.parametrize("intercept", [False, True])
def test_quadratic_route_feature_map_and_kernel_agree(mu, alpha, intercept):
    X, y, tasks = stacked()
    rho = 1 / (1 + mu)
    ours = MeanRegularised(alpha, mu, fit_intercept=intercept).fit(X, y, tasks=tasks)
    # with own intercepts, inputs and targets are centred within the tasks
    Xc, yc = (centred(X, tasks), centred(y, tasks)) if intercept else (X, y)
    fitted = np.einsum("nd,nd->n", Xc, ours.coef_[tasks])
    share = 1 / np.bincount(tasks)[tasks]

    features = feature_map(Xc, tasks, rho)
    ridge = np.linalg.solve(
        (features.T * share) @ features + alpha * np.eye(features.shape[1]), features.T @ (share * yc)
    )
    np.testing.assert_allclose(features @ ridge, fitted, atol=1e-8)
    d = X.shape[1]
    common = np.sqrt(rho) * ridge[:d]
    np.testing.assert_allclose(ours.common_, common, atol=1e-8)
    np.testing.assert_allclose(ours.coef_, common + np.sqrt(1 - rho) * ridge[d:].reshape(-1, d), atol=1e-8)

    kernel = (1 + mu * (tasks[:, None] == tasks)) / (1 + mu) * (Xc @ Xc.T)
    dual = np.linalg.solve(kernel + alpha * np.diag(1 / share), yc)
    np.testing.assert_allclose(kernel @ dual, fitted, atol=1e-8)


def test_logistic_loss_equals_logistic_regression_on_the_feature_map():
    X, y, tasks = stacked(1)
    y = (y > np.median(y)).astype(float)
    mu, alpha = 0.5, 0.05
    ours = MeanRegularised(alpha, mu, loss="logistic", fit_intercept=False, tol=1e-10).fit(X, y, tasks=tasks)
    theirs = LogisticRegression(C=1 / alpha, fit_intercept=False, tol=1e-10, max_iter=10_000)
    features = feature_map(X, tasks, 1 / (1 + mu))
    theirs.fit(features, y, sample_weight=1 / np.bincount(tasks)[tasks])
    np.testing.assert_allclose(ours.task_scores(X, tasks=tasks), theirs.decision_function(features), atol=1e-5)


@pytest.mark.parametrize("alpha", [0.01, 1.0])
def test_tasks_that_share_nothing_are_ridge_models_alone(alpha):
    X, y, tasks = stacked(2)
    ours = MeanRegularised(alpha, np.inf).fit(X, y, tasks=tasks)
    nearly = MeanRegularised(alpha, 1e10).fit(X, y, tasks=tasks)
    assert not ours.common_.any()
    for t in range(4):
        mine = tasks == t
        alone = Ridge(alpha=alpha * mine.sum()).fit(X[mine], y[mine])
        np.testing.assert_allclose(ours.coef_[t], alone.coef_, atol=1e-10)
        np.testing.assert_allclose(ours.intercept_[t], alone.intercept_, atol=1e-9)
        np.testing.assert_allclose(nearly.coef_[t], alone.coef_, atol=1e-8)


def test_tasks_that_share_nothing_are_to_the_last_bit_those_fitted_one_by_one():
    X, y, tasks = stacked(6)
    together = MeanRegularised(0.1, np.inf).fit(X, y, tasks=tasks)
    for t in range(4):
        mine = tasks == t
        alone = MeanRegularised(0.1, np.inf).fit(X[mine], y[mine], tasks=tasks[mine])
        np.testing.assert_array_equal(together.coef_[t], alone.coef_[0])
        assert together.intercept_[t] == alone.intercept_[0]


def test_tasks_that_share_everything_are_one_ridge_model():
    X, y, tasks = stacked(3)
    share = 1 / np.bincount(tasks)[tasks]
    for intercepts, model in (
        ("common", Ridge(alpha=0.3).fit(X, y, sample_weight=share)),
        ("own", Ridge(alpha=0.3, fit_intercept=False).fit(centred(X, tasks), centred(y, tasks), sample_weight=share)),
    ):
        ours = MeanRegularised(0.3, 0.0, intercepts=intercepts).fit(X, y, tasks=tasks)
        nearly = MeanRegularised(0.3, 1e-10, intercepts=intercepts).fit(X, y, tasks=tasks)
        np.testing.assert_allclose(ours.coef_, np.tile(model.coef_, (4, 1)), atol=1e-10)
        if intercepts == "common":
            np.testing.assert_allclose(nearly.coef_, ours.coef_, atol=1e-7)
            np.testing.assert_allclose(ours.intercept_, np.full(4, model.intercept_), atol=1e-9)


def test_penalty_and_mean_are_those_of_evgeniou_and_pontil():
    X, y, tasks = stacked(4)
    alpha, mu, T = 0.2, 0.7, 4
    model = MeanRegularised(alpha, mu).fit(X, y, tasks=tasks)
    W, common = model.coef_, model.common_
    first, second = T * alpha * (1 + mu) / (2 * mu), alpha * (1 + mu) / 2  # lambda_1, lambda_2
    mean = W.mean(axis=0)
    np.testing.assert_allclose(common, first / (first + second) * mean, atol=1e-10)
    ours = alpha * (1 + mu) / 2 * ((common**2).sum() + ((W - common) ** 2).sum() / mu)
    rho_1, rho_2 = first * second / (T * (first + second)), first**2 / (T * (first + second))
    np.testing.assert_allclose(ours, rho_1 * (W**2).sum() + rho_2 * ((W - mean) ** 2).sum())


@pytest.mark.parametrize("intercepts", ["own", "coupled", "common"])
def test_solution_has_zero_gradient_of_the_documented_objective(intercepts):
    X, y, tasks = stacked(5, sizes=(20, 15, 25))
    y[tasks == 1] = y[tasks == 1] > 1
    alpha, mu, T = 0.1, 0.4, 3
    loss = {0: "squared", 1: "logistic", 2: "squared"}
    model = MeanRegularised(alpha, mu, loss=loss, intercepts=intercepts, tol=1e-12).fit(X, y, tasks=tasks)

    W, common = model.coef_, model.common_
    z = model.task_scores(X, tasks=tasks)
    slope = np.where(tasks == 1, expit(z), z) - y
    slope /= np.bincount(tasks)[tasks]
    by_W = np.array([slope[tasks == t] @ X[tasks == t] for t in range(T)])
    by_b = np.array([slope[tasks == t].sum() for t in range(T)])
    np.testing.assert_allclose(by_W.sum(axis=0) + alpha * (1 + mu) * common, 0, atol=1e-9)
    np.testing.assert_allclose(by_W + alpha * (1 + mu) / mu * (W - common), 0, atol=1e-9)
    if intercepts == "own":
        np.testing.assert_allclose(by_b, 0, atol=1e-9)
    elif intercepts == "common":
        np.testing.assert_allclose(by_b.sum(), 0, atol=1e-9)
        np.testing.assert_allclose(model.intercept_, model.intercept_[0])
    else:
        deviation = model.intercept_ - model.intercept_.mean()
        np.testing.assert_allclose(by_b.sum(), 0, atol=1e-9)
        np.testing.assert_allclose(by_b + alpha * (1 + mu) / mu * deviation, 0, atol=1e-9)


@pytest.mark.parametrize("missing", [0.0, 0.5])
@pytest.mark.parametrize("loss", ["squared", ("squared", "logistic", "squared")])
def test_columns_and_stacked_rows_of_the_same_data_agree(missing, loss):
    rng = np.random.default_rng(6)
    X = rng.normal(size=(40, 5))
    Y = X @ rng.normal(size=(5, 3)) + rng.normal(size=(40, 3))
    if loss != "squared":
        Y[:, 1] = Y[:, 1] > 0
    Y[rng.random(Y.shape) < missing] = np.nan
    columns = MeanRegularised(0.1, 0.5, loss=loss).fit(X, Y)
    other = MeanRegularised(0.1, 0.5, loss=loss).fit(np.tile(X, (3, 1)), Y.T.ravel(), tasks=np.repeat(range(3), 40))
    np.testing.assert_allclose(other.coef_, columns.coef_, atol=1e-12)
    np.testing.assert_allclose(other.intercept_, columns.intercept_, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), intercepts=st.sampled_from(["own", "coupled", "common"]))
def test_permuting_tasks_or_rows_permutes_the_result_and_a_duplicate_row_has_weight_two(seed, intercepts):
    X, y, tasks = stacked(seed, sizes=(8, 20, 5), d=4)
    rng = np.random.default_rng(seed)
    model = MeanRegularised(0.05, 0.3, intercepts=intercepts).fit(X, y, tasks=tasks)
    renamed, rows = rng.permutation(3), rng.permutation(len(X))
    other = MeanRegularised(0.05, 0.3, intercepts=intercepts).fit(X[rows], y[rows], tasks=renamed[tasks[rows]])
    np.testing.assert_allclose(other.coef_[renamed], model.coef_, atol=1e-9)
    np.testing.assert_allclose(other.intercept_[renamed], model.intercept_, atol=1e-9)
    counts = rng.integers(0, 3, size=len(X))
    counts[:6] = 2
    counts[np.concatenate([np.flatnonzero(tasks == t)[:2] for t in range(3)])] = 1  # no task with one row only
    weighted = MeanRegularised(0.05, 0.3, intercepts=intercepts).fit(X, y, tasks=tasks, sample_weight=counts)
    repeated = MeanRegularised(0.05, 0.3, intercepts=intercepts).fit(
        np.repeat(X, counts, axis=0), np.repeat(y, counts), tasks=np.repeat(tasks, counts)
    )
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-9)


def test_more_features_than_rows_are_fitted_exactly():
    X, y, tasks = stacked(7, sizes=(6, 4), d=30)
    mu, alpha = 0.5, 0.01
    ours = MeanRegularised(alpha, mu, fit_intercept=False).fit(X, y, tasks=tasks)
    kernel = (1 + mu * (tasks[:, None] == tasks)) / (1 + mu) * (X @ X.T)
    dual = np.linalg.solve(kernel + alpha * np.diag(np.bincount(tasks)[tasks]), y)
    np.testing.assert_allclose(ours.predict(X, tasks=tasks), kernel @ dual, atol=1e-8)


def test_related_tasks_with_few_rows_gain_from_the_common_mean():
    X, y, tasks = stacked(8, sizes=(8,) * 30)
    test_X, test_y, test_tasks = stacked(8, sizes=(8,) * 30)
    rng = np.random.default_rng(9)
    common = rng.normal(size=7)
    W = common + 0.1 * rng.normal(size=(30, 7))
    y = np.einsum("nd,nd->n", X, W[tasks]) + rng.normal(size=len(tasks))
    test_y = np.einsum("nd,nd->n", test_X, W[test_tasks])
    together = MeanRegularised(0.3, 0.05).fit(X, y, tasks=tasks).predict(test_X, tasks=test_tasks)
    alone = MeanRegularised(0.3, np.inf).fit(X, y, tasks=tasks).predict(test_X, tasks=test_tasks)
    assert ((together - test_y) ** 2).mean() < 0.5 * ((alone - test_y) ** 2).mean()


def test_warm_start_from_the_solution_takes_one_step_at_most():
    X, y, tasks = stacked(10)
    y = (centred(y, tasks) > 0).astype(float)
    model = MeanRegularised(0.05, 0.5, loss="logistic", warm_start=True).fit(X, y, tasks=tasks)
    assert model.n_iter_ > 1
    coef = model.coef_.copy()
    assert model.fit(X, y, tasks=tasks).n_iter_ == 1
    np.testing.assert_allclose(model.coef_, coef, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": -1.0}, "alpha must be a positive number"),
        ({"mu": -0.1}, "mu must be a number from 0"),
        ({"mu": float("nan")}, "mu must be a number from 0"),
        ({"intercepts": "shared"}, "intercepts must be one of own, coupled, common"),
    ],
)
def test_wrong_settings_are_named_with_a_remedy(change, message):
    X, y, tasks = stacked(11)
    with pytest.raises(InputError, match=message):
        MeanRegularised().set_params(**change).fit(X, y, tasks=tasks)


def test_the_example_in_the_documentation_holds():
    assert doctest.testmod(module).failed == 0
