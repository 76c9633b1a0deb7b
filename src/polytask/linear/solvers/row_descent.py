"""Coordinate descent for quadratics with a norm of every feature's coefficients, compiled on first use.

    min_W  sum_t ( 1/2 s_t w_t^T G_p(t) w_t - l_t^T w_t ) + ridge / 2 ||W||² + sum_j norm(w^j)      W: (T, k)

The tasks of a feature do not meet in the quadratic, so one step solves for all of them exactly: with
h_t = s_t G_p(t)[j, j] + ridge and u_t = -gradient at w_tj = 0 it is

    min_z  sum_t (1/2 h_t z_t² - u_t z_t) + norm(z),

where a *rule* (kind, a, b) names the norm:

    kind 0: min over v of a ||z - v||_inf + b ||v||_1         (a = inf: l1; b = inf: linf; else the dirty model)
            z_t = sign(u_t) max(min(|u_t| / h_t, m), (|u_t| - b) / h_t),  sum_t clip(|u_t| - h_t m, 0, b) = a
    kind 1: a ||z||_1 + b ||z||_2, b > 0: the row update of l1/l2 at the shrunken u, see ``descent.py``
"""

from __future__ import annotations

import numpy as np
from numba import njit

from polytask.core.data import Ints
from polytask.core.task import Floats
from polytask.linear.solvers.descent import row_update


@njit(cache=True)
def level_update(u: Floats, h: Floats, shared: float, own: float, guess: float, out: Floats) -> float:
    """Solve for one feature by the rule of kind 0; return the level m, of which ``guess`` is a guess.

    Entries with h = 0 must have u = 0.
    """
    T = u.shape[0]
    total, top = 0.0, 0.0
    for t in range(T):
        size = abs(u[t])
        total += min(size, own)
        if size > 0.0:
            top = max(top, size / h[t])
    m = 0.0
    if total > shared:
        low, high = 0.0, top
        if low < guess < high:
            m = guess
        for _ in range(200):
            excess, slope = -shared, 0.0
            for t in range(T):
                rest = abs(u[t]) - h[t] * m
                if rest > own:
                    excess += own
                elif rest > 0.0:
                    excess += rest
                    slope += h[t]
            if excess > 0.0:
                low = m
            else:
                high = m
            new = m + excess / slope if slope > 0.0 else -1.0
            if slope > 0.0 and abs(new - m) <= 4e-15 * m:
                break
            if not low < new < high:
                new = 0.5 * (low + high)
                if not low < new < high:
                    break
            m = new
    for t in range(T):
        size = abs(u[t])
        z = 0.0
        if size > 0.0:
            rest = size - h[t] * m
            if rest > own:
                z = (size - own) / h[t]
            elif rest > 0.0:
                z = m
            else:
                z = size / h[t]
        out[t] = z if u[t] > 0.0 else -z
    return m


@njit(cache=True)
def _pass(
    grams: Floats,
    pattern: Ints,
    scale: Floats,
    rule: tuple[int, float, float],
    ridge: float,
    W: Floats,
    gradient: Floats,
    guesses: Floats,
    used: Ints,
    only_used: bool,
    buffers: Floats,
) -> float:
    """Solve for every feature (in use) once, in order; return the largest weighted squared change of an entry."""
    T, k = W.shape
    kind, first, second = rule
    u, h, new = buffers[0], buffers[1], buffers[2]
    largest = 0.0
    for j in range(k):
        if only_used and used[j] == 0:
            continue
        for t in range(T):
            bend = scale[t] * grams[pattern[t], j, j]
            h[t] = bend + ridge
            u[t] = bend * W[t, j] - gradient[t, j] if bend > 0.0 else 0.0
        if kind == 0:
            guesses[j] = level_update(u, h, first, second, guesses[j], new)
        else:
            if first > 0.0:
                for t in range(T):
                    size = abs(u[t]) - first
                    u[t] = 0.0 if size <= 0.0 else size if u[t] > 0.0 else -size
            guesses[j] = row_update(u, h, second, guesses[j], new)
        any_used = 0
        for t in range(T):
            if new[t] != 0.0:
                any_used = 1
            delta = new[t] - W[t, j]
            if delta != 0.0:
                largest = max(largest, h[t] * delta * delta)
                W[t, j] = new[t]
                row = grams[pattern[t], j]
                step = scale[t] * delta
                for i in range(k):
                    gradient[t, i] += step * row[i]
        used[j] = any_used
    return largest


@njit(cache=True)
def sweep(
    grams: Floats,
    pattern: Ints,
    scale: Floats,
    rule: tuple[int, float, float],
    ridge: float,
    W: Floats,
    gradient: Floats,
    guesses: Floats,
    points: Floats,
    slopes: Floats,
) -> float:
    """Make one pass over all features and some over those in use, in place; return the first one's largest change.

    ``gradient`` ``(T, k)`` is that of the quadratic without the ridge. W and the gradient after every
    pass are written to ``points`` and ``slopes``, whose length is the number of passes.
    """
    T, k = W.shape
    used = np.zeros(k, dtype=np.int64)
    buffers = np.zeros((3, T))
    largest = 0.0
    for number in range(points.shape[0]):
        change = _pass(grams, pattern, scale, rule, ridge, W, gradient, guesses, used, number > 0, buffers)
        if number == 0:
            largest = change
        points[number] = W
        slopes[number] = gradient
    return largest
