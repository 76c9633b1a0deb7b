"""Block-sparse penalties l1/lq: the sum over features of a norm of that feature's coefficients.

    Omega(W) = alpha sum_j ||w^j||_q,  q in {1, 2, inf}          W: (T tasks, d features), w^j = W[:, j]

    class         q    prox_{step Omega}(V)^j, tau = step alpha                   dual norm
    EntryNorm     1    sign(v) max(0, |v| - tau)                                  max_j ||g^j||_inf
    RowNorm       2    v max(0, 1 - tau / ||v||_2)                                max_j ||g^j||_2
    RowMaximum    inf  sign(v) min(|v|, m), sum_t (|v_t| - m)_+ = tau             max_j ||g^j||_1

q = 1: every task its own features; q = 2: a feature is used by all tasks or by none; q = inf: as 2,
and the largest coefficients of a feature are of equal size.

Tibshirani, Regression shrinkage and selection via the lasso, JRSS-B 1996; Yuan & Lin, Model
selection and estimation in regression with grouped variables, JRSS-B 2006; Turlach, Venables &
Wright, Simultaneous variable selection, Technometrics 2005.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from polytask.core.task import Floats


class FeatureNorm(ABC):
    """A sum over features of one norm of that feature's coefficients (abstract); see :class:`Penalty`."""

    @abstractmethod
    def value(self, W: Floats) -> float:
        """Return the penalty of ``W`` ``(T, d)``."""

    @abstractmethod
    def prox(self, V: Floats, step: float) -> Floats:
        """Return argmin_W 1/2 ||W - V||² + step * value(W)."""

    @abstractmethod
    def gauges(self, G: Floats) -> Floats:
        """Return the dual norm of every feature's entries ``(d,)``; W = 0 is best where all are at most 1."""

    @property
    @abstractmethod
    def rule(self) -> tuple[int, float, float]:
        """How coordinate descent solves for one feature: see ``solvers/row_descent.py``."""

    def project_dual(self, V: Floats, step: float) -> Floats:
        """Return the nearest point whose every feature has a dual norm of at most ``step`` (Moreau: V - prox)."""
        return np.asarray(V - self.prox(V, step))

    def shrinkage(self, G: Floats) -> float:
        """Return the largest s <= 1 at which the conjugate is finite at s G."""
        top = float(self.gauges(G).max(initial=0.0))
        return 1.0 if top <= 1.0 else 1.0 / top

    def conjugate(self, G: Floats) -> float:  # noqa: ARG002 - zero wherever it is finite
        """Return max_W <W, G> - value(W) for a G at which it is finite."""
        return 0.0


@dataclass(frozen=True)
class EntryNorm(FeatureNorm):
    """alpha times the sum of all magnitudes (l1); ``alpha`` is not negative."""

    alpha: float

    def value(self, W: Floats) -> float:
        return float(self.alpha * np.abs(W).sum())

    def prox(self, V: Floats, step: float) -> Floats:
        return np.asarray(np.sign(V) * np.maximum(np.abs(V) - step * self.alpha, 0.0))

    def gauges(self, G: Floats) -> Floats:
        return np.asarray(np.abs(G).max(axis=0, initial=0.0) / self.alpha)

    @property
    def rule(self) -> tuple[int, float, float]:
        return 0, np.inf, self.alpha

    @staticmethod
    def dual_norm(G: Floats) -> float:
        """Return the largest magnitude."""
        return float(np.abs(G).max(initial=0.0))


@dataclass(frozen=True)
class RowNorm(FeatureNorm):
    """alpha times the sum over features of the Euclidean norm (l1/l2); ``alpha`` is not negative."""

    alpha: float

    def value(self, W: Floats) -> float:
        return float(self.alpha * np.linalg.norm(W, axis=0).sum())

    def prox(self, V: Floats, step: float) -> Floats:
        norms = np.linalg.norm(V, axis=0)
        shrink = np.zeros_like(norms)
        kept = norms > step * self.alpha
        shrink[kept] = 1.0 - step * self.alpha / norms[kept]
        return np.asarray(V * shrink)

    def project_dual(self, V: Floats, step: float) -> Floats:
        norms = np.linalg.norm(V, axis=0)
        bound = step * self.alpha
        shrink = np.ones_like(norms)
        outside = norms > bound
        shrink[outside] = bound / norms[outside]
        return np.asarray(V * shrink)

    def gauges(self, G: Floats) -> Floats:
        return np.asarray(np.linalg.norm(G, axis=0) / self.alpha)

    @property
    def rule(self) -> tuple[int, float, float]:
        return 1, 0.0, self.alpha

    @staticmethod
    def dual_norm(V: Floats) -> float:
        """Return max_j ||v^j||_2; at the gradient of the loss at W = 0 this is the smallest alpha that gives W = 0."""
        return float(np.linalg.norm(V, axis=0).max(initial=0.0))


@dataclass(frozen=True)
class RowMaximum(FeatureNorm):
    """alpha times the sum over features of the largest magnitude (l1/linf); ``alpha`` is not negative."""

    alpha: float

    def value(self, W: Floats) -> float:
        return float(self.alpha * np.abs(W).max(axis=0, initial=0.0).sum())

    def prox(self, V: Floats, step: float) -> Floats:
        size = np.abs(V)
        return np.asarray(np.sign(V) * np.minimum(size, l1_level(size, step * self.alpha)))

    def gauges(self, G: Floats) -> Floats:
        return np.asarray(np.abs(G).sum(axis=0) / self.alpha)

    @property
    def rule(self) -> tuple[int, float, float]:
        return 0, self.alpha, np.inf

    @staticmethod
    def dual_norm(G: Floats) -> float:
        """Return the largest sum of a feature's magnitudes."""
        return float(np.abs(G).sum(axis=0).max(initial=0.0))


def l1_level(size: Floats, radius: float) -> Floats:
    """Return per column of ``size`` ``(T, d)``, not negative, the m >= 0 with sum_t (size_t - m)_+ = ``radius``.

    It is 0 where the sum of the column is at most ``radius``. Taking m off every entry projects the
    column on the l1 ball (Duchi et al., Efficient projections onto the l1-ball, ICML 2008).
    """
    descending = -np.sort(-size, axis=0)
    numbers = np.arange(1, len(size) + 1)[:, None]
    # with the k largest above the level it is (their sum - radius) / k: the largest of these values
    levels = (np.cumsum(descending, axis=0) - radius) / numbers
    return np.asarray(levels.max(axis=0, initial=0.0))
