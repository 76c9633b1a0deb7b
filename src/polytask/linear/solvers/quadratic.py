"""Smooth quadratic penalties: every task alone, or tasks coupled by a matrix; Newton steps for logistic losses.

    min_W  F(W) + 1/2 tr(W R W^T) + 1/2 tr(W^T P W)       F: see losses.py, W: (T, d)

R: (d, d) acts on the features of every task, P: (T, T) couples the tasks; both positive semidefinite.
With Hessians S_t and linear terms b_t of the loss, each step solves

    (S_t + R) w_t + sum_s P_ts w_s = b_t        for all t.

Diagonal P: T systems of size d. Otherwise the dense system of size T d while it is small, and
conjugate gradients with the block-diagonal preconditioner (S_t + R + P_tt I)^-1 from there on. Without R
and with more features than Gram matrices can have, the products go through the rows and the
preconditioner is diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polytask.core.task import Floats
from polytask.linear.solvers.losses import Curvature, Point, RowHessian, TaskLosses

_DENSE = 1200  # unknowns
_HALVINGS = 40
_ROUNDING = 1e-13


@dataclass(frozen=True)
class QuadraticSolution:
    """W ``(T, d)``, intercept ``(T,)``, largest entry of the gradient, the bound it should meet, linear steps."""

    W: Floats
    intercept: Floats
    optimality: float
    bound: float
    steps: int


def solve_quadratic(
    losses: TaskLosses,
    *,
    features: Floats | None = None,
    tasks: Floats | None = None,
    tol: float,
    max_steps: int,
    start: Floats | None = None,
) -> QuadraticSolution:
    """Minimise the objective of the module until the gradient is at most ``tol`` times that at W = 0.

    Parameters
    ----------
    features, tasks
        R and P; None is zero.
    max_steps
        Largest number of conjugate-gradient steps (of Newton steps where the systems are solved directly).
    """
    T, d = losses.n_tasks, losses.n_features
    R = np.zeros((1, 1)) if features is None else features  # one zero acts on any number of features
    P = np.zeros((T, T)) if tasks is None else tasks
    null = losses.at(np.zeros((T, d)))
    bound = tol * float(np.abs(null.gradient).max(initial=0.0))
    point = null if start is None else losses.at(np.array(start, dtype=np.float64), null)
    steps, before = 0, np.inf
    while True:
        gradient = point.gradient + _times(point.W, R) + P @ point.W
        left = float(np.abs(gradient).max(initial=0.0))
        if left <= bound or steps >= max_steps:
            break
        if losses.all_quadratic and left >= 0.5 * before:
            break  # rounding
        before = left
        goal = 0.3 * bound if losses.all_quadratic else 0.1 * min(left, max(bound, left**2))
        hessian = losses.hessian(point, outside=1e-3) if features is None else losses.curvature(point, outside=1e-3)
        if isinstance(hessian, RowHessian):
            change, used = _iterate(hessian, P, -gradient, goal, max_steps - steps)
        else:
            assert isinstance(hessian, Curvature)
            blocks = hessian.scale[:, None, None] * hessian.grams[hessian.pattern] + R
            change, used = _solve(blocks, P, -gradient, goal, max_steps - steps)
        steps += used
        moved = losses.at(point.W + change, point) if losses.all_quadratic else _search(losses, point, change, R, P)
        if moved is None:
            break
        point = moved
    return QuadraticSolution(point.W, point.intercept, left, bound, max(steps, 1))


def _search(losses: TaskLosses, point: Point, change: Floats, R: Floats, P: Floats) -> Point | None:
    here = point.value + _penalty_value(point.W, R, P)
    slope = float(((point.gradient + _times(point.W, R) + P @ point.W) * change).sum())
    size = 1.0
    for _ in range(_HALVINGS):
        moved = losses.at(point.W + size * change, point)
        fall = moved.value + _penalty_value(moved.W, R, P) - here
        if fall <= 1e-4 * size * slope or abs(slope) <= _ROUNDING * abs(here):
            return moved
        size *= 0.5
    return None


def _penalty_value(W: Floats, R: Floats, P: Floats) -> float:
    """Return 1/2 tr(W R W^T) + 1/2 tr(W^T P W)."""
    return 0.5 * float((W * (_times(W, R) + P @ W)).sum())


def _times(W: Floats, R: Floats) -> Floats:
    return W * R if R.shape == (1, 1) else W @ R


def _iterate(hessian: RowHessian, P: Floats, right: Floats, goal: float, max_steps: int) -> tuple[Floats, int]:
    """Solve the coupled system through products with the rows; return the solution and the steps."""
    scale = hessian.diagonal() + np.diag(P)[:, None]
    scale = np.where(scale > 0, scale, 1.0)
    x, rest = np.zeros_like(right), right.copy()
    direction = rest / scale
    size, steps = float((rest * direction).sum()), 0
    while np.abs(rest).max() > goal and steps < max_steps and size > 0.0:
        product = hessian.times(direction) + P @ direction
        length = size / float((direction * product).sum())
        x += length * direction
        rest -= length * product
        ready = rest / scale
        after = float((rest * ready).sum())
        direction, size = ready + after / size * direction, after
        steps += 1
    return x, max(steps, 1)


def _solve(blocks: Floats, P: Floats, right: Floats, goal: float, max_steps: int) -> tuple[Floats, int]:
    """Solve the coupled system for ``right`` ``(T, d)`` to a residual of ``goal``; return it and the steps."""
    T, d = right.shape
    diagonal = np.diag(P)
    own = blocks + diagonal[:, None, None] * np.eye(d)
    if not (P - np.diag(diagonal)).any():
        return _solve_blocks(own, right), 1
    if T * d <= _DENSE:
        dense = np.zeros((T, d, T, d))
        dense[np.arange(T), :, np.arange(T), :] = blocks
        dense += P[:, None, :, None] * np.eye(d)[None, :, None, :]
        return _solve_blocks(dense.reshape(1, T * d, T * d), right.reshape(1, T * d)).reshape(T, d), 1
    lift = 1e-12 * max(float(np.einsum("tdd->t", own).max()), 1e-300) * np.eye(d)
    inverse = np.linalg.inv(own + lift)
    x = np.zeros_like(right)
    rest = right.copy()
    z = np.einsum("tde,te->td", inverse, rest)
    direction, size = z, float((rest * z).sum())
    steps = 0
    while np.abs(rest).max() > goal and steps < max_steps:
        product = np.matmul(blocks, direction[:, :, None])[:, :, 0] + P @ direction
        length = size / float((direction * product).sum())
        x = x + length * direction
        rest = rest - length * product
        z = np.matmul(inverse, rest[:, :, None])[:, :, 0]
        after = float((rest * z).sum())
        direction, size = z + after / size * direction, after
        steps += 1
        if size <= 0.0:
            break
    return x, max(steps, 1)


def _solve_blocks(blocks: Floats, right: Floats) -> Floats:
    """Solve each symmetric positive semidefinite system; a singular one gets its shortest solution."""
    try:
        np.linalg.cholesky(blocks)
        return np.asarray(np.linalg.solve(blocks, right[:, :, None])[:, :, 0])
    except np.linalg.LinAlgError:
        inverse = np.linalg.pinv(blocks, rcond=1e-12, hermitian=True)
        return np.asarray(np.matmul(inverse, right[:, :, None])[:, :, 0])
