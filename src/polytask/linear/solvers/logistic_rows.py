"""Logistic losses of tasks that each have rows of their own, compiled on first use: values, gradients, Hessians.

For each task with centred rows x_i, labels y_i of 0 and 1 and row weights a_i, at coefficients w:

    b = argmin_b sum_i a_i (log(1 + exp(z_i)) - y_i z_i),  z_i = x_i^T w + b,  p_i = 1 / (1 + exp(-z_i))
    gradient = -sum_i a_i (y_i - p_i) x_i
    Hessian  =  sum_i h_i (x_i - m)(x_i - m)^T,  h_i = a_i p_i (1 - p_i),  m the mean weighted by h

One pass over the rows per evaluation, a few more over the margins for b (Newton steps). The rows of a
task are kept feature by feature: those of the k-th task as ``(d, n_k)`` from ``d bounds[k]`` on.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from polytask.core.data import Ints
from polytask.core.task import Floats

_STEPS = 100
_LOG2_HIGH, _LOG2_LOW, _PER_LOG2 = 6.93147180369123816490e-01, 1.90821492927058770002e-10, 1.44269504088896338700
_LEAST_EXPONENT = 700.0


@njit(cache=True)
def centre(X: Floats, a: Floats, bounds: Ints, shifted: bool, means: Floats, columns: Floats, sizes: Floats) -> None:
    """Write the rows feature by feature ``(m d,)``, less the weighted means of each task ``(K, d)`` if ``shifted``.

    The largest absolute values go to ``sizes`` ``(K, d)``.
    """
    d = X.shape[1]
    for k in range(bounds.shape[0] - 1):
        start, end = bounds[k], bounds[k + 1]
        mean = means[k]
        mean[:] = 0.0
        if shifted:
            total = 0.0
            for i in range(start, end):
                total += a[i]
                for j in range(d):
                    mean[j] += a[i] * X[i, j]
            for j in range(d):
                mean[j] /= total
        part = columns[start * d : end * d].reshape((d, end - start))
        size = sizes[k]
        size[:] = 0.0
        for i in range(end - start):
            for j in range(d):
                part[j, i] = X[start + i, j] - mean[j]
                size[j] = max(size[j], abs(part[j, i]))


@njit(cache=True, fastmath={"reassoc", "contract"})
def decay(margin: Floats, b: float, bits: Ints, found: Floats) -> None:
    """Write exp(-|margin + b|) to the last digit or two, in loops that run over several numbers at once.

    exp(x) = 2^n exp(r) with n whole and |r| <= log(2) / 2, and the series of exp(r) up to r^12; ``bits`` is room for
    the powers of 2.
    """
    for i in range(margin.shape[0]):
        x = -min(abs(margin[i] + b), _LEAST_EXPONENT)
        n = math.floor(x * _PER_LOG2 + 0.5)
        r = (x - n * _LOG2_HIGH) - n * _LOG2_LOW
        p = 1.0 / 479001600.0
        p = p * r + 1.0 / 39916800.0
        p = p * r + 1.0 / 3628800.0
        p = p * r + 1.0 / 362880.0
        p = p * r + 1.0 / 40320.0
        p = p * r + 1.0 / 5040.0
        p = p * r + 1.0 / 720.0
        p = p * r + 1.0 / 120.0
        p = p * r + 1.0 / 24.0
        p = p * r + 1.0 / 6.0
        p = p * r + 0.5
        p = p * r + 1.0
        found[i] = p * r + 1.0
        bits[i] = (np.int64(n) + 1023) << 52
    powers = bits.view(np.float64)
    for i in range(margin.shape[0]):
        found[i] *= powers[i]


@njit(cache=True, fastmath={"reassoc", "contract"})
def _intercept(margin: Floats, y: Floats, a: Floats, start: float, bits: Ints, small: Floats) -> float:
    """Solve sum_i a_i (y_i - sigmoid(margin_i + b)) = 0, both classes occur, by Newton steps."""
    b = start
    for _ in range(_STEPS):
        decay(margin, b, bits, small)
        missing = 0.0
        slope = 0.0
        for i in range(margin.shape[0]):
            q = 1.0 / (1.0 + small[i])
            p = q if margin[i] + b >= 0.0 else small[i] * q
            missing += a[i] * (y[i] - p)
            slope += a[i] * small[i] * q * q
        step = min(max(missing / max(slope, 1e-300), -2.0), 2.0)
        b += step
        if abs(step) <= 1e-6:
            break  # the next step is about as small as the square of this one
    return b


@njit(cache=True, fastmath={"reassoc", "contract"})
def _losses(margin: Floats, y: Floats, a: Floats, b: float, residual: Floats, bits: Ints, small: Floats) -> float:
    """Return the sum of the losses at margins plus ``b``, and write y - p."""
    decay(margin, b, bits, small)
    total = 0.0
    for i in range(margin.shape[0]):
        z = margin[i] + b
        q = 1.0 / (1.0 + small[i])
        p = q if z >= 0.0 else small[i] * q
        # log(1 + s) = 2 artanh(s / (2 + s)), by its series up to the power of 35
        ratio = small[i] / (2.0 + small[i])
        square = ratio * ratio
        series = 1.0 / 35.0
        series = series * square + 1.0 / 33.0
        series = series * square + 1.0 / 31.0
        series = series * square + 1.0 / 29.0
        series = series * square + 1.0 / 27.0
        series = series * square + 1.0 / 25.0
        series = series * square + 1.0 / 23.0
        series = series * square + 1.0 / 21.0
        series = series * square + 1.0 / 19.0
        series = series * square + 1.0 / 17.0
        series = series * square + 1.0 / 15.0
        series = series * square + 1.0 / 13.0
        series = series * square + 1.0 / 11.0
        series = series * square + 1.0 / 9.0
        series = series * square + 1.0 / 7.0
        series = series * square + 1.0 / 5.0
        series = series * square + 1.0 / 3.0
        series = series * square + 1.0
        total += a[i] * (2.0 * ratio * series + max(z, 0.0) - y[i] * z)
        residual[i] = y[i] - p
    return total


@njit(cache=True, fastmath={"reassoc", "contract"})
def evaluate(
    columns: Floats,
    y: Floats,
    a: Floats,
    bounds: Ints,
    W: Floats,
    fit_intercept: bool,
    intercept: Floats,
    losses: Floats,
    gradient: Floats,
    residual: Floats,
) -> None:
    """Write losses ``(K,)``, their gradients ``(K, d)``, y - p ``(m,)`` and the intercepts ``(K,)``, given guesses."""
    d = W.shape[1]
    for k in range(bounds.shape[0] - 1):
        start, end = bounds[k], bounds[k + 1]
        n = end - start
        part = columns[start * d : end * d].reshape((d, n))
        own_y, own_a, rest = y[start:end], a[start:end], residual[start:end]
        margin = np.zeros(n)
        for j in range(d):
            w = W[k, j]
            if w != 0.0:
                line = part[j]
                for i in range(n):
                    margin[i] += w * line[i]
        bits, small = np.empty(n, dtype=np.int64), np.empty(n)
        b = _intercept(margin, own_y, own_a, intercept[k], bits, small) if fit_intercept else 0.0
        intercept[k] = b
        losses[k] = _losses(margin, own_y, own_a, b, rest, bits, small)
        for i in range(n):
            margin[i] = own_a[i] * rest[i]
        for j in range(d):
            line = part[j]
            slope = 0.0
            for i in range(n):
                slope += margin[i] * line[i]
            gradient[k, j] = -slope


@njit(cache=True, fastmath={"reassoc", "contract"})
def reach(columns: Floats, bounds: Ints, sizes: Floats, step: Floats, enough: float, found: Floats) -> None:
    """Write max_i |x_i^T step| of each task, ``(K,)``, or a larger number that is at most ``enough``.

    ``sizes`` has the largest absolute value of each column, ``(K, d)``.
    """
    d = step.shape[1]
    for k in range(bounds.shape[0] - 1):
        found[k] = 0.0
        for j in range(d):
            found[k] += abs(step[k, j]) * sizes[k, j]
        if found[k] <= enough:
            continue
        n = bounds[k + 1] - bounds[k]
        part = columns[bounds[k] * d : bounds[k + 1] * d].reshape((d, n))
        margin = np.zeros(n)
        for j in range(d):
            size = step[k, j]
            if size != 0.0:
                line = part[j]
                for i in range(n):
                    margin[i] += size * line[i]
        largest = 0.0
        for i in range(n):
            largest = max(largest, abs(margin[i]))
        found[k] = largest


@njit(cache=True, fastmath={"reassoc", "contract"})
def curvatures(
    columns: Floats, y: Floats, a: Floats, bounds: Ints, residual: Floats, features: Ints, centred: bool, grams: Floats
) -> None:
    """Write the Hessians on some features ``(K, f, f)`` given y - p ``(m,)``."""
    f = features.shape[0]
    d = columns.shape[0] // y.shape[0]
    sums = np.empty(f)
    for k in range(bounds.shape[0] - 1):
        start, end = bounds[k], bounds[k + 1]
        n = end - start
        part = columns[start * d : end * d].reshape((d, n))
        h = np.empty(n)
        scaled = np.empty(n)
        total = 0.0
        for i in range(n):
            p = y[start + i] - residual[start + i]
            h[i] = a[start + i] * p * (1.0 - p)
            total += h[i]
        gram = grams[k]
        for r in range(f):
            line = part[features[r]]
            own = 0.0
            for i in range(n):
                scaled[i] = h[i] * line[i]
                own += scaled[i]
            sums[r] = own
            s = 0
            while s + 4 <= r + 1:  # four at a time, so that the row is read once for them
                one, two, three, four = (
                    part[features[s]],
                    part[features[s + 1]],
                    part[features[s + 2]],
                    part[features[s + 3]],
                )
                first, second, third, fourth = 0.0, 0.0, 0.0, 0.0
                for i in range(n):
                    first += scaled[i] * one[i]
                    second += scaled[i] * two[i]
                    third += scaled[i] * three[i]
                    fourth += scaled[i] * four[i]
                gram[r, s], gram[r, s + 1], gram[r, s + 2], gram[r, s + 3] = first, second, third, fourth
                s += 4
            while s <= r:
                other = part[features[s]]
                value = 0.0
                for i in range(n):
                    value += scaled[i] * other[i]
                gram[r, s] = value
                s += 1
            for s in range(r + 1):
                if centred and total > 0.0:
                    gram[r, s] -= own * sums[s] / total
                gram[s, r] = gram[r, s]


@njit(cache=True)
def entropies(y: Floats, a: Floats, bounds: Ints, residual: Floats, shrink: float, found: Floats) -> None:
    """Write sum_i a_i entropy(y_i - shrink residual_i) ``(K,)``."""
    for k in range(bounds.shape[0] - 1):
        total = 0.0
        for i in range(bounds[k], bounds[k + 1]):
            q = y[i] - shrink * residual[i]
            if 0.0 < q < 1.0:
                total -= a[i] * (q * math.log(q) + (1.0 - q) * math.log1p(-q))
        found[k] = total
