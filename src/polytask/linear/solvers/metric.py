"""A weighted distance that draws rows of one class together and pushes rows of different classes apart.

    min_u  mean_t ( mean_{same class} d_u(x_i, x_k) - mean_{different classes} d_u(x_i, x_k) ),
    d_u(x, z) = sqrt(sum_j u_j (x_j - z_j)²),    u >= 0, sum_j u_j = d

over pairs of rows of the same task. Projected gradient steps from u = 1, each of which lowers it; the
problem is not convex. Distances have a small constant under the root, so that it is smooth.

Thrun & O'Sullivan, Discovering structure in multiple learning tasks: the TC algorithm, ICML 1996.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polytask.core.data import Ints
from polytask.core.task import Floats

_SMALL = 1e-6  # under the root, per feature
_HALVINGS = 40


def squared_distances(X: Floats, Z: Floats, u: Floats) -> Floats:
    """Return sum_j u_j (x_j - z_j)² of the rows of ``X`` ``(n, d)`` and ``Z`` ``(m, d)``, ``(n, m)``."""
    root = np.sqrt(u)
    A, B = X * root, Z * root
    found = np.square(A).sum(axis=1)[:, None] + np.square(B).sum(axis=1) - 2.0 * (A @ B.T)
    return np.asarray(np.maximum(found, 0.0))


def fit_metric(parts: Sequence[tuple[Floats, Ints]], *, tol: float, max_steps: int) -> tuple[Floats, Floats]:
    """Return u ``(d,)`` and the objective before and after every step.

    ``parts`` has rows ``(n_t, d)`` and class numbers ``(n_t,)`` of every task. It stops where a step lowers
    the objective by at most ``tol`` of its size at the start.
    """
    d = parts[0][0].shape[1]
    signs = [pair for pair in map(_signs, parts) if pair is not None]
    rows = [X for X, y in parts if _signs((X, y)) is not None]
    u = np.ones(d)
    if not rows:
        return u, np.zeros(1)
    value, slope = _objective(rows, signs, u)
    values = [value]
    step = d / max(float(np.abs(slope).max()), 1e-300)
    for _ in range(max_steps):
        for _ in range(_HALVINGS):
            new = onto_simplex(u - step * slope, d)
            after, new_slope = _objective(rows, signs, new)
            if after <= value + 1e-4 * float(slope @ (new - u)):
                break
            step *= 0.5
        else:
            break
        fall = value - after
        u, value, slope = new, after, new_slope
        values.append(value)
        step *= 2.0
        if fall <= tol * abs(values[0]):
            break
    return u, np.array(values)


def _signs(part: tuple[Floats, Ints]) -> Floats | None:
    """Return the weight of every pair in the objective, ``(n, n)``; None where pairs of one kind are missing."""
    same = part[1][:, None] == part[1]
    n_same, n_other = int(same.sum()) - len(same), int((~same).sum())
    if n_same == 0 or n_other == 0:
        return None
    weights = np.where(same, 1.0 / n_same, -1.0 / n_other)
    np.fill_diagonal(weights, 0.0)
    return np.asarray(weights)


def _objective(rows: Sequence[Floats], signs: Sequence[Floats], u: Floats) -> tuple[float, Floats]:
    value, slope = 0.0, np.zeros(len(u))
    for X, weights in zip(rows, signs, strict=True):
        distances = np.sqrt(squared_distances(X, X, u) + _SMALL * len(u))
        value += float((weights * distances).sum())
        pull = 0.5 * weights / distances
        slope += 2.0 * (np.square(X).T @ pull.sum(axis=1) - np.einsum("nj,nj->j", X, pull @ X))
    return value / len(rows), slope / len(rows)


def onto_simplex(v: Floats, total: float) -> Floats:
    """Return the nearest point to ``v`` with entries >= 0 that add up to ``total``."""
    ordered = np.sort(v)[::-1]
    excess = np.cumsum(ordered) - total
    count = np.arange(1, len(v) + 1)
    last = int(np.flatnonzero(ordered * count > excess)[-1])
    return np.asarray(np.maximum(v - excess[last] / (last + 1), 0.0))
