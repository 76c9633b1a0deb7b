"""Newton steps on the face of a norm: where zeros, signs and ties are kept, the problem is smooth.

    min_W  1/2 <W, H W> - <l, W> + ridge / 2 ||W||² + sum_j norm(w^j)          W: (T, k), H block-diagonal by task

A face is described by its free entries and, for norms with a level, by the ties |w_tj| = m_j. The free
entries of different tasks meet only through one number per feature, so that a step costs one
factorisation per task and one system with a row per feature:

    levels m:       eliminate the free entries of every task; the Schur complement is in m
    l1/l2 part:     its Hessian b (I / r_j - w^j w^jT / r_j³) is diagonal minus rank one per feature (Woodbury)

Coordinate descent finds the face in a few passes but then converges at the rate of the conditioning
of H, where such a step ends at once. Where a step would leave the face it is cut off entry by entry
at the border, so that it need not go down: whoever takes it compares the objective.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polytask.core.task import Floats
from polytask.linear.solvers.losses import Curvature

_DAMPED = (0.3, 0.1)  # shares of a step that are tried too, cut off at the border of the face
_BEYOND = 1e-9  # so that what reaches the border is cut off at it exactly
_LIFT = 1e-11  # of the largest diagonal entry: collinear features make a face flat


Found = tuple[list[Floats], list[Floats]]
"""Where steps lead: those of all tasks, and those that keep the levels, so that each task may take or leave its own."""


def face_step(
    curvature: Curvature, rule: tuple[int, float, float], ridge: float, W: Floats, gradient: Floats, levels: Floats
) -> Found:
    """Return where steps from ``W`` lead; ``gradient`` is H W - l, ``levels`` holds m_j for rules of kind 0."""
    slope = gradient + ridge * W
    kind, first, second = rule
    if kind == 0:
        return _with_levels(curvature, first, second, ridge, W, slope, levels)
    return _with_norms(curvature, first, second, ridge, W, slope)


def _with_levels(
    curvature: Curvature, shared: float, own: float, ridge: float, W: Floats, slope: Floats, levels: Floats
) -> Found:
    size, sign = np.abs(W), np.sign(W)
    tied = (size == levels) & (levels > 0.0)
    above = size > levels
    free = above | ((size > 0.0) & (size < levels))
    moving = np.flatnonzero(tied.any(axis=0))
    place = np.full(W.shape[1], -1)
    place[moving] = np.arange(len(moving))
    schur, right = np.zeros((len(moving), len(moving))), np.zeros(len(moving))
    if len(moving):
        pull = above[:, moving].sum(axis=0)
        right += shared - np.where(pull > 0, pull * (own if np.isfinite(own) else 0.0), 0.0)
    rest = slope + np.where(above, (own if np.isfinite(own) else 0.0) * sign, 0.0)
    kept = []
    for t in range(len(W)):
        F, J = np.flatnonzero(free[t]), np.flatnonzero(tied[t])
        H = curvature.grams[curvature.pattern[t]]
        s, scale = sign[t, J], curvature.scale[t]
        inner = _solve(scale * H[np.ix_(F, F)], ridge, np.column_stack([rest[t, F], scale * H[np.ix_(F, J)] * s]))
        kept.append((F, J, inner))
        if len(J):
            cross = scale * H[np.ix_(F, J)] * s
            block = scale * H[np.ix_(J, J)] * np.outer(s, s) + ridge * np.eye(len(J)) - cross.T @ inner[:, 1:]
            schur[np.ix_(place[J], place[J])] += block
            right[place[J]] += s * slope[t, J] - cross.T @ inner[:, 0]
    rise = -_solve(schur, 0.0, right[:, None])[:, 0]
    change = np.zeros_like(W)
    for t, (F, J, inner) in enumerate(kept):
        change[t, F] = -inner[:, 0] - inner[:, 1:] @ rise[place[J]]
        change[t, J] = sign[t, J] * rise[place[J]]
    lift = np.zeros(W.shape[1])
    lift[moving] = rise

    def cut(growth: Floats, lift: Floats) -> Floats:
        new, level = size + growth, np.maximum(levels + lift, 0.0)
        return sign * np.where(above, np.maximum(new, level), np.where(tied, level, np.clip(new, -level, level)))

    def tries(growth: Floats, lift: Floats) -> list[Floats]:
        ahead = np.where(growth > 0.0, levels - size, levels + size)  # of entries below the level
        room = np.where(above, size - levels, np.where(free, ahead, 0.0))
        pace = np.where(above, growth - lift, lift - np.abs(growth))
        found = [cut(part * growth, part * lift) for part in (1.0, *_DAMPED)]
        return [*found, cut(_share(room, pace) * growth, lift)]

    together = tries(sign * change, lift)
    if not len(moving) or not np.isfinite(own):
        return together, []
    growth = np.zeros_like(W)
    for t, (F, _, inner) in enumerate(kept):
        growth[t, F] = -sign[t, F] * inner[:, 0]
    return together, tries(growth, np.zeros_like(lift))


def _with_norms(curvature: Curvature, entry: float, group: float, ridge: float, W: Floats, slope: Floats) -> Found:
    norms = np.linalg.norm(W, axis=0)
    used = norms > 0.0
    safe = np.where(used, norms, 1.0)
    free = (W != 0.0) if entry > 0.0 else np.broadcast_to(used, W.shape)
    sign = np.sign(W)
    rest = slope + entry * sign + group * W / safe
    active = np.flatnonzero(used)
    place = np.full(W.shape[1], -1)
    place[active] = np.arange(len(active))
    inner, right = np.diag(norms[active] ** 3 / group), np.zeros(len(active))
    kept = []
    for t in range(len(W)):
        F = np.flatnonzero(free[t])
        H = curvature.scale[t] * curvature.grams[curvature.pattern[t]][np.ix_(F, F)]
        inverse = _solve(H + np.diag(group / norms[F]), ridge, np.eye(len(F)))
        w, alone = W[t, F], inverse @ rest[t, F]
        inner[np.ix_(place[F], place[F])] -= w[:, None] * inverse * w
        right[place[F]] -= w * alone
        kept.append((F, inverse, alone))
    common = _solve(inner, 0.0, right[:, None])[:, 0]
    change = np.zeros_like(W)
    for t, (F, inverse, alone) in enumerate(kept):
        change[t, F] = inverse @ (W[t, F] * common[place[F]]) - alone
    if entry == 0.0:
        return [W + part * change for part in (1.0, *_DAMPED)], []
    size, growth = np.abs(W), sign * change
    return [sign * np.maximum(size + part * growth, 0.0) for part in (1.0, *_DAMPED, _share(size, growth))], []


def _share(room: Floats, pace: Floats) -> Floats:
    """Return per task the share of the step, at most 1, at which the first ``room`` is used up, ``(T, 1)``."""
    falling = (room > 0.0) & (pace < 0.0)
    shares = np.divide(room, -pace, out=np.ones_like(room), where=falling)
    least = shares.min(axis=1, keepdims=True, initial=1.0)
    return np.asarray(np.minimum((1.0 + _BEYOND) * least, 1.0))


def _solve(H: Floats, ridge: float, right: Floats) -> Floats:
    """Solve (H + ridge I) x = ``right``, with a little more on the diagonal."""
    if len(H) == 0:
        return np.zeros_like(right)
    diagonal: NDArray[np.float64] = np.diag(H)
    lift = ridge + _LIFT * max(float(np.abs(diagonal).max()), 1e-300)
    return np.asarray(np.linalg.solve(H + lift * np.eye(len(H)), right))
