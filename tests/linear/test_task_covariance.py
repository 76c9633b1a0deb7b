"""TaskCovariance (MTRL): the exact optimum, what the learned covariance is, limits, no stall."""

from __future__ import annotations

import doctest

import cvxpy as cp
import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.linear_model import Ridge

import polytask.linear.task_covariance as module
from polytask.core.errors import InputError
from polytask.linear import MultiTaskFeatureLearning, TaskCovariance
from polytask.linear.penalised import root_covariance
from polytask.linear.penalties.spectral import SquaredTraceNorm


def nuclear(W):
    return np.linalg.svd(W, compute_uv=False).sum()


def objective(problems, model, X, y, tasks):
    W = model.coef_
    penalty = 0.5 * model.ridge * np.square(W).sum() + 0.5 * model.alpha * nuclear(W) ** 2
    return problems.loss(model, X, y, tasks) + penalty


@pytest.mark.parametrize(("alpha", "ridge"), [(0.05, 0.01), (0.001, 0.1), (0.3, 0.0)])
def test_optimum_is_that_of_a_general_convex_solver(problems, alpha, ridge):
    X, y, tasks = problems.stacked()
    model = TaskCovariance(alpha, ridge, tol=1e-9).fit(X, y, tasks=tasks)
    best = problems.optimum(
        X,
        y,
        tasks,
        lambda W: (0.5 * ridge * cp.sum_squares(W[0]) + 0.5 * alpha * cp.square(cp.normNuc(W[0])), []),
    )
    assert objective(problems, model, X, y, tasks) == pytest.approx(best, rel=1e-5)


def few_rows(seed=0, T=30, d=20, n=12):
    """The setting in which alternating stalls: 30 tasks in 3 clusters, 12 rows each."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(3, d))[np.arange(T) % 3] + 0.3 * rng.normal(size=(T, d))
    X = rng.normal(size=(T, n, d))
    Y = np.einsum("tnd,td->tn", X, W) + rng.normal(size=(T, n))
    return X, Y


def alternate(X, Y, alpha, rounds):
    """The paper's alternation with O + 1e-6 I, without intercepts; returns the true objective after every round."""
    T, n, d = X.shape
    G = np.einsum("tnd,tne->tde", X, X) / n
    b = np.einsum("tnd,tn->td", X, Y) / n
    blocks = np.zeros((T, d, T, d))
    blocks[np.arange(T), :, np.arange(T), :] = G
    omega, reached = np.eye(T) / T, []
    for _ in range(rounds):
        precision = np.linalg.inv(omega + 1e-6 * np.eye(T))
        system = blocks + alpha * np.einsum("st,de->sdte", precision, np.eye(d))
        W = np.linalg.solve(system.reshape(T * d, T * d), b.ravel()).reshape(T, d)
        omega = root_covariance(W)
        loss = 0.5 * np.square(Y - np.einsum("tnd,td->tn", X, W)).mean(axis=1).sum()
        reached.append(loss + 0.5 * alpha * nuclear(W) ** 2)
    return np.array(reached)


def test_it_does_not_stall_where_alternating_between_coefficients_and_covariance_does():
    X, Y = few_rows()
    T, n, d = X.shape
    alpha = 0.003
    tasks = np.repeat(np.arange(T), n)
    model = TaskCovariance(alpha, 0.0, fit_intercept=False, tol=1e-6)
    model.fit(X.reshape(-1, d), Y.ravel(), tasks=tasks)
    loss = 0.5 * np.square(Y - np.einsum("tnd,td->tn", X, model.coef_)).mean(axis=1).sum()
    exact = loss + 0.5 * alpha * nuclear(model.coef_) ** 2
    slow = alternate(X, Y, alpha, 15)
    assert (np.diff(slow) < 1e-3 * slow[1:]).all()  # goes down, as its papers say
    assert slow[-1] > 1.05 * exact  # but far above the certified optimum
    assert model.dual_gap_ <= 1e-4 * exact


def test_covariance_is_positive_of_trace_one_and_no_other_costs_less(problems):
    X, y, tasks = problems.stacked(2, rank=5)
    model = TaskCovariance(0.01, 0.01, tol=1e-9).fit(X, y, tasks=tasks)
    W, omega = model.coef_, model.covariance_
    assert np.linalg.eigvalsh(omega).min() > -1e-12
    assert np.trace(omega) == pytest.approx(1.0)
    attained = np.trace(W.T @ np.linalg.pinv(omega, rcond=1e-10) @ W)
    assert attained == pytest.approx(nuclear(W) ** 2, rel=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(100):
        A = rng.normal(size=(5, 5)) * 10 ** rng.uniform(-1, 1, size=5)
        other = A @ A.T / np.square(A).sum()
        assert np.trace(W.T @ np.linalg.pinv(other) @ W) >= attained * (1 - 1e-9)


def test_the_penalty_grows_with_the_square_of_the_coefficients():
    W = np.random.default_rng(3).normal(size=(4, 6))
    penalty = SquaredTraceNorm(0.7, 0.2)
    assert penalty.value(3 * W) == pytest.approx(9 * penalty.value(W))


def test_known_covariances():
    np.testing.assert_allclose(root_covariance(5 * np.eye(3, 7)), np.eye(3) / 3)
    w = np.array([1.0, 2.0, -1.0])
    np.testing.assert_allclose(root_covariance(np.tile(w, (4, 1))), np.full((4, 4), 0.25), atol=1e-12)
    np.testing.assert_allclose(root_covariance(np.stack([w, -w])), [[0.5, -0.5], [-0.5, 0.5]], atol=1e-12)


def test_opposed_tasks_are_found_to_be_opposed():
    rng = np.random.default_rng(4)
    X = rng.normal(size=(100, 5))
    w = rng.normal(size=5)
    Y = np.column_stack([X @ w, -X @ w]) + 0.1 * rng.normal(size=(100, 2))
    model = TaskCovariance(0.01, 0.0).fit(X, Y)
    assert model.relations_["task correlation"].values[0, 1] < -0.99


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_without_the_relationship_penalty_it_is_ridge(problems, ridge):
    X, y, tasks = problems.stacked(5)
    model = TaskCovariance(1e-12, ridge, tol=1e-13).fit(X, y, tasks=tasks)
    for t in range(5):
        mine = tasks == t
        alone = Ridge(alpha=ridge * mine.sum()).fit(X[mine], y[mine])
        np.testing.assert_allclose(model.coef_[t], alone.coef_, atol=1e-5)


def test_without_ridge_it_is_convex_feature_learning(problems):
    X, y, tasks = problems.stacked(6)
    covariance = TaskCovariance(0.06, 0.0, tol=1e-12).fit(X, y, tasks=tasks)
    features = MultiTaskFeatureLearning(0.03, tol=1e-12).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(covariance.coef_, features.coef_, atol=1e-6)


def test_one_task_is_ridge_of_both_strengths(problems):
    X, y, _ = problems.stacked(7, sizes=(40,))
    model = TaskCovariance(0.2, 0.3, tol=1e-13).fit(X, y)
    np.testing.assert_allclose(model.coef_[0], Ridge(alpha=0.5 * 40).fit(X, y).coef_, atol=1e-6)
    np.testing.assert_allclose(model.covariance_, [[1.0]])
    assert "task tree" not in model.relations_


def test_wrong_settings_are_named(problems):
    X, y, tasks = problems.stacked(8)
    with pytest.raises(InputError, match="alpha must be a positive number"):
        TaskCovariance(0.0).fit(X, y, tasks=tasks)
    with pytest.raises(InputError, match="ridge must be a number of at least 0"):
        TaskCovariance(0.1, -1.0).fit(X, y, tasks=tasks)


def test_examples_in_the_docstring_hold():
    assert doctest.testmod(module).failed == 0


def placed(seed, alpha, *, T=4, d=6, n=9, ridge=0.01):
    """A model of learned tasks, the rows of a new one like the first, and what learning it gives."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(T, d))
    old = rng.normal(size=(60, d))
    model = TaskCovariance(0.01, ridge, tol=1e-10).fit(old, old @ W.T + 0.3 * rng.normal(size=(60, T)) + 1.0)
    model.set_params(alpha=alpha)
    X = rng.normal(size=(n, d))
    y = X @ (1.2 * W[0] + 0.2 * rng.normal(size=d)) - 2.0
    return model, X, y, model.new_task(X, y)


@pytest.mark.parametrize("ridge", [0.0, 0.05])
@pytest.mark.parametrize("n", [4, 30])
@pytest.mark.parametrize("alpha", [0.003, 0.05, 1.0])
def test_new_task_is_the_optimum_over_coefficients_and_covariance(alpha, n, ridge):
    model, X, y, task = placed(0, alpha, n=n, ridge=ridge)
    T, d = model.coef_.shape
    w, b, o, v = cp.Variable((1, d)), cp.Variable(), cp.Variable((T, 1)), cp.Variable((1, 1))
    joint = cp.bmat([[(1 - cp.reshape(v, (), order="C")) * model.covariance_, o], [o.T, v]])
    loss = 0.5 * cp.sum_squares(X @ w[0] + b - y) / n + 0.5 * ridge * cp.sum_squares(w)
    problem = cp.Problem(cp.Minimize(loss + 0.5 * alpha * cp.matrix_frac(cp.vstack([model.coef_, w]), joint)))
    problem.solve(solver="CLARABEL")
    stacked = np.vstack([model.coef_, task.coef])
    inverse = np.linalg.pinv(task.covariance, rcond=1e-11, hermitian=True)
    reached = 0.5 * np.square(X @ task.coef + task.intercept - y).mean() + 0.5 * ridge * task.coef @ task.coef
    reached += 0.5 * alpha * np.trace(stacked.T @ inverse @ stacked)
    assert reached == pytest.approx(problem.value, rel=1e-6)
    assert reached <= problem.value * (1 + 1e-8)
    np.testing.assert_allclose(task.coef, w.value[0], atol=1e-3)
    assert np.linalg.eigvalsh(task.covariance)[0] >= -1e-10
    assert np.trace(task.covariance) == pytest.approx(1.0)
    share = 1.0 - task.covariance[-1, -1]
    np.testing.assert_allclose(task.covariance[:-1, :-1], share * model.covariance_)
    assert abs(task.dual_gap) <= 1e-9 * np.square(y - y.mean()).mean() + 1e-12


def test_new_task_gains_from_the_task_it_is_like():
    model, X, y, task = placed(1, 0.01, n=4)
    scale = np.sqrt(np.diag(task.covariance))
    likeness = task.covariance[-1, :-1] / scale[-1] / scale[:-1]
    assert likeness.argmax() == 0
    alone = Ridge(alpha=0.01 * 4).fit(X, y)
    new = np.random.default_rng(9).normal(size=(500, 6))
    truth = new @ (model.coef_[0] * 1.2) - 2.0
    assert np.square(task.predict(new) - truth).mean() < 0.5 * np.square(alone.predict(new) - truth).mean()


def test_new_task_beside_coefficients_of_zero_is_a_ridge():
    rng = np.random.default_rng(2)
    X, y = rng.normal(size=(20, 3)), rng.normal(size=20)
    model = TaskCovariance(0.2, 0.1, tol=1e-12).fit(X, rng.normal(size=(20, 2)))
    model.coef_ = np.zeros_like(model.coef_)
    alone = Ridge(alpha=20 * 0.3).fit(X, y)
    np.testing.assert_allclose(model.new_task(X, y).coef, alone.coef_, atol=1e-8)


def test_new_task_takes_sparse_rows_and_refuses_targets_of_another_shape():
    model, X, y, task = placed(3, 0.02)
    np.testing.assert_allclose(model.new_task(csr_array(X), y).coef, task.coef, atol=1e-6)
    with pytest.raises(InputError, match="one finite target of the new task per row of X"):
        model.new_task(X, y[:-1])
