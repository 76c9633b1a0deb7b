"""Problems with a sum of simple penalties: accelerated proximal gradient on moments, certified gap.

    min  F(W) + sum_k Omega_k(X_k),    W = sum_k X_k          F: see losses.py, W, X_k: (T, d)

Squared losses: F is the quadratic of the moments, so a step costs one product with the T Gram
matrices and one proximal map; the product at the extrapolated point is extrapolated too. Step sizes
come from the exact curvature along the step, the momentum restarts when it points uphill, and the
duality gap is taken from the same products. Logistic losses: proximal Newton steps, each such a
quadratic. A box penalty is differentiable, so squared losses with it first take L-BFGS steps in the
coordinates L_t^T w_t with L_t L_t^T = H_t + typical curvature of the penalty, which remove the
conditioning of the tasks; the certificate is the same. It stops when

    gap = primal - dual <= tol * (objective at W = 0).

The dual point is the residuals, shrunk where a conjugate is infinite. For the quadratic part with
F(W) = 1/2 <W, H W> - <L, W> + c and residuals times s, the dual is
s (2 c - <L, W>) - s² F(W) - sum_k Omega_k*(-s grad F).

Beck & Teboulle 2009; O'Donoghue & Candès 2015 (restart); Lee, Sun & Saunders 2014 (proximal Newton).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polytask.core.task import Floats
from polytask.linear.penalties.spectral import AroundMean, Penalty, SpectralBox
from polytask.linear.solvers.losses import Curvature, Point, TaskLosses

_HALVINGS = 30
_ROUNDING = 1e-11
_EVERY = 10  # steps between two looks at the gap
_DESCENTS = 300
_LOOK = 4  # L-BFGS steps between two looks at the gap
_MEMORY = 15
_LARGEST_BLOCKS = 4_000_000  # numbers in the T Cholesky factors


@dataclass(frozen=True)
class Solution:
    """Parts X ``(K, T, d)``, W their sum, intercept ``(T,)``, gap and the bound it should meet, proximal steps."""

    parts: Floats
    W: Floats
    intercept: Floats
    gap: float
    bound: float
    steps: int


def solve_proximal(
    losses: TaskLosses, penalties: Sequence[Penalty], *, tol: float, max_steps: int, start: Floats | None = None
) -> Solution:
    """Minimise the objective of the module; ``start`` holds the parts ``(K, T, d)``."""
    shape = (len(penalties), losses.n_tasks, losses.n_features)
    null = losses.at(np.zeros(shape[1:]))
    bound = tol * null.value
    parts = np.zeros(shape) if start is None else np.array(start, dtype=np.float64)
    point = null if start is None else losses.at(parts.sum(axis=0), null)
    steps = 0
    if losses.all_quadratic:
        constant = null.value
        if start is None or _gap(losses, point, parts, penalties) > bound:
            model = _Quadratic(losses.curvature(null), -null.gradient, penalties)
            gap = np.inf
            if isinstance(penalties[0], SpectralBox | AroundMean) and parts.size * shape[2] <= _LARGEST_BLOCKS:
                parts, steps, gap = model.descend(parts, penalties[0], constant, bound, min(max_steps, _DESCENTS))
            if gap > 0.9 * bound and steps < max_steps:
                more = max_steps - steps
                parts, used = model.minimise(parts, constant=constant, bound=bound, residual=0.0, max_steps=more)
                steps += used
            point = losses.at(parts.sum(axis=0), null)
    else:
        parts, point, steps = _newton(losses, penalties, parts, point, bound, max_steps)
    gap = _gap(losses, point, parts, penalties)
    return Solution(parts, point.W, point.intercept, gap, bound, max(steps, 1))


def _newton(
    losses: TaskLosses, penalties: Sequence[Penalty], parts: Floats, point: Point, bound: float, max_steps: int
) -> tuple[Floats, Point, int]:
    steps, share = 0, 0.1
    while True:
        gap = _gap(losses, point, parts, penalties)
        if gap <= bound or steps >= max_steps:
            return parts, point, steps
        curvature = losses.curvature(point)
        model = _Quadratic(curvature, curvature.times(point.W) - point.gradient, penalties)
        residual = share * min(1.0, float(np.sqrt(gap)))
        target, used = model.minimise(parts, constant=None, bound=0.0, residual=residual, max_steps=max_steps - steps)
        steps += used
        moved = _search(losses, penalties, parts, point, target)
        if moved is None:
            if share < 1e-8:
                return parts, point, steps
            share *= 0.01  # the step was too rough to go down: solve the next model better
            continue
        parts, point = moved
        share *= 0.3


def _search(
    losses: TaskLosses, penalties: Sequence[Penalty], parts: Floats, point: Point, target: Floats
) -> tuple[Floats, Point] | None:
    """Return the first point on the way to ``target`` that lowers the objective enough; None: none does."""
    direction = target - parts
    here = _value(penalties, parts)
    slope = float((point.gradient * direction).sum()) + _value(penalties, target) - here
    if slope > _ROUNDING * (point.value + here):
        return None
    step = 1.0
    for _ in range(_HALVINGS):
        new = parts + step * direction
        moved = losses.at(new.sum(axis=0), point)
        fall = moved.value + _value(penalties, new) - point.value - here
        if fall <= 1e-4 * step * slope or abs(slope) <= _ROUNDING * (point.value + here):
            return new, moved
        step *= 0.5
    return None


def _value(penalties: Sequence[Penalty], parts: Floats) -> float:
    return sum(penalty.value(part) for penalty, part in zip(penalties, parts, strict=True))


def _conjugate(penalties: Sequence[Penalty], gradient: Floats) -> tuple[float, float]:
    """Return the shrinkage s of the dual point and the sum of the conjugates there."""
    shrink = min(penalty.shrinkage(gradient) for penalty in penalties)
    return shrink, sum(penalty.conjugate(shrink * gradient) for penalty in penalties)


def _gap(losses: TaskLosses, point: Point, parts: Floats, penalties: Sequence[Penalty]) -> float:
    shrink, conjugate = _conjugate(penalties, point.gradient)
    return point.value + _value(penalties, parts) - losses.dual(point, shrink) + conjugate


def _inner(A: Floats, B: Floats) -> float:
    return float(np.dot(A.ravel(), B.ravel()))


@dataclass(frozen=True)
class _Quadratic:
    """1/2 <W, H W> - <linear, W> + sum_k Omega_k(X_k), W = sum_k X_k."""

    curvature: Curvature
    linear: Floats
    penalties: Sequence[Penalty]

    def minimise(
        self, start: Floats, *, constant: float | None, bound: float, residual: float, max_steps: int
    ) -> tuple[Floats, int]:
        """Return the parts and the steps used.

        It stops at a duality gap of ``bound`` (``constant``: F at W = 0) or, where ``constant`` is
        None, when a step is at most ``residual`` times the first.
        """
        times, penalties, linear = self._product(), self.penalties, self.linear
        K, T, d = start.shape
        x, y = start, start
        Hx = Hy = times(start[0] if K == 1 else start.sum(axis=0))
        lipschitz = self._first_curvature() * K
        best, best_gap = start, np.inf
        momentum, first = 1.0, -1.0
        for step in range(max_steps):
            gradient = Hy - linear
            while True:
                moved = y - gradient / lipschitz
                new = np.empty((K, T, d))
                for k, penalty in enumerate(penalties):
                    new[k] = penalty.prox(moved[k], 1.0 / lipschitz)
                H_new = times(new[0] if K == 1 else new.sum(axis=0))
                change = new - y
                bend = _inner(change[0] if K == 1 else change.sum(axis=0), H_new - Hy)
                length = _inner(change, change)
                if bend <= lipschitz * length * (1.0 + 1e-9):
                    break
                lipschitz = max(1.1 * bend / length, 1.5 * lipschitz)
            advance = new - x
            if _inner(change, advance) < 0.0:
                momentum = 1.0
            if length == 0.0:
                return new, step + 1
            after = 0.5 * (1.0 + float(np.sqrt(1.0 + 4.0 * momentum**2)))
            push = (momentum - 1.0) / after
            y = new + push * advance
            Hy = H_new + push * (H_new - Hx)
            x, Hx, momentum = new, H_new, after
            lipschitz *= 0.97
            if constant is None:
                size = lipschitz * float(np.sqrt(length))
                first = size if first < 0.0 else first
                if size <= residual * first:
                    return x, step + 1
            elif step % _EVERY == _EVERY - 1 or step == max_steps - 1 or step == 1:
                gap = self._gap(x, Hx, constant)
                if gap < best_gap:
                    best, best_gap = x, gap
                if gap <= 0.9 * bound:
                    return x, step + 1
        return (x if constant is None else best), max_steps

    def descend(
        self, start: Floats, penalty: SpectralBox | AroundMean, constant: float, bound: float, max_steps: int
    ) -> tuple[Floats, int, float]:
        """Return the parts (one), the steps used and the gap after whitened L-BFGS steps."""
        _, T, d = start.shape
        curvature = self.curvature
        shift = penalty.typical_curvature
        blocks = curvature.grams[curvature.pattern] * curvature.scale[:, None, None] + shift * np.eye(d)
        factors = np.linalg.cholesky(blocks)
        inverses = np.linalg.inv(factors)
        upper, lower = factors.transpose(0, 2, 1), inverses.transpose(0, 2, 1)
        at = [start[0], start[0]]  # W and H W of the last evaluation

        def objective(u: Floats) -> tuple[float, Floats]:
            U = u.reshape(T, 1, d)
            W = np.matmul(U, inverses)[:, 0]
            product = np.matmul(U, upper)[:, 0] - shift * W
            value, gradient = penalty.slope(W)
            at[:] = W, product
            gradient += product - self.linear
            value += 0.5 * _inner(product, W) - _inner(self.linear, W)
            return value, np.matmul(gradient[:, None, :], lower).ravel()

        steps, best, best_gap = 0, start, np.inf

        def look(_: Floats) -> None:
            nonlocal steps, best, best_gap
            steps += 1
            if steps % _LOOK == 0 or steps == 1:
                gap = self._gap(at[0][None], at[1], constant)
                if gap < best_gap:
                    best, best_gap = at[0][None], gap
                if gap <= 0.9 * bound:
                    raise StopIteration

        from scipy.optimize import minimize

        search: Callable[..., Any] = minimize  # its stubs do not know StopIteration callbacks with jac=True
        search(
            objective,
            np.matmul(start[0][:, None, :], factors).ravel(),
            jac=True,
            method="L-BFGS-B",
            callback=look,
            options={"maxcor": _MEMORY, "maxiter": max_steps, "ftol": 0.0, "gtol": 0.0},
        )
        return best, steps, best_gap

    def _product(self) -> Callable[[Floats], Floats]:
        """Return W -> H W; Hessians of tasks with rows of their own are scaled once."""
        grams, pattern = self.curvature.grams, self.curvature.pattern
        if len(grams) == len(pattern) and (pattern == np.arange(len(pattern))).all():
            scaled = grams * self.curvature.scale[:, None, None]
            return lambda W: np.asarray(np.matmul(W[:, None, :], scaled)[:, 0])
        return self.curvature.times

    def _first_curvature(self) -> float:
        """Return the curvature along the steepest descent from zero, or 1 where that is flat."""
        size = float((self.linear * self.linear).sum())
        bend = float((self.linear * self.curvature.times(self.linear)).sum())
        return bend / size if size > 0 and bend > 0 else 1.0

    def _gap(self, parts: Floats, product: Floats, constant: float) -> float:
        W = parts.sum(axis=0)
        along = float((self.linear * W).sum())
        smooth = 0.5 * float((product * W).sum()) - along + constant
        shrink, conjugate = _conjugate(self.penalties, product - self.linear)
        dual = shrink * (2.0 * constant - along) - shrink**2 * smooth - conjugate
        return smooth + _value(self.penalties, parts) - dual
