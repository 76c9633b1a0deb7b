"""Block coordinate descent for one design that all tasks share, compiled on first use.

    min_W  1/(2 n) ||Y - W X||_F² + alpha sum_j ||w_j||_2      W: (T tasks, k features), X: (k, n), Y: (T, n)

Since every task has the same curvature h_j = ||x_j||² / n, the best w_j for given others is closed:
with u = h_j w_j + negative gradient_j it is u (1 - alpha / ||u||)_+ / h_j.

Features go in blocks of 64, so that all work but that inside a block is matrix products. Either the
residual Y - W X is kept up to date (`images` of length n), or, with the Gram matrix G = X X^T / n, the
negative gradient (images of length k). Inside a block, smaller blocks of neighbours are passed several
times, which settles features that are correlated with their neighbours.

After each sweep the objective is minimised over the span of the sweep's step and of the steps before
(a few Newton steps in as many variables, exact in the penalty), as in conjugate gradients. Steps keep
features that the sweep set to zero at zero. Narkiss & Zibulevsky, Sequential subspace optimization
method for large-scale unconstrained problems, 2005; Elad, Matalon & Zibulevsky, Coordinate and
subspace optimization methods for linear least squares with non-quadratic regularization, 2007.

Arrays are padded to whole blocks; a padding feature has h = 0 and is never touched.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from polytask.core.data import Ints
from polytask.core.task import Floats
from polytask.linear.solvers.losses import Bools

BLOCK = 64
SLOTS = 3  # directions: that of the path and those of the last sweeps
_PITCH = BLOCK + 8  # so that the rows of a block's arrays do not fall on the same cache lines
_NEIGHBOURS = 16
_CHUNK = 128
_NEWTON = 4
_PATIENCE = 60  # sweeps without a smaller gap: rounding

_compiled = njit(cache=True, fastmath={"contract", "reassoc", "nsz", "arcp"})


@_compiled
def _pass_block(
    gram: Floats, q: Floats, w: Floats, step: Floats, u: Floats, alpha: float, passes: int
) -> tuple[int, float]:
    """Update the features of a block; ``q`` is the negative gradient, ``w`` coefficients, both ``(T, 64)``.

    Writes the change of ``w`` into ``step``; returns the number of features that changed in the first
    passes and the largest squared norm of ``q`` met in them.
    """
    T = q.shape[0]
    changed, largest = 0, 0.0
    for t in range(T):
        for i in range(BLOCK):
            step[t, i] = -w[t, i]
    for low in range(0, BLOCK, _NEIGHBOURS):
        moved_ever = 0
        for number in range(passes):
            moved = 0
            for place in range(_NEIGHBOURS):
                j = low + (_NEIGHBOURS - 1 - place if number % 2 == 1 else place)
                h = gram[j, j]
                if h <= 0.0:
                    continue
                size, slope, used = 0.0, 0.0, 0.0
                for t in range(T):
                    part = q[t, j]
                    slope += part * part
                    part += h * w[t, j]
                    u[t] = part
                    size += part * part
                    used += abs(w[t, j])
                if number == 0:
                    largest = max(largest, slope)
                factor = 0.0
                if size > alpha * alpha:
                    factor = (1.0 - alpha / np.sqrt(size)) / h
                elif used == 0.0:
                    continue
                moved += 1
                for t in range(T):
                    new = factor * u[t]
                    change = new - w[t, j]
                    w[t, j] = new
                    for i in range(_NEIGHBOURS):
                        q[t, low + i] -= change * gram[j, low + i]
            moved_ever += moved
            if number == 0:
                changed += moved
            if moved == 0:
                break
        after = low + _NEIGHBOURS
        for t in range(T):
            for i in range(low, after):
                step[t, i] += w[t, i]
        if moved_ever > 0 and after < BLOCK:
            for t in range(T):
                for j in range(low, after):
                    change = step[t, j]
                    if change != 0.0:
                        for i in range(after, BLOCK):
                            q[t, i] -= change * gram[j, i]
    return changed, largest


@_compiled
def _sweep_residual(
    X: Floats,
    grams: Floats,
    W: Floats,
    R: Floats,
    n: float,
    alpha: float,
    passes: int,
    local: Floats,
    u: Floats,
    square: Floats,
    back: Floats,
) -> float:
    """Pass all blocks once with the residual ``R`` ``(T, n)``; return the largest gradient norm met."""
    T, k = W.shape
    q, w, step = local[0], local[1], local[2]
    largest = 0.0
    for block in range(k // BLOCK):
        low = block * BLOCK
        rows = X[low : low + BLOCK]
        np.dot(R, rows.T, square)
        for t in range(T):
            for i in range(BLOCK):
                q[t, i] = square[t, i] / n
                w[t, i] = W[t, low + i]
        changed, slope = _pass_block(grams[block], q, w, step, u, alpha, passes)
        largest = max(largest, slope)
        if changed == 0:
            continue
        for t in range(T):
            for i in range(BLOCK):
                W[t, low + i] = w[t, i]
                square[t, i] = step[t, i]
        if changed <= 3:
            for t in range(T):
                for i in range(BLOCK):
                    change = square[t, i]
                    if change != 0.0:
                        for r in range(R.shape[1]):
                            R[t, r] -= change * rows[i, r]
            continue
        np.dot(square, rows, back)
        for t in range(T):
            for r in range(R.shape[1]):
                R[t, r] -= back[t, r]
    return np.sqrt(largest)


@_compiled
def _sweep_gram(
    G: Floats,
    W: Floats,
    Q: Floats,
    alpha: float,
    passes: int,
    local: Floats,
    u: Floats,
    square: Floats,
    back: Floats,
    gram: Floats,
) -> None:
    """Pass all blocks once with the negative gradient ``Q`` ``(T, k)``."""
    T, k = W.shape
    q, w, step = local[0], local[1], local[2]
    for low in range(0, k, BLOCK):
        for t in range(T):
            for i in range(BLOCK):
                q[t, i] = Q[t, low + i]
                w[t, i] = W[t, low + i]
        for i in range(BLOCK):
            for j in range(BLOCK):
                gram[i, j] = G[low + i, low + j]
        changed, _ = _pass_block(gram, q, w, step, u, alpha, passes)
        if changed == 0:
            continue
        for t in range(T):
            for i in range(BLOCK):
                W[t, low + i] = w[t, i]
                square[t, i] = step[t, i]
        if changed <= 8:
            for t in range(T):
                for i in range(BLOCK):
                    change = square[t, i]
                    if change != 0.0:
                        for r in range(k):
                            Q[t, r] -= change * G[low + i, r]
            continue
        np.dot(square, G[low : low + BLOCK], back)
        for t in range(T):
            for r in range(k):
                Q[t, r] -= back[t, r]


@_compiled
def _norms(A: Floats, out: Floats) -> float:
    """Write the norms of the columns of ``A`` ``(T, k)``; return their sum."""
    T, k = A.shape
    for j in range(k):
        out[j] = 0.0
    for t in range(T):
        for j in range(k):
            out[j] += A[t, j] * A[t, j]
    total = 0.0
    for j in range(k):
        out[j] = np.sqrt(out[j])
        total += out[j]
    return total


@_compiled
def _inner(A: Floats, B: Floats) -> float:
    total = 0.0
    for t in range(A.shape[0]):
        for j in range(A.shape[1]):
            total += A[t, j] * B[t, j]
    return total


@_compiled
def _drop(zero: Bools, directions: Floats, images: Floats, slots: Ints, columns: Floats) -> None:
    """Take features marked in ``zero`` out of the directions; ``columns[j]`` is minus the image of feature j."""
    T, k = directions.shape[1], directions.shape[2]
    for slot in slots:
        for j in range(k):
            if not zero[j]:
                continue
            for t in range(T):
                part = directions[slot, t, j]
                if part != 0.0:
                    directions[slot, t, j] = 0.0
                    for r in range(images.shape[2]):
                        images[slot, t, r] += part * columns[j, r]


@_compiled
def _pair_products(W: Floats, directions: Floats, slots: Ints, out: Floats) -> None:
    """Write <x_j, y_j> for all pairs of W and the directions into ``out`` ``(pairs, k)``, per feature."""
    T, k = W.shape
    for low in range(0, k, _CHUNK):
        high = min(low + _CHUNK, k)
        pair = 0
        for a in range(len(slots) + 1):
            x = W if a == 0 else directions[slots[a - 1]]
            for b in range(a + 1):
                y = W if b == 0 else directions[slots[b - 1]]
                row = out[pair]
                for j in range(low, high):
                    row[j] = 0.0
                for t in range(T):
                    for j in range(low, high):
                        row[j] += x[t, j] * y[t, j]
                pair += 1


@_compiled
def _norms_at(pairs: Floats, z: Floats, out: Floats) -> float:
    """Write ||z_0 w_j + sum_a z_a d_aj|| for all features; return their sum."""
    k = len(out)
    for j in range(k):
        out[j] = 0.0
    pair = 0
    for a in range(len(z)):
        for b in range(a + 1):
            factor = z[a] * z[b] if a == b else 2.0 * z[a] * z[b]
            row = pairs[pair]
            for j in range(k):
                out[j] += factor * row[j]
            pair += 1
    total = 0.0
    for j in range(k):
        out[j] = np.sqrt(max(out[j], 0.0))
        total += out[j]
    return total


@_compiled
def _solve_positive(H: Floats, g: Floats) -> bool:
    """Solve H x = g in place of ``g`` by elimination; False where H is not positive definite."""
    m = len(g)
    trace = 0.0
    for a in range(m):
        trace += H[a, a]
    if not trace > 0.0:
        return False
    for a in range(m):
        H[a, a] += 1e-13 * trace + 1e-12 * H[a, a]
    for a in range(m):
        if not H[a, a] > 0.0:
            return False
        for b in range(a + 1, m):
            factor = H[b, a] / H[a, a]
            g[b] -= factor * g[a]
            for c in range(a + 1, m):
                H[b, c] -= factor * H[a, c]
    for a in range(m - 1, -1, -1):
        for c in range(a + 1, m):
            g[a] -= H[a, c] * g[c]
        g[a] /= H[a, a]
    return True


@_compiled
def _slope_and_bend(pairs: Floats, z: Floats, norms: Floats, along: Floats, alpha: float, g: Floats, H: Floats) -> None:
    """Add gradient and Hessian of alpha sum_j ||w_j + sum_a z_a d_aj|| to ``g`` and ``H``; ``norms`` is spoilt."""
    m, k = len(g), len(norms)
    for j in range(k):
        norms[j] = 1.0 / norms[j] if norms[j] > 0.0 else 0.0
    for a in range(m):
        for j in range(k):
            along[a, j] = 0.0
    pair = 1
    for a in range(1, m + 1):
        for b in range(a + 1):
            row = pairs[pair]
            for j in range(k):
                along[a - 1, j] += z[b] * row[j]
            if 0 < b < a:
                for j in range(k):
                    along[b - 1, j] += z[a] * row[j]
            pair += 1
    for a in range(m):
        total = 0.0
        for j in range(k):
            along[a, j] *= norms[j]
            total += along[a, j]
        g[a] += alpha * total
    pair = 1
    for a in range(m):
        pair += 1
        for b in range(a + 1):
            row = pairs[pair]
            total = 0.0
            for j in range(k):
                total += (row[j] - along[a, j] * along[b, j]) * norms[j]
            H[a, b] += alpha * total
            H[b, a] = H[a, b]
            pair += 1


@_compiled
def _best_combination(pairs: Floats, linear: Floats, quadratic: Floats, alpha: float, s: Floats) -> bool:
    """Minimise linear s + s quadratic s / 2 + alpha sum_j ||w_j + sum_a s_a d_aj|| over ``s``, from 0, in place."""
    m, k = len(s), pairs.shape[1]
    z, g, H, trial = np.zeros(m + 1), np.empty(m), np.empty((m, m)), np.zeros(m)
    norms, along = np.empty(k), np.empty((m, k))
    z[0] = 1.0
    s[:] = 0.0
    value = alpha * _norms_at(pairs, z, norms)
    first = value
    for step in range(_NEWTON):
        for a in range(m):
            g[a] = linear[a]
            for b in range(m):
                g[a] += quadratic[a, b] * s[b]
                H[a, b] = quadratic[a, b]
        _slope_and_bend(pairs, z, norms, along, alpha, g, H)
        if not _solve_positive(H, g):
            return step > 0
        length, new, better = 1.0, value, False
        for _ in range(6):
            new = 0.0
            for a in range(m):
                trial[a] = s[a] - length * g[a]
                z[a + 1] = trial[a]
            for a in range(m):
                new += linear[a] * trial[a]
                for b in range(m):
                    new += 0.5 * quadratic[a, b] * trial[a] * trial[b]
            new += alpha * _norms_at(pairs, z, norms)
            if new < value:
                better = True
                break
            length *= 0.25
        if not better:
            return step > 0
        s[:] = trial
        fall = value - new
        value = new
        if fall <= 0.02 * (first - value):
            break
    return True


@_compiled
def step_along(
    by_gram: bool,
    columns: Floats,
    W: Floats,
    S: Floats,
    n: float,
    alpha: float,
    directions: Floats,
    images: Floats,
    used: Bools,
    fresh: int,
) -> bool:
    """Move to the least objective along the directions in use; False: there is none below.

    The direction ``fresh`` (if any: not -1), which led here, becomes the whole step.
    """
    T, k = W.shape
    q = S.shape[1]
    slots = np.flatnonzero(used)
    m = len(slots)
    zero = np.empty(k, dtype=np.bool_)
    row = np.empty(max(k, q))
    _norms(W, row[:k])
    for j in range(k):
        zero[j] = row[j] == 0.0
    _drop(zero, directions, images, slots, columns)
    linear, quadratic, s = np.zeros(m), np.zeros((m, m)), np.zeros(m)
    factor = -1.0 if by_gram else 1.0 / n
    for a in range(m):
        left = directions[slots[a]] if by_gram else images[slots[a]]
        linear[a] = factor * _inner(left, S)
        for b in range(a + 1):
            quadratic[a, b] = factor * _inner(left, images[slots[b]])
            quadratic[b, a] = quadratic[a, b]
    pairs = np.empty(((m + 1) * (m + 2) // 2, k))
    _pair_products(W, directions, slots, pairs)
    if not _best_combination(pairs, linear, quadratic, alpha, s):
        return False
    for t in range(T):
        row[:] = 0.0
        for a in range(m):
            for j in range(k):
                row[j] += s[a] * directions[slots[a], t, j]
        for j in range(k):
            W[t, j] += row[j]
        if fresh >= 0:
            for j in range(k):
                directions[fresh, t, j] += row[j]
        row[:] = 0.0
        for a in range(m):
            for r in range(q):
                row[r] += s[a] * images[slots[a], t, r]
        for r in range(q):
            S[t, r] += row[r]
        if fresh >= 0:
            for r in range(q):
                images[fresh, t, r] += row[r]
    return True


@_compiled
def _gap(
    by_gram: bool, W: Floats, S: Floats, target: Floats, yy: float, n: float, alpha: float, penalty: float, top: float
) -> float:
    """Return the duality gap on the working set at the residual scaled to a largest gradient norm of alpha."""
    if by_gram:
        explained = _inner(target, W)
        rest = yy - explained - _inner(S, W)
        along = yy - explained
    else:
        rest = _inner(S, S) / n
        along = _inner(S, target) / n
    shrink = alpha / top if top > alpha else 1.0
    return 0.5 * rest + alpha * penalty - shrink * along + 0.5 * shrink * shrink * rest


@_compiled
def descend(
    by_gram: bool,
    columns: Floats,
    grams: Floats,
    W: Floats,
    S: Floats,
    target: Floats,
    yy: float,
    n: float,
    alpha: float,
    goal: float,
    directions: Floats,
    images: Floats,
    used: Bools,
    ring: Ints,
    max_sweeps: int,
    passes: int,
) -> tuple[int, float]:
    """Improve ``W`` ``(T, k)`` and its image ``S`` in place; return the number of sweeps and the gap on these features.

    Parameters
    ----------
    by_gram
        Whether ``S`` is the negative gradient ``(T, k)``, ``columns`` the Gram matrix ``(k, k)`` and
        ``target`` Y X^T / n; otherwise they are the residual ``(T, n)``, X ``(k, n)`` and Y.
    grams
        X X^T / n of each block, ``(k / 64, 64, 64)`` (not used with the Gram matrix).
    yy
        ||Y||² / n.
    goal
        Stop at this gap. With the residual the gap is an estimate, from gradients met during the sweep.
    directions, images, used, ring
        Steps ``(SLOTS, T, k)``, what they do to ``S``, which of them count, and the number of sweeps so far.
    """
    T, k = W.shape
    q = S.shape[1]
    local = np.zeros((3, T, _PITCH))
    u, square, back = np.empty(T), np.empty((T, BLOCK)), np.empty((T, q))
    gram, norms = np.empty((BLOCK, BLOCK)), np.empty(k)
    sweeps, since, gap, best = 0, 0, np.inf, np.inf
    while sweeps < max_sweeps:
        fresh = 1 + ring[0] % (SLOTS - 1)
        ring[0] += 1
        for t in range(T):
            for j in range(k):
                directions[fresh, t, j] = -W[t, j]
            for r in range(q):
                images[fresh, t, r] = -S[t, r]
        if by_gram:
            _sweep_gram(columns, W, S, alpha, passes, local, u, square, back, gram)
            _norms(S, norms)
            top = norms.max()
        else:
            top = _sweep_residual(columns, grams, W, S, n, alpha, passes, local, u, square, back)
        for t in range(T):
            for j in range(k):
                directions[fresh, t, j] += W[t, j]
            for r in range(q):
                images[fresh, t, r] += S[t, r]
        used[fresh] = True
        sweeps += 1
        gap = _gap(by_gram, W, S, target, yy, n, alpha, _norms(W, norms), top)
        since = 0 if gap < 0.99 * best else since + 1
        best = min(best, gap)
        if gap <= goal or since >= _PATIENCE:
            break
        step_along(by_gram, columns, W, S, n, alpha, directions, images, used, fresh)
        used[0] = False  # the direction of the path serves once
    return sweeps, gap
