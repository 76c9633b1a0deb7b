"""Splitting steps reach the certified optimum that proximal gradient steps reach, in fewer steps."""

from __future__ import annotations

import numpy as np
import pytest

from polytask.linear.moments import Moments, MomentsOnly
from polytask.linear.penalties.spectral import AroundMean, SpectralBox, SquaredTraceNorm, TaskNorm, TraceNorm
from polytask.linear.solvers import proximal
from polytask.linear.solvers.losses import TaskLosses

T, D = 9, 6
PENALTIES = {
    "trace norm": [TraceNorm(0.2)],
    "squared trace norm": [SquaredTraceNorm(0.1, 0.01)],
    "box": [SpectralBox(0.3, 0.2, 1.5, 6.0, T)],
    "box around the mean": [AroundMean(0.05, SpectralBox(0.3, 0.2, 1.5, 6.0, T))],
    "two parts": [TraceNorm(0.2), TaskNorm(0.15)],
    "three parts": [TraceNorm(0.2), TaskNorm(0.15), SquaredTraceNorm(0.3, 0.02)],
}


def losses(seed=0, conditioning=1.0, per=12, shared=False, weights=None):
    """Losses of T tasks, whose inputs have columns of very different sizes."""
    rng = np.random.default_rng(seed)
    sizes = np.geomspace(1.0, conditioning, D)
    W = rng.normal(size=(T, 2)) @ rng.normal(size=(2, D)) / sizes
    if shared:
        X = rng.normal(size=(40, D)) * sizes
        moments = Moments.of(X, X @ W.T + rng.normal(size=(40, T)))
    else:
        task = np.repeat(np.arange(T), per)
        X = rng.normal(size=(T * per, D)) * sizes
        moments = Moments.stacked(X, np.einsum("nd,nd->n", X, W[task]) + rng.normal(size=len(X)), task)
    weights = np.ones(T) if weights is None else weights
    return TaskLosses(MomentsOnly(moments), logistic=np.zeros(T, dtype=bool), weights=weights, n_features=D)


def by_gradient_steps(monkeypatch, *arguments, **options):
    with monkeypatch.context() as patch:
        patch.setattr(proximal, "_LARGEST_BLOCKS", 0)
        return proximal.solve_proximal(*arguments, **options)


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("shared", [False, True])
def test_splitting_reaches_the_optimum_of_proximal_gradient_steps(monkeypatch, name, shared):
    F = losses(shared=shared, weights=np.linspace(0.5, 2.0, T))
    options = {"tol": 1e-9, "max_steps": 10_000}
    found = proximal.solve_proximal(F, PENALTIES[name], **options)
    wanted = by_gradient_steps(monkeypatch, F, PENALTIES[name], **options)
    assert found.gap <= found.bound
    assert wanted.gap <= wanted.bound
    np.testing.assert_allclose(found.W, wanted.W, atol=2e-4 * np.abs(wanted.W).max())
    value, best = (
        F.at(s.W).value + sum(p.value(part) for p, part in zip(PENALTIES[name], s.parts, strict=True))
        for s in (found, wanted)
    )
    assert value == pytest.approx(best, rel=1e-8)
    np.testing.assert_allclose(found.parts.sum(axis=0), found.W)


@pytest.mark.parametrize("name", PENALTIES)
def test_badly_scaled_inputs_cost_few_splitting_steps(monkeypatch, name):
    F = losses(conditioning=20.0)
    options = {"tol": 1e-6, "max_steps": 2000}
    found = proximal.solve_proximal(F, PENALTIES[name], **options)
    wanted = by_gradient_steps(monkeypatch, F, PENALTIES[name], **options)
    assert found.gap <= found.bound
    assert found.steps < 0.5 * wanted.steps


def test_no_strength_of_the_penalty_is_too_small_or_too_large_for_the_step_size():
    F = losses(1)
    top = TraceNorm.dual_norm(F.at(np.zeros((T, D))).gradient)
    for share in (0.999, 0.5, 0.1, 1e-2, 1e-4, 1e-6):
        found = proximal.solve_proximal(F, [TraceNorm(share * top)], tol=1e-9, max_steps=2000)
        assert found.gap <= found.bound, share
    for share in (1.0 + 1e-9, 2.0, 1e6):
        found = proximal.solve_proximal(F, [TraceNorm(share * top)], tol=1e-9, max_steps=2000)
        assert not found.W.any()
        assert found.steps == 1


def test_tasks_with_fewer_rows_than_columns_are_no_exception():
    found = proximal.solve_proximal(losses(2, per=3), [TraceNorm(1e-3)], tol=1e-9, max_steps=3000)
    assert found.gap <= found.bound


def test_zeros_of_the_penalties_are_exact():
    found = proximal.solve_proximal(losses(3), [TraceNorm(0.5), TaskNorm(0.3)], tol=1e-9, max_steps=3000)
    shared, own = found.parts
    assert np.linalg.matrix_rank(shared, tol=1e-12) < D
    assert 0 < (~own.any(axis=1)).sum() < T


def test_a_start_at_the_optimum_is_kept():
    F = losses(4)
    found = proximal.solve_proximal(F, [TraceNorm(0.2)], tol=1e-9, max_steps=2000)
    again = proximal.solve_proximal(F, [TraceNorm(0.2)], tol=1e-9, max_steps=2000, start=found.parts)
    np.testing.assert_array_equal(again.W, found.W)
    near = proximal.solve_proximal(F, [TraceNorm(0.21)], tol=1e-9, max_steps=2000, start=found.parts)
    assert near.gap <= near.bound
    assert near.steps <= found.steps


def test_a_limit_of_steps_gives_the_best_point_so_far_and_its_gap():
    F = losses(5, conditioning=30.0)
    gaps = [
        proximal.solve_proximal(F, [TraceNorm(0.2), TaskNorm(0.1)], tol=0.0, max_steps=most).gap for most in (1, 5, 50)
    ]
    assert gaps[0] > gaps[1] > gaps[2] >= -1e-12
