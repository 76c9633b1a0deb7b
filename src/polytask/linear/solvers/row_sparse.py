"""Row-sparse problems with squared and logistic losses: working sets, proximal Newton, certified gap.

    min_W  F(W) + alpha sum_j ||w^j||_2          F: see losses.py, W: (T, d)

Every round takes the gradient on all features and the duality gap at the scaled residuals, chooses
a working set of features (those in use and the most violated), and improves W on it by block
coordinate descent on the quadratic model of F; a step that does not lower the objective enough is
halved. For squared losses the model is F itself. It stops when

    gap = primal - dual <= tol * (F(0) - min over intercepts alone, that is the objective at W = 0).

Proximal Newton: Lee, Sun & Saunders 2014. Gap with scaled residuals: Kim et al. 2007.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polytask.core.data import Ints
from polytask.core.task import Floats
from polytask.linear.penalties.block import RowNorm
from polytask.linear.solvers.losses import Point, TaskLosses

_ALWAYS_ALL = 500  # up to so many features the working set is all of them
_LEAST_SET = 100
_HALVINGS = 30
_ROUNDING = 1e-11  # changes below this share of the objective are not compared
_STALLS = 5


@dataclass(frozen=True)
class Solution:
    """W ``(T, d)``, intercept ``(T,)``, the duality gap, the bound it should meet, and passes over features."""

    W: Floats
    intercept: Floats
    gap: float
    bound: float
    passes: int


def solve_row_sparse(
    losses: TaskLosses, alpha: float, *, tol: float, max_passes: int, start: Floats | None = None
) -> Solution:
    """Minimise F + alpha sum_j ||w^j||; see the module."""
    from polytask.linear.solvers.descent import descend, optimality  # numba: loaded when a fit needs it

    penalty = RowNorm(alpha)
    null = losses.at(np.zeros((losses.n_tasks, losses.n_features)))
    bound = tol * null.value
    point = null if start is None else losses.at(np.ascontiguousarray(start, dtype=np.float64), null)
    passes, wanted, stalls = 0, _LEAST_SET, 0
    best, best_gap = point, np.inf
    while True:
        gap = _gap(losses, point, penalty)
        stalls = stalls + 1 if gap >= best_gap else 0
        if gap < best_gap:
            best, best_gap = point, gap
        if gap <= bound or passes >= max_passes or stalls > _STALLS:
            break
        features = _working_set(point, alpha, wanted)
        wanted = 2 * wanted
        curvature = losses.curvature(point, features)
        local = slice(None) if features is None else features
        W = np.array(point.W[:, local], order="C")  # copies: improved in place
        gradient = np.array(point.gradient[:, local], order="C")
        before = optimality(W, gradient, alpha)
        quadratic = losses.all_quadratic
        product = curvature.times(W)
        linear = product - gradient
        if quadratic:
            squares = 2.0 * point.value + float((2.0 * linear * W - W * product).sum())
            kkt = 0.0
        else:
            squares, kkt = -1.0, 0.05 * before
        passes += descend(
            curvature.grams,
            curvature.pattern,
            curvature.scale,
            linear,
            alpha,
            W,
            gradient,
            squares,
            0.3 * bound,
            kkt,
            max_passes - passes,
        )
        target = point.W.copy()
        target[:, local] = W
        moved = losses.at(target, point) if quadratic else _search(losses, point, target, penalty)
        if moved is None:
            break
        point = moved
    return Solution(best.W, best.intercept, best_gap, bound, max(passes, 1))


def _gap(losses: TaskLosses, point: Point, penalty: RowNorm) -> float:
    top = penalty.dual_norm(point.gradient)
    shrink = 1.0 if top <= penalty.alpha else penalty.alpha / top
    return point.value + penalty.value(point.W) - losses.dual(point, shrink)


def _working_set(point: Point, alpha: float, wanted: int) -> Ints | None:
    """Return the features in use and the most violated ones, in order; None: all."""
    d = point.W.shape[1]
    if d <= _ALWAYS_ALL:
        return None
    used = (point.W != 0).any(axis=0)
    score = np.linalg.norm(point.gradient, axis=0)
    score[used] = np.inf
    violated = int((score[~used] > alpha).sum())
    size = int(used.sum()) + max(min(violated, max(wanted, int(used.sum()))), 10)
    if size >= d:
        return None
    return np.sort(np.argpartition(-score, size - 1)[:size])


def _search(losses: TaskLosses, point: Point, target: Floats, penalty: RowNorm) -> Point | None:
    """Return the first point on the way to ``target`` that lowers the objective enough; None: none does."""
    direction = target - point.W
    here = penalty.value(point.W)
    slope = float((point.gradient * direction).sum()) + penalty.value(target) - here
    if abs(slope) <= _ROUNDING * (abs(point.value) + here):
        return losses.at(target, point)  # a fall too small to be measured: trust the model
    if slope > 0.0:
        return None
    step = 1.0
    for _ in range(_HALVINGS):
        moved = losses.at(point.W + step * direction, point)
        fall = moved.value + penalty.value(moved.W) - point.value - here
        if fall <= 1e-4 * step * slope:
            return moved
        step *= 0.5
    return None
