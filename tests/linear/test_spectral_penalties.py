"""Spectral penalties: value, proximal map and conjugate belong together; closed forms; bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from polytask.linear.penalties.spectral import AroundMean, SpectralBox, SquaredTraceNorm, TaskNorm, TraceNorm

PENALTIES = {
    "trace norm": TraceNorm(0.7),
    "squared trace norm": SquaredTraceNorm(0.5),
    "squared trace norm and ridge": SquaredTraceNorm(0.5, 0.3),
    "box": SpectralBox(0.8, 0.5, 3.0, 6.0, 5),
    "box at its lower end": SpectralBox(0.8, 0.5, 3.0, 2.5, 5),
    "box at its upper end": SpectralBox(0.8, 0.5, 3.0, 15.0, 5),
    "box around the mean": AroundMean(0.2, SpectralBox(0.8, 0.5, 3.0, 6.0, 5)),
    "task norm": TaskNorm(0.9),
}


def matrix(seed: int, wide: bool, rank: int = 9, size: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    d = 8 if wide else 3
    return size * rng.normal(size=(5, min(rank, d))) @ rng.normal(size=(min(rank, d), d))


@pytest.fixture(params=PENALTIES.values(), ids=PENALTIES.keys())
def penalty(request):
    return request.param


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    wide=st.booleans(),
    rank=st.sampled_from([1, 2, 9]),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
    name=st.sampled_from(list(PENALTIES)),
)
def test_a_proximal_map_and_its_rest_meet_the_fenchel_equality(seed, wide, rank, size, name):
    penalty, V = PENALTIES[name], matrix(seed, wide, rank, size)
    W = penalty.prox(V, 1.0)
    rest = V - W
    scale = 1.0 + np.square(V).sum()
    assert penalty.shrinkage(rest) > 1 - 1e-9
    left = penalty.value(W) + penalty.conjugate(rest) - (W * rest).sum()
    assert abs(left) < 1e-9 * scale


def test_no_point_near_the_proximal_map_is_better(penalty):
    rng = np.random.default_rng(0)
    V, step = matrix(1, True), 0.6
    W = penalty.prox(V, step)

    def objective(Z):
        return 0.5 * np.square(Z - V).sum() + step * penalty.value(Z)

    here = objective(W)
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(30):
            assert objective(W + size * rng.normal(size=W.shape)) >= here - 1e-12


def test_the_conjugate_bounds_every_inner_product(penalty):
    rng = np.random.default_rng(2)
    G = matrix(3, False)
    G *= 0.5 * penalty.shrinkage(G)
    for _ in range(200):
        W = 10 ** rng.uniform(-2, 2) * rng.normal(size=G.shape)
        assert (W * G).sum() <= penalty.value(W) + penalty.conjugate(G) + 1e-9


@pytest.mark.parametrize("name", ["squared trace norm", "box", "box at its upper end", "box at its lower end"])
def test_squared_norms_grow_with_the_square_of_the_coefficients(name):
    W = matrix(4, True)
    assert PENALTIES[name].value(3 * W) == pytest.approx(9 * PENALTIES[name].value(W))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("total", [2.6, 6.0, 11.0, 14.9])
def test_box_weights_are_those_of_a_general_solver(seed, total):
    s = np.sort(np.random.default_rng(seed).exponential(size=5))[::-1]
    box = SpectralBox(1.0, 0.5, 3.0, total, 5)
    m = box.weights(s)
    assert m.sum() == pytest.approx(total)
    found = minimize(
        lambda m: (s**2 / m).sum(),
        np.full(5, total / 5),
        jac=lambda m: -(s**2) / m**2,
        bounds=[(0.5, 3.0)] * 5,
        constraints={"type": "eq", "fun": lambda m: m.sum() - total},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert (s**2 / m).sum() == pytest.approx(found.fun, rel=1e-7)


def test_a_box_that_only_bounds_the_trace_is_the_squared_trace_norm():
    W = matrix(5, True)
    box = SpectralBox(2.0, 1e-12, 1e12, 4.0, 5)
    assert box.value(W) == pytest.approx(SquaredTraceNorm(2.0 / 4.0).value(W))


def test_zero_stays_zero(penalty):
    zero = np.zeros((5, 3))
    assert not penalty.prox(zero, 1.0).any()
    assert penalty.value(zero) == penalty.conjugate(zero) == 0.0
