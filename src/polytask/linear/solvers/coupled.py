"""Ridge coupled through a common vector: exact by block elimination, logistic losses by Newton steps.

    min_{w_0, v_1 … v_T}  F(W) + 1/2 sum_j p_j w_0j² + 1/2 sum_tj v_tj² / q_j,     w_t = w_0 + v_t

with prior precisions p (0: not penalised, inf: w_0j = 0) and prior variances q (0: v_tj = 0); F is
the sum of mean losses of ``losses.py``. On a quadratic model with Hessians S_t and linear terms
b_t (both of the loss alone) the conditions are

    v_t = Q (b_t - S_t (w_0 + v_t)),      diag(p) w_0 = sum_t (b_t - S_t (w_0 + v_t)).

With A_t = I + S_t Q:  b_t - S_t (w_0 + v_t) = A_t^-1 (b_t - S_t w_0), hence one d-by-d system

    (diag(p) + sum_t A_t^-1 S_t) w_0 = sum_t A_t^-1 b_t,      v_t = Q A_t^-1 (b_t - S_t w_0).

Cost O(P d³ + T d²) for P different Hessians. With more features than Gram matrices can have, the two
conditions are solved together by conjugate gradients on products with the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polytask.core.task import Floats
from polytask.linear.solvers.losses import Curvature, Point, RowHessian, TaskLosses

_HALVINGS = 40
_ROUNDING = 1e-14
_CONJUGATE_STEPS = 5000


@dataclass(frozen=True)
class CoupledSolution:
    """W = common + own ``(T, d)``, common ``(d,)``, intercept ``(T,)``, norm of the gradient left, Newton steps."""

    W: Floats
    common: Floats
    intercept: Floats
    optimality: float
    bound: float
    steps: int


def eliminate(curvature: Curvature, linear: Floats, precision: Floats, variance: Floats) -> tuple[Floats, Floats]:
    """Solve the quadratic problem; return w_0 ``(d,)`` and v ``(T, d)``.

    Parameters
    ----------
    curvature
        S_t = scale_t grams[pattern_t].
    linear
        b_t, ``(T, d)``.
    precision, variance
        p and q, ``(d,)``.
    """
    T, d = linear.shape
    free = np.flatnonzero(np.isfinite(precision))
    kinds, which = np.unique(np.stack([curvature.pattern, curvature.scale]), axis=1, return_inverse=True)
    which = which.reshape(-1)
    counts = np.bincount(which, minlength=kinds.shape[1])
    order = np.argsort(which, kind="stable")
    starts = np.cumsum(counts) - counts
    system = np.diag(precision[free])
    groups = []
    for count in np.unique(counts):  # Hessians that as many tasks have are solved together
        same = np.flatnonzero(counts == count)
        tasks = order[starts[same][:, None] + np.arange(count)]  # (K, count)
        S = kinds[1, same][:, None, None] * curvature.grams[kinds[0, same].astype(np.int64)]
        right = np.concatenate([S, linear[tasks].transpose(0, 2, 1)], axis=2)
        solved = np.linalg.solve(np.eye(d) + S * variance, right)
        inverse_S, inverse_b = solved[:, :, :d], solved[:, :, d:].transpose(0, 2, 1)
        system += count * inverse_S.sum(axis=0)[np.ix_(free, free)]
        groups.append((tasks, inverse_S, inverse_b))
    common = np.zeros(d)
    if len(free):
        total = sum(inverse_b.sum(axis=(0, 1)) for _, _, inverse_b in groups)
        common[free] = _solve_symmetric(system, total[free])
    own = np.empty((T, d))
    for tasks, inverse_S, inverse_b in groups:
        own[tasks] = variance * (inverse_b - (inverse_S @ common)[:, None, :])
    return common, own


def solve_coupled(
    losses: TaskLosses, precision: Floats, variance: Floats, *, tol: float, max_steps: int, start: Floats | None = None
) -> CoupledSolution:
    """Minimise the objective of the module to a gradient of at most ``tol`` times that at W = 0.

    ``start`` holds w_0 and v stacked, ``(T + 1, d)``.
    """
    T, d = losses.n_tasks, losses.n_features
    zero = losses.at(np.zeros((T, d)))
    common, own = (np.zeros(d), np.zeros((T, d))) if start is None else (start[0].copy(), start[1:].copy())
    point = zero if start is None else losses.at(common + own, zero)
    bound = tol * _optimality(zero, np.zeros(d), np.zeros((T, d)), precision, variance)
    steps = 0
    while True:
        left = _optimality(point, common, own, precision, variance)
        if (steps > 0 or start is not None) and (left <= bound or (losses.all_quadratic and steps > 0)):
            break
        if steps >= max_steps:
            break
        hessian = losses.hessian(point, outside=1e-3)
        linear = hessian.times(point.W) - point.gradient
        if isinstance(hessian, Curvature):
            goal_common, goal_own = eliminate(hessian, linear, precision, variance)
        else:
            assert isinstance(hessian, RowHessian)
            goal = 0.3 * bound if losses.all_quadratic else 0.1 * min(left, max(bound, left**2))
            goal_common, goal_own = _iterate(hessian, linear, precision, variance, (common, own), goal)
        steps += 1
        if losses.all_quadratic:
            common, own = goal_common, goal_own
            point = losses.at(common + own, point)
            continue
        step_common, step_own = goal_common - common, goal_own - own
        here = point.value + _penalty(common, own, precision, variance)
        slope = float((point.gradient * (step_common + step_own)).sum()) + _penalty_slope(
            common, own, step_common, step_own, precision, variance
        )
        if slope >= 0.0:
            break
        size = 1.0
        for _ in range(_HALVINGS):
            new_common, new_own = common + size * step_common, own + size * step_own
            moved = losses.at(new_common + new_own, point)
            fall = moved.value + _penalty(new_common, new_own, precision, variance) - here
            if fall <= 1e-4 * size * slope:
                break
            if abs(fall) <= _ROUNDING * abs(here) and (
                _optimality(moved, new_common, new_own, precision, variance) < left
            ):
                break  # a fall too small to be seen in the values
            size *= 0.5
        else:
            break
        common, own, point = new_common, new_own, moved
    return CoupledSolution(point.W, common, point.intercept, left, bound, max(steps, 1))


def _iterate(
    hessian: RowHessian, linear: Floats, precision: Floats, variance: Floats, start: tuple[Floats, Floats], goal: float
) -> tuple[Floats, Floats]:
    """Solve the quadratic problem to a gradient of ``goal`` by preconditioned conjugate gradients."""
    free, kept = np.isfinite(precision), variance > 0
    p, inverse = _finite(precision), _inverse(variance)

    def product(z: Floats) -> Floats:
        pulled = hessian.times(z[0] + z[1:])
        return np.concatenate([(pulled.sum(axis=0) + p * z[0])[None] * free, (pulled + inverse * z[1:]) * kept])

    diagonal = hessian.diagonal()
    scale = np.concatenate([(diagonal.sum(axis=0) + p)[None], diagonal + inverse])
    scale = np.where(scale > 0, scale, 1.0)
    z = np.concatenate([start[0][None] * free, start[1] * kept])
    rest = np.concatenate([linear.sum(axis=0)[None] * free, linear * kept]) - product(z)
    step = rest / scale
    size = float((rest * step).sum())
    for _ in range(_CONJUGATE_STEPS):
        if np.abs(rest).max(initial=0.0) <= goal or size <= 0.0:
            break
        moved = product(step)
        length = size / float((step * moved).sum())
        z += length * step
        rest -= length * moved
        ready = rest / scale
        after = float((rest * ready).sum())
        step, size = ready + after / size * step, after
    return z[0], z[1:]


def _solve_symmetric(system: Floats, right: Floats) -> Floats:
    """Solve a positive semidefinite system; where it is singular take the shortest solution."""
    system = 0.5 * (system + system.T)
    try:
        np.linalg.cholesky(system)
        return np.asarray(np.linalg.solve(system, right))
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.lstsq(system, right, rcond=None)[0])


def _finite(precision: Floats) -> Floats:
    return np.where(np.isfinite(precision), precision, 0.0)


def _inverse(variance: Floats) -> Floats:
    return np.where(variance > 0, 1.0 / np.where(variance > 0, variance, 1.0), 0.0)


def _penalty(common: Floats, own: Floats, precision: Floats, variance: Floats) -> float:
    return 0.5 * float((_finite(precision) * common**2).sum() + (own**2 * _inverse(variance)).sum())


def _penalty_slope(
    common: Floats, own: Floats, step_common: Floats, step_own: Floats, precision: Floats, variance: Floats
) -> float:
    return float((_finite(precision) * common * step_common).sum() + (_inverse(variance) * own * step_own).sum())


def _optimality(point: Point, common: Floats, own: Floats, precision: Floats, variance: Floats) -> float:
    """Return the largest entry of the gradient with respect to w_0 and v, in units of the loss's gradient."""
    by_common = np.where(np.isfinite(precision), point.gradient.sum(axis=0) + _finite(precision) * common, 0.0)
    by_own = np.where(variance > 0, point.gradient + own * _inverse(variance), 0.0)
    return float(max(np.abs(by_common).max(initial=0.0), np.abs(by_own).max(initial=0.0)))
