"""DirichletProcessTasks: evidence, limits of the concentration, recovered clusters, the mixture's predictions."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import multivariate_normal
from sklearn.linear_model import Ridge
from sklearn.metrics import adjusted_rand_score

import polytask.linear.dirichlet_process_tasks as module
from polytask.core.errors import InputError
from polytask.linear import DirichletProcessTasks


def planted(seed=0, tasks=12, clusters=3, d=5, n=25, *, logistic=False):
    """Tasks with one of a few coefficient vectors; returns X, y, tasks and the cluster of each task."""
    rng = np.random.default_rng(seed)
    label = np.arange(tasks) % clusters
    W = 2.0 * rng.normal(size=(clusters, d))[label]
    task = np.repeat(np.arange(tasks), n)
    X = rng.normal(size=(len(task), d))
    z = np.einsum("nd,nd->n", X, W[task])
    y = (rng.random(len(z)) < expit(z)).astype(float) if logistic else z + task + rng.normal(size=len(z))
    return X, y, task, label


@pytest.mark.parametrize("logistic", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_planted_clusters_are_recovered_and_the_evidence_never_falls(seed, logistic):
    X, y, tasks, label = planted(seed, n=60 if logistic else 25, logistic=logistic)
    model = DirichletProcessTasks(loss="logistic" if logistic else "squared").fit(X, y, tasks)
    assert adjusted_rand_score(label, model.labels_) > 0.9
    assert (np.diff(model.evidence_) >= -1e-8).all()
    np.testing.assert_allclose(model._process.shares.sum(axis=1), 1.0, atol=1e-12)


@pytest.mark.parametrize("logistic", [False, True])
@pytest.mark.parametrize("intercepts", ["own", "coupled"])
def test_evidence_rises_from_a_poor_start_too(logistic, intercepts):
    X, y, tasks, _ = planted(1, logistic=logistic, n=40)
    model = DirichletProcessTasks(loss="logistic" if logistic else "squared", intercepts=intercepts).fit(X, y, tasks)
    process = model._process
    process.shares = np.random.default_rng(0).dirichlet(np.ones(process.shares.shape[1]), size=12)
    values = []
    for _ in range(60):
        values.append(process.round())
        process.refit()
    assert (np.diff(values) >= -1e-8).all()
    assert values[-1] > values[0] + 1.0


def test_evidence_of_one_task_is_its_dense_gaussian_likelihood_times_the_share_of_a_stick():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 3)), rng.normal(size=20)
    model = DirichletProcessTasks(2.0, 0.7, n_components=1, fit_intercept=False, tol=1e-12).fit(X, y)
    noise = model.noise_variance_
    marginal = multivariate_normal(np.zeros(20), noise * (np.eye(20) + X @ X.T / 0.7)).logpdf(y)
    prior = model._process.evidence.squared.noise_log_prior(noise)
    assert model.evidence_[-1] == pytest.approx(marginal + prior - np.log(1 + 2.0), abs=1e-6)


def test_concentration_to_zero_is_one_ridge_for_all_tasks():
    X, y, tasks, _ = planted()
    model = DirichletProcessTasks(1e-300, 3.0).fit(X, y, tasks)
    means = np.array([np.append(X[tasks == t].mean(axis=0), y[tasks == t].mean()) for t in range(12)])[tasks]
    pooled = Ridge(3.0, fit_intercept=False).fit(X - means[:, :-1], y - means[:, -1])
    assert model.n_clusters_ == 1
    np.testing.assert_allclose(model.coef_, np.tile(pooled.coef_, (12, 1)), atol=1e-8)


def test_concentration_to_zero_is_pooled_bayesian_logistic_regression():
    X, y, tasks, _ = planted(logistic=True)
    model = DirichletProcessTasks(1e-300, 0.5, loss="logistic", fit_intercept=False, tol=1e-12).fit(X, y, tasks)
    xi = np.ones(len(y))
    for _ in range(2000):  # the bound of Jaakkola and Jordan, all rows together
        slope = np.tanh(xi / 2) / (4 * xi)
        S = np.linalg.inv(0.5 * np.eye(5) + 2 * (X.T * slope) @ X)
        m = S @ X.T @ (y - 0.5)
        xi = np.sqrt(np.einsum("nd,de,ne->n", X, S + np.outer(m, m), X))
    assert model.n_clusters_ == 1
    np.testing.assert_allclose(model.coef_, np.tile(m, (12, 1)), atol=1e-5)


@pytest.mark.parametrize("logistic", [False, True])
def test_concentration_to_infinity_leaves_different_tasks_alone(logistic):
    X, y, tasks, _ = planted(2, tasks=5, clusters=5, n=120, logistic=logistic)
    loss = "logistic" if logistic else "squared"
    model = DirichletProcessTasks(1e12, loss=loss, tol=1e-12).fit(X, y, tasks)
    assert model.n_clusters_ == 5
    for t in range(5):
        mine = tasks == t
        alone = DirichletProcessTasks(1.0, loss=loss, tol=1e-12).fit(X[mine], y[mine])
        # tasks share the variance of the noise, which the prior is relative to, but not their coefficients
        np.testing.assert_allclose(model.coef_[t], alone.coef_[0], atol=1e-5)


@pytest.mark.parametrize("logistic", [False, True])
def test_order_of_the_tasks_does_not_matter(logistic):
    X, y, tasks, _ = planted(3, logistic=logistic)
    order = np.random.default_rng(0).permutation(12)
    one, other = (
        DirichletProcessTasks(loss="logistic" if logistic else "squared", tol=1e-12).fit(X, y, t)
        for t in (tasks, order[tasks])
    )
    assert one.evidence_[-1] == pytest.approx(other.evidence_[-1], abs=1e-7)
    np.testing.assert_allclose(other.coef_[order], one.coef_, atol=1e-6)


def test_probability_is_the_mixture_over_clusters_and_the_class_its_larger_half():
    X, y, tasks, _ = planted(4, n=15, logistic=True)
    model = DirichletProcessTasks(loss="logistic").fit(X, y, tasks)
    process = model._process
    row, task = X[0] - model._shift - process.evidence.mean_x[7], 7
    each = [
        expit((row @ m + process.evidence.bias[task]) / np.sqrt(1 + np.pi / 8 * row @ S @ row))
        for m, S in zip(process.mean, process.covariance, strict=True)
    ]
    want = process.shares[task] @ each
    assert model.predict_probability(X[:1], tasks=[7])[0] == pytest.approx(want, abs=1e-10)
    probability = model.predict_probability(X, tasks)
    np.testing.assert_array_equal(model.predict(X, tasks), probability > 0.5)
    accuracy = np.mean([((probability > 0.5) == y)[tasks == t].mean() for t in range(12)])
    assert model.score(X, y, tasks=tasks) == pytest.approx(accuracy)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_wide_targets_with_gaps_are_the_long_form(loss):
    rng = np.random.default_rng(5)
    X = rng.normal(size=(50, 4))
    Y = X @ rng.normal(size=(4, 2))[:, [0, 1, 0]] + 0.5 * rng.normal(size=(50, 3))
    Y = (Y > 0).astype(float) if loss == "logistic" else Y
    Y[rng.random(Y.shape) < 0.3] = np.nan
    rows, task = np.nonzero(~np.isnan(Y))
    wide = DirichletProcessTasks(loss=loss).fit(X, Y)
    long = DirichletProcessTasks(loss=loss).fit(X[rows], Y[rows, task], task)
    np.testing.assert_allclose(wide.coef_, long.coef_, atol=1e-6)
    every = wide.predict_probability(X) if loss == "logistic" else wide.predict(X)
    other = long.predict_probability(X[rows], task) if loss == "logistic" else long.predict(X[rows], task)
    np.testing.assert_allclose(every[rows, task], other, atol=1e-6)


def test_a_task_with_one_class_gets_its_log_odds_and_the_relations_name_the_tasks():
    X, y, tasks, _ = planted(6, tasks=4, n=30, logistic=True)
    y[tasks == 1] = 1.0
    names = np.array(["a", "b", "c", "d"])[tasks]
    with pytest.warns(UserWarning, match="'b'"):
        model = DirichletProcessTasks(loss="logistic").fit(X, y, names)
    np.testing.assert_allclose(model.predict_probability(X[:3], ["b"] * 3), expit(np.log(30.5 / 0.5)))
    assert model.relations_["clusters"].columns == ("a", "b", "c", "d")
    similarity = model.relations_["task similarity"].values
    np.testing.assert_allclose(similarity, similarity.T)
    assert model.relations_["task tree"].values.shape == (3, 4)


def test_more_tasks_than_are_joined_pair_by_pair_are_grouped_first():
    X, y, tasks, label = planted(7, tasks=180, d=3, n=12)
    model = DirichletProcessTasks().fit(X, y, tasks)
    assert adjusted_rand_score(label, model.labels_) > 0.9
    np.testing.assert_array_equal(model.coef_, DirichletProcessTasks().fit(X, y, tasks).coef_)


def test_wrong_settings_are_named():
    X, y, tasks, _ = planted()
    with pytest.raises(InputError, match="concentration must be a positive number"):
        DirichletProcessTasks(0.0).fit(X, y, tasks)
    with pytest.raises(InputError, match="intercepts must be"):
        DirichletProcessTasks(intercepts="free").fit(X, y, tasks)
    with pytest.raises(InputError, match='has no loss="huber"'):
        DirichletProcessTasks(loss="huber").fit(X, y, tasks)
    with pytest.raises(InputError, match="one loss for all tasks"):
        DirichletProcessTasks(loss=["squared", "logistic"]).fit(X, np.column_stack([y, y > 0]))


def test_examples_in_the_docstring_hold():
    assert doctest.testmod(module).failed == 0
