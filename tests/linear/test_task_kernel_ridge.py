"""TaskKernelRidge: its optimum, what it equals, learned task kernels, odd tasks, refusals."""

from __future__ import annotations

import doctest

import cvxpy as cp
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import polynomial_kernel

import polytask.linear.task_kernel_ridge as module
from polytask.core.errors import InputError
from polytask.linear import GraphRegularised, MeanRegularised, TaskCovariance, TaskKernelRidge
from polytask.linear.kernels import kernel_matrix
from polytask.linear.moments import Moments
from polytask.linear.penalised import root_covariance

TASK_KERNELS = ["mean", "graph", "identity", "learned"]


def waves(seed=0, n=25, T=3):
    """Non-linear tasks on the same rows."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2))
    return X, np.column_stack([np.sin(X @ rng.normal(size=2)) + t for t in range(T)]) + 0.1 * rng.normal(size=(n, T))


def features(model):
    """Rows of a factor of the kernel matrix of the known rows."""
    K = kernel_matrix(model.kernel, model.X_fit_, model.X_fit_, model.length_scale_)
    values, vectors = np.linalg.eigh(K)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def coefficients(model):
    """W ``(T, n)`` of the fitted functions in terms of :func:`features`."""
    return model.task_kernel_ @ model.dual_coef_ @ features(model)


def loss(model, Y):
    residual = Y - model.predict(model.X_fit_)
    return 0.5 * np.nanmean(np.square(residual), axis=0).sum()


def nuclear(W):
    return np.linalg.svd(W, compute_uv=False).sum()


def general_optimum(Phi, Y, penalty):
    T = Y.shape[1]
    W, b = cp.Variable((T, Phi.shape[1])), cp.Variable(T)
    losses = 0
    for t in range(T):
        seen = ~np.isnan(Y[:, t])
        losses += 0.5 * cp.sum_squares(Y[seen, t] - Phi[seen] @ W[t] - b[t]) / seen.sum()
    problem = cp.Problem(cp.Minimize(losses + penalty(W)))
    problem.solve(solver="CLARABEL")
    assert problem.status == "optimal"
    return problem.value


# -- optimum -----------------------------------------------------------------------------------


@pytest.mark.parametrize("task_kernel", ["mean", "graph", "identity"])
@pytest.mark.parametrize("missing", [False, True])
def test_optimum_is_that_of_a_general_convex_solver(task_kernel, missing):
    X, Y = waves()
    if missing:
        Y[np.random.default_rng(1).random(Y.shape) < 0.3] = np.nan
    alpha = 0.02
    model = TaskKernelRidge(alpha, task_kernel=task_kernel, mu=0.4).fit(X, Y)
    root = np.linalg.inv(np.linalg.cholesky(model.task_kernel_))
    best = general_optimum(features(model), Y, lambda W: 0.5 * alpha * cp.sum_squares(root @ W))
    attained = loss(model, Y) + 0.5 * alpha * np.square(root @ coefficients(model)).sum()
    assert attained == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("alpha", [0.003, 0.1])
def test_with_a_learned_task_kernel_the_optimum_is_that_of_a_general_convex_solver(alpha, missing):
    X, Y = waves(1)
    if missing:
        Y[np.random.default_rng(1).random(Y.shape) < 0.3] = np.nan
    model = TaskKernelRidge(alpha, task_kernel="learned", tol=1e-9).fit(X, Y)
    best = general_optimum(features(model), Y, lambda W: alpha / 6 * cp.square(cp.normNuc(W)))
    attained = loss(model, Y) + alpha / 6 * nuclear(coefficients(model)) ** 2
    assert attained == pytest.approx(best, rel=1e-5)
    assert attained - best <= model.dual_gap_ + 1e-5 * best


def test_the_learned_task_kernel_is_the_root_of_the_gram_matrix_of_the_functions():
    X, Y = waves(2)
    model = TaskKernelRidge(0.01, task_kernel="learned", tol=1e-12).fit(X, Y)
    K = kernel_matrix("rbf", model.X_fit_, model.X_fit_, model.length_scale_)
    functions = model.task_kernel_ @ model.dual_coef_  # alpha_s, the coefficients of the function of task s
    C = functions @ K @ functions.T
    values, vectors = np.linalg.eigh(C)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    np.testing.assert_allclose(model.task_kernel_, 3 * root / np.trace(root), atol=1e-4)
    assert np.trace(model.task_kernel_) == pytest.approx(3.0)


def test_no_other_task_kernel_of_the_same_trace_has_a_lower_objective():
    X, Y = waves(3)

    def objective(model):
        W = coefficients(model)
        return loss(model, Y) + 0.5 * 0.02 * np.trace(np.linalg.pinv(model.task_kernel_) @ W @ W.T)

    best = objective(TaskKernelRidge(0.02, task_kernel="learned", tol=1e-10).fit(X, Y))
    rng = np.random.default_rng(0)
    for _ in range(20):
        A = rng.normal(size=(3, 3))
        other = TaskKernelRidge(0.02, task_kernel=3 * A @ A.T / np.square(A).sum()).fit(X, Y)
        assert objective(other) >= best * (1 - 1e-8)


# -- what it equals ----------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["equal", "examples"])
def test_with_the_linear_kernel_a_graph_gives_the_graph_regularised_model(problems, weighting):
    X, y, tasks = problems.stacked()
    graph = {(0, 1): 2.0, (1, 4): 0.5}
    quadratic = GraphRegularised(0.05, 0.3, graph=graph, task_weighting=weighting, tol=1e-13).fit(X, y, tasks=tasks)
    kernel = TaskKernelRidge(
        0.05, task_kernel="graph", mu=0.3, graph=graph, kernel="linear", task_weighting=weighting
    ).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(kernel.predict(X, tasks), quadratic.predict(X, tasks), atol=1e-8)
    np.testing.assert_allclose(
        kernel.relations_["task covariance"].values, quadratic.relations_["task covariance"].values, atol=1e-10
    )


def test_with_the_linear_kernel_a_learned_task_kernel_is_task_covariance_learning(problems):
    X, y, tasks = problems.stacked(1)
    kernel = TaskKernelRidge(0.1, task_kernel="learned", kernel="linear", tol=1e-11).fit(X, y, tasks=tasks)
    linear = TaskCovariance(0.1 / 5, 0.0, tol=1e-11).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(kernel.predict(X, tasks), linear.predict(X, tasks), atol=1e-5)
    np.testing.assert_allclose(kernel.task_kernel_ / 5, root_covariance(linear.coef_), atol=1e-6)


def test_identity_is_scikit_learns_kernel_ridge_of_every_task(problems):
    X, y, tasks = problems.stacked(2)
    model = TaskKernelRidge(0.02, task_kernel="identity", length_scale=2.0, fit_intercept=False).fit(X, y, tasks=tasks)
    for t in range(5):
        mine = tasks == t
        alone = KernelRidge(alpha=0.02 * mine.sum(), kernel="rbf", gamma=1 / 8).fit(X[mine], y[mine])
        np.testing.assert_allclose(model.predict(X[mine], tasks[mine]), alone.predict(X[mine]), atol=1e-9)
    independent = clone(model).set_params(task_kernel="mean", mu=np.inf).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(independent.predict(X, tasks), model.predict(X, tasks), atol=1e-12)


def test_mean_without_independence_is_one_function_for_all(problems):
    X, y, tasks = problems.stacked(3)
    pooled = TaskKernelRidge(0.02, mu=0.0, intercepts="common", task_weighting="examples").fit(X, y, tasks=tasks)
    alone = TaskKernelRidge(0.02 / 5, task_kernel="identity", length_scale=pooled.length_scale_[0]).fit(X, y)
    np.testing.assert_allclose(pooled.predict(X, tasks), alone.predict(X), atol=1e-9)


def test_a_function_serves_as_kernel(problems):
    X, y, tasks = problems.stacked(4)
    by_name = TaskKernelRidge(0.1, kernel="linear").fit(X, y, tasks=tasks)
    by_function = TaskKernelRidge(0.1, kernel=lambda A, B: A @ B.T).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(by_function.predict(X, tasks), by_name.predict(X, tasks))
    cubic = TaskKernelRidge(1e-6, kernel=polynomial_kernel, mu=0.0).fit(X[:, :1], X[:, 0] ** 3)
    np.testing.assert_allclose(cubic.predict(X[:, :1]), X[:, 0] ** 3, atol=0.1)


@pytest.mark.parametrize("task_kernel", TASK_KERNELS)
@pytest.mark.parametrize("weights", [False, True])
def test_columns_and_stacked_rows_give_the_same_model(task_kernel, weights):
    X, Y = waves(5)
    rng = np.random.default_rng(0)
    W = rng.uniform(0.5, 2, Y.shape) if weights else np.ones_like(Y)
    wide = TaskKernelRidge(0.01, task_kernel=task_kernel).fit(X, Y, sample_weight=W)
    rows, tasks = np.tile(X, (3, 1)), np.repeat(np.arange(3), len(X))
    order = rng.permutation(len(rows))
    long = TaskKernelRidge(0.01, task_kernel=task_kernel, length_scale=wide.length_scale_[0])
    long.fit(rows[order], Y.T.ravel()[order], tasks=tasks[order], sample_weight=W.T.ravel()[order])
    np.testing.assert_allclose(long.predict(rows, tasks), wide.predict(X).T.ravel(), atol=1e-5)
    assert long.score(rows, Y.T.ravel(), tasks=tasks) == pytest.approx(wide.score(X, Y), abs=1e-6)


@pytest.mark.parametrize("task_kernel", TASK_KERNELS)
def test_a_row_of_weight_two_is_the_same_as_having_it_twice(task_kernel):
    X, Y = waves(6)
    times = np.random.default_rng(0).integers(0, 3, len(X))
    weighted = TaskKernelRidge(0.01, task_kernel=task_kernel, tol=1e-10).fit(X, Y, sample_weight=times)
    twice = TaskKernelRidge(0.01, task_kernel=task_kernel, tol=1e-10).fit(X.repeat(times, 0), Y.repeat(times, 0))
    np.testing.assert_allclose(weighted.predict(X), twice.predict(X), atol=1e-5)


@pytest.mark.parametrize("task_kernel", TASK_KERNELS)
def test_predictions_follow_a_permutation_of_tasks(task_kernel):
    X, Y = waves(7)
    order = [2, 0, 1]
    model = TaskKernelRidge(0.01, task_kernel=task_kernel, tol=1e-10)
    np.testing.assert_allclose(
        model.fit(X, Y[:, order]).predict(X), clone(model).fit(X, Y).predict(X)[:, order], atol=1e-5
    )


def test_a_cell_without_label_has_no_dual_coefficient_and_rows_without_labels_are_not_kept():
    X, Y = waves(8)
    Y[::2, 1] = np.nan
    Y[4] = np.nan
    model = TaskKernelRidge(0.01).fit(X, Y)
    assert len(model.X_fit_) == 24
    kept = np.delete(np.arange(25), 4)
    assert (model.dual_coef_[1] == 0).sum() == np.isnan(Y[kept, 1]).sum()
    np.testing.assert_allclose(model.dual_coef_.sum(axis=1), 0, atol=1e-9)  # own intercepts


def test_few_labels_of_a_task_are_completed_from_a_related_one():
    X, Y = waves(9, n=60, T=2)
    Y[:, 1] = Y[:, 0] + 3.0
    truth = Y.copy()
    Y[5:, 1] = np.nan
    together = TaskKernelRidge(1e-3, mu=0.01).fit(X, Y).predict(X)
    alone = TaskKernelRidge(1e-3, task_kernel="identity").fit(X, Y).predict(X)
    errors = [np.square(found[5:, 1] - truth[5:, 1]).mean() for found in (together, alone)]
    assert errors[0] < 0.2 * errors[1]


# -- odd input ---------------------------------------------------------------------------------


def test_a_task_with_one_target_gets_its_intercept_only_and_changes_nothing_else(problems):
    X, y, tasks = problems.stacked(5)
    extra, more = np.append(X, X[:1], axis=0), np.append(tasks, 7)
    for task_kernel in ("mean", "learned"):
        with pytest.warns(UserWarning, match="task 7"):
            model = TaskKernelRidge(0.1, task_kernel=task_kernel).fit(extra, np.append(y, 4.5), tasks=more)
        without = TaskKernelRidge(0.1, task_kernel=task_kernel).fit(X, y, tasks=tasks)
        np.testing.assert_allclose(model.predict(X, tasks), without.predict(X, tasks), atol=1e-9)
        np.testing.assert_allclose(model.predict(X, np.full(len(X), 7)), 4.5)
        assert model.dual_coef_.shape[0] == 6
        assert model.task_kernel_.shape == (6, 6)
    with pytest.warns(UserWarning, match="task 0"):
        only = TaskKernelRidge().fit([[1.0], [2.0]], [3.0, 3.0])
    np.testing.assert_allclose(only.predict([[5.0]]), [3.0])


def test_with_shared_intercepts_a_task_with_one_target_learns_from_the_others(problems):
    X, y, tasks = problems.stacked(5, rank=1)
    extra, more = np.append(X, X[:1], axis=0), np.append(tasks, 7)
    model = TaskKernelRidge(0.01, mu=0.01, intercepts="coupled").fit(extra, np.append(y, y[0]), tasks=more)
    assert np.ptp(model.predict(X, np.full(len(X), 7))) > 1.0


def test_tasks_may_be_a_column_of_the_frame():
    X, Y = waves(10)
    frame = pd.DataFrame(X, columns=["u", "v"]).assign(place="a")
    model = TaskKernelRidge(0.1).fit(frame, Y[:, 0], tasks="place")
    np.testing.assert_allclose(model.predict(frame), TaskKernelRidge(0.1).fit(X, Y[:, 0]).predict(X))
    assert np.isfinite(model.score(frame, Y[:, 0]))


def test_many_rows_are_predicted_in_pieces(monkeypatch):
    X, Y = waves(11)
    model = TaskKernelRidge(0.1).fit(X, Y)
    whole = model.predict(X)
    monkeypatch.setattr("polytask.linear.kernel_machine._CHUNK", 60)
    np.testing.assert_allclose(model.predict(X), whole)


def test_an_unfinished_learned_task_kernel_says_so():
    X, Y = waves(12)
    with pytest.warns(UserWarning, match="duality gap"):
        TaskKernelRidge(0.001, task_kernel="learned", max_iter=1, tol=1e-12).fit(X, Y)


def test_wrong_settings_are_named(problems):
    X, y, tasks = problems.stacked()

    def fit(**settings):
        return TaskKernelRidge(**settings).fit(X, y, tasks=tasks)

    for settings, message in [
        ({"alpha": 0.0}, "alpha must be a positive number"),
        ({"mu": -1.0}, "mu must be a number of at least 0"),
        ({"task_kernel": "graph", "mu": 0.0}, "mu must be a positive number"),
        ({"task_kernel": "means"}, 'Did you mean "mean"'),
        ({"task_kernel": np.eye(3)}, r"task_kernel has shape \(3, 3\); give finite numbers \(5, 5\)"),
        ({"task_kernel": -np.eye(5)}, "eigenvalue -1"),
        ({"task_kernel": np.triu(np.ones((5, 5)))}, "not symmetric"),
        ({"intercepts": "free"}, "intercepts must be one of own, coupled, common"),
        ({"intercepts": "common", "task_kernel": "learned"}, "does not go with"),
        ({"kernel": "rbs"}, 'Did you mean "rbf"'),
        ({"length_scale": [1.0, 2.0]}, "length_scale must be a positive number or 6"),
    ]:
        with pytest.raises(InputError, match=message):
            fit(**settings)
    model = fit()
    with pytest.raises(InputError, match="task 9 was not among the 5 tasks"):
        model.predict(X[:1], [9])
    with pytest.raises(InputError, match="pass tasks too"):
        model.score(X, y)
    with pytest.raises(InputError, match="a kernel, which needs the rows"):
        model.fit_moments(Moments.of(X, y[:, None]))
    with pytest.raises(InputError, match="fitted on columns of y"):
        TaskKernelRidge().fit(*waves()).predict(waves()[0], np.zeros(25))


def test_the_mean_task_kernel_is_that_of_the_mean_regularised_model():
    X, Y = waves(13)
    model = TaskKernelRidge(0.1, mu=3.0, kernel="linear").fit(X, Y)
    np.testing.assert_allclose(model.task_kernel_, 0.25 + 0.75 * np.eye(3))
    np.testing.assert_allclose(model.predict(X), MeanRegularised(0.1, 3.0).fit(X, Y).predict(X), atol=1e-10)


def test_examples_in_the_docstring_hold():
    assert doctest.testmod(module).failed == 0
