"""The small convex problems are solved to the end, easy and degenerate ones alike."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask.balance import solvers
from polytask.balance.solvers import fair, minimum_norm, ridged


def nonnegative_quadratic(Q, B):
    return torch.from_numpy(solvers.nonnegative_quadratic(Q.numpy(), B.numpy()))


def gradients(n_tasks, width, seed, spread=1.0):
    g = torch.Generator().manual_seed(seed)
    J = torch.randn(n_tasks, width, generator=g, dtype=torch.float64)
    return J * torch.exp(spread * torch.randn(n_tasks, 1, generator=g, dtype=torch.float64))


@pytest.mark.parametrize("n_tasks", [2, 3, 10, 50])
@pytest.mark.parametrize("width", [60, 2000])
@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_minimum_norm_has_no_gap(n_tasks, width, spread):
    J = gradients(n_tasks, width, n_tasks, spread)
    A = J @ J.T
    w = minimum_norm(A)
    assert w.min() >= 0
    assert w.sum() == pytest.approx(1)
    inner = A @ w
    assert float(w @ inner - inner.min()) <= 1e-6 * float(w @ inner)


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 5), st.sampled_from([0.0, 2.0]))
@settings(max_examples=60, deadline=None)
def test_minimum_norm_of_few_dimensions_is_optimal(seed, n_tasks, width, spread):
    """More tasks than dimensions: the hull may hold 0, where only the gap in units of the gradients has a meaning."""
    J = gradients(n_tasks, width, seed, spread)
    A = J @ J.T
    inner = A @ (w := minimum_norm(A))
    assert w.min() >= 0
    assert float(w @ inner - inner.min()) <= 1e-7 * float(A.diagonal().max())


def test_minimum_norm_beats_frank_wolfe():
    from torchjd.aggregation import MGDAWeighting

    worst = 1.0
    for seed in range(5):
        J = gradients(50, 200, seed)
        A = J @ J.T
        ours, theirs = minimum_norm(A), MGDAWeighting()(A)
        worst = max(worst, float(theirs @ A @ theirs) / float(ours @ A @ ours))
        assert float(ours @ A @ ours) <= float(theirs @ A @ theirs) * (1 + 1e-9)
    assert worst > 1.001  # the peer stops early, or this test compares nothing


@pytest.mark.parametrize(("n_tasks", "width"), [(1, 3), (2, 5), (10, 40), (30, 31), (20, 5), (50, 20)])
def test_quadratic_programs_satisfy_their_conditions_of_optimality(n_tasks, width):
    J = gradients(n_tasks, width, width, 0.0)
    Q = ridged(J @ J.T)
    X = nonnegative_quadratic(Q, -Q)
    slack = X @ Q + Q
    scale = float(Q.diagonal().max() * X.abs().max().clamp(min=1))
    assert X.min() >= 0
    assert slack.min() >= -1e-9 * scale
    assert (X * slack).abs().max() <= 1e-9 * scale * float(X.abs().max().clamp(min=1))


@pytest.mark.parametrize("width", [5, 31, 200])
def test_the_free_variables_to_start_with_do_not_matter(width):
    J = gradients(30, width, width, 0.0)
    Q = ridged(J @ J.T)
    plain = nonnegative_quadratic(Q, -Q)
    for start in (torch.ones(30, 30, dtype=torch.bool), torch.zeros(30, 30, dtype=torch.bool)):
        free = start.numpy()
        other = torch.from_numpy(solvers.nonnegative_quadratic(Q.numpy(), -Q.numpy(), free))
        torch.testing.assert_close(other @ J, plain @ J, rtol=1e-6, atol=1e-6)
        assert (free == (other > 0).numpy()).all()


def test_quadratic_programs_agree_with_an_interior_point_solver():
    import numpy as np
    from qpsolvers import solve_qp

    J = gradients(12, 20, 3)
    Q = ridged(J @ J.T)
    X = nonnegative_quadratic(Q, -Q)
    for row, b in zip(X, -Q, strict=True):
        theirs = solve_qp(Q.numpy(), -b.numpy(), -np.eye(12), np.zeros(12), solver="quadprog")
        torch.testing.assert_close(row, torch.from_numpy(theirs), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize(("n_tasks", "spread"), [(1, 0.0), (2, 3.0), (10, 1.0), (50, 1.0)])
def test_fair_weights_solve_their_equation(n_tasks, spread, alpha):
    J = gradients(n_tasks, 500, n_tasks, spread)
    A = J @ J.T
    w = fair(A, alpha)
    assert w.min() > 0
    torch.testing.assert_close((A @ w) * w ** (1 / alpha), torch.ones(n_tasks, dtype=torch.float64), rtol=1e-6, atol=0)


def test_fair_weights_of_two_opposite_tasks_stay_finite():
    A = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    assert torch.isfinite(fair(A)).all()
