"""TraceNorm and MultiTaskFeatureLearning: optimum, certificate, limits, one path, invariances."""

from __future__ import annotations

import doctest

import cvxpy as cp
import numpy as np
import pytest
from scipy.stats import ortho_group
from sklearn.exceptions import ConvergenceWarning

import polytask.linear.feature_learning
import polytask.linear.trace_norm
from polytask.core.errors import InputError
from polytask.linear import MultiTaskFeatureLearning, TraceNorm


def nuclear(W):
    return np.linalg.svd(W, compute_uv=False).sum()


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_optimum_is_that_of_a_general_convex_solver(problems, share):
    X, y, tasks = problems.stacked()
    model = TraceNorm(tol=1e-9)
    alpha = share * model.alpha_max(X, y, tasks=tasks)
    model.set_params(alpha=alpha).fit(X, y, tasks=tasks)
    best = problems.optimum(X, y, tasks, lambda parts: (alpha * cp.normNuc(parts[0]), []))
    ours = problems.loss(model, X, y, tasks) + alpha * nuclear(model.coef_)
    assert ours == pytest.approx(best, rel=1e-5)
    assert ours - model.dual_gap_ <= best + 1e-6 * abs(best)


def test_tasks_of_both_kinds_are_learned_together(problems):
    X, y, tasks = problems.stacked(2)
    y[tasks == 1] = y[tasks == 1] > np.median(y[tasks == 1])
    loss = ["squared", "logistic", "squared", "squared", "squared"]
    fits = [TraceNorm(0.1, loss=loss, tol=tol).fit(X, y, tasks=tasks) for tol in (1e-3, 1e-9)]
    rough, exact = (problems.loss(fit, X, y, tasks) + 0.1 * nuclear(fit.coef_) for fit in fits)
    assert -1e-9 <= rough - exact <= fits[0].dual_gap_ + 1e-9


def test_dual_gap_bounds_the_distance_to_the_optimum(problems):
    X, y, tasks = problems.stacked(3)

    def objective(model):
        return problems.loss(model, X, y, tasks) + 0.05 * nuclear(model.coef_)

    best = objective(TraceNorm(0.05, tol=1e-12).fit(X, y, tasks=tasks))
    for tol in (1e-1, 1e-3, 1e-5, 1e-7):
        rough = TraceNorm(0.05, tol=tol).fit(X, y, tasks=tasks)
        assert -1e-10 <= objective(rough) - best <= rough.dual_gap_ + 1e-10
        assert rough.dual_gap_ <= tol * problems.null_loss(y, tasks) * (1 + 1e-9)


def test_from_alpha_max_on_all_coefficients_are_zero_and_below_it_one_direction_is_used(problems):
    X, y, tasks = problems.stacked(4)
    top = TraceNorm().alpha_max(X, y, tasks=tasks)
    assert not TraceNorm(top * (1 + 1e-9), tol=1e-9).fit(X, y, tasks=tasks).coef_.any()
    just = TraceNorm(0.95 * top, tol=1e-9).fit(X, y, tasks=tasks)
    assert just.rank_ == 1
    assert just.components_.shape == (1, 6)


def test_a_vanishing_penalty_gives_least_squares_for_every_task_alone(problems):
    X, y, tasks = problems.stacked(5)
    model = TraceNorm(1e-7, tol=1e-10, max_iter=100_000).fit(X, y, tasks=tasks)
    for t in range(5):
        mine = tasks == t
        design = np.column_stack([X[mine], np.ones(mine.sum())])
        np.testing.assert_allclose(model.coef_[t], np.linalg.lstsq(design, y[mine])[0][:-1], atol=1e-3)


def test_planted_rank_is_recovered(problems):
    X, y, tasks = problems.stacked(6, sizes=(60,) * 8, d=10, noise=0.1, rank=2)
    assert TraceNorm(0.1, tol=1e-8).fit(X, y, tasks=tasks).rank_ == 2


def test_rotating_the_features_rotates_the_solution(problems):
    X, y, tasks = problems.stacked(7)
    Q = ortho_group.rvs(6, random_state=0)
    for estimator in (TraceNorm(0.1, tol=1e-12), MultiTaskFeatureLearning(0.02, tol=1e-12)):
        plain = estimator.fit(X, y, tasks=tasks).coef_.copy()
        np.testing.assert_allclose(estimator.fit(X @ Q, y, tasks=tasks).coef_, plain @ Q, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.001, 0.02, 0.2])
def test_feature_learning_is_the_trace_norm_of_strength_two_alpha_times_the_norm(problems, alpha):
    X, y, tasks = problems.stacked(8)
    feature = MultiTaskFeatureLearning(alpha, tol=1e-13).fit(X, y, tasks=tasks)
    trace = TraceNorm(2 * alpha * nuclear(feature.coef_), tol=1e-13).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(feature.coef_, trace.coef_, atol=1e-5)


def test_feature_learning_optimum_is_that_of_a_general_convex_solver(problems):
    X, y, tasks = problems.stacked(9)
    model = MultiTaskFeatureLearning(0.03, tol=1e-9).fit(X, y, tasks=tasks)
    best = problems.optimum(X, y, tasks, lambda parts: (0.03 * cp.square(cp.normNuc(parts[0])), []))
    assert problems.loss(model, X, y, tasks) + 0.03 * nuclear(model.coef_) ** 2 == pytest.approx(best, rel=1e-5)


def test_feature_covariance_is_the_best_of_trace_one(problems):
    X, y, tasks = problems.stacked(10, rank=5)
    model = MultiTaskFeatureLearning(0.002, tol=1e-9).fit(X, y, tasks=tasks)
    W, D = model.coef_, model.covariance_
    assert np.linalg.eigvalsh(D).min() > -1e-12
    assert np.trace(D) == pytest.approx(1.0)
    attained = np.trace(W @ np.linalg.pinv(D, rcond=1e-10) @ W.T)
    assert attained == pytest.approx(nuclear(W) ** 2, rel=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(50):
        A = rng.normal(size=(6, 6))
        other = A @ A.T + 1e-3 * np.eye(6)
        other = 0.5 * other / np.trace(other) + 0.5 * D
        assert np.trace(W @ np.linalg.inv(other) @ W.T) >= attained * (1 - 1e-9)


def test_columns_with_missing_labels_and_stacked_rows_agree():
    rng = np.random.default_rng(11)
    X = rng.normal(size=(60, 5))
    Y = X @ rng.normal(size=(5, 4)) + rng.normal(size=(60, 4))
    Y[rng.random(Y.shape) < 0.3] = np.nan
    columns = TraceNorm(0.1, tol=1e-12).fit(X, Y)
    rows, task = np.nonzero(~np.isnan(Y))
    stacked = TraceNorm(0.1, tol=1e-12).fit(X[rows], Y[rows, task], tasks=task)
    np.testing.assert_allclose(stacked.coef_, columns.coef_, atol=1e-6)


def test_permuting_tasks_permutes_the_result(problems):
    X, y, tasks = problems.stacked(12)
    order = np.array([3, 1, 4, 0, 2])
    model = TraceNorm(0.1, tol=1e-12).fit(X, y, tasks=tasks)
    other = TraceNorm(0.1, tol=1e-12).fit(X, y, tasks=order[tasks])
    np.testing.assert_allclose(other.coef_[order], model.coef_, atol=1e-6)
    np.testing.assert_allclose(
        other.relations_["task correlation"].values[np.ix_(order, order)],
        model.relations_["task correlation"].values,
        atol=1e-5,
    )


def test_warm_start_from_the_solution_needs_one_step_and_the_same_data_give_the_same_bytes(problems):
    X, y, tasks = problems.stacked(13)
    model = TraceNorm(0.05, warm_start=True).fit(X, y, tasks=tasks)
    first = model.n_iter_
    again = TraceNorm(0.05).fit(X, y, tasks=tasks)
    assert again.coef_.tobytes() == model.coef_.tobytes()
    assert model.fit(X, y, tasks=tasks).n_iter_ == 1 < first


def test_stopping_too_early_warns_and_says_what_to_do(problems):
    X, y, tasks = problems.stacked(14)
    with pytest.warns(ConvergenceWarning, match="increase max_iter"):
        TraceNorm(1e-3, max_iter=2, tol=1e-12).fit(X, y, tasks=tasks)


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.inf, "much", True])
def test_a_wrong_strength_is_refused_by_name(problems, alpha):
    X, y, tasks = problems.stacked(15)
    for estimator in (TraceNorm, MultiTaskFeatureLearning):
        with pytest.raises(InputError, match="alpha must be a positive number"):
            estimator(alpha).fit(X, y, tasks=tasks)


def test_examples_in_the_docstrings_hold():
    for module in (polytask.linear.trace_norm, polytask.linear.feature_learning):
        assert doctest.testmod(module).failed == 0
