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


@njit(cache=True)
def centre(X: Floats, a: Floats, bounds: Ints, shifted: bool, means: Floats, columns: Floats) -> None:
    """Write the rows feature by feature ``(m d,)``, less the weighted means of each task ``(K, d)`` if ``shifted``."""
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
        for i in range(end - start):
            for j in range(d):
                part[j, i] = X[start + i, j] - mean[j]


@njit(cache=True)
def _intercept(margin: Floats, y: Floats, a: Floats, start: float) -> float:
    """Solve sum_i a_i (y_i - sigmoid(margin_i + b)) = 0, both classes occur, by Newton steps."""
    b = start
    for _ in range(_STEPS):
        missing = 0.0
        slope = 0.0
        for i in range(margin.shape[0]):
            p = 1.0 / (1.0 + math.exp(-(margin[i] + b)))
            missing += a[i] * (y[i] - p)
            slope += a[i] * p * (1.0 - p)
        step = min(max(missing / max(slope, 1e-300), -2.0), 2.0)
        b += step
        if abs(step) <= 1e-6:
            break  # the next step is about as small as the square of this one
    return b


@njit(cache=True, fastmath={"reassoc", "contract"})
def _losses(margin: Floats, y: Floats, a: Floats, b: float, residual: Floats) -> float:
    """Return the sum of the losses at margins plus ``b``, and write y - p."""
    total = 0.0
    for i in range(margin.shape[0]):
        z = margin[i] + b
        small = math.exp(-abs(z))
        p = 1.0 / (1.0 + small) if z >= 0.0 else small / (1.0 + small)
        total += a[i] * (math.log1p(small) + max(z, 0.0) - y[i] * z)
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
        b = _intercept(margin, own_y, own_a, intercept[k]) if fit_intercept else 0.0
        intercept[k] = b
        losses[k] = _losses(margin, own_y, own_a, b, rest)
        for i in range(n):
            margin[i] = own_a[i] * rest[i]
        for j in range(d):
            line = part[j]
            slope = 0.0
            for i in range(n):
                slope += margin[i] * line[i]
            gradient[k, j] = -slope


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
            for s in range(r + 1):
                other = part[features[s]]
                value = 0.0
                for i in range(n):
                    value += scaled[i] * other[i]
                if centred and total > 0.0:
                    value -= own * sums[s] / total
                gram[r, s] = value
                gram[s, r] = value


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
