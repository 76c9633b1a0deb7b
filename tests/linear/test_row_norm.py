"""The row-sparse penalty: its proximal map is optimal and Moreau's identity holds."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask.linear.penalties.block import RowNorm
from polytask.linear.solvers.descent import row_update

seeds = st.integers(0, 100_000)


@settings(max_examples=50, deadline=None)
@given(
    seed=seeds, alpha=st.just(0.0) | st.floats(1e-100, 5.0), step=st.floats(0.01, 3.0)
)  # squares of norms do not vanish
def test_prox_plus_projection_gives_the_point_back(seed: int, alpha: float, step: float) -> None:
    V = np.random.default_rng(seed).normal(size=(4, 6))
    penalty = RowNorm(alpha)
    np.testing.assert_allclose(penalty.prox(V, step) + penalty.project_dual(V, step), V, atol=1e-12)
    assert np.linalg.norm(penalty.project_dual(V, step), axis=0).max() <= step * alpha * (1 + 1e-12) + 1e-300


@settings(max_examples=30, deadline=None)
@given(seed=seeds, alpha=st.floats(0.01, 3.0))
def test_no_nearby_point_beats_the_prox(seed: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    V = rng.normal(size=(3, 5))
    penalty, step = RowNorm(alpha), 0.7

    def objective(W: np.ndarray) -> float:
        return 0.5 * float(((W - V) ** 2).sum()) + step * penalty.value(W)

    best = penalty.prox(V, step)
    for size in (1e-3, 0.1, 1.0):
        assert objective(best) <= objective(best + size * rng.normal(size=V.shape)) + 1e-12


def test_value_is_the_sum_of_the_features_norms() -> None:
    W = np.array([[3.0, 0.0, 1.0], [4.0, 0.0, 0.0]])
    assert RowNorm(2.0).value(W) == 2.0 * (5.0 + 0.0 + 1.0)
    assert RowNorm.dual_norm(W) == 5.0


@settings(max_examples=100, deadline=None)
@given(seed=seeds, spread=st.floats(0.0, 6.0), alpha=st.floats(1e-6, 10.0), guess=st.floats(0.0, 1e3))
def test_update_of_one_feature_is_exact_for_different_curvatures_from_any_guess(
    seed: int, spread: float, alpha: float, guess: float
) -> None:
    rng = np.random.default_rng(seed)
    h, u = np.exp(spread * rng.normal(size=4)), 3 * rng.normal(size=4)
    z = np.empty(4)
    norm = row_update(u, h, alpha, guess, z)
    if np.linalg.norm(u) <= alpha:
        assert norm == 0.0
        assert not z.any()
    else:
        # the subgradient h z - u + alpha z / ||z|| is zero
        np.testing.assert_allclose(h * z + alpha * z / np.linalg.norm(z), u, atol=1e-8 * np.abs(u).max())
        np.testing.assert_allclose(norm, np.linalg.norm(z), rtol=1e-9)


def test_update_of_one_feature_with_equal_curvatures_is_the_prox() -> None:
    u = np.array([3.0, -4.0])
    z = np.empty(2)
    row_update(u, np.full(2, 2.0), 1.0, 0.0, z)
    np.testing.assert_allclose(z, RowNorm(1.0).prox(u[:, None] / 2.0, 0.5)[:, 0], atol=1e-15)


def test_a_task_without_curvature_keeps_a_zero_coefficient() -> None:
    z = np.empty(2)
    row_update(np.array([2.0, 0.0]), np.array([1.0, 0.0]), 0.5, 0.0, z)
    np.testing.assert_allclose(z, [1.5, 0.0])
