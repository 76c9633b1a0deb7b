"""GraphGuidedFusedLasso: optimum, certificate, limits, the graph it finds, equal coefficients."""

from __future__ import annotations

import doctest

import cvxpy as cp
import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso

import polytask.linear.graph_guided_fused_lasso
from polytask.core.errors import InputError
from polytask.linear import GraphGuidedFusedLasso
from polytask.linear.similarity import cosines

R = np.array(
    [
        [1.0, 0.8, -0.5, 0.0, 0.0],
        [0.8, 1.0, -0.3, 0.4, 0.0],
        [-0.5, -0.3, 1.0, 0.0, 0.7],
        [0.0, 0.4, 0.0, 1.0, -0.6],
        [0.0, 0.0, 0.7, -0.6, 1.0],
    ]
)


def penalty(W, alpha, gamma, graph):
    """The definition, for a cvxpy or a plain matrix; ``graph`` holds sign times tau."""
    total = alpha * cp.sum(cp.abs(W))
    for s, t in zip(*np.nonzero(np.triu(graph, 1)), strict=True):
        total += gamma * abs(graph[s, t]) * cp.norm1(W[int(s)] - np.sign(graph[s, t]) * W[int(t)])
    return total


@pytest.mark.parametrize("weights", ["absolute", "squared", "equal"])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.1, 0.1), (0.02, 0.5), (0.3, 1.0), (0.01, 5.0)])
def test_optimum_is_that_of_a_general_convex_solver(problems, alpha, gamma, weights):
    X, y, tasks = problems.stacked()
    model = GraphGuidedFusedLasso(alpha, gamma, graph=R, threshold=0.35, edge_weights=weights, tol=1e-9)
    model.fit(X, y, tasks=tasks)
    tau = {"absolute": np.abs(R), "squared": R**2, "equal": np.ones((5, 5))}[weights]
    graph = np.where(np.abs(R) >= 0.35, np.sign(R) * tau, 0.0) * (1 - np.eye(5))
    np.testing.assert_allclose(model.graph_, graph)
    best = problems.optimum(X, y, tasks, lambda parts: (penalty(parts[0], alpha, gamma, graph), []))
    ours = problems.loss(model, X, y, tasks) + penalty(model.coef_, alpha, gamma, graph).value
    assert ours == pytest.approx(best, rel=1e-5)
    assert ours - model.dual_gap_ <= best + 1e-6 * abs(best)


def test_dual_gap_bounds_the_distance_to_the_optimum(problems):
    X, y, tasks = problems.stacked(3)

    def objective(model):
        return problems.loss(model, X, y, tasks) + penalty(model.coef_, 0.05, 0.2, model.graph_).value

    best = objective(GraphGuidedFusedLasso(0.05, 0.2, graph=R, tol=1e-12).fit(X, y, tasks=tasks))
    for tol in (1e-1, 1e-3, 1e-5, 1e-7):
        rough = GraphGuidedFusedLasso(0.05, 0.2, graph=R, tol=tol).fit(X, y, tasks=tasks)
        assert -1e-9 <= objective(rough) - best <= rough.dual_gap_ + 1e-9
        assert rough.dual_gap_ <= tol * problems.null_loss(y, tasks) * (1 + 1e-9)


def test_a_long_chain_of_tasks_is_certified():
    rng = np.random.default_rng(4)
    T, n, d = 60, 12, 5
    W = np.where(np.arange(T)[:, None] < 30, 1.0, -1.0) * np.array([1.0, 2.0, 0.0, 0.0, -1.0])
    tasks = np.repeat(np.arange(T), n)
    X = rng.normal(size=(T * n, d))
    y = np.einsum("nd,nd->n", X, W[tasks]) + rng.normal(size=T * n)
    graph = {(t, t + 1): 1.0 for t in range(T - 1)}
    model = GraphGuidedFusedLasso(0.01, 1.0, graph=graph, tol=1e-7).fit(X, y, tasks=tasks)
    assert model.dual_gap_ <= 1e-7 * sum(0.5 * y[tasks == t].var() for t in range(T)) * (1 + 1e-9)
    assert len(np.unique(model.coef_[:, 0])) < 10  # few distinct values along the chain
    alone = GraphGuidedFusedLasso(0.01, 0.0, graph=graph).fit(X, y, tasks=tasks)
    assert np.square(model.coef_ - W).sum() < 0.2 * np.square(alone.coef_ - W).sum()


def test_without_differences_it_is_the_lasso_of_every_task(problems):
    X, y, tasks = problems.stacked(6)
    model = GraphGuidedFusedLasso(0.2, 0.0, graph=R, tol=1e-12).fit(X, y, tasks=tasks)
    for t in range(5):
        alone = Lasso(0.2, tol=1e-12, max_iter=100_000).fit(X[tasks == t], y[tasks == t])
        np.testing.assert_allclose(model.coef_[t], alone.coef_, atol=1e-6)


def test_a_huge_gamma_gives_every_connected_part_one_model_up_to_sign(problems):
    X, y, tasks = problems.stacked(7)
    graph = {(0, 1): 1.0, (1, 2): -1.0, (3, 4): 1.0}
    model = GraphGuidedFusedLasso(0.05, 1e4, graph=graph, tol=1e-10).fit(X, y, tasks=tasks)
    np.testing.assert_array_equal(model.coef_[0], model.coef_[1])
    np.testing.assert_array_equal(model.coef_[0], -model.coef_[2])
    np.testing.assert_array_equal(model.coef_[3], model.coef_[4])
    # the pooled lasso of the first part: centred rows, signs turned, weights 1 / n_t
    rows, target = [], []
    for t, sign in ((0, 1), (1, 1), (2, -1)):
        mine = tasks == t
        root = np.sqrt(1.0 / mine.sum())
        rows.append(root * sign * (X[mine] - X[mine].mean(axis=0)))
        target.append(root * (y[mine] - y[mine].mean()))
    A, b = np.concatenate(rows), np.concatenate(target)
    pooled = Lasso(3 * 0.05 / len(A), fit_intercept=False, tol=1e-12, max_iter=100_000).fit(A, b)
    np.testing.assert_allclose(model.coef_[0], pooled.coef_, atol=1e-5)


def test_flipping_the_sign_of_a_task_and_of_its_edges_flips_its_coefficients(problems):
    X, y, tasks = problems.stacked(8)
    flip = np.array([1.0, -1.0, 1.0, 1.0, -1.0])
    model = GraphGuidedFusedLasso(0.05, 0.2, graph=R, tol=1e-12).fit(X, y, tasks=tasks)
    other = GraphGuidedFusedLasso(0.05, 0.2, graph=R * np.outer(flip, flip), tol=1e-12)
    other.fit(X, y * flip[tasks], tasks=tasks)
    np.testing.assert_allclose(other.coef_, model.coef_ * flip[:, None], atol=1e-6)


def test_from_alpha_max_on_all_coefficients_are_zero(problems):
    X, y, tasks = problems.stacked(9)
    top = GraphGuidedFusedLasso().alpha_max(X, y, tasks=tasks)
    for gamma in (0.0, 0.5):
        assert not GraphGuidedFusedLasso(top * (1 + 1e-9), gamma, graph=R).fit(X, y, tasks=tasks).coef_.any()
    assert GraphGuidedFusedLasso(0.98 * top, 0.0, graph=R).fit(X, y, tasks=tasks).coef_.any()


def test_the_graph_that_is_found_joins_tasks_that_are_alike_or_opposed():
    rng = np.random.default_rng(10)
    X = rng.normal(size=(100, 6))
    w, v = rng.normal(size=(2, 6))
    Y = X @ np.stack([w, w, -w, v], axis=1) + 0.1 * rng.normal(size=(100, 4))
    graph = GraphGuidedFusedLasso(0.01, 0.01, threshold=0.9).fit(X, Y).graph_
    np.testing.assert_array_equal(np.sign(graph), [[0, 1, -1, 0], [1, 0, -1, 0], [-1, -1, 0, 0], [0, 0, 0, 0]])


def test_cosines_are_signs_and_sizes_of_likeness():
    W = np.array([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    expected = np.array([[1, 1, -1, 0, 0], [1, 1, -1, 0, 0], [-1, -1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1.0]])
    np.testing.assert_allclose(cosines(W), expected, atol=1e-15)


def test_permuting_tasks_permutes_the_result(problems):
    X, y, tasks = problems.stacked(12)
    order = np.array([3, 1, 4, 0, 2])
    permuted = np.empty_like(R)
    permuted[np.ix_(order, order)] = R
    model = GraphGuidedFusedLasso(0.1, 0.1, graph=R, tol=1e-12).fit(X, y, tasks=tasks)
    other = GraphGuidedFusedLasso(0.1, 0.1, graph=permuted, tol=1e-12).fit(X, y, tasks=order[tasks])
    np.testing.assert_allclose(other.coef_[order], model.coef_, atol=1e-6)


def test_warm_start_needs_fewer_steps_and_the_same_data_give_the_same_bytes(problems):
    X, y, tasks = problems.stacked(13)
    model = GraphGuidedFusedLasso(0.05, graph=R, warm_start=True).fit(X, y, tasks=tasks)
    first = model.n_iter_
    assert GraphGuidedFusedLasso(0.05, graph=R).fit(X, y, tasks=tasks).coef_.tobytes() == model.coef_.tobytes()
    assert model.fit(X, y, tasks=tasks).n_iter_ < first


def test_relations_show_the_graph(problems):
    X, y, tasks = problems.stacked(13)
    relations = GraphGuidedFusedLasso(0.05, graph=R, threshold=0.0).fit(X, y, tasks=tasks).relations_
    np.testing.assert_allclose(relations["task graph"].values, R - np.eye(5))
    assert relations["task graph"].rows == ("0", "1", "2", "3", "4")


def test_stopping_too_early_warns_and_says_what_to_do(problems):
    X, y, tasks = problems.stacked(14)
    with pytest.warns(ConvergenceWarning, match="increase max_iter"):
        GraphGuidedFusedLasso(1e-3, 1e-3, max_iter=2, tol=1e-12).fit(X, y, tasks=tasks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, "alpha must be a positive number"),
        ({"gamma": -1.0}, "gamma must be"),
        ({"threshold": -0.1}, "threshold must be"),
        ({"edge_weights": "cubed"}, 'edge_weights must be one of "absolute"'),
        ({"graph": R[:3, :3]}, r"graph has shape \(3, 3\); give signed weights \(5, 5\)"),
        ({"graph": np.triu(R)}, "graph is not symmetric"),
        ({"graph": np.where(R > 0.7, np.inf, R)}, "finite"),
        ({"graph": {(0, 9): 1.0}}, "task '?9'? was not among the 5 tasks"),
        ({"graph": {0: 1.0}}, "give pairs of task labels"),
    ],
)
def test_wrong_settings_are_refused_by_name(problems, settings, message):
    X, y, tasks = problems.stacked(15)
    with pytest.raises(InputError, match=message):
        GraphGuidedFusedLasso(**settings).fit(X, y, tasks=tasks)


def test_examples_in_the_docstring_hold():
    assert doctest.testmod(polytask.linear.graph_guided_fused_lasso).failed == 0
