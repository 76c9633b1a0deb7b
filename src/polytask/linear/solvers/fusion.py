"""Differences along the edges of a signed graph: the dual of the fusion problem, compiled on first use.

For every feature, with v: (T,), edges e = (s, t, sigma = 1 or -1) and bounds c_e:

    min_w 1/2 ||w - v||² + sum_e c_e |w_s - sigma w_t|   =   w = v - D^T u,   min_{|u_e| <= c_e} 1/2 ||v - D^T u||²

One step solves for one u_e exactly. The gap between the two problems is a sum of terms that are not
negative, one per edge, so that it is known to full relative precision.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from polytask.core.data import Ints
from polytask.core.task import Floats

_ROUNDING = 1e-15
_INNER = 5  # most sweeps over free edges between two over all


@njit(cache=True)
def fuse(
    w: Floats,
    first: Ints,
    second: Ints,
    signs: Floats,
    bounds: Floats,
    U: Floats,
    tol: float,
    share: float,
    max_sweeps: int,
) -> int:
    """Turn the rows of ``w`` ``(d, T)`` from v into the solution, from the start ``U`` ``(d, E)``, which becomes u.

    A feature is done when its gap is at most ``tol`` times ||v||², or ``share`` times that at the start.
    Between sweeps over all edges those that are not at a bound are solved among themselves. Returns the
    sweeps over all edges of a feature.
    """
    d, T = w.shape
    E = len(first)
    free = np.empty(E, dtype=np.int64)
    total = bounds.sum()
    sweeps = 0
    for j in range(d):
        size, largest = 0.0, 0.0
        for t in range(T):
            size += w[j, t] * w[j, t]
            largest = max(largest, abs(w[j, t]))
        goal = tol * size + _ROUNDING * total * largest
        for e in range(E):
            u = U[j, e]
            w[j, first[e]] -= u
            w[j, second[e]] += signs[e] * u
        for sweep in range(max_sweeps):
            sweeps += 1
            gap, count = 0.0, 0
            for e in range(E):
                u = U[j, e]
                gap += _solve(w, first, second, signs, bounds, U, j, e)
                if U[j, e] != u or abs(u) < bounds[e]:
                    free[count] = e
                    count += 1
            if sweep == 0:
                goal = max(goal, share * gap)
            if gap <= goal:
                break
            for _ in range(_INNER):
                inner = 0.0
                for place in range(count):
                    inner += _solve(w, first, second, signs, bounds, U, j, free[place])
                if inner <= 0.1 * goal:
                    break
    return sweeps


@njit(cache=True)
def _solve(w: Floats, first: Ints, second: Ints, signs: Floats, bounds: Floats, U: Floats, j: int, e: int) -> float:
    """Solve for one entry of u; return its part of the gap before."""
    s, t, sign, bound, u = first[e], second[e], signs[e], bounds[e], U[j, e]
    difference = w[j, s] - sign * w[j, t]
    new = min(max(u + 0.5 * difference, -bound), bound)
    if new != u:
        w[j, s] -= new - u
        w[j, t] += sign * (new - u)
        U[j, e] = new
    return float(bound * abs(difference) - u * difference)


@njit(cache=True)
def join(w: Floats, first: Ints, second: Ints, signs: Floats, bounds: Floats, U: Floats, share: float) -> None:
    """Make entries of ``w`` equal that free edges (``|u_e| < c_e``) have brought together but for rounding.

    Entries are together when they differ by at most ``share`` of the largest of their feature.
    """
    d, T = w.shape
    part = np.empty(T, dtype=np.int64)
    turn = np.empty(T)  # sign of the entry in its part
    void = np.empty(T, dtype=np.bool_)
    for j in range(d):
        largest = 0.0
        for t in range(T):
            part[t], turn[t], void[t] = t, 1.0, False
            largest = max(largest, abs(w[j, t]))
        joined = False
        for e in range(len(first)):
            s, t, sign = first[e], second[e], signs[e]
            if abs(U[j, e]) >= bounds[e] or abs(w[j, s] - sign * w[j, t]) > share * largest:
                continue
            joined = True
            if part[s] == part[t]:
                if turn[s] != sign * turn[t]:
                    void[part[s]] = True  # equal to its own opposite
                continue
            old, new, flip = part[t], part[s], turn[s] * sign * turn[t]
            void[new] = void[new] or void[old]
            for k in range(T):
                if part[k] == old:
                    part[k] = new
                    turn[k] *= flip
        if not joined:
            continue
        for p in range(T):
            total, count = 0.0, 0
            for k in range(T):
                if part[k] == p:
                    total += turn[k] * w[j, k]
                    count += 1
            if count > 1:
                mean = 0.0 if void[p] else total / count
                for k in range(T):
                    if part[k] == p:
                        w[j, k] = turn[k] * mean
