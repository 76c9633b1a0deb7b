"""Sufficient statistics: they are the plain sums, they add, and a part can be taken away."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from polytask.core.errors import InputError
from polytask.linear.moments import Moments, Stack, grouped

FIELDS = ("n", "mean_y", "cross", "yy")


def table(seed: int, n: int = 60, d: int = 4, tasks: int = 3, missing: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * 3 + 5
    Y = rng.normal(size=(n, tasks)) + 10
    Y[rng.random(Y.shape) < missing] = np.nan
    return X, Y


def assert_same(a: Moments, b: Moments, atol: float = 1e-9) -> None:
    for name in FIELDS:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-9, atol=atol, err_msg=name)
    np.testing.assert_allclose(a.mean_x[a.pattern], b.mean_x[b.pattern], rtol=1e-9, atol=atol)
    np.testing.assert_allclose(a.gram[a.pattern], b.gram[b.pattern], rtol=1e-9, atol=atol)


def test_moments_are_the_centred_sums_of_each_task() -> None:
    X, Y = table(0)
    weights = np.random.default_rng(1).integers(0, 3, size=len(X)).astype(float)
    found = Moments.of(X, Y, weights)
    for task in range(Y.shape[1]):
        seen = ~np.isnan(Y[:, task])
        a, x, y = weights[seen], X[seen], Y[seen, task]
        mean_x, mean_y = np.average(x, axis=0, weights=a), np.average(y, weights=a)
        pattern = found.pattern[task]
        assert found.n[task] == a.sum()
        np.testing.assert_allclose(found.mean_x[pattern], mean_x)
        np.testing.assert_allclose(found.gram[pattern], ((x - mean_x).T * a) @ (x - mean_x))
        np.testing.assert_allclose(found.cross[task], ((x - mean_x).T * a) @ (y - mean_y))
        np.testing.assert_allclose(found.yy[task], a @ (y - mean_y) ** 2)


def test_tasks_with_the_same_rows_share_one_gram_matrix() -> None:
    X, Y = table(0, missing=0.0)
    assert Moments.of(X, Y).gram.shape == (1, 4, 4)
    Y[0, 1] = np.nan
    found = Moments.of(X, Y)
    assert found.gram.shape == (2, 4, 4)
    assert found.pattern[0] == found.pattern[2] != found.pattern[1]


def test_gram_matrices_are_symmetric_to_the_last_bit() -> None:
    X, Y = table(3)
    gram = Moments.of(X, Y, np.linspace(0.5, 2, len(X))).gram
    assert (gram == gram.transpose(0, 2, 1)).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(0, 40), missing=st.sampled_from([0.0, 0.1, 0.5, 0.95]))
def test_moments_of_parts_add_up_and_can_be_taken_away(seed: int, cut: int, missing: float) -> None:
    X, Y = table(seed, n=40, missing=missing)
    whole, first, second = Moments.of(X, Y), Moments.of(X[:cut], Y[:cut]), Moments.of(X[cut:], Y[cut:])
    assert_same(first + second, whole)
    assert_same(whole - first, second, atol=1e-8)


def test_adding_the_moments_of_no_rows_changes_nothing() -> None:
    X, Y = table(5)
    whole = Moments.of(X, Y)
    assert_same(whole + Moments.empty(3, 4), whole)
    assert (whole - whole).n.sum() == 0


def test_uncentred_moments_are_sums_about_zero() -> None:
    X, Y = table(6, missing=0.0)
    found = Moments.of(X, Y).uncentred()
    np.testing.assert_allclose(found.gram[0], X.T @ X)
    np.testing.assert_allclose(found.cross, Y.T @ X)
    np.testing.assert_allclose(found.yy, (Y**2).sum(axis=0))


def test_choosing_tasks_keeps_their_statistics() -> None:
    X, Y = table(7)
    assert_same(Moments.of(X, Y).tasks([2, 0]), Moments.of(X, Y[:, [2, 0]]))


def test_taking_away_more_rows_than_there_are_is_refused() -> None:
    X, Y = table(8)
    with pytest.raises(InputError, match="take away"):
        Moments.of(X[:10], Y[:10]) - Moments.of(X, Y)
    with pytest.raises(InputError, match="cannot be combined"):
        Moments.of(X, Y) + Moments.of(X[:, :2], Y)
    with pytest.raises(InputError, match="shape"):
        Moments.of(X, Y[:-1])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64, np.float64, bool, "U5"])
def test_task_labels_of_any_type_are_grouped_in_order(dtype) -> None:
    rng = np.random.default_rng(9)
    numbers = (
        rng.integers(-128, 128, size=400) if dtype in (np.int8, np.int64, np.float64) else rng.integers(200, size=400)
    )
    labels = numbers.astype(dtype)
    names, order, bounds = grouped(labels)
    np.testing.assert_array_equal(names, np.unique(labels))
    assert order is not None
    for name, start, end in zip(names, bounds[:-1], bounds[1:], strict=True):
        np.testing.assert_array_equal(order[start:end], np.flatnonzero(labels == name))
    again, unmoved, _ = grouped(np.sort(labels))
    np.testing.assert_array_equal(again, names)
    assert unmoved is None


def test_far_labels_are_grouped_in_order() -> None:
    labels = np.array([2**62, -(2**62), 0, 2**62])
    names, order, _ = grouped(labels)
    np.testing.assert_array_equal(names, np.unique(labels))
    assert order is not None
    assert order.tolist() == [1, 2, 0, 3]


def test_blocks_of_single_tasks_and_a_stack_give_the_same_moments() -> None:
    rng = np.random.default_rng(10)
    X, y, tasks = rng.normal(size=(50, 4)) + 3.0, rng.normal(size=50), rng.integers(5, size=50)
    for weights in (None, rng.uniform(0.5, 2.0, size=50)):
        _, stack = Stack.of(X, y, tasks, weights)
        assert_same(Moments.of_blocks(stack, 5, 4), Moments.of_blocks(list(stack), 5, 4))
        sparse = Stack(csr_array(stack.X), stack.y, stack.bounds, stack.weights)
        assert_same(Moments.of_blocks(sparse, 5, 4), Moments.of_blocks(stack, 5, 4))
    assert_same(
        Moments.stacked(X, y, tasks), Moments.of(X, np.where(tasks[:, None] == np.arange(5), y[:, None], np.nan))
    )


def test_a_constant_column_of_ones_is_added_to_the_moments_exactly() -> None:
    X, Y = table(11)
    found = Moments.of(X, Y).with_constant()
    assert_same(found, Moments.of(np.column_stack([X, np.ones(len(X))]), Y).uncentred())
