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
from polytask.linear.solvers.losses import Curvature, Point, TaskLosses, kinds_of

_ALWAYS_ALL = 500  # up to so many features the working set is all of them
_LEAST_SET = 100
_HALVINGS = 10
_INEXACT = 0.05  # of the optimality before, which a Newton step need not fall below
_LEAST_DAMPING, _MOST_DAMPING = 1e-4, 1e8  # in units of the typical curvature
_SHORT = 0.5  # a step of which less was taken calls for damping
_ROUNDING = 1e-11  # changes below this share of the objective are not compared
_STALLS = 5
_NEAR = 1e2  # times the wanted gap, where it is computed exactly
_FARTHEST = 4.0  # change of a margin in one step


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
    first, damping = 0.0, 0.0
    best, best_gap = point, np.inf
    while True:
        gap = _gap(losses, point, penalty, bound)
        stalls = stalls + 1 if gap >= best_gap else 0
        if gap < best_gap:
            best, best_gap = point, gap
        if gap <= bound or passes >= max_passes or stalls > _STALLS:
            break
        features = _working_set(point, alpha, wanted, _ALWAYS_ALL if losses.all_quadratic else 0)
        wanted = 2 * wanted
        curvature = losses.curvature(point, features, by_feature=True)
        local = slice(None) if features is None else features
        W = np.array(point.W[:, local], order="C")  # copies: improved in place
        gradient = np.array(point.gradient[:, local], order="C")
        before = optimality(W, gradient, alpha)
        first = max(first, before)
        quadratic = losses.all_quadratic
        if damping > 0.0:
            curvature = _damped(curvature, damping)
        product = curvature.times(W)
        linear = product - gradient
        if quadratic:
            squares = 2.0 * point.value + float((2.0 * linear * W - W * product).sum())
            kkt = 0.0
        else:
            squares, kkt = -1.0, before * max(_INEXACT * min(1.0, before / first), 0.3 * bound / gap)
        passes += descend(
            np.ascontiguousarray(curvature.grams.transpose(1, 0, 2)),
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
        if quadratic:
            point = losses.at(target, point)
            continue
        target = _held(losses, point, target)
        moved, size = _search(losses, point, target, penalty)
        if moved is None:
            if damping >= _MOST_DAMPING:
                break
            damping = max(100.0 * damping, _LEAST_DAMPING)
            continue
        damping = _adapted(damping, size)
        point = moved
    return Solution(best.W, best.intercept, best_gap, bound, max(passes, 1))


def _gap(losses: TaskLosses, point: Point, penalty: RowNorm, bound: float) -> float:
    """Return a duality gap at the scaled residuals.

    The dual objective is concave along them and 0 at 0, so that ``shrink`` times its value at the residuals, which is
    F - <W, gradient>, is below it; near ``bound`` it is computed.
    """
    top = penalty.dual_norm(point.gradient)
    shrink = 1.0 if top <= penalty.alpha else penalty.alpha / top
    primal = point.value + penalty.value(point.W)
    rough = primal - shrink * (point.value - float((point.W * point.gradient).sum()))
    if rough <= bound or rough > _NEAR * bound:
        return rough
    return primal - losses.dual(point, shrink)


def _working_set(point: Point, alpha: float, wanted: int, always_all: int) -> Ints | None:
    """Return the features in use and the most violated ones, in order; None: all."""
    d = point.W.shape[1]
    if d <= always_all:
        return None
    used = (point.W != 0).any(axis=0)
    score = np.linalg.norm(point.gradient, axis=0)
    score[used] = np.inf
    violated = int((score[~used] > alpha).sum())
    size = int(used.sum()) + max(min(violated, max(wanted, int(used.sum()))), 10)
    if size >= d:
        return None
    return np.sort(np.argpartition(-score, size - 1)[:size])


def _damped(curvature: Curvature, damping: float) -> Curvature:
    """Return the Hessians plus ``damping`` times their typical eigenvalue over all tasks."""
    kinds, which = kinds_of(curvature)
    grams = curvature.grams[kinds[0].astype(np.int64)] * kinds[1][:, None, None]
    diagonal = np.einsum("kjj->kj", grams)
    diagonal += damping * float(diagonal.mean())
    return Curvature(grams, which, np.ones(len(which)))


def _adapted(damping: float, size: float) -> float:
    """Return the damping after a step of which ``size`` was taken: the model held, or it was far off."""
    if size >= 1.0:
        return 0.1 * damping if damping > _LEAST_DAMPING else 0.0
    return max(10.0 * damping, _LEAST_DAMPING) if size < _SHORT else damping


def _held(losses: TaskLosses, point: Point, target: Floats) -> Floats:
    """Return ``target``, or what is on the way to it where a task would leave the region of its quadratic model.

    One task whose classes are nearly separated would otherwise shorten the step of all.
    """
    step = target - point.W
    share = np.minimum(1.0, _FARTHEST / np.maximum(losses.reach(step, _FARTHEST), 1e-300))
    return target if (share == 1.0).all() else np.asarray(point.W + share[:, None] * step)


def _search(losses: TaskLosses, point: Point, target: Floats, penalty: RowNorm) -> tuple[Point | None, float]:
    """Return the first point on the way to ``target`` that lowers the objective enough, None: none does; how far."""
    direction = target - point.W
    here = penalty.value(point.W)
    slope = float((point.gradient * direction).sum()) + penalty.value(target) - here
    if abs(slope) <= _ROUNDING * (abs(point.value) + here):
        return losses.at(target, point), 1.0  # a fall too small to be measured: trust the model
    if slope > 0.0:
        return None, 0.0
    step = 1.0
    for _ in range(_HALVINGS):
        moved = losses.at(point.W + step * direction, point)
        fall = moved.value + penalty.value(moved.W) - point.value - here
        if fall <= 1e-4 * step * slope:
            return moved, step
        step *= 0.5
    return None, 0.0
