"""GaussianMixtureTasks: recovered clusters and their number, limits, invariance, gain over ridge."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import adjusted_rand_score

import polytask.linear.gaussian_mixture_tasks as module
from polytask.core.errors import InputError
from polytask.linear import GaussianMixtureTasks


def planted(seed=0, tasks=18, clusters=3, d=8, n=20, spread=0.3):
    rng = np.random.default_rng(seed)
    label = np.arange(tasks) % clusters
    W = rng.normal(size=(clusters, d))[label] + spread * rng.normal(size=(tasks, d))
    task = np.repeat(np.arange(tasks), n)
    X = rng.normal(size=(len(task), d))
    y = np.einsum("nd,nd->n", X, W[task]) + task + rng.normal(size=len(task))
    return X, y, task, label, W


def centred_within(X, y, tasks):
    means = np.array([np.append(X[tasks == t].mean(axis=0), y[tasks == t].mean()) for t in range(tasks.max() + 1)])
    return X - means[tasks, :-1], y - means[tasks, -1]


@pytest.mark.parametrize("covariance", ["full", "diagonal", "spherical"])
@pytest.mark.parametrize("seed", range(2))
def test_planted_clusters_and_their_number_are_found_and_rows_are_saved(seed, covariance):
    X, y, tasks, label, W = planted(seed)
    model = GaussianMixtureTasks(covariance=covariance).fit(X, y, tasks)
    assert model.n_clusters_ == 3
    assert adjusted_rand_score(label, model.labels_) > 0.9
    assert max(model.evidences_, key=model.evidences_.get) == 3
    assert (np.diff(model.evidence_) >= -1e-9).all()
    np.testing.assert_allclose(model.shares_.sum(axis=1), 1.0, atol=1e-6)
    error = np.square(model.coef_ - W).sum(axis=1).mean()
    ridges = [
        np.mean([np.square(Ridge(a).fit(X[tasks == t], y[tasks == t]).coef_ - W[t]).sum() for t in range(18)])
        for a in (0.3, 1.0, 3.0)
    ]
    assert error < 0.7 * min(ridges)


def test_unrelated_tasks_are_one_broad_cluster_that_is_a_ridge_for_every_task():
    X, y, tasks, _, _ = planted(0, clusters=18, spread=0.0, n=10)
    model = GaussianMixtureTasks(covariance="spherical").fit(X, y, tasks)
    assert model.n_clusters_ == 1
    tau, mean = model.covariances_[0][0, 0], model.means_[0]
    for t in (0, 7):
        Xt, yt = X[tasks == t], y[tasks == t]
        rest = yt - Xt @ mean
        ridge = Ridge(model.noise_variance_ / tau).fit(Xt, rest)
        np.testing.assert_allclose(model.coef_[t], ridge.coef_ + mean, atol=1e-6)


def test_one_cluster_without_spread_is_one_ridge_for_all_rows():
    X, y, tasks, _, _ = planted()
    model = GaussianMixtureTasks(1, spread=1e-9, tol=1e-13).fit(X, y, tasks)
    pooled = Ridge(model.noise_variance_ / model.mean_variance_, fit_intercept=False).fit(*centred_within(X, y, tasks))
    np.testing.assert_allclose(model.coef_, np.tile(pooled.coef_, (18, 1)), atol=1e-6)
    means = np.array([[X[tasks == t].mean(0) @ pooled.coef_, y[tasks == t].mean()] for t in range(18)])
    np.testing.assert_allclose(model.intercept_, means[:, 1] - means[:, 0], atol=1e-6)


def test_unlimited_spread_is_least_squares_for_every_task():
    X, y, tasks, _, _ = planted(n=40)
    model = GaussianMixtureTasks(1, spread=1e5).fit(X, y, tasks)
    for t in range(18):
        alone = LinearRegression().fit(X[tasks == t], y[tasks == t])
        np.testing.assert_allclose(model.coef_[t], alone.coef_, atol=1e-5)
        assert model.intercept_[t] == pytest.approx(alone.intercept_, abs=1e-5)


def test_order_of_the_tasks_does_not_matter():
    X, y, tasks, _, _ = planted(1)
    order = np.random.default_rng(0).permutation(18)
    one, other = (GaussianMixtureTasks(tol=1e-9).fit(X, y, t) for t in (tasks, order[tasks]))
    np.testing.assert_allclose(other.coef_[order], one.coef_, atol=1e-4)
    assert other.evidence_[-1] == pytest.approx(one.evidence_[-1], abs=1e-5)
    assert adjusted_rand_score(one.labels_, other.labels_[order]) == 1.0


def test_units_of_the_targets_do_not_matter():
    X, y, tasks, _, _ = planted(2)
    one, other = (GaussianMixtureTasks(tol=1e-8).fit(X, scale * y, tasks) for scale in (1.0, 1000.0))
    np.testing.assert_allclose(other.coef_, 1000.0 * one.coef_, rtol=1e-4, atol=1e-2)


def test_coupled_intercepts_lend_a_task_with_one_row_the_level_of_its_cluster():
    X, y, tasks, label, _ = planted(3)
    y = y - tasks + 10.0 * (label == 1)[tasks]
    kept = (tasks != 4) | (np.cumsum(tasks == 4) == 1)
    model = GaussianMixtureTasks(intercepts="coupled").fit(X[kept], y[kept], tasks[kept])
    assert model.labels_[4] == model.labels_[1]
    assert model.intercept_[4] == pytest.approx(10.0, abs=1.5)
    assert model.means_.shape == (3, 9)


def test_wide_targets_with_gaps_are_the_long_form():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(40, 4))
    Y = X @ rng.normal(size=(4, 2))[:, [0, 1, 0, 1, 0]] + 0.5 * rng.normal(size=(40, 5))
    Y[rng.random(Y.shape) < 0.3] = np.nan
    rows, task = np.nonzero(~np.isnan(Y))
    wide = GaussianMixtureTasks(tol=1e-9).fit(X, Y)
    long = GaussianMixtureTasks(tol=1e-9).fit(X[rows], Y[rows, task], task)
    np.testing.assert_allclose(wide.coef_, long.coef_, atol=1e-6)
    np.testing.assert_allclose(wide.predict(X)[rows, task], long.predict(X[rows], task), atol=1e-6)


def test_wrong_settings_are_named():
    X, y, tasks, _, _ = planted()
    for settings, message in (
        ({"n_clusters": 0}, "n_clusters must be a whole number"),
        ({"covariance": "banded"}, "covariance must be one of"),
        ({"spread": -1.0}, "spread must be a positive number"),
        ({"prior_tasks": 0.0}, "prior_tasks must be a positive number"),
    ):
        with pytest.raises(InputError, match=message):
            GaussianMixtureTasks(**settings).fit(X, y, tasks)


def test_examples_in_the_docstring_hold():
    assert doctest.testmod(module).failed == 0
