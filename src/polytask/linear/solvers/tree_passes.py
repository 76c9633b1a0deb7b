"""Passes over a tree of tasks for all features at once, compiled on first use.

Nodes are numbered so that those below come first, tasks before all others; ``parents`` is -1 at a root.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from polytask.core.data import Ints
from polytask.core.task import Floats


@njit(cache=True)
def upward(V: Floats, t: float, weights: Floats, parents: Ints, norms: Floats, left: Floats) -> None:
    """Write the norm of every node's group, children shrunk already, before and after it loses ``t`` times its weight.

    V: (T, d); norms, left: (N, d).
    """
    T, d = V.shape
    norms[:] = 0.0
    for node in range(len(weights)):
        loss = t * weights[node]
        up = parents[node]
        for j in range(d):
            norm = abs(V[node, j]) if node < T else np.sqrt(norms[node, j])
            norms[node, j] = norm
            rest = norm - loss
            if rest > 0.0:
                left[node, j] = rest
                if up >= 0:
                    norms[up, j] += rest * rest
            else:
                left[node, j] = 0.0


@njit(cache=True)
def downward(V: Floats, parents: Ints, norms: Floats, left: Floats, out: Floats) -> None:
    """Write ``V`` times the product of left / norms over a task and all nodes above it, which ``left`` then holds."""
    T, d = V.shape
    for node in range(len(parents) - 1, -1, -1):
        up = parents[node]
        for j in range(d):
            factor = left[node, j] / norms[node, j] if left[node, j] > 0.0 else 0.0
            if up >= 0:
                factor *= left[up, j]
            left[node, j] = factor
            if node < T:
                out[node, j] = factor * V[node, j] if factor > 0.0 else 0.0


@njit(cache=True)
def newton_step(t: float, weights: Floats, parents: Ints, norms: Floats, left: Floats, limit: float) -> float:
    """Return the largest step in t by which a root's norm would come down to t times its weight; 0 where all have.

    Norms above by at most ``limit`` count as there.
    """
    N, d = norms.shape
    slopes = np.zeros((N, d))
    largest = 0.0
    for node in range(N):
        up = parents[node]
        for j in range(d):
            norm = norms[node, j]
            slope = slopes[node, j] / norm if norm > 0.0 else 0.0
            if up < 0:
                over = norm - t * weights[node]
                fall = weights[node] - slope
                if over > limit and fall > 0.0:
                    largest = max(largest, over / fall)
            elif left[node, j] > 0.0:
                slopes[up, j] += left[node, j] * (slope - weights[node])
    return largest
