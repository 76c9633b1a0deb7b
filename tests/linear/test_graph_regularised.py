"""GraphRegularised: the normal equations, limits, decoupling, ties, logistic optimum."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import Ridge

import polytask.linear.graph_regularised as module
import polytask.linear.solvers.quadratic as solver
from polytask.core.errors import InputError
from polytask.linear import GraphRegularised, MeanRegularised


def random_graph(T, seed=0):
    A = np.random.default_rng(seed).exponential(size=(T, T)) * (np.random.default_rng(seed + 1).random((T, T)) < 0.5)
    return np.triu(A, 1) + np.triu(A, 1).T


def normal_equations(X, y, tasks, precision):
    """Solve (blockdiag(G) + precision (x) I) vec(W) = c with inputs and targets centred within tasks."""
    T, d = precision.shape[0], X.shape[1]
    system, right = np.kron(precision, np.eye(d)), np.zeros(T * d)
    for t in range(T):
        mine = tasks == t
        x, v = X[mine] - X[mine].mean(axis=0), y[mine] - y[mine].mean()
        part = slice(t * d, (t + 1) * d)
        system[part, part] += x.T @ x / mine.sum()
        right[part] = x.T @ v / mine.sum()
    return np.linalg.solve(system, right).reshape(T, d)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("alpha", [0.02, 2.0])
def test_solution_is_that_of_the_dense_normal_equations(problems, monkeypatch, dense, alpha):
    if not dense:
        monkeypatch.setattr(solver, "_DENSE", 0)
    X, y, tasks = problems.stacked()
    A = random_graph(5)
    model = GraphRegularised(alpha, 0.1, graph=A, tol=1e-11).fit(X, y, tasks=tasks)
    precision = alpha * (np.diag(A.sum(axis=1)) - A + 0.1 * np.eye(5))
    np.testing.assert_allclose(model.coef_, normal_equations(X, y, tasks, precision), atol=1e-8)


def test_the_laplacian_form_is_the_sum_over_edges():
    A, W = random_graph(6), np.random.default_rng(0).normal(size=(6, 3))
    edges = sum(A[s, t] * np.square(W[s] - W[t]).sum() for s in range(6) for t in range(s + 1, 6))
    assert np.trace(W.T @ (np.diag(A.sum(axis=1)) - A) @ W) == pytest.approx(edges)


def test_without_edges_it_is_ridge(problems):
    X, y, tasks = problems.stacked(1)
    model = GraphRegularised(0.4, 0.5, graph=np.zeros((5, 5))).fit(X, y, tasks=tasks)
    for t in range(5):
        mine = tasks == t
        alone = Ridge(alpha=0.4 * 0.5 * mine.sum()).fit(X[mine], y[mine])
        np.testing.assert_allclose(model.coef_[t], alone.coef_, atol=1e-8)


def test_the_complete_graph_is_the_mean_regularised_model(problems):
    X, y, tasks = problems.stacked(2)
    alpha, ridge, T = 0.3, 0.2, 5
    ours = GraphRegularised(alpha, ridge, tol=1e-11).fit(X, y, tasks=tasks)
    # deviations cost 1 + ridge, the mean ridge
    share = (1 / ridge - 1 / (1 + ridge)) / T
    scale = share + 1 / (1 + ridge)
    theirs = MeanRegularised(alpha / scale, scale / share - 1).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-7)
    unit = GraphRegularised(alpha / T, ridge * T, graph=np.ones((T, T)), tol=1e-11).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(unit.coef_, ours.coef_, atol=1e-7)


def test_components_that_no_edge_joins_do_not_affect_each_other(problems):
    X, y, tasks = problems.stacked(3)
    A = np.zeros((5, 5))
    A[0, 1] = A[1, 0] = A[2, 3] = A[3, 2] = A[3, 4] = A[4, 3] = 1.0
    whole = GraphRegularised(0.3, graph=A, tol=1e-12).fit(X, y, tasks=tasks)
    first = tasks < 2
    part = GraphRegularised(0.3, graph=A[:2, :2], tol=1e-12).fit(X[first], y[first], tasks=tasks[first])
    np.testing.assert_allclose(whole.coef_[:2], part.coef_, atol=1e-9)


def test_a_heavy_edge_ties_two_tasks(problems):
    X, y, tasks = problems.stacked(4)
    model = GraphRegularised(0.1, graph={(1, 3): 1e8}).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(model.coef_[1], model.coef_[3], atol=1e-6)
    assert np.abs(model.coef_[1] - model.coef_[0]).max() > 0.1


def test_logistic_losses_reach_a_point_without_gradient(problems):
    X, y, tasks = problems.stacked(5, noise=4.0)
    y = (y > np.array([np.median(y[tasks == t]) for t in range(5)])[tasks]).astype(float)
    A = random_graph(5, 3)
    model = GraphRegularised(0.1, 0.2, graph=A, loss="logistic", tol=1e-9).fit(X, y, tasks=tasks)
    gradient = 0.1 * (model.laplacian_ + 0.2 * np.eye(5)) @ model.coef_
    for t in range(5):
        mine = tasks == t
        gradient[t] += (expit(X[mine] @ model.coef_[t] + model.intercept_[t]) - y[mine]) @ X[mine] / mine.sum()
    assert np.abs(gradient).max() < 1e-7


def test_edges_may_be_named_by_task_labels(problems):
    X, y, tasks = problems.stacked(6)
    labels = np.array(["a", "b", "c", "d", "e"])[tasks]
    A = np.zeros((5, 5))
    A[0, 2] = A[2, 0] = 2.0
    named = GraphRegularised(0.3, graph={("c", "a"): 2.0}).fit(X, y, tasks=labels)
    np.testing.assert_array_equal(named.coef_, GraphRegularised(0.3, graph=A).fit(X, y, tasks=tasks).coef_)
    assert named.relations_["task correlation"].values[0, 2] > 0.5
    assert named.relations_["task correlation"].values[0, 1] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (np.ones((4, 4)), "graph has shape"),
        (np.triu(np.ones((5, 5))), "graph is not symmetric"),
        (-np.ones((5, 5)), "graph must have finite weights"),
        ({(0, 9): 1.0}, "task 9 was not among the 5 tasks"),
        ({0: 1.0}, "give pairs of task labels"),
    ],
)
def test_a_wrong_graph_is_refused_with_a_remedy(problems, graph, message):
    X, y, tasks = problems.stacked(7)
    with pytest.raises(InputError, match=message):
        GraphRegularised(graph=graph).fit(X, y, tasks=tasks)


def test_examples_in_the_docstring_hold():
    assert doctest.testmod(module).failed == 0
