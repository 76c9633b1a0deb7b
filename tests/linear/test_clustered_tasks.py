"""ClusteredTasks: identities of the three penalties, relaxation, optimum, limits, recovered clusters."""

from __future__ import annotations

import doctest
import itertools

import cvxpy as cp
import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import adjusted_rand_score

import polytask.linear.clustered_tasks as module
from polytask.core.errors import InputError
from polytask.linear import ClusteredTasks, MeanRegularised
from polytask.linear.penalties.spectral import SpectralBox, SquaredTraceNorm


def hard_penalties(W, label):
    """Omega_mean, Omega_between and Omega_within as sums over clusters and tasks."""
    mean = W.mean(axis=0)
    between = within = 0.0
    for c in np.unique(label):
        members = W[label == c]
        between += len(members) * np.square(members.mean(axis=0) - mean).sum()
        within += np.square(members - members.mean(axis=0)).sum()
    return len(W) * mean @ mean, between, within


def relaxed(W, model):
    """The penalty of the relaxation at W."""
    return model._penalties(*W.shape)[0].value(W)


def test_the_three_penalties_are_quadratic_forms_of_the_tasks():
    rng = np.random.default_rng(0)
    W, label = rng.normal(size=(6, 4)), np.array([0, 1, 0, 2, 2, 0])
    E = (label[:, None] == np.arange(3)).astype(float)
    M, U, I = E @ np.linalg.inv(E.T @ E) @ E.T, np.full((6, 6), 1 / 6), np.eye(6)  # noqa: E741 - as in the paper
    forms = [np.trace(W.T @ A @ W) for A in (U, M - U, I - M)]
    np.testing.assert_allclose(forms, hard_penalties(W, label))


@pytest.mark.parametrize("label", [[0, 1, 0, 2, 2, 0], [0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5]])
def test_a_partition_is_a_point_of_the_relaxation(label):
    rng = np.random.default_rng(3)
    W, label, mean, between, within, T = rng.normal(size=(6, 4)), np.array(label), 0.05, 0.3, 1.5, 6
    r = len(set(label.tolist()))
    E = (label[:, None] == np.arange(r)).astype(float)
    M, U = E @ np.linalg.inv(E.T @ E) @ E.T, np.full((T, T), 1 / T)
    precision = between * (M - U) + within * (np.eye(T) - M + U)
    values = np.linalg.eigvalsh(np.linalg.inv(precision))
    assert values.sum() == pytest.approx((T - r + 1) / within + (r - 1) / between)
    assert 1 / within - 1e-12 <= values.min()
    assert values.max() <= 1 / between + 1e-12
    V = W - W.mean(axis=0)
    found = mean * np.trace(W.T @ U @ W) + np.trace(V.T @ precision @ V)
    assert found == pytest.approx(np.dot([mean, between, within], hard_penalties(W, label)))


@pytest.mark.parametrize("r", [1, 2, 3, 5])
def test_the_relaxation_is_at_most_the_penalty_of_every_partition(r):
    rng = np.random.default_rng(1)
    W = rng.normal(size=(5, 3))
    model = ClusteredTasks(2.0, r, mean=0.05, between=0.3, within=1.5)
    bound = relaxed(W, model)
    seen = 0
    for label in itertools.product(range(r), repeat=5):
        if len(set(label)) == r:
            parts = hard_penalties(W, np.array(label))
            assert bound <= 0.5 * 2.0 * np.dot([0.05, 0.3, 1.5], parts) + 1e-12
            seen += 1
    assert seen > 0


@pytest.mark.parametrize("r", [2, 3])
def test_optimum_is_that_of_a_general_convex_solver(problems, r):
    X, y, tasks = problems.stacked(2)
    model = ClusteredTasks(0.2, r, mean=0.1, between=0.4, within=2.0, tol=1e-9).fit(X, y, tasks=tasks)
    low, high, T, d = 1 / 2.0, 1 / 0.4, 5, 6
    total = (T - r + 1) * low + (r - 1) * high
    centre = np.eye(T) - 1 / T

    def penalty(parts):
        S, R = cp.Variable((T, T), symmetric=True), cp.Variable((d, d), symmetric=True)
        V = centre @ parts[0]
        constraints = [S >> low * np.eye(T), high * np.eye(T) >> S, cp.trace(S) == total]
        constraints.append(cp.bmat([[R, V.T], [V, S]]) >> 0)  # R >= V^T S^-1 V
        return 0.1 * (0.1 * T * cp.sum_squares(cp.sum(parts[0], axis=0) / T) + cp.trace(R)), constraints

    best = problems.optimum(X, y, tasks, penalty)
    ours = problems.loss(model, X, y, tasks) + relaxed(model.coef_, model)
    assert ours == pytest.approx(best, rel=1e-5)
    assert model.dual_gap_ <= 1e-9 * problems.null_loss(y, tasks)


def test_logistic_losses_reach_a_certified_optimum(problems):
    X, y, tasks = problems.stacked(3, sizes=(30, 40, 25, 30), d=4, noise=4.0)
    y = (y > np.array([np.median(y[tasks == t]) for t in range(4)])[tasks]).astype(float)
    model = ClusteredTasks(0.1, 2, loss="logistic", tol=1e-8).fit(X, y, tasks=tasks)
    assert model.dual_gap_ <= 1e-8 * 4 * np.log(2)


@pytest.mark.parametrize("alpha", [0.02, 0.5])
def test_one_cluster_is_the_mean_regularised_model(problems, alpha):
    X, y, tasks = problems.stacked(4)
    # mean T ||m||² + within sum ||w_t - m||²: prior variances of the mean and of the deviations
    mean, within, T = 0.1, 1.0, 5
    ours = ClusteredTasks(alpha, 1, mean=mean, between=0.5, within=within, tol=1e-13).fit(X, y, tasks=tasks)
    share = (1 / mean - 1 / within) / T  # of the common vector in the prior covariance
    scale = share + 1 / within
    theirs = MeanRegularised(alpha / scale, scale / share - 1).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
    assert not ours.labels_.any()


def test_as_many_clusters_as_tasks_and_equal_strengths_leave_nothing_to_cluster(problems):
    X, y, tasks = problems.stacked(5)
    settings = {"mean": 0.1, "tol": 1e-13}
    many = ClusteredTasks(0.3, 5, between=0.5, within=1.0, **settings).fit(X, y, tasks=tasks)
    one = ClusteredTasks(0.3, 1, between=0.5, within=0.5, **settings).fit(X, y, tasks=tasks)
    some = ClusteredTasks(0.3, 3, between=0.5, within=0.5, **settings).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(many.coef_, one.coef_, atol=1e-5)
    np.testing.assert_allclose(some.coef_, one.coef_, atol=1e-5)


def test_three_equal_strengths_are_ridge(problems):
    X, y, tasks = problems.stacked(6)
    model = ClusteredTasks(0.3, 2, mean=1.0, between=1.0, within=1.0, tol=1e-13).fit(X, y, tasks=tasks)
    for t in range(5):
        mine = tasks == t
        alone = Ridge(alpha=0.3 * mine.sum()).fit(X[mine], y[mine])
        np.testing.assert_allclose(model.coef_[t], alone.coef_, atol=1e-5)


def test_without_bounds_on_single_directions_the_cluster_norm_is_a_squared_trace_norm():
    V = np.random.default_rng(7).normal(size=(6, 4))
    gamma = 3.0
    assert SpectralBox(1.0, 1e-13, 1e13, gamma, 6).value(V) == pytest.approx(SquaredTraceNorm(1 / gamma).value(V))


@pytest.mark.parametrize("seed", range(3))
def test_planted_clusters_are_recovered(problems, seed):
    X, y, tasks, label = problems.clusters(seed)
    model = ClusteredTasks(0.3, 3).fit(X, y, tasks=tasks)
    assert adjusted_rand_score(label, model.labels_) > 0.9
    inside = model.relations_["task correlation"].values[label[:, None] == label]
    outside = model.relations_["task correlation"].values[label[:, None] != label]
    assert inside.mean() > outside.mean() + 0.1


def test_learned_covariance_gives_the_penalty_as_a_prior(problems):
    X, y, tasks = problems.stacked(8, rank=5)
    model = ClusteredTasks(0.3, 3, mean=0.2, between=0.4, within=1.0).fit(X, y, tasks=tasks)
    W = model.coef_
    quadratic = 0.5 * model.alpha * np.trace(W.T @ np.linalg.inv(model.covariance_) @ W)
    assert quadratic == pytest.approx(relaxed(W, model), rel=1e-8)


def test_permuting_tasks_permutes_coefficients_and_clusters(problems):
    X, y, tasks, _ = problems.clusters(9, per=3)
    order = np.random.default_rng(0).permutation(9)
    model = ClusteredTasks(0.3, 3, tol=1e-12).fit(X, y, tasks=tasks)
    other = ClusteredTasks(0.3, 3, tol=1e-12).fit(X, y, tasks=order[tasks])
    np.testing.assert_allclose(other.coef_[order], model.coef_, atol=1e-5)
    assert adjusted_rand_score(model.labels_, other.labels_[order]) == 1.0


def test_wrong_settings_are_named(problems):
    X, y, tasks = problems.stacked(10)
    with pytest.raises(InputError, match="must not fall in this order"):
        ClusteredTasks(between=2.0).fit(X, y, tasks=tasks)
    with pytest.raises(InputError, match="n_clusters must be a whole number"):
        ClusteredTasks(n_clusters=0).fit(X, y, tasks=tasks)


def test_examples_in_the_docstring_hold():
    assert doctest.testmod(module).failed == 0
