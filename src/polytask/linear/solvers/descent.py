"""Block coordinate descent for row-sparse quadratic problems, compiled on first use.

    min_W  sum_t ( 1/2 s_t w_t^T G_p(t) w_t - l_t^T w_t ) + alpha sum_j ||w^j||_2      W: (T, k)

One step solves for all coefficients of one feature exactly. With h_t = s_t G_p(t)[j, j] and
u_t = h_t w_tj - gradient_tj the solution is 0 where ||u|| <= alpha, and otherwise

    w_tj = u_t / (h_t + alpha / r),      r the root of  || u / (h r + alpha) ||_2 = 1.

1 / ||u / (h r + alpha)|| is increasing and concave in r, so that Newton steps from the left approach
the root from the left, and a step from the right lands left of it (as in Moré & Sorensen,
Computing a trust region step, 1983).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from polytask.core.data import Ints
from polytask.core.task import Floats
from polytask.linear.solvers.row_newton import newton

_FEW, _NEWTON = 24, 64  # most features in use for Newton's method at once, and after passes that were not enough
_TINY = 1e-6  # of the largest norm: features that are as good as not in use
_MEMORY = 5  # steps that are extrapolated
_INNER = 4 * _MEMORY + 1  # most passes over the features in use between two passes over all


@njit(cache=True, fastmath={"reassoc", "contract"})
def row_update(u: Floats, h: Floats, alpha: float, radius: float, out: Floats) -> float:
    """Write argmin_z sum_t (h_t z_t² / 2 - u_t z_t) + alpha ||z|| into ``out``; return ||z||.

    ``radius`` is a guess of ||z||; entries with h = 0 must have u = 0.
    """
    size = 0.0
    for t in range(u.shape[0]):
        size += u[t] * u[t]
    size = np.sqrt(size)
    if size <= alpha:
        for t in range(out.shape[0]):
            out[t] = 0.0
        return 0.0
    equal = True
    for t in range(1, h.shape[0]):
        if h[t] != h[0]:
            equal = False
            break
    if equal:
        r = (size - alpha) / h[0] if h[0] > 0.0 else 0.0
    else:
        r = radius
        for _ in range(100):
            total = 0.0
            slope = 0.0
            for t in range(u.shape[0]):
                below = h[t] * r + alpha
                share = 1.0 / below if below > 0.0 else 0.0
                square = u[t] * share * u[t] * share
                total += square
                slope += square * h[t] * share
            norm = np.sqrt(total)
            if slope <= 0.0:
                break
            # Newton on 1/norm - 1: its derivative is slope / norm^3
            step = (norm - 1.0) * total / slope
            new = r + step
            if new < 0.0:
                new = 0.0
            done = abs(new - r) <= 1e-9 * new  # what is left is about the square of it
            r = new
            if done:
                break
    for t in range(u.shape[0]):
        out[t] = u[t] * r / (h[t] * r + alpha) if r > 0.0 else 0.0
    return r


@njit(cache=True)
def _pass(
    by_feature: Floats,
    pattern: Ints,
    scale: Floats,
    alpha: float,
    W: Floats,
    gradient: Floats,
    norms: Floats,
    active_only: bool,
    buffers: Floats,
) -> float:
    """Update every (active) feature once, in order; return the largest weighted squared change."""
    T, k = W.shape
    u, h, new = buffers[0], buffers[1], buffers[2]
    largest = 0.0
    for j in range(k):
        if active_only and norms[j] == 0.0:
            continue
        for t in range(T):
            h[t] = scale[t] * by_feature[j, pattern[t], j]
            u[t] = h[t] * W[t, j] - gradient[t, j] if h[t] > 0.0 else 0.0
        norms[j] = row_update(u, h, alpha, norms[j], new)
        change = 0.0
        for t in range(T):
            delta = new[t] - W[t, j]
            if delta != 0.0:
                change += h[t] * delta * delta
                W[t, j] = new[t]
                row = by_feature[j, pattern[t]]
                step = scale[t] * delta
                for i in range(k):
                    gradient[t, i] += step * row[i]
        largest = max(largest, change)
    return largest


@njit(cache=True)
def optimality(W: Floats, gradient: Floats, alpha: float) -> float:
    """Return the largest norm over features of the smallest subgradient (0 at the solution)."""
    T, k = W.shape
    worst = 0.0
    for j in range(k):
        norm = 0.0
        for t in range(T):
            norm += W[t, j] * W[t, j]
        norm = np.sqrt(norm)
        size = 0.0
        for t in range(T):
            part = gradient[t, j]
            if norm > 0.0:
                part += alpha * W[t, j] / norm
            size += part * part
        size = np.sqrt(size)
        if norm == 0.0:
            size = max(0.0, size - alpha)
        worst = max(worst, size)
    return worst


@njit(cache=True)
def quadratic_gap(W: Floats, gradient: Floats, linear: Floats, squares: float, alpha: float) -> float:
    """Return the duality gap of the quadratic problem; ``squares`` = sum_t s_t ||y_t||²."""
    T, k = W.shape
    along = 0.0  # l^T w
    bent = 0.0  # w^T H w
    penalty = 0.0
    top = 0.0
    for j in range(k):
        norm = 0.0
        size = 0.0
        for t in range(T):
            along += linear[t, j] * W[t, j]
            bent += W[t, j] * (gradient[t, j] + linear[t, j])
            norm += W[t, j] * W[t, j]
            size += gradient[t, j] * gradient[t, j]
        penalty += alpha * np.sqrt(norm)
        top = max(top, size)
    top = np.sqrt(top)
    shrink = 1.0 if top <= alpha else alpha / top
    rest = max(squares - 2.0 * along + bent, 0.0)
    dual = shrink * (squares - along) - 0.5 * shrink * shrink * rest
    return 0.5 * rest + penalty - dual


@njit(cache=True)
def model_value(W: Floats, gradient: Floats, linear: Floats, alpha: float) -> float:
    """Return the objective of the quadratic problem, from H W = gradient + linear."""
    T, k = W.shape
    value = 0.0
    for j in range(k):
        norm = 0.0
        for t in range(T):
            value += 0.5 * W[t, j] * (gradient[t, j] - linear[t, j])
            norm += W[t, j] * W[t, j]
        value += alpha * np.sqrt(norm)
    return value


@njit(cache=True)
def _set_norms(W: Floats, norms: Floats) -> None:
    T, k = W.shape
    for j in range(k):
        norm = 0.0
        for t in range(T):
            norm += W[t, j] * W[t, j]
        norms[j] = np.sqrt(norm)


@njit(cache=True)
def _extrapolate(points: Floats, slopes: Floats, W: Floats, gradient: Floats) -> bool:
    """Write Anderson's combination of the last iterates into ``W`` and ``gradient`` (both are linear in it).

    The weights add up to 1 and make the combination of the last steps as short as possible.
    """
    m = points.shape[0] - 1
    T, k = W.shape
    products = np.zeros((m, m))
    for a in range(m):
        for b in range(a + 1):
            total = 0.0
            for t in range(T):
                for j in range(k):
                    total += (points[a + 1, t, j] - points[a, t, j]) * (points[b + 1, t, j] - points[b, t, j])
            products[a, b] = total
            products[b, a] = total
    trace = 0.0
    for a in range(m):
        trace += products[a, a]
    if not trace > 0.0:
        return False
    weights = np.ones(m)
    for a in range(m):
        products[a, a] += 1e-12 * trace
    # elimination without pivots: the matrix is positive definite
    for a in range(m):
        if not products[a, a] > 0.0:
            return False
        for b in range(a + 1, m):
            factor = products[b, a] / products[a, a]
            weights[b] -= factor * weights[a]
            for c in range(a + 1, m):
                products[b, c] -= factor * products[a, c]
    total = 0.0
    for a in range(m - 1, -1, -1):
        for c in range(a + 1, m):
            weights[a] -= products[a, c] * weights[c]
        weights[a] /= products[a, a]
        total += weights[a]
    if not abs(total) > 1e-300:
        return False
    for t in range(T):
        for j in range(k):
            W[t, j] = 0.0
            gradient[t, j] = 0.0
            for a in range(m):
                W[t, j] += weights[a] / total * points[a + 1, t, j]
                gradient[t, j] += weights[a] / total * slopes[a + 1, t, j]
    return True


@njit(cache=True)
def _copy(source: Floats, target: Floats) -> None:
    T, k = source.shape
    for t in range(T):
        for j in range(k):
            target[t, j] = source[t, j]


@njit(cache=True)
def _extrapolated(
    by_feature: Floats,
    pattern: Ints,
    scale: Floats,
    linear: Floats,
    alpha: float,
    W: Floats,
    gradient: Floats,
    norms: Floats,
    buffers: Floats,
    change: float,
    most: int,
) -> int:
    """Make passes over the features in use until they change little against ``change``; return how many.

    Every few of them are extrapolated, and the extrapolation is kept where it lowers the objective.
    """
    T, k = W.shape
    points = np.empty((_MEMORY + 1, T, k))
    slopes = np.empty((_MEMORY + 1, T, k))
    new_W = np.empty((T, k))
    new_gradient = np.empty((T, k))
    kept = 0
    inner = 0
    while inner < min(_INNER, most):
        _copy(W, points[kept])
        _copy(gradient, slopes[kept])
        kept += 1
        if kept > _MEMORY:
            if _extrapolate(points, slopes, new_W, new_gradient) and model_value(
                new_W, new_gradient, linear, alpha
            ) < model_value(W, gradient, linear, alpha):
                _copy(new_W, W)
                _copy(new_gradient, gradient)
                _set_norms(W, norms)
            _copy(W, points[0])
            _copy(gradient, slopes[0])
            kept = 1
        moved = _pass(by_feature, pattern, scale, alpha, W, gradient, norms, True, buffers)
        inner += 1
        if moved <= 0.01 * change:
            break
    return inner


@njit(cache=True)
def descend(
    by_feature: Floats,
    pattern: Ints,
    scale: Floats,
    linear: Floats,
    alpha: float,
    W: Floats,
    gradient: Floats,
    squares: float,
    tol_gap: float,
    tol_kkt: float,
    max_passes: int,
) -> int:
    """Improve ``W`` and ``gradient`` ``(T, k)`` in place; return the number of passes.

    ``by_feature`` has the Gram matrices as ``(k, P, k)``, so that what the step of one feature needs lies together.
    Stops when the duality gap is at most ``tol_gap`` (if ``squares`` >= 0) or :func:`optimality` is
    at most ``tol_kkt``. After each pass over all features comes Newton's method on the features in use
    or, where these are many, passes over them with extrapolation (Bertrand & Massias, Anderson acceleration of
    coordinate descent, 2021).
    """
    T, k = W.shape
    norms = np.zeros(k)
    _set_norms(W, norms)
    buffers = np.zeros((3, T))
    passes = 0
    while passes < max_passes:
        change = _pass(by_feature, pattern, scale, alpha, W, gradient, norms, False, buffers)
        passes += 1
        used = np.flatnonzero(norms > _TINY * norms.max())
        taken = 0
        if 0 < len(used) <= _FEW or (0 < len(used) <= _NEWTON and passes > _INNER):
            old_W, old_gradient, old_norms = W.copy(), gradient.copy(), norms.copy()
            precision = max(tol_kkt, 0.5 * tol_gap / norms.sum(), 1e-12 * alpha) / alpha
            taken = newton(by_feature, pattern, scale, linear, alpha, used, precision, W, gradient, norms)
            if taken > 0 and not model_value(W, gradient, linear, alpha) <= model_value(
                old_W, old_gradient, linear, alpha
            ):
                _copy(old_W, W)
                _copy(old_gradient, gradient)
                norms[:] = old_norms
                taken = 0
        if taken == 0:
            taken = _extrapolated(
                by_feature, pattern, scale, linear, alpha, W, gradient, norms, buffers, change, max_passes - passes
            )
        passes += taken
        if optimality(W, gradient, alpha) <= tol_kkt:
            break
        if squares >= 0.0 and quadratic_gap(W, gradient, linear, squares, alpha) <= tol_gap:
            break
    return passes
