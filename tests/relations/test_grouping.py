"""Affinity of coefficients and grouping of tasks: planted groups, equivariance, odd input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.relations import cluster_tree, coefficient_affinity, groups


def planted(seed: int = 0, sizes: tuple[int, ...] = (4, 3, 5), d: int = 30) -> tuple[np.ndarray, list[str], set]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(sizes), d))
    group = np.repeat(np.arange(len(sizes)), sizes)
    coef = (centres[group] + 0.3 * rng.normal(size=(len(group), d))).T
    names = [f"task {number}" for number in range(len(group))]
    truth = {frozenset(names[t] for t in np.flatnonzero(group == g)) for g in range(len(sizes))}
    return coef, names, truth


def as_sets(parts) -> set:
    return {frozenset(part) for part in parts}


@pytest.mark.parametrize("measure", ["correlation", "cosine"])
@pytest.mark.parametrize("seed", range(5))
def test_planted_groups_are_recovered(measure, seed):
    coef, names, truth = planted(seed)
    tree = cluster_tree(coefficient_affinity(coef, names=names, measure=measure))
    assert as_sets(groups(tree, 3)) == truth


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(1, 8))
def test_permuting_tasks_permutes_affinity_and_groups(seed, k):
    rng = np.random.default_rng(seed)
    coef, names = rng.normal(size=(6, 8)), list("abcdefgh")
    order = rng.permutation(8)
    here = coefficient_affinity(coef, names=names)
    there = coefficient_affinity(coef[:, order], names=[names[t] for t in order])
    np.testing.assert_allclose(there.values, here.values[np.ix_(order, order)], atol=1e-14)
    assert as_sets(groups(cluster_tree(here), k)) == as_sets(groups(cluster_tree(there), k))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(2, 12), levels=st.integers(1, 3))
def test_groups_are_nested_partitions_of_exactly_k_parts_also_with_ties(seed, n, levels):
    coef = np.random.default_rng(seed).integers(-levels, levels + 1, size=(3, n)).astype(float)
    tree = cluster_tree(coefficient_affinity(coef))
    finer = None
    for k in range(n, 0, -1):
        parts = groups(tree, k)
        assert len(parts) == k
        assert sorted(name for part in parts for name in part) == sorted(tree.rows)
        if finer is not None:
            assert all(any(small <= large for large in as_sets(parts)) for small in finer)
        finer = as_sets(parts)


def test_correlation_is_numpys_and_cosine_is_not_centred():
    coef = np.random.default_rng(0).normal(size=(20, 4)) + 1.0
    np.testing.assert_allclose(coefficient_affinity(coef).values, np.corrcoef(coef.T), atol=1e-12)
    unit = coef / np.linalg.norm(coef, axis=0)
    np.testing.assert_allclose(coefficient_affinity(coef, measure="cosine").values, unit.T @ unit, atol=1e-12)


def test_scale_of_a_task_does_not_matter_however_large_or_small():
    coef = np.random.default_rng(1).normal(size=(9, 3))
    scaled = coef * [1e-200, 1.0, 1e200]
    np.testing.assert_allclose(coefficient_affinity(scaled).values, coefficient_affinity(coef).values, atol=1e-12)


def test_opposite_tasks_have_affinity_minus_one_and_join_last():
    coef = np.column_stack([[1.0, 2.0, 4.0], [2.0, 4.0, 8.0], [-1.0, -2.0, -4.0]])
    affinity = coefficient_affinity(coef, names=["up", "more", "down"])
    np.testing.assert_allclose(affinity.values[:, 2], [-1, -1, 1])
    tree = cluster_tree(affinity)
    assert groups(tree, 2) == (("up", "more"), ("down",))
    np.testing.assert_allclose(tree.values[:, 2], [0.0, 2.0], atol=1e-12)


def test_a_task_without_coefficients_is_like_no_other():
    coef = np.column_stack([[1.0, -1.0, 3.0], [0.0, 0.0, 0.0], [2.0, 2.0, 2.0]])
    values = coefficient_affinity(coef).values
    np.testing.assert_array_equal(values, np.eye(3))
    assert len(groups(cluster_tree(coefficient_affinity(coef)), 3)) == 3


def test_a_relation_of_coefficients_brings_its_names():
    relation = Relation("coefficients", np.eye(3)[:, :2], ("age", "sex", "income"), ("bp", "weight"))
    affinity = coefficient_affinity(relation)
    assert affinity.rows == affinity.columns == ("bp", "weight")
    tree = cluster_tree(affinity)
    assert tree.kind == "tree"
    assert tree.rows == ("bp", "weight")
    assert tree.values.shape == (1, 4)
    assert Relation.from_json(tree.to_json()).rows == tree.rows


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: coefficient_affinity(np.eye(3), measure="euclid"), 'measure must be "correlation"'),
        (lambda: coefficient_affinity(np.ones(3)), "2-d array of finite numbers"),
        (lambda: coefficient_affinity(np.eye(3), names=["a"]), "1 entries for 3 tasks"),
        (lambda: coefficient_affinity(coefficient_affinity(np.eye(3))), 'kind "coefficients"'),
        (lambda: cluster_tree(coefficient_affinity(np.ones((4, 1)))), "at least 2 tasks"),
        (lambda: cluster_tree(Relation("loadings", np.eye(2), ("a", "b"), ("a", "b"))), 'kind "correlation"'),
        (
            lambda: cluster_tree(Relation("correlation", np.array([[1.0, 0.2], [0.1, 1.0]]), ("a", "b"), ("a", "b"))),
            "symmetric",
        ),
        (lambda: groups(coefficient_affinity(np.eye(3)), 2), 'kind "tree"'),
        (lambda: groups(cluster_tree(coefficient_affinity(np.eye(3))), 4), "k must lie in 1 … 3"),
    ],
)
def test_wrong_input_is_named_with_a_remedy(call, message):
    with pytest.raises(InputError, match=message):
        call()
