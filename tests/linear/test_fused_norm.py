"""FusedNorm: its proximal map, exact equalities, signs and frustration, the certificate."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest

from polytask.linear.penalties.fused import FusedNorm, SignedGraph


def graph(seed=0, T=6, share=0.6):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(T, T)) * (rng.random((T, T)) < share)
    return SignedGraph.of_matrix(np.triu(matrix, 1))


def value(W, alpha, gamma, edges):
    """The definition for a cvxpy or a plain matrix."""
    total = alpha * cp.sum(cp.abs(W))
    for s, t, sign, weight in zip(edges.first, edges.second, edges.signs, edges.weights, strict=True):
        total += gamma * weight * cp.norm1(W[int(s)] - sign * W[int(t)])
    return total


@pytest.mark.parametrize(("alpha", "gamma"), [(0.1, 0.3), (0.3, 0.02), (0.05, 5.0), (0.4, 0.0)])
def test_proximal_map_and_value_are_those_of_a_general_convex_solver(alpha, gamma):
    for seed in range(3):
        edges = graph(seed)
        penalty = FusedNorm(alpha, gamma, edges)
        V = np.random.default_rng(seed).normal(size=(6, 4))
        W = cp.Variable((6, 4))
        cp.Problem(cp.Minimize(0.5 * cp.sum_squares(W - V) + 0.7 * value(W, alpha, gamma, edges))).solve(
            solver="CLARABEL"
        )
        np.testing.assert_allclose(penalty.prox(V, 0.7), W.value, atol=1e-4)
        assert penalty.value(V) == pytest.approx(value(V, alpha, gamma, edges).value)


def test_a_proximal_map_does_not_depend_on_the_one_before():
    edges, rng = graph(3), np.random.default_rng(3)
    fresh, used = FusedNorm(0.1, 0.4, edges), FusedNorm(0.1, 0.4, edges)
    for scale in (10.0, 0.1, 1.0):
        V = scale * rng.normal(size=(6, 5))
        used.prox(V, 0.3)
    np.testing.assert_allclose(used.prox(V, 1.0), fresh.prox(V, 1.0), atol=1e-7)


def test_rest_of_a_proximal_map_is_a_dual_point_that_is_attained():
    for seed in range(5):
        penalty = FusedNorm(0.2, 0.5, graph(seed))
        V = np.random.default_rng(seed).normal(size=(6, 4))
        W = penalty.prox(V, 1.0)
        rest = V - W
        assert penalty.shrinkage(-rest) > 1 - 1e-5
        assert penalty.value(W) == pytest.approx((W * rest).sum(), rel=1e-6)


def test_shrinkage_never_claims_more_than_the_dual_norm_allows():
    edges = graph(7)
    rng = np.random.default_rng(7)
    for _ in range(5):
        penalty = FusedNorm(0.2, 0.3, edges)
        penalty.prox(rng.normal(size=(6, 3)), 1.0)  # leaves some dual point behind
        G = rng.normal(size=(6, 3))
        W = cp.Variable((6, 3))
        dual = cp.Problem(cp.Maximize(cp.sum(cp.multiply(W, G))), [value(W, 0.2, 0.3, edges) <= 1])
        dual.solve(solver="CLARABEL")
        assert penalty.shrinkage(G) <= min(1.0, 1 / dual.value) * (1 + 1e-6)


def test_fused_coefficients_are_equal_to_the_last_bit_and_opposed_ones_opposite():
    edges = SignedGraph.of_matrix(np.array([[0, 1.0, -1.0], [0, 0, 0], [0, 0, 0]]))
    W = FusedNorm(0.01, 10.0, edges).prox(np.random.default_rng(0).normal(size=(3, 20)), 1.0)
    assert (W[0] == W[1]).all()
    assert (W[0] == -W[2]).all()
    assert W.any()


def test_a_cycle_that_contradicts_itself_is_zero_when_the_penalty_is_strong():
    # 0 = 1, 1 = 2, 0 = -2
    edges = SignedGraph.of_matrix(np.array([[0, 1.0, -1.0], [0, 0, 1.0], [0, 0, 0]]))
    V = np.random.default_rng(1).normal(size=(3, 10))
    assert not FusedNorm(1e-9, 100.0, edges).prox(V, 1.0).any()


def test_without_edges_it_is_soft_thresholding():
    V = np.random.default_rng(2).normal(size=(4, 5))
    penalty = FusedNorm(0.3, 1.0, SignedGraph.of_matrix(np.zeros((4, 4))))
    np.testing.assert_allclose(penalty.prox(V, 0.5), np.sign(V) * np.maximum(np.abs(V) - 0.15, 0), atol=1e-15)
