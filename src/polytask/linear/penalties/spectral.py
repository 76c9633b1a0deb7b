"""Penalties on the singular values of the coefficient matrix: values, proximal maps, conjugates.

With s the singular values of W ``(T tasks, d features)``:

    TraceNorm         alpha sum_i s_i
    SquaredTraceNorm  ridge / 2 sum_i s_i² + alpha / 2 (sum_i s_i)²
    SpectralBox       alpha / 2 min { sum_i s_i² / m_i : low <= m_i <= high, sum_i m_i = total }

A proximal map multiplies every singular value by a factor, so it needs one eigendecomposition of
the smaller of W^T W and W W^T and no singular vectors of the larger side.

Trace norm: Cai, Candès & Shen, SIAM J. Optimization 2010. Box: McDonald, Pontil & Stamos, New
perspectives on k-support and cluster norms, JMLR 2016.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.linalg.lapack import dsyevd

from polytask.core.task import Floats


class Penalty(Protocol):
    """A convex function Omega of a coefficient matrix ``(T, d)`` with a simple proximal map."""

    def value(self, W: Floats) -> float:
        """Return Omega(W)."""
        ...

    def prox(self, V: Floats, step: float) -> Floats:
        """Return argmin_W 1/2 ||W - V||² + step Omega(W)."""
        ...

    def shrinkage(self, G: Floats) -> float:
        """Return the largest s <= 1 at which the conjugate of Omega is finite at s G."""
        ...

    def conjugate(self, G: Floats) -> float:
        """Return Omega*(G) = max_W <W, G> - Omega(W) for a G at which it is finite."""
        ...


def singular_values(W: Floats) -> Floats:
    """Return the singular values of ``W``, largest first."""
    return np.asarray(np.linalg.svd(W, compute_uv=False))


def squared_singular_values(W: Floats) -> Floats:
    """Return the squares of the singular values of ``W``, ascending, to 1e-16 of the largest."""
    gram = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
    return np.maximum(np.linalg.eigvalsh(gram), 0.0)


def eigen(W: Floats) -> tuple[Floats, Floats, bool]:
    """Return the singular values of ``W``, ascending, their vectors on the smaller side, and whether that is the left.

    Values below 1e-8 of the largest are rounding.
    """
    left = W.shape[0] <= W.shape[1]
    gram = W @ W.T if left else W.T @ W
    values, vectors, failed = dsyevd(gram.T, lower=1, overwrite_a=1)
    if failed:
        raise np.linalg.LinAlgError("eigenvalues of a coefficient matrix did not converge; are all numbers finite?")
    return np.sqrt(np.maximum(values, 0.0)), vectors, left


def scale_singular_values(W: Floats, vectors: Floats, left: bool, factors: Floats) -> Floats:
    """Return ``W`` with its singular values times ``factors``; arguments as :func:`eigen` gave them."""
    middle = (vectors * factors) @ vectors.T
    return np.asarray(middle @ W if left else W @ middle)


@dataclass(frozen=True)
class TraceNorm:
    """alpha times the sum of the singular values."""

    alpha: float

    def value(self, W: Floats) -> float:
        return float(self.alpha * singular_values(W).sum())

    def prox(self, V: Floats, step: float) -> Floats:
        values, vectors, left = eigen(V)
        bound = step * self.alpha
        factors = np.where(values > bound, 1.0 - bound / np.where(values > bound, values, 1.0), 0.0)
        return scale_singular_values(V, vectors, left, factors)

    def shrinkage(self, G: Floats) -> float:
        top = self.dual_norm(G)
        return 1.0 if top <= self.alpha else self.alpha / top

    def conjugate(self, G: Floats) -> float:  # noqa: ARG002 - zero wherever it is finite
        return 0.0

    @staticmethod
    def dual_norm(G: Floats) -> float:
        """Return the largest singular value."""
        values, _, _ = eigen(G)
        return float(values[-1])


@dataclass(frozen=True)
class SquaredTraceNorm:
    """ridge / 2 ||W||_F² + alpha / 2 ||W||_*², with alpha > 0.

    The second term is alpha / 2 times the minimum over positive semidefinite matrices O of trace 1
    of tr(W^T O^-1 W), reached at O = (W W^T)^(1/2) / tr (W W^T)^(1/2).
    """

    alpha: float
    ridge: float = 0.0

    def value(self, W: Floats) -> float:
        s = singular_values(W)
        return float(0.5 * self.ridge * (s @ s) + 0.5 * self.alpha * s.sum() ** 2)

    def prox(self, V: Floats, step: float) -> Floats:
        values, vectors, left = eigen(V)
        threshold = self._threshold(values[::-1], 1.0 + step * self.ridge, step * self.alpha)
        kept = values > threshold
        factors = np.where(kept, 1.0 - threshold / np.where(kept, values, 1.0), 0.0) / (1.0 + step * self.ridge)
        return scale_singular_values(V, vectors, left, factors)

    def shrinkage(self, G: Floats) -> float:  # noqa: ARG002 - finite everywhere
        return 1.0

    def conjugate(self, G: Floats) -> float:
        s = singular_values(G)
        threshold = self._threshold(s, self.ridge, self.alpha)
        rest = np.maximum(s - threshold, 0.0)
        value = 0.5 * threshold**2 / self.alpha
        return float(value + (0.5 * (rest @ rest) / self.ridge if self.ridge > 0 else 0.0))

    @staticmethod
    def _threshold(s: Floats, curvature: float, strength: float) -> float:
        """Solve threshold = strength sum_i (s_i - threshold)_+ / curvature for descending ``s``."""
        sums = np.cumsum(s) * strength / (curvature + strength * np.arange(1, len(s) + 1))
        return float(sums.max(initial=0.0))


@dataclass(frozen=True)
class SpectralBox:
    """alpha / 2 min_m sum_i s_i² / m_i over low <= m_i <= high, sum_i m_i = total, for ``size`` weights m_i.

    There are as many weights as ``size`` (at least the number of singular values); those beyond the
    singular values belong to values 0.

    Parameters
    ----------
    alpha
        Strength, positive.
    low, high
        0 < low <= high.
    total
        size low <= total <= size high.
    size
        Number of weights.
    """

    alpha: float
    low: float
    high: float
    total: float
    size: int

    def value(self, W: Floats) -> float:
        squares = squared_singular_values(W)
        return float(0.5 * self.alpha * (squares / self.weights(np.sqrt(squares))).sum())

    def weights(self, s: Floats) -> Floats:
        """Return the best m for singular values ``s``: clip(u s_i, low, high) with the u that gives the total."""
        return _clipped(s, self.low, self.high, self.total, self.size)

    def prox(self, V: Floats, step: float) -> Floats:
        values, vectors, left = eigen(V)
        shift = step * self.alpha
        # m + shift solves the same problem on a shifted box
        weights = _clipped(values, self.low + shift, self.high + shift, self.total + self.size * shift, self.size)
        return scale_singular_values(V, vectors, left, 1.0 - shift / weights)

    def shrinkage(self, G: Floats) -> float:  # noqa: ARG002 - finite everywhere
        return 1.0

    def conjugate(self, G: Floats) -> float:
        squares = squared_singular_values(G)[::-1]
        spare = self.total - self.size * self.low  # what the largest values may have on top of low
        room = self.high - self.low
        each = np.clip(spare - room * np.arange(len(squares)), 0.0, room)
        return float(((self.low + each) @ squares) / (2.0 * self.alpha))


def _clipped(s: Floats, low: float, high: float, total: float, size: int) -> Floats:
    """Return clip(u s, low, high) with u >= 0 such that it adds up to ``total`` with ``size - len(s)`` further lows.

    Where u would be infinite (too few values above 0) the values above 0 have ``high``.
    """
    positive = s[s > 0]
    count = len(positive)
    spare = total - size * low
    if count == 0 or spare <= 0.0 or high <= low:
        return np.full(len(s), low)
    if spare >= count * (high - low):
        return np.where(s > 0, high, low)
    ends = np.concatenate([low / positive, high / positive])  # where a value leaves low and reaches high
    ends.sort()
    used = np.minimum(np.maximum(ends[:, None] * positive, low), high).sum(axis=1) - count * low
    right = min(int(used.searchsorted(spare)), len(ends) - 1)
    left = max(right - 1, 0)
    width = used[right] - used[left]
    share = (spare - used[left]) / width if width > 0 else 1.0
    u = ends[left] + min(max(share, 0.0), 1.0) * (ends[right] - ends[left])
    return np.asarray(np.minimum(np.maximum(u * s, low), high))


@dataclass(frozen=True)
class AroundMean:
    """mean / 2 T ||w_mean||² + a box penalty on the deviations w_t - w_mean; ``mean`` > 0.

    The two act on orthogonal parts of W, so values, proximal maps and conjugates split.
    """

    mean: float
    deviations: SpectralBox

    def value(self, W: Floats) -> float:
        average = W.mean(axis=0)
        return 0.5 * self.mean * len(W) * float(average @ average) + self.deviations.value(W - average)

    def prox(self, V: Floats, step: float) -> Floats:
        average = V.mean(axis=0)
        return self.deviations.prox(V - average, step) + average / (1.0 + step * self.mean)

    def shrinkage(self, G: Floats) -> float:
        return self.deviations.shrinkage(G - G.mean(axis=0))

    def conjugate(self, G: Floats) -> float:
        average = G.mean(axis=0)
        return 0.5 * len(G) * float(average @ average) / self.mean + self.deviations.conjugate(G - average)


@dataclass(frozen=True)
class TaskNorm:
    """alpha times the sum over tasks of the Euclidean norm of that task's coefficients."""

    alpha: float

    def value(self, W: Floats) -> float:
        return float(self.alpha * np.linalg.norm(W, axis=1).sum())

    def prox(self, V: Floats, step: float) -> Floats:
        norms = np.sqrt(np.einsum("td,td->t", V, V))
        kept = norms > step * self.alpha
        return np.asarray(V * np.where(kept, 1.0 - step * self.alpha / np.where(kept, norms, 1.0), 0.0)[:, None])

    def shrinkage(self, G: Floats) -> float:
        top = self.dual_norm(G)
        return 1.0 if top <= self.alpha else self.alpha / top

    def conjugate(self, G: Floats) -> float:  # noqa: ARG002 - zero wherever it is finite
        return 0.0

    @staticmethod
    def dual_norm(G: Floats) -> float:
        """Return the largest norm of a task."""
        return float(np.linalg.norm(G, axis=1).max(initial=0.0))
