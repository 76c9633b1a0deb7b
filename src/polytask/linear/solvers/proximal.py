"""Problems with a sum of simple penalties: splitting or proximal gradient steps on moments, certified gap.

    min  F(W) + sum_k Omega_k(X_k),    W = sum_k X_k          F: see losses.py, W, X_k: (T, d)

Squared losses: F is the quadratic of the moments, with Hessians H_t and linear terms b_t. With small
enough Hessians the steps are those of Douglas & Rachford: with Z_k = X_k + (subgradient of Omega_k) / rho

    X_k = prox of Omega_k / rho at Z_k
    w_t = (H_t + rho / K I)^-1 (b_t + rho / K v_t),    V = sum_k (2 X_k - Z_k)
    Z_k <- Z_k + (X_k - Z_k + (W - V) / K)

The inverses are formed once, so that the conditioning of the tasks' inputs does not matter, and a step
costs one product with them and one proximal map of each part. Steps are extrapolated (Anderson). The
strength rho is a multiple of ||gradient|| / ||W||, estimated from a few conjugate gradient steps and
mended later. With larger Hessians, and within the proximal Newton steps of logistic losses: accelerated
proximal gradient steps, with step sizes from the exact curvature along the step, a restart of the
momentum when it points uphill, and the product at the extrapolated point extrapolated too. It stops when

    gap = primal - dual <= tol * (objective at W = 0).

The dual point is the residuals, shrunk where a conjugate is infinite. For the quadratic part with
F(W) = 1/2 <W, H W> - <L, W> + c and residuals times s, the dual is
s (2 c - <L, W>) - s² F(W) - sum_k Omega_k*(-s grad F).

Lions & Mercier 1979 (splitting); Anderson 1965, Fu, Zhang & Boyd 2020 (extrapolation); Beck & Teboulle
2009, O'Donoghue & Candès 2015 (restart); Lee, Sun & Saunders 2014 (proximal Newton).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dposv

from polytask.core.task import Floats
from polytask.linear.penalties.spectral import Penalty
from polytask.linear.solvers.losses import OUTSIDE, Curvature, Hessian, Point, TaskLosses, kinds_of

_HALVINGS = 30
_LEAST_SHARE = 1e-3
_ROUNDING = 1e-11
_EVERY = 10  # steps between two looks at the gap
_LARGEST_BLOCKS = 4_000_000  # numbers in the inverses
_MEMORY = 15  # steps that are extrapolated
_SELDOM = 40  # steps between two looks at the gap where the residual does not foretell it
_BALANCE = 3.0  # rho in units of ||gradient|| / ||W||
_ADAPT = (8, 20, 60)  # steps after which rho is looked at again
_FAR = 4.0  # factor by which it must be wrong to be changed
_WORSE = 10.0  # growth of the residual at which the extrapolation starts anew
_ROUGH = 4  # conjugate gradient steps of the first estimate
_PATIENCE = 50  # steps without a smaller residual after which nothing is extrapolated
_STILL = 1e-15  # residual, in units of the iterate, that is rounding


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
        if _gap(losses, point, parts, penalties) > bound:
            model = _Quadratic(losses.hessian(null), -null.gradient, penalties)
            if isinstance(model.curvature, Curvature) and _inverse_size(model.curvature) <= _LARGEST_BLOCKS:
                splitting = _Splitting(model, model.curvature, constant)
                parts, steps = splitting.minimise(None if start is None else parts, bound, max_steps)
            else:
                parts, steps = model.minimise(parts, constant=constant, bound=bound, residual=0.0, max_steps=max_steps)
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
        curvature = losses.hessian(point, outside=min(OUTSIDE, float(np.sqrt(max(gap, 0.0) / point.value))))
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
        share = min(share, max(0.3 * share, _LEAST_SHARE))  # Huber losses: many rounds, not ever finer ones


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

    curvature: Hessian
    linear: Floats
    penalties: Sequence[Penalty]

    def minimise(
        self, start: Floats, *, constant: float | None, bound: float, residual: float, max_steps: int
    ) -> tuple[Floats, int]:
        """Return the parts and the steps used.

        It stops at a duality gap of ``bound`` (``constant``: F at W = 0) or, where ``constant`` is
        None, when a step is at most ``residual`` times the first.
        """
        times, penalties, linear = self.product(), self.penalties, self.linear
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
                gap = self.gap(x, Hx, constant)
                if gap < best_gap:
                    best, best_gap = x, gap
                if gap <= 0.9 * bound:
                    return x, step + 1
        return (x if constant is None else best), max_steps

    def product(self) -> Callable[[Floats], Floats]:
        """Return W -> H W; Hessians of tasks with rows of their own are scaled once."""
        if not isinstance(self.curvature, Curvature):
            return self.curvature.times
        return _products(self.curvature)

    def _first_curvature(self) -> float:
        """Return the curvature along the steepest descent from zero, or 1 where that is flat."""
        size = float((self.linear * self.linear).sum())
        bend = float((self.linear * self.curvature.times(self.linear)).sum())
        return bend / size if size > 0 and bend > 0 else 1.0

    def gap(self, parts: Floats, product: Floats, constant: float) -> float:
        W = parts.sum(axis=0)
        along = float((self.linear * W).sum())
        smooth = 0.5 * float((product * W).sum()) - along + constant
        shrink, conjugate = _conjugate(self.penalties, product - self.linear)
        dual = shrink * (2.0 * constant - along) - shrink**2 * smooth - conjugate
        return smooth + _value(self.penalties, parts) - dual


def _inverse_size(curvature: Curvature) -> int:
    kinds, _ = kinds_of(curvature)
    return int(kinds.shape[1] * curvature.grams.shape[1] ** 2)


class _Splitting:
    """Douglas & Rachford's steps on a quadratic model; see the module."""

    def __init__(self, model: _Quadratic, curvature: Curvature, constant: float) -> None:
        self.model, self.curvature, self.constant = model, curvature, constant
        self.times = model.product()
        self.kinds, self.which = kinds_of(curvature)

    def minimise(self, start: Floats | None, bound: float, max_steps: int) -> tuple[Floats, int]:
        """Return the parts and the steps used; stop at a duality gap of ``bound``."""
        penalties, linear = self.model.penalties, self.model.linear
        K, zero = len(penalties), np.zeros((len(penalties), *linear.shape))
        if not linear.any():
            return zero, 0
        rough = self._rough()
        rho = self._first_rho(rough)
        solve = self._solver(rho)
        x, near = (np.stack([rough / K] * K), False) if start is None else (start, True)
        if start is None and self._value(x) >= self.constant:
            x, near = zero, True
        z = x + (linear - self.times(x.sum(axis=0))) / rho
        history = _Anderson(z.size)
        best, best_gap = x, np.inf
        least, look, idle = np.inf, 0.0, 0
        for step in range(1, max_steps + 1):
            for k, penalty in enumerate(penalties):
                x_k = penalty.prox(z[k], 1.0 / rho)
                if k == 0:
                    x = x_k[None] if K == 1 else np.empty_like(z)
                x[k] = x_k
            W, pulled = (x[0], 2.0 * x[0] - z[0]) if K == 1 else (x.sum(axis=0), 2.0 * x.sum(axis=0) - z.sum(axis=0))
            residual = x - z
            residual += (solve(linear + (rho / K) * pulled) - pulled) / K
            size = float(np.sqrt(_inner(residual, residual)))
            still = size <= _STILL * float(np.sqrt(_inner(z, z)))
            due = step in (_EVERY, max_steps) or step % _SELDOM == 0 or (step == 1 and near)
            if size <= look or still or due:
                gap = self.model.gap(x, self.times(W), self.constant)
                if gap < best_gap:
                    best, best_gap = x, gap
                if gap <= 0.9 * bound or still:
                    return best, step
                look = 0.8 * size * bound / gap
            if step in _ADAPT:
                wanted = self._rho(rho * (z - x), W)
                if not rho / _FAR <= wanted <= rho * _FAR:
                    z = x + (rho / wanted) * (z - x)
                    rho, solve, least = wanted, self._solver(wanted), np.inf
                    history.forget()
                    continue
            if size > _WORSE * least:
                history.forget()  # the extrapolation went astray: plain steps shrink the residual again
            if size < least:
                least, idle = size, 0
            else:
                idle += 1
            # where it has not helped for long, plain steps go on alone: they always converge
            z = z + residual if idle > _PATIENCE else history.extrapolate(z + residual, residual)
        return best, max_steps

    def _value(self, x: Floats) -> float:
        W = x.sum(axis=0)
        quadratic = 0.5 * _inner(self.times(W), W) - _inner(self.model.linear, W) + self.constant
        return quadratic + _value(self.model.penalties, x)

    def _solver(self, rho: float) -> Callable[[Floats], Floats]:
        """Return the product with (H_t + rho / K I)^-1."""
        pattern, scale = self.kinds
        blocks = self.curvature.grams[pattern.astype(np.int64)] * scale[:, None, None]
        np.einsum("kdd->kd", blocks)[:] += rho / len(self.model.penalties)
        return _products(Curvature(np.linalg.inv(blocks), self.which, np.ones(len(self.which))))

    def _rough(self) -> Floats:
        """Return a rough solution without penalties, where a few conjugate gradient steps end."""
        linear = self.model.linear
        W = np.zeros_like(linear)
        rest = direction = linear
        squares = np.einsum("td,td->t", rest, rest)
        for _ in range(_ROUGH):
            product = self.times(direction)
            bend = np.einsum("td,td->t", direction, product)
            length = np.where(bend > 0, squares / np.where(bend > 0, bend, 1.0), 0.0)[:, None]
            W = W + length * direction
            rest = rest - length * product
            before, squares = squares, np.einsum("td,td->t", rest, rest)
            direction = rest + (squares / np.where(before > 0, before, 1.0))[:, None] * direction
        return W

    def _first_rho(self, W: Floats) -> float:
        """Return rho for the subgradients of the penalties at ``W``, taken from a short proximal step."""
        step = 1e-3 * float(np.linalg.norm(W)) / float(np.linalg.norm(self.model.linear))
        if step == 0.0:
            return 1.0
        return self._rho(np.stack([(W - penalty.prox(W, step)) / step for penalty in self.model.penalties]), W)

    @staticmethod
    def _rho(slopes: Floats, W: Floats) -> float:
        """Return rho given subgradients of the penalties ``(K, T, d)`` at ``W``."""
        slope, size = float(np.linalg.norm(slopes, axis=(1, 2)).min()), float(np.linalg.norm(W))
        return _BALANCE * slope / size if slope > 0 and size > 0 else 1.0


def _products(curvature: Curvature) -> Callable[[Floats], Floats]:
    """Return W -> H W; Hessians of tasks with rows of their own are scaled once."""
    grams, pattern = curvature.grams, curvature.pattern
    if len(grams) == len(pattern) and (pattern == np.arange(len(pattern))).all():
        scaled = grams if (curvature.scale == 1.0).all() else grams * curvature.scale[:, None, None]
        return lambda W: np.asarray(np.matmul(W[:, None, :], scaled)[:, 0])
    return curvature.times


class _Anderson:
    """Extrapolation of a fixed-point iteration from its last steps."""

    def __init__(self, size: int) -> None:
        self.residuals, self.points = np.empty((_MEMORY, size)), np.empty((_MEMORY, size))
        self.products = np.zeros((_MEMORY, _MEMORY))
        self.forget()

    def forget(self) -> None:
        """Start anew."""
        self.kept = self.next = 0
        self.last: tuple[Floats, Floats] | None = None

    def extrapolate(self, point: Floats, residual: Floats) -> Floats:
        """Return the combination of the points so far whose residual is least; ``point``: after a plain step."""
        flat, rest = point.ravel(), residual.ravel()
        last, self.last = self.last, (flat, rest)
        if last is None:
            return point
        slot = self.next
        np.subtract(flat, last[0], out=self.points[slot])
        np.subtract(rest, last[1], out=self.residuals[slot])
        self.kept, self.next = min(self.kept + 1, _MEMORY), (slot + 1) % _MEMORY
        n = self.kept
        self.products[slot, :n] = self.products[:n, slot] = self.residuals[:n] @ self.residuals[slot]
        matrix = self.products[:n, :n].copy()
        diagonal = np.einsum("ii->i", matrix)
        diagonal += 1e-10 * diagonal.sum()
        _, weights, failed = dposv(matrix, self.residuals[:n] @ rest)
        if failed:
            return point  # the last steps are the same to rounding
        return np.asarray((flat - weights @ self.points[:n]).reshape(point.shape))
