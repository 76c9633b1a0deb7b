"""One more task beside learned ones: its covariance with them is learned, theirs only shrinks (asymmetric MTRL).

    min_{w, o, v}  1/2 ||R w - z||² + alpha / 2 tr(W_+^T O_+^-1 W_+),
                   O_+ = [[(1 - v) O, o], [o^T, v]] positive semidefinite,   W_+ = [W; w^T]

W: (T, d), O = (W W^T)^(1/2) / ||W||_*, R: (r, d). With C = W^T O^-1 W = ||W||_* (W^T W)^(1/2), K = tr C and
g = 1 / (1 - v) the best o leaves

    tr(...) = min over g >= 1, n >= 0 of  K g + n   such that   w^T (n I + g C)^-1 w <= 1 - 1 / g,

a convex penalty P(w) with kinks, whose conjugate depends on p = ||u||² and c = u^T C u / p only:

    P*(u) = (1 - 1/g) p / (2 alpha) - alpha / 2 (K - c) g    at g = sqrt(p / (K - c)) / alpha,
                                                                n = (1 - 1/g) p / alpha² - g c
            p c / (2 alpha K) - alpha K / 2                  where that g is below 1 or that n below 0 (n = 0)

so that the dual problem, min over theta of 1/2 ||theta||² - z^T theta + P*(R^T theta), is smooth; w is the gradient
of P*, and the gap between the two certifies it.

Zhang & Yeung, A convex formulation for learning task relationships in multi-task learning, UAI 2010, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize

from polytask.core.task import Floats

_ROUNDING = 1e-12
_AT_ONCE = 200  # steps between two looks at the gap
_FEASIBLE = 1e-11  # of the room, by which the constraint may be missed


@dataclass(frozen=True)
class Placed:
    """w ``(d,)``, o ``(T,)``, v, the duality gap and the steps taken."""

    w: Floats
    cross: Floats
    variance: float
    gap: float
    steps: int


@dataclass(frozen=True)
class _Best:
    """Value and gradient of P* and the g and n where it is reached."""

    value: float
    w: Floats
    g: float
    n: float


class NewTaskPenalty:
    """P for learned coefficients ``W`` ``(T, d)``."""

    def __init__(self, W: Floats, alpha: float) -> None:
        self.alpha = alpha
        U, s, Vt = np.linalg.svd(W, full_matrices=False)
        kept = s > _ROUNDING * s.max(initial=0.0)
        self.U, self.s, self.Vt = U[:, kept], s[kept], Vt[kept]
        self.total = float(self.s.sum())
        self.C = self.total * self.s
        self.K = self.total**2

    def _times(self, u: Floats) -> Floats:
        return np.asarray((self.C * (self.Vt @ u)) @ self.Vt)

    def conjugate(self, u: Floats) -> _Best:
        """Return P*(u)."""
        alpha, K = self.alpha, self.K
        pull = self._times(u)
        p, along = float(u @ u), float(u @ pull)
        if K == 0.0:
            return _Best(p / (2.0 * alpha), u / alpha, np.inf, p / alpha**2)
        if p > 0.0 and along < K * p:
            c = along / p
            g = np.sqrt(p / (K - c)) / alpha
            n = (1.0 - 1.0 / g) * p / alpha**2 - g * c
            if g > 1.0 and n >= 0.0:
                value = (1.0 - 1.0 / g) * p / (2.0 * alpha) - 0.5 * alpha * (K - c) * g
                return _Best(value, alpha * (n * u + g * pull) / p, float(g), float(n))
        return _Best(
            along / (2.0 * alpha * K) - 0.5 * alpha * K, pull / (alpha * K), 1.0 + along / (alpha * K) ** 2, 0.0
        )

    def value(self, w: Floats, g: float, guess: float) -> float:
        """Return alpha / 2 (K g + n) with the least n at this g, P(w) where g is best; ``guess`` is one of n."""
        along = self.Vt @ w
        inside, outside = np.square(along), float(np.square(w - along @ self.Vt).sum())
        if self.K == 0.0:
            return 0.5 * self.alpha * outside
        if outside <= _ROUNDING**2 * float(w @ w):
            outside = 0.0
        room = 1.0 - 1.0 / g

        def excess(n: float) -> float:
            return (outside / n if outside > 0.0 else 0.0) + float((inside / (n + g * self.C)).sum()) - room

        n = guess
        if (outside > 0.0 and n == 0.0) or abs(excess(n)) > _FEASIBLE * room:
            if room == 0.0:
                return np.inf
            low, high = outside / room, (outside + float(inside.sum())) / room
            n = low
            if excess(low) > 0.0:
                n = float(brentq(excess, low, high, rtol=1e-14)) if excess(high) < 0.0 else high
        return 0.5 * self.alpha * (self.K * g + n)

    def cross(self, w: Floats, best: _Best) -> Floats:
        """Return o for the g and n of the optimum."""
        if self.K == 0.0:
            return np.zeros(len(self.U))
        pulled = best.g * self.C / (best.n + best.g * self.C) * (self.Vt @ w)
        return np.asarray(self.U @ pulled / (best.g * self.total))


def place_task(R: Floats, z: Floats, W: Floats, alpha: float, *, tol: float, max_steps: int) -> Placed:
    """Solve the problem of the module to a duality gap of ``tol`` times 1/2 ||z||²."""
    penalty = NewTaskPenalty(W, alpha)
    theta, steps, gap = z.copy(), 0, np.inf
    bound = tol * 0.5 * float(z @ z)

    def dual(theta: Floats) -> tuple[float, Floats]:
        best = penalty.conjugate(theta @ R)
        return 0.5 * float(theta @ theta) - float(z @ theta) + best.value, theta - z + R @ best.w

    while True:
        best = penalty.conjugate(theta @ R)
        value, _ = dual(theta)
        gap = 0.5 * float(np.square(R @ best.w - z).sum()) + penalty.value(best.w, best.g, best.n) + value
        if gap <= bound or steps >= max_steps:
            break
        found = minimize(
            dual,
            theta,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": min(_AT_ONCE, max_steps - steps), "ftol": 0.0, "gtol": 1e-15, "maxcor": 30},
        )
        steps += int(found.nit)
        theta = found.x
        if found.nit == 0:
            break
    return Placed(best.w, penalty.cross(best.w, best), 1.0 - 1.0 / best.g, gap, steps)
