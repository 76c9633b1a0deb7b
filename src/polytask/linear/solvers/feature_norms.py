"""Losses plus a norm of every feature's coefficients: working sets, proximal Newton, certified gap.

    min_W  F(W) + ridge / 2 ||W||² + sum_j norm(w^j)          F: see losses.py, W: (T, d)

Every round takes the gradient on all features and the duality gap at the scaled residuals, chooses a
working set of features (those in use and the most violated), and improves W on it by coordinate
descent on the quadratic model of F, extrapolated after every few passes; a step that does not lower
the objective enough is halved. For squared losses the model is F itself; where many passes do not end it with
l1/linf, as with more features than rows, an interior-point method does, and passes then find its ties and zeros.
It stops when

    gap = primal - dual <= tol * F(0).

The dual point is the residuals times the largest factor with finite conjugate; with a ridge, where
the conjugate is finite everywhere, the residuals themselves if that bound is better.

Proximal Newton: Lee, Sun & Saunders 2014. Extrapolation: Bertrand & Massias, Anderson acceleration of
coordinate descent, AISTATS 2021. Gap with scaled residuals: Kim et al. 2007.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from polytask.core.data import Ints
from polytask.core.task import Floats
from polytask.linear.penalties.block import EntryNorm, FeatureNorm, RowMaximum
from polytask.linear.penalties.elastic import Elastic
from polytask.linear.solvers.face import face_step
from polytask.linear.solvers.losses import Curvature, Point, TaskLosses

_ALWAYS_ALL = 500  # up to so many features the working set is all of them
_LEAST_SET = 100
_PASSES = 6  # between two extrapolations
_INNER_SHARE = 0.03  # of the gap on all features, to which it is brought on a working set
_SHARE = 1e-3  # of the first changes on a model of F, at which the next model is due
_FIRST_FACE = 2  # sweeps before the first Newton step on the face
_NEWTON_STEPS = 4  # on a face that is not quadratic
_INTERIOR = 8  # sweeps after which the interior-point method takes over, and between two of its runs
_INTERIOR_SHARE = 0.05  # of the final gap, to which it goes at once
_LARGEST_ROOTS = 40_000_000  # numbers it may need for the tasks' roots; 320 MB
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


def solve_feature_norms(
    losses: TaskLosses,
    norm: FeatureNorm,
    *,
    ridge: float = 0.0,
    tol: float,
    max_passes: int,
    start: Floats | None = None,
) -> Solution:
    """Minimise the objective of the module; ``start`` is a W near the solution."""
    penalty: FeatureNorm | Elastic = norm if ridge == 0.0 else Elastic(norm, ridge)
    null = losses.at(np.zeros((losses.n_tasks, losses.n_features)))
    bound = tol * null.value
    point = null if start is None else losses.at(np.ascontiguousarray(start, dtype=np.float64), null)
    passes, wanted, stalls = 0, _LEAST_SET, 0
    best, best_gap = point, np.inf
    quadratic = losses.all_quadratic
    while True:
        gap = point.value + penalty.value(point.W) - _lower_bound(losses, point, norm, ridge)
        stalls = stalls + 1 if gap >= best_gap else 0
        if gap < best_gap:
            best, best_gap = point, gap
        if gap <= bound or passes >= max_passes or stalls > _STALLS:
            break
        features = _working_set(point, norm, wanted)
        wanted *= 2
        model = _Model.at(losses, point, features, norm, ridge, null.value if quadratic else None)
        goal = 0.3 * bound if features is None else max(0.3 * bound, _INNER_SHARE * gap)
        passes += model.descend(goal, bound, max_passes - passes)
        target = point.W.copy()
        target[:, slice(None) if features is None else features] = model.W
        moved = losses.at(target, point) if quadratic else _search(losses, point, target, penalty)
        if moved is None:
            break
        point = moved
    return Solution(best.W, best.intercept, best_gap, bound, max(passes, 1))


def _lower_bound(losses: TaskLosses, point: Point, norm: FeatureNorm, ridge: float) -> float:
    found = losses.dual(point, norm.shrinkage(point.gradient))
    if ridge > 0.0:
        found = max(found, losses.dual(point, 1.0) - Elastic(norm, ridge).conjugate(point.gradient))
    return found


def _working_set(point: Point, norm: FeatureNorm, wanted: int) -> Ints | None:
    """Return the features in use and the most violated ones, in order; None: all."""
    d = point.W.shape[1]
    if d <= _ALWAYS_ALL:
        return None
    used = (point.W != 0).any(axis=0)
    score = norm.gauges(point.gradient)
    score[used] = np.inf
    count = int(used.sum())
    violated = int((score[~used] > 1.0).sum())
    size = count + max(min(violated, max(wanted, count)), 10)
    if size >= d:
        return None
    return np.sort(np.argpartition(-score, size - 1)[:size])


def _search(losses: TaskLosses, point: Point, target: Floats, penalty: FeatureNorm | Elastic) -> Point | None:
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


@dataclass
class _Model:
    """1/2 <W, H W> - <linear, W> + penalty on the working set; ``constant``: F at W = 0, None for a model of F."""

    curvature: Curvature
    norm: FeatureNorm
    ridge: float
    W: Floats
    gradient: Floats
    linear: Floats
    constant: float | None

    @classmethod
    def at(
        cls,
        losses: TaskLosses,
        point: Point,
        features: Ints | None,
        norm: FeatureNorm,
        ridge: float,
        constant: float | None,
    ) -> _Model:
        curvature = losses.curvature(point, features)
        local = slice(None) if features is None else features
        W = np.array(point.W[:, local], order="C")  # copies: improved in place
        gradient = np.array(point.gradient[:, local], order="C")
        return cls(curvature, norm, ridge, W, gradient, curvature.times(W) - gradient, constant)

    def descend(self, goal: float, bound: float, max_passes: int) -> int:
        """Improve W; return the passes made.

        It stops at a duality gap of ``goal`` or, where there is no constant, when the entries change by
        at most a small share of the first changes.
        """
        from polytask.linear.solvers.row_descent import sweep  # numba: loaded when a fit needs it

        curvature, rule = self.curvature, self.norm.rule
        T, k = self.W.shape
        levels = np.zeros(k)
        passes, sweeps, due, first = 0, 0, _FIRST_FACE, -1.0
        points, slopes = np.empty((_PASSES, T, k)), np.empty((_PASSES, T, k))
        while passes < max_passes:
            change = sweep(
                curvature.grams,
                curvature.pattern,
                curvature.scale,
                rule,
                self.ridge,
                self.W,
                self.gradient,
                levels,
                points,
                slopes,
            )
            passes += _PASSES
            first = change if first < 0.0 else first
            if change <= (_SHARE**2 * first if self.constant is None else 0.0):
                break
            if self.constant is not None and self._gap(self.constant) <= goal:
                break
            sweeps += 1
            if sweeps % _INTERIOR == 0:
                self._by_interior(_INTERIOR_SHARE * bound)
                continue
            if sweeps >= due:
                due = sweeps + 1 + sweeps // 2  # ever rarer
                if self._finish(levels):
                    continue
            self._extrapolate(points, slopes)
        return passes

    def _finish(self, levels: Floats) -> bool:
        """Take Newton steps on the face where they go down; return whether any does.

        On faces with levels the problem is quadratic and one step ends it.
        """
        rule, done = self.norm.rule, False
        for _ in range(1 if rule[0] == 0 else _NEWTON_STEPS):
            together, alone = face_step(self.curvature, rule, self.ridge, self.W, self.gradient, levels)
            moved = [self._move(W, self._gradient_at(W), self._apart) for W in together]
            moved += [self._move(W, self._gradient_at(W), levels) for W in alone]
            if not any(moved):
                break
            done = True
        return done

    def _by_interior(self, goal: float) -> None:
        """Move to where the interior-point method ends, where it applies and has a smaller gap."""
        constant = self.constant
        if not isinstance(self.norm, RowMaximum) or constant is None or self.W.size * len(self.W[0]) > _LARGEST_ROOTS:
            return
        from polytask.linear.solvers.interior import interior_levels

        def at(W: Floats) -> _Model:
            return replace(self, W=W, gradient=self._gradient_at(W))

        found = at(
            interior_levels(
                self.curvature,
                self.norm.alpha,
                self.ridge,
                self.linear,
                self.W,
                lambda W: at(W)._gap(constant) <= goal,
            )
        )
        if found._gap(constant) < self._gap(constant):
            self.W[:], self.gradient[:] = found.W, found.gradient

    def _gradient_at(self, W: Floats) -> Floats:
        return self.curvature.times(W) - self.linear

    @property
    def _apart(self) -> Floats | None:
        """The levels (see :meth:`_values`) at which the tasks have nothing in common: with l1, zeros."""
        return np.zeros(self.W.shape[1]) if isinstance(self.norm, EntryNorm) else None

    def _move(self, W: Floats, gradient: Floats, levels: Floats | None) -> bool:
        """Go there where that is lower: at given levels each task by itself, else all; return whether any does."""
        lower = self._values(W, gradient, levels) < self._values(self.W, self.gradient, levels)
        if levels is None:
            lower = np.broadcast_to(lower, len(W))
        self.W[lower], self.gradient[lower] = W[lower], gradient[lower]
        return bool(lower.any())

    def _values(self, W: Floats, gradient: Floats, levels: Floats | None) -> Floats:
        """Return the objective ``(1,)``, or at given levels m the share of every task in a bound of it ``(T,)``.

        By the rule (0, a, b) the norm is at most a sum_j m_j + b sum_tj (|w_tj| - m_j)_+, and this at the levels of W.
        """
        smooth = W * (0.5 * (gradient - self.linear) + 0.5 * self.ridge * W)
        if levels is None:
            return np.array([smooth.sum() + self.norm.value(W)])
        return np.asarray((smooth + self.norm.rule[2] * np.maximum(np.abs(W) - levels, 0.0)).sum(axis=1))

    def _extrapolate(self, points: Floats, slopes: Floats) -> None:
        """Move to the combination of the last points whose steps combine to the shortest, where that is lower."""
        groups = 1 if self._apart is None else len(self.W)
        path = points.reshape(len(points), groups, -1).swapaxes(0, 1)  # (groups, points, entries)
        steps = np.diff(path, axis=1)
        products = np.matmul(steps, steps.swapaxes(1, 2))
        size = np.trace(products, axis1=1, axis2=2)
        moving = size > 0.0
        count = steps.shape[1]
        products += np.where(moving, 1e-12 * size, 1.0)[:, None, None] * np.eye(count)
        weights = np.linalg.solve(products, np.ones((groups, count, 1)))[:, :, 0]
        total = weights.sum(axis=1)
        usable = moving & np.isfinite(total) & (np.abs(total) > 1e-300)
        weights[usable] /= total[usable, None]
        weights[~usable] = np.arange(count) == count - 1  # the last point: stay
        W = np.matmul(weights[:, None], path[:, 1:]).reshape(self.W.shape)
        gradient = np.matmul(weights[:, None], slopes[1:].reshape(count, groups, -1).swapaxes(0, 1))
        self._move(W, gradient.reshape(W.shape), self._apart)

    def _gap(self, constant: float) -> float:
        """Return the duality gap of the model, which is F itself."""
        W, gradient = self.W, self.gradient
        along = float((self.linear * W).sum())
        smooth = 0.5 * float(((gradient + self.linear) * W).sum()) - along + constant
        shrink = self.norm.shrinkage(gradient)
        dual = shrink * (2.0 * constant - along) - shrink**2 * smooth
        primal = smooth + self.norm.value(W)
        if self.ridge > 0.0:
            elastic = Elastic(self.norm, self.ridge)
            primal = smooth + elastic.value(W)
            dual = max(dual, 2.0 * constant - along - smooth - elastic.conjugate(gradient))
        return primal - dual
