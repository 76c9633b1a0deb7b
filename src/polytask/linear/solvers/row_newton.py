"""Newton's method for the norms of the rows in use of a row-sparse quadratic problem, compiled on first use.

With alpha ||w^j|| = min over eta_j > 0 of alpha / 2 (||w^j||² / eta_j + eta_j) the problem of ``descent.py`` is,
on k rows in use, one of k numbers: given eta every task has a ridge problem of its own,

    A_t w_t = c_t,    A_t = s_t G_p(t) + alpha diag(1 / eta),

and what is left is to find eta with rho_j = ||w^j|| / eta_j = 1 for all j. Since 1 / rho_j is nearly linear in eta,
as in the step for a single row, Newton's method is applied to 1 - 1 / rho = 0 (Moré & Sorensen, 1983):

    alpha ( diag(rho_j² / eta_j) - alpha sum_t diag(x_t) A_t^-1 diag(x_t) ) d = alpha rho² (rho - 1)

with x_t = w_t / eta².

A row that a step takes below 0 leaves. Factors of several tasks are computed side by side, so that the inner loops
run over tasks. The variational form: Micchelli, Morales & Pontil, Regularizers for structured sparsity, 2013; Poon &
Peyré, Smooth bilevel programming for sparse regularization, 2021.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from polytask.core.data import Ints
from polytask.core.task import Floats

_LANES = 80  # most tasks side by side
_STEPS = 20
_LEAST = 0.1  # of a norm that a step leaves at least
_FLAT = 1e-9  # of its diagonal that is added to a matrix that may be singular


@njit(cache=True)
def _collect(by_feature: Floats, pattern: Ints, scale: Floats, used: Ints) -> Floats:
    """Return s_t G_p(t) on the features ``used`` ``(k,)``, lower halves, ``(chunks, k, k, lanes)``; 0 beyond T."""
    T, k = pattern.shape[0], used.shape[0]
    chunks = (T + _LANES - 1) // _LANES
    lanes = (T + chunks - 1) // chunks
    found = np.zeros((chunks, k, k, lanes))
    for chunk in range(chunks):
        block = found[chunk]
        for lane in range(min(lanes, T - chunk * lanes)):
            t = chunk * lanes + lane
            for i in range(k):
                for j in range(i + 1):
                    block[i, j, lane] = scale[t] * by_feature[used[i], pattern[t], used[j]]
    return found


@njit(cache=True, fastmath={"reassoc", "contract"})
def _factor(H: Floats, bend: Floats, L: Floats, small: Floats) -> bool:
    """Write the lower factors of A and one over their diagonals ``(k, lanes)``; False: one is not positive definite."""
    k, lanes = small.shape
    for i in range(k):
        for j in range(i + 1):
            for lane in range(lanes):
                L[i, j, lane] = H[i, j, lane]
            p = 0
            while p + 4 <= j:
                for lane in range(lanes):
                    L[i, j, lane] -= (
                        L[i, p, lane] * L[j, p, lane]
                        + L[i, p + 1, lane] * L[j, p + 1, lane]
                        + L[i, p + 2, lane] * L[j, p + 2, lane]
                        + L[i, p + 3, lane] * L[j, p + 3, lane]
                    )
                p += 4
            while p < j:
                for lane in range(lanes):
                    L[i, j, lane] -= L[i, p, lane] * L[j, p, lane]
                p += 1
            if j < i:
                for lane in range(lanes):
                    L[i, j, lane] *= small[j, lane]
        worst = L[i, i, 0] + bend[i]
        for lane in range(lanes):
            worst = min(worst, L[i, i, lane] + bend[i])
        if not worst > 0.0:
            return False
        for lane in range(lanes):
            small[i, lane] = 1.0 / np.sqrt(L[i, i, lane] + bend[i])
    return True


@njit(cache=True, fastmath={"reassoc", "contract"})
def _solve_tasks(L: Floats, small: Floats, c: Floats, w: Floats) -> None:
    """Write A^-1 c of all tasks side by side into ``w`` ``(k, lanes)``."""
    k, lanes = small.shape
    for i in range(k):
        for lane in range(lanes):
            w[i, lane] = c[i, lane]
        for p in range(i):
            for lane in range(lanes):
                w[i, lane] -= L[i, p, lane] * w[p, lane]
        for lane in range(lanes):
            w[i, lane] *= small[i, lane]
    for i in range(k - 1, -1, -1):
        for p in range(i + 1, k):
            for lane in range(lanes):
                w[i, lane] -= L[p, i, lane] * w[p, lane]
        for lane in range(lanes):
            w[i, lane] *= small[i, lane]


@njit(cache=True, fastmath={"reassoc", "contract"})
def _columns(L: Floats, small: Floats, x: Floats, V: Floats) -> None:
    """Write V_j = L^-1 x_j e_j into ``V`` ``(k, k, lanes)``, from entry j on."""
    k, lanes = small.shape
    for j in range(k):
        for lane in range(lanes):
            V[j, j, lane] = x[j, lane] * small[j, lane]
        for i in range(j + 1, k):
            for lane in range(lanes):
                V[j, i, lane] = 0.0
            p = j
            while p + 4 <= i:
                for lane in range(lanes):
                    V[j, i, lane] -= (
                        L[i, p, lane] * V[j, p, lane]
                        + L[i, p + 1, lane] * V[j, p + 1, lane]
                        + L[i, p + 2, lane] * V[j, p + 2, lane]
                        + L[i, p + 3, lane] * V[j, p + 3, lane]
                    )
                p += 4
            while p < i:
                for lane in range(lanes):
                    V[j, i, lane] -= L[i, p, lane] * V[j, p, lane]
                p += 1
            for lane in range(lanes):
                V[j, i, lane] *= small[i, lane]


@njit(cache=True, fastmath={"reassoc", "contract"})
def _meet(V: Floats, S: Floats) -> None:
    """Add sum_t V_i^T V_j to ``S``, lower half."""
    k, lanes = V.shape[0], V.shape[2]
    columns = V.reshape((k, k * lanes))
    for i in range(k):
        own = columns[i, i * lanes :]
        for j in range(i + 1):
            other = columns[j, i * lanes :]
            total = 0.0
            for p in range(own.shape[0]):
                total += own[p] * other[p]
            S[i, j] += total


@njit(cache=True)
def _solve(S: Floats, q: Floats) -> bool:
    """Solve S z = q in place by elimination of the lower half; False: S is not positive definite."""
    k = q.shape[0]
    for i in range(k):
        for j in range(i + 1):
            total = S[i, j]
            for p in range(j):
                total -= S[i, p] * S[j, p]
            if j < i:
                S[i, j] = total / S[j, j]
            elif total > 0.0:
                S[i, i] = np.sqrt(total)
            else:
                return False
        for p in range(i):
            q[i] -= S[i, p] * q[p]
        q[i] /= S[i, i]
    for i in range(k - 1, -1, -1):
        for p in range(i + 1, k):
            q[i] -= S[p, i] * q[p]
        q[i] /= S[i, i]
    return True


@njit(cache=True)
def _step(H: Floats, alpha: float, c: Floats, eta: Floats, w: Floats, rho: Floats, room: Floats) -> bool:
    """Write w for ``eta``, ``(chunks, k, lanes)``, and rho; overwrite ``eta`` by the next; False: there is none."""
    chunks, k, lanes = w.shape
    L, V = room[0], room[1]
    small = np.empty((k, lanes))
    S, q = np.zeros((k, k)), np.zeros(k)
    bend = alpha / eta
    for chunk in range(chunks):
        if not _factor(H[chunk], bend, L, small):
            return False
        _solve_tasks(L, small, c[chunk], w[chunk])
        _columns(L, small, w[chunk], V)
        _meet(V, S)
        for i in range(k):
            for lane in range(lanes):
                q[i] += w[chunk, i, lane] ** 2
    for i in range(k):
        rho[i] = np.sqrt(q[i]) / eta[i]
        q[i] = alpha * rho[i] ** 2 * (rho[i] - 1.0)
        for j in range(i + 1):
            S[i, j] *= -((alpha / (eta[i] * eta[j])) ** 2)
        S[i, i] += (1.0 + _FLAT) * alpha * rho[i] ** 2 / eta[i]
    if not _solve(S, q):
        return False
    eta += q
    return True


@njit(cache=True)
def newton(
    by_feature: Floats,
    pattern: Ints,
    scale: Floats,
    linear: Floats,
    alpha: float,
    used: Ints,
    precision: float,
    W: Floats,
    gradient: Floats,
    norms: Floats,
) -> int:
    """Solve on the rows ``used``, the others are left as they are, in place; return the number of steps, 0: failed.

    Parameters
    ----------
    by_feature, pattern, scale, linear, alpha
        As of ``descent.descend``.
    precision
        Where to stop: the largest deviation of ``rho`` from 1.
    W, gradient
        Coefficients and the gradient of the quadratic, ``(T, d)``.
    norms
        Norms of the columns of W, ``(d,)``, none of those ``used`` 0.
    """
    T, d = W.shape
    H = _collect(by_feature, pattern, scale, used)
    chunks, k, _, lanes = H.shape
    c = np.zeros((chunks, k, lanes))
    for t in range(T):
        for i in range(k):
            total = -gradient[t, used[i]]
            for j in range(k):
                total += scale[t] * by_feature[used[i], pattern[t], used[j]] * W[t, used[j]]
            c[t // lanes, i, t % lanes] = total
    eta, rows, taken = norms[used], used, 0
    w, rho = np.zeros((chunks, k, lanes)), np.zeros(k)
    room = np.empty((2, k, k, lanes))
    while True:
        before = eta.copy()
        if not _step(H, alpha, c, eta, w, rho, room):
            return 0
        taken += 1
        if np.abs(rho - 1.0).max() <= precision or taken == _STEPS:
            break
        left = np.flatnonzero((eta > 0.0) | (rho >= 1.0))
        eta = np.maximum(eta, _LEAST * before)
        if len(left) == 0:
            return 0
        if len(left) < k:
            H, c = H[:, left][:, :, left].copy(), c[:, left].copy()
            eta, rows, k = eta[left], rows[left], len(left)
            w, rho, room = np.zeros((chunks, k, lanes)), np.zeros(k), np.empty((2, k, k, lanes))
    for j in used:
        for t in range(T):
            W[t, j] = 0.0
        norms[j] = 0.0
    for i in range(k):
        for t in range(T):
            W[t, rows[i]] = w[t // lanes, i, t % lanes]
        norms[rows[i]] = rho[i] * before[i]
    for t in range(T):
        for j in range(d):
            gradient[t, j] = -linear[t, j]
        for j in range(d):
            if norms[j] > 0.0:
                row = by_feature[j, pattern[t]]
                size = scale[t] * W[t, j]
                for i in range(d):
                    gradient[t, i] += size * row[i]
    return taken
