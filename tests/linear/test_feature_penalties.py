"""Norms of features: Moreau's identity, dual norms, conjugates, and coordinate steps, against definitions."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask.linear.penalties.block import EntryNorm, RowMaximum, RowNorm, l1_level
from polytask.linear.penalties.dirty import SharedAndOwn
from polytask.linear.penalties.elastic import Elastic
from polytask.linear.penalties.sparse_group import SparseRowNorm
from polytask.linear.solvers.descent import row_update
from polytask.linear.solvers.row_descent import level_update

NORMS = [
    EntryNorm(0.7),
    RowNorm(0.7),
    RowMaximum(1.3),
    SparseRowNorm(0.4, 0.6),
    SparseRowNorm(0.0, 0.6),
    SparseRowNorm(0.4, 0.0),
    SharedAndOwn(1.0, 0.7),
    SharedAndOwn(1.0, 0.28),
    SharedAndOwn(1.0, 0.2),  # shared = T own: nothing is shared
    SharedAndOwn(0.5, 0.9),  # own above shared: everything is
]
each_norm = pytest.mark.parametrize("norm", NORMS, ids=repr)
seeds = st.integers(0, 100_000)


def points(seed, d=7):
    rng = np.random.default_rng(seed)
    V = rng.normal(size=(5, d)) * np.exp(rng.normal(size=d))
    V[rng.random(V.shape) < 0.2] = 0.0
    V[1, 0] = -V[0, 0]  # ties
    return V


@each_norm
@settings(max_examples=25, deadline=None)
@given(seed=seeds, step=st.floats(0.01, 3.0))
def test_prox_plus_projection_on_the_dual_ball_gives_the_point_back(norm, seed, step):
    V = points(seed)
    W, G = norm.prox(V, step), norm.project_dual(V, step)
    np.testing.assert_allclose(W + G, V, atol=1e-12)
    assert norm.gauges(G).max() <= step * (1 + 1e-9)
    # both are optimal exactly if G / step is a subgradient of the norm at W
    assert float((W * G).sum()) == pytest.approx(step * norm.value(W), rel=1e-9, abs=1e-12)


@each_norm
@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_prox_is_zero_exactly_up_to_the_dual_norm(norm, seed):
    V = points(seed)
    for column, gauge in zip(V.T, norm.gauges(V), strict=True):
        assert not norm.prox(column[:, None], gauge * (1 + 1e-9)).any()
        if gauge > 0:
            assert norm.prox(column[:, None], gauge * (1 - 1e-6)).any()


@each_norm
@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_value_times_dual_norm_bounds_the_inner_product_and_is_reached(norm, seed):
    W, G = points(seed), points(seed + 1)
    assert float((W * G).sum()) <= norm.value(W) * norm.gauges(G).max() * (1 + 1e-9)
    assert norm.shrinkage(G) == pytest.approx(min(1.0, 1.0 / norm.gauges(G).max()))
    assert norm.conjugate(G) == 0.0
    # the best dual point for W gives its value
    best = norm.project_dual(1e6 * W, 1.0)
    assert float((W * best).sum()) == pytest.approx(norm.value(W), rel=1e-6, abs=1e-9)


@each_norm
def test_zero_and_empty_matrices_are_nothing_special(norm):
    zero = np.zeros((5, 3))
    assert norm.value(zero) == 0.0
    assert not norm.prox(zero, 1.0).any()
    assert not norm.gauges(zero).any()
    assert norm.shrinkage(np.zeros((5, 0))) == 1.0


@each_norm
@settings(max_examples=15, deadline=None)
@given(seed=seeds, ridge=st.floats(0.05, 5.0), step=st.floats(0.05, 3.0))
def test_elastic_prox_and_conjugate_keep_fenchels_equality(norm, seed, ridge, step):
    V, penalty = points(seed), Elastic(norm, ridge)
    W = penalty.prox(V, step)
    G = (V - W) / step
    assert penalty.shrinkage(G) == 1.0
    assert penalty.value(W) + penalty.conjugate(G) == pytest.approx(float((W * G).sum()), rel=1e-8, abs=1e-10)


def test_values_are_those_of_the_definitions():
    W = np.array([[3.0, 0.0, 1.0], [-4.0, 0.0, 0.0]])
    assert EntryNorm(2.0).value(W) == 2.0 * 8.0
    assert RowMaximum(2.0).value(W) == 2.0 * 5.0
    assert SparseRowNorm(2.0, 3.0).value(W) == pytest.approx(2.0 * 8.0 + 3.0 * 6.0)
    assert Elastic(EntryNorm(2.0), 0.5).value(W) == 16.0 + 0.25 * 26.0
    assert EntryNorm.dual_norm(W) == 4.0
    assert RowMaximum.dual_norm(W) == 7.0


def test_l1_levels_project_every_column_on_the_l1_ball():
    size = np.abs(points(3))
    level = l1_level(size, 0.8)
    outside = size.sum(axis=0) > 0.8
    np.testing.assert_allclose(np.maximum(size - level, 0.0).sum(axis=0)[outside], 0.8)
    assert not level[~outside].any()


@pytest.mark.parametrize("own", [0.15, 0.2, 0.37, 0.5, 0.99, 1.0, 1.4])
def test_dirty_penalty_is_the_best_split_of_the_definition(own):
    W = points(4, d=4)
    B = cp.Variable(W.shape)
    cost = sum(cp.norm(B[:, j], "inf") for j in range(4)) + own * cp.sum(cp.abs(W - B))
    problem = cp.Problem(cp.Minimize(cost))
    problem.solve(solver="CLARABEL")
    penalty = SharedAndOwn(1.0, own)
    assert penalty.value(W) == pytest.approx(problem.value, rel=1e-6)
    shared, single = penalty.split(W)
    np.testing.assert_allclose(shared + single, W, rtol=1e-14)
    assert np.abs(shared).max(axis=0).sum() + own * np.abs(single).sum() == pytest.approx(penalty.value(W))


@settings(max_examples=150, deadline=None)
@given(
    seed=seeds,
    spread=st.floats(0.0, 4.0),
    shared=st.one_of(st.floats(0.01, 5.0), st.just(np.inf)),
    own=st.one_of(st.floats(0.01, 3.0), st.just(np.inf)),
    guess=st.floats(0.0, 100.0),
)
def test_one_feature_is_solved_exactly_for_different_curvatures_from_any_guess(seed, spread, shared, own, guess):
    if np.isinf(shared) and np.isinf(own):
        return
    rng = np.random.default_rng(seed)
    h, u = np.exp(spread * rng.normal(size=5)), 2 * rng.normal(size=5)
    h[4] = u[4] = 0.0  # a task without curvature
    z = np.empty(5)
    level = level_update(u, h, shared, own, guess, z)
    assert z[4] == 0.0
    both = SharedAndOwn(shared, own)
    norm = EntryNorm(own) if np.isinf(shared) else RowMaximum(shared) if np.isinf(own) else both
    # minus the gradient u - h z is a subgradient of the norm at z
    rest = u - h * z
    assert norm.gauges(rest[:, None])[0] <= 1 + 1e-9
    assert rest @ z == pytest.approx(norm.value(z[:, None]), rel=1e-8, abs=1e-9)
    if level > 0:
        assert (np.abs(z) == level).any()


def test_a_sparse_group_step_is_the_row_step_at_the_shrunken_point():
    u, h = np.array([2.0, -0.3, 1.0]), np.full(3, 1.0)
    z = np.empty(3)
    row_update(np.sign(u) * np.maximum(np.abs(u) - 0.4, 0.0), h, 0.6, 0.0, z)
    np.testing.assert_allclose(z, SparseRowNorm(0.4, 0.6).prox(u[:, None], 1.0)[:, 0])
