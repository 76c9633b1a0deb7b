"""Quadratics with the largest magnitude of every feature, by a primal-dual interior-point method.

    min_W  1/2 <W, H W> - <l, W> + ridge / 2 ||W||² + alpha sum_j max_t |w_tj|     W: (T, k), H block-diagonal by task

is a quadratic program in W and the levels m: minimise alpha sum_j m_j with slacks p = m - w and q = m + w at least
0. With multipliers a, b of the slacks, D = a/p + b/q + ridge, E = b/q - a/p and roots H_t = R_t^T R_t
of r_t rows, the tasks of a Newton step meet in the levels only:

    S = diag(sum_t (4 ab/(pq) + ridge (a/p + b/q)) / D_t) + sum_t (V_t E_t)^T V_t E_t,     V_t = C_t^-1 R_t D_t^-1

with C_t C_t^T = I + R_t D_t^-1 R_t^T. A step costs sum_t r_t k² and the number of steps hardly depends on
the conditioning: what coordinate descent wants with many more features than rows, where the solutions
almost interpolate and ties form slowly. Steps are those of Mehrotra's predictor and corrector.

Mehrotra, On the implementation of a primal-dual interior point method, SIAM J. Optimization 1992; Turlach,
Venables & Wright, Simultaneous variable selection, Technometrics 2005 (an interior-point method for l1/linf).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, solve_triangular
from scipy.linalg.lapack import dpstrf

from polytask.core.task import Floats
from polytask.linear.solvers.losses import Curvature

_STEPS = 60
_BORDER = 0.99  # share of the way to the border
_RANK = 1e-13  # of the largest diagonal entry, below which a root has no further rows
_LIFT = 1e-13
_LEAST = 1e-13  # of the first complementarity, below which rounding rules


def root_of(gram: Floats) -> Floats:
    """Return R ``(r, k)`` with R^T R = ``gram``, positive semidefinite of rank r, by pivoted elimination."""
    factor, pivots, rank, _ = dpstrf(gram, tol=_RANK * float(np.diag(gram).max(initial=0.0)))
    root = np.zeros((int(rank), len(gram)))
    root[:, pivots - 1] = np.triu(factor)[: int(rank)]
    return root


def interior_levels(
    curvature: Curvature,
    alpha: float,
    ridge: float,
    linear: Floats,
    W: Floats,
    enough: Callable[[Floats], bool],
) -> Floats:
    """Return coefficients ``(T, k)`` near the solution, none of them exactly tied.

    It stops where ``enough`` holds of the coefficients, or where rounding ends the progress.
    """
    roots = [root_of(gram) for gram in curvature.grams]
    method = _Interior(curvature, roots, alpha, ridge, linear, W)
    for _ in range(_STEPS):
        if not method.advance() or enough(method.W):
            break
    return method.W


class _Interior:
    """Where the method stands."""

    def __init__(
        self, curvature: Curvature, roots: list[Floats], alpha: float, ridge: float, linear: Floats, W: Floats
    ) -> None:
        self.curvature, self.roots, self.alpha, self.ridge, self.linear = curvature, roots, alpha, ridge, linear
        T = len(W)
        self.W = W
        top = np.abs(W).max(axis=0)
        bend = float(np.einsum("pdd->pd", curvature.grams)[curvature.pattern].mean() * curvature.scale.mean())
        self.m = top + max(float(top.mean()), float(np.abs(linear).mean()) / max(bend, 1e-300), 1e-300)
        pull = -self._slope()
        share = np.abs(pull).sum(axis=0) / alpha
        pull = 0.5 * pull / np.maximum(share, 1.0)
        level = 0.5 * (alpha - np.abs(pull).sum(axis=0)) / T
        self.a, self.b = np.maximum(pull, 0.0) + level, np.maximum(-pull, 0.0) + level
        self.least = _LEAST * float((self.a * (self.m - W) + self.b * (self.m + W)).mean())

    def _slope(self) -> Floats:
        return self.curvature.times(self.W) - self.linear + self.ridge * self.W

    def advance(self) -> bool:
        """Make a step in place; False: rounding leaves none."""
        a, b, p, q = self.a, self.b, self.m - self.W, self.m + self.W
        if float((a * p + b * q).mean()) <= self.least:
            return False
        A, B = a / p, b / q
        D, E = A + B + self.ridge, B - A
        try:
            solve = self._factor(A, B, D, E)
        except LinAlgError:
            return False
        off, short = self._slope() + a - b, self.alpha - (a + b).sum(axis=0)

        def step(above: Floats, below: Floats) -> tuple[Floats, Floats, Floats, Floats]:
            """Return dw, dm, da, db that change ap by ``above`` and bq by ``below`` to first order."""
            above, below = above / p, below / q
            dw, dm = solve(-off - above + below, (above + below).sum(axis=0) - short)
            return dw, dm, above - A * (dm - dw), below - B * (dm + dw)

        mean = float((a * p + b * q).mean()) / 2.0
        dw, dm, da, db = step(-a * p, -b * q)
        size = _share((a, da), (b, db), (p, dm - dw), (q, dm + dw))
        ahead = (a + size * da) * (p + size * (dm - dw)) + (b + size * db) * (q + size * (dm + dw))
        goal = mean * min(float(ahead.mean()) / (2.0 * mean), 1.0) ** 3
        dw, dm, da, db = step(goal - a * p - da * (dm - dw), goal - b * q - db * (dm + dw))
        size = min(1.0, _BORDER * _share((a, da), (b, db), (p, dm - dw), (q, dm + dw)))
        if not np.isfinite(size) or size < 1e-8:
            return False
        self.W, self.m = self.W + size * dw, self.m + size * dm
        self.a, self.b = a + size * da, b + size * db
        return bool((self.m > np.abs(self.W)).all())

    def _factor(self, A: Floats, B: Floats, D: Floats, E: Floats) -> Callable[[Floats, Floats], tuple[Floats, Floats]]:
        """Return what solves (H + diag D) dw + E dm = f, sum_t (A + B) dm + E dw = g."""
        schur = np.diag(((4.0 * A * B + self.ridge * (A + B)) / D).sum(axis=0))
        bent = []
        for t, number in enumerate(self.curvature.pattern):
            R = np.sqrt(self.curvature.scale[t]) * self.roots[number]
            over = R / D[t]
            inner = over @ R.T
            inner[np.diag_indices_from(inner)] += 1.0
            V = solve_triangular(np.linalg.cholesky(inner), over, lower=True, check_finite=False)
            bent.append(V)
            coupled = V * E[t]
            schur += coupled.T @ coupled
        schur[np.diag_indices_from(schur)] *= 1.0 + _LIFT
        factor = cho_factor(schur, lower=True, overwrite_a=True, check_finite=False)

        def alone(f: Floats) -> Floats:
            return np.stack([f[t] / D[t] - V.T @ (V @ f[t]) for t, V in enumerate(bent)])

        def solve(f: Floats, g: Floats) -> tuple[Floats, Floats]:
            dm = cho_solve(factor, g - (E * alone(f)).sum(axis=0), check_finite=False)
            return alone(f - E * dm), dm

        return solve


def _share(*pairs: tuple[Floats, Floats]) -> float:
    """Return the largest share of the changes, at most 1, that keeps every value at least 0."""
    least = 1.0
    for value, change in pairs:
        falling = change < 0.0
        if falling.any():
            least = min(least, float((value[falling] / -change[falling]).min()))
    return least
