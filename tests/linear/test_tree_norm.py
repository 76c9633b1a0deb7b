"""TreeNorm: groups and weights of a tree, the one-pass proximal map, the dual norm."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import average, complete, single

from polytask.linear.penalties.block import RowNorm
from polytask.linear.penalties.tree import TaskTree, TreeNorm

LINKAGES = {"average": average, "complete": complete, "single": single}


def tree(seed=0, T=7, root_height=0.8, linkage=average):
    return TaskTree.of_linkage(linkage(np.random.default_rng(seed).normal(size=(T, 3))), root_height)


def norm(W, groups):
    """The tree norm of a cvxpy matrix by the definition, of alpha 1."""
    total = 0
    for row in groups:
        members = np.flatnonzero(row)
        if len(members):
            total += row[members[0]] * cp.sum(cp.norm(W[members], 2, axis=0))
    return total


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    T=st.integers(1, 9),
    root_height=st.sampled_from([0.0, 0.3, 1.0]),
    linkage=st.sampled_from(list(LINKAGES)),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_proximal_map_and_its_rest_meet_the_fenchel_equality(seed, T, root_height, linkage, size):
    points = np.random.default_rng(seed).normal(size=(T, 3))
    linked = LINKAGES[linkage](points) if T > 1 else np.zeros((0, 4))
    penalty = TreeNorm(0.7, TaskTree.of_linkage(linked, root_height))
    V = size * np.random.default_rng(seed + 1).normal(size=(T, 4))
    W = penalty.prox(V, 1.0)
    rest = V - W
    assert penalty.shrinkage(rest) > 1 - 1e-9  # dual norm at most 1 ...
    assert abs(penalty.value(W) - (W * rest).sum()) <= 1e-9 * (1 + np.square(V).sum())  # ... attained at W


def test_weights_add_up_to_one_over_the_groups_of_every_task():
    for root_height in (0.0, 0.5, 1.0):
        np.testing.assert_allclose(tree(root_height=root_height).groups.sum(axis=0), 1.0)


def test_weights_are_those_of_the_paper_on_a_tree_by_hand():
    # (0 1) at 0.2, ((0 1) 2) at 1: s = height, g = 1 - height
    linked = np.array([[0, 1, 1.0, 2], [2, 3, 5.0, 3]])
    groups = TaskTree.of_linkage(linked, 1.0).groups
    np.testing.assert_allclose(groups, [[0.2, 0, 0], [0, 0.2, 0], [0, 0, 1], [0.8, 0.8, 0]])
    groups = TaskTree.of_linkage(linked, 0.5).groups
    np.testing.assert_allclose(groups, [[0.05, 0, 0], [0, 0.05, 0], [0, 0, 0.5], [0.45, 0.45, 0], [0.5, 0.5, 0.5]])


def test_joins_at_one_height_are_one_node_whatever_their_order():
    first = np.array([[0, 1, 0.5, 2], [3, 2, 0.5, 3]])
    second = np.array([[1, 2, 0.5, 2], [3, 0, 0.5, 3]])
    for root_height in (0.4, 1.0):
        one, other = (TaskTree.of_linkage(linked, root_height).groups for linked in (first, second))
        np.testing.assert_allclose(one, other)
    assert len(TaskTree.of_linkage(first, 0.4).weights) == 4  # three tasks and one group


def test_proximal_map_value_and_dual_norm_are_those_of_a_general_convex_solver():
    for seed, root_height in ((0, 0.6), (1, 1.0)):
        found = tree(seed, root_height=root_height)
        penalty = TreeNorm(0.6, found)
        V = 2.0 * np.random.default_rng(seed).normal(size=(7, 4))
        W = cp.Variable((7, 4))
        cp.Problem(cp.Minimize(0.5 * cp.sum_squares(W - V) + 0.8 * 0.6 * norm(W, found.groups))).solve(
            solver="CLARABEL"
        )
        np.testing.assert_allclose(penalty.prox(V, 0.8), W.value, atol=2e-5)
        assert penalty.value(V) == pytest.approx(0.6 * norm(V, found.groups).value)
        dual = cp.Problem(cp.Maximize(cp.sum(cp.multiply(W, V))), [norm(W, found.groups) <= 1])
        dual.solve(solver="CLARABEL")
        assert penalty.dual_norm(V) == pytest.approx(dual.value, rel=1e-6)
        assert penalty.shrinkage(V) == pytest.approx(0.6 / dual.value, rel=1e-6)
        assert penalty.shrinkage(0.01 * V) == 1.0


def test_dual_norm_is_the_least_strength_whose_proximal_map_is_zero():
    for seed in range(5):
        found = tree(seed, T=9)
        V = np.random.default_rng(seed).normal(size=(9, 6))
        top = TreeNorm(1.0, found).dual_norm(V)
        assert not TreeNorm(top * (1 + 1e-9), found).prox(V, 1.0).any()
        assert TreeNorm(top * (1 - 1e-6), found).prox(V, 1.0).any()


def test_a_root_at_height_zero_is_the_row_norm_and_all_joins_at_height_one_the_lasso():
    V = np.random.default_rng(0).normal(size=(7, 5))
    np.testing.assert_allclose(TreeNorm(0.9, tree(root_height=0.0)).prox(V, 1.0), RowNorm(0.9).prox(V, 1.0), atol=1e-14)
    flat = TaskTree.of_linkage(np.array([[0, 1, 2.0, 2], [2, 4, 2.0, 3], [3, 5, 2.0, 4]]), 1.0)
    V = V[:4]
    np.testing.assert_allclose(
        TreeNorm(0.9, flat).prox(V, 1.0), np.sign(V) * np.maximum(np.abs(V) - 0.9, 0), atol=1e-14
    )


def test_identical_tasks_are_one_group():
    linked = np.array([[0, 1, 0.0, 2], [2, 3, 0.0, 3]])
    found = TaskTree.of_linkage(linked, 1.0)
    V = np.random.default_rng(1).normal(size=(3, 5))
    np.testing.assert_allclose(TreeNorm(0.9, found).prox(V, 1.0), RowNorm(0.9).prox(V, 1.0), atol=1e-14)
