"""TaskKernelSVM: scikit-learn's machines in special cases, the certified optimum, refusals."""

from __future__ import annotations

import doctest

import cvxpy as cp
import numpy as np
import pytest
from sklearn.svm import SVC, SVR

import polytask.linear.task_kernel_svm as module
from polytask.core.errors import InputError
from polytask.linear import TaskKernelSVM
from polytask.linear.kernels import kernel_matrix

KINDS = ["regression", "classification"]


def stacked(problems, kind, seed=0):
    X, y, tasks = problems.stacked(seed)
    return X, (y > np.median(y)).astype(float) if kind == "classification" else y, tasks


def their_machine(kind, C, gamma, epsilon):
    if kind == "classification":
        return SVC(C=C, gamma=gamma, tol=1e-10)
    return SVR(C=C, gamma=gamma, epsilon=epsilon, tol=1e-10)


def their_scores(machine, X):
    return machine.decision_function(X) if isinstance(machine, SVC) else machine.predict(X)


@pytest.mark.parametrize("kind", KINDS)
def test_one_task_is_scikit_learns_machine(problems, kind):
    X, y, _ = stacked(problems, kind)
    ours = TaskKernelSVM(0.05, kind=kind, intercepts="common", length_scale=2.0, tol=1e-10).fit(X, y)
    theirs = their_machine(kind, 1 / (0.05 * len(y)), 1 / 8, 0.1).fit(X, y)
    np.testing.assert_allclose(ours.task_scores(X), their_scores(theirs, X), atol=1e-6)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), atol=1e-6)
    assert ours.score(X, y) == pytest.approx(theirs.score(X, y), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_without_independence_it_is_one_machine_on_all_rows(problems, kind):
    X, y, tasks = stacked(problems, kind, 1)
    ours = TaskKernelSVM(
        0.05, kind=kind, mu=0.0, intercepts="common", length_scale=2.0, task_weighting="examples", tol=1e-10
    ).fit(X, y, tasks=tasks)
    theirs = their_machine(kind, 5 / (0.05 * len(y)), 1 / 8, 0.1).fit(X, y)
    np.testing.assert_allclose(ours.task_scores(X, tasks), their_scores(theirs, X), atol=1e-6)


def objective(model, X, y, tasks):
    """Return the objective by its definition, and the covariance of the rows."""
    K = kernel_matrix("rbf", X, X, model.length_scale_) + (model.intercepts == "coupled")
    K = K * model.task_kernel_[tasks][:, tasks]
    scores = model.task_scores(X, tasks)
    classes = model.kind == "classification"
    losses = 1 - (2 * y - 1) * scores if classes else np.abs(y - scores) - model.epsilon
    a = model.dual_coef_[tasks, np.arange(len(y))]  # every row is kept, in order
    return np.maximum(losses, 0) @ (1 / np.bincount(tasks)[tasks]) + 0.5 * model.alpha * a @ K @ a, K


@pytest.mark.parametrize("intercepts", ["coupled", "common"])
@pytest.mark.parametrize("kind", KINDS)
def test_optimum_is_that_of_a_general_convex_solver(problems, kind, intercepts):
    X, y, tasks = stacked(problems, kind, 2)
    alpha, epsilon = 0.02, 0.3
    model = TaskKernelSVM(alpha, kind=kind, epsilon=epsilon, mu=0.5, intercepts=intercepts, tol=1e-9)
    model.fit(X, y, tasks=tasks)
    attained, K = objective(model, X, y, tasks)
    values, vectors = np.linalg.eigh(K)
    Phi = vectors * np.sqrt(np.maximum(values, 0))
    w, b = cp.Variable(len(y)), cp.Variable()
    z = Phi @ w + b
    share = 1 / np.bincount(tasks)[tasks]
    losses = cp.pos(1 - cp.multiply(2 * y - 1, z)) if kind == "classification" else cp.pos(cp.abs(y - z) - epsilon)
    problem = cp.Problem(cp.Minimize(share @ losses + 0.5 * alpha * cp.sum_squares(w)))
    problem.solve(solver="CLARABEL")
    assert attained == pytest.approx(problem.value, rel=1e-5)
    assert 0 <= model.dual_gap_ <= 1e-5 * problem.value


@pytest.mark.parametrize("kind", KINDS)
def test_the_duality_gap_bounds_what_an_early_stop_costs(problems, kind):
    X, y, tasks = stacked(problems, kind, 2)
    early, late = (TaskKernelSVM(0.02, kind=kind, tol=tol).fit(X, y, tasks=tasks) for tol in (0.5, 1e-9))
    cost = objective(early, X, y, tasks)[0] - objective(late, X, y, tasks)[0]
    assert 0 < cost <= early.dual_gap_
    assert early.dual_gap_ > 100 * late.dual_gap_


@pytest.mark.parametrize("kind", KINDS)
def test_columns_with_missing_labels_and_stacked_rows_give_the_same_machine(kind):
    rng = np.random.default_rng(3)
    X = rng.normal(size=(30, 2))
    Y = np.column_stack([np.sin(X[:, 0]), np.sin(X[:, 0]) + 0.3 * X[:, 1]])
    if kind == "classification":
        Y = (Y > 0).astype(float)
    Y[::3, 1] = np.nan
    wide = TaskKernelSVM(0.01, kind=kind, length_scale=1.0, tol=1e-10).fit(X, Y)
    row, task = np.nonzero(~np.isnan(Y))
    long = TaskKernelSVM(0.01, kind=kind, length_scale=1.0, tol=1e-10).fit(X[row], Y[row, task], tasks=task)
    np.testing.assert_allclose(wide.task_scores(X)[row, task], long.task_scores(X[row], task), atol=1e-6)
    assert wide.score(X, Y) > 0.9
    assert (wide.n_support_ == (wide.dual_coef_ != 0).sum(axis=1)).all()
    assert wide.relations_["task correlation"].values[0, 1] == pytest.approx(1 / 1.1)


def test_tasks_with_opposite_labels_are_separated_by_their_own_functions():
    rng = np.random.default_rng(4)
    X = rng.normal(size=(40, 2))
    y = (X[:, 0] > 0).astype(float)
    model = TaskKernelSVM(0.01, kind="classification", task_kernel="identity").fit(X, np.column_stack([y, 1 - y]))
    assert model.score(X, np.column_stack([y, 1 - y])) > 0.95
    assert set(np.unique(model.predict(X))) == {0.0, 1.0}
    assert np.isnan(model.predict_probability(X)).all()  # a margin is no log-odds


def test_wrong_settings_are_named(problems):
    X, y, tasks = problems.stacked()
    for settings, message in [
        ({"alpha": -1.0}, "alpha must be a positive number"),
        ({"epsilon": -0.1}, "epsilon must be a number of at least 0"),
        ({"kind": "ranking"}, "kind must be one of regression, classification"),
        ({"intercepts": "own"}, "one unpenalised intercept"),
        ({"task_kernel": "learned"}, 'unknown task_kernel "learned"'),
        ({"kind": "classification"}, "y must be 0 or 1"),
    ]:
        with pytest.raises(InputError, match=message):
            TaskKernelSVM(**settings).fit(X, y, tasks=tasks)
    with pytest.raises(InputError, match="only the class 1"):
        TaskKernelSVM(kind="classification").fit(X, np.ones(len(X)), tasks=tasks)


def test_examples_in_the_docstring_hold():
    assert doctest.testmod(module).failed == 0
