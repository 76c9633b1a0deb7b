"""Sparse coefficients that tasks joined in a signed graph share or oppose.

    Omega(W) = alpha sum_tj |W_tj| + sum_e c_e sum_j |W_sj - sigma_e W_tj|        e = (s, t, sigma_e = 1 or -1)

W: (T tasks, d features). The proximal map splits by feature: that of the differences, solved through
its dual by coordinate steps from the last dual point, then soft thresholding by alpha. (A difference
keeps its sign under soft thresholding, so the two compose.)

Omega is a norm. A gradient G has dual norm at most 1 where some U with |U_e| <= c_e gives
|G + D^T U| <= alpha, D the differences; U scales with G, so any such U gives a dual point.

Friedman, Hastie, Höfling & Tibshirani, Pathwise coordinate optimization, 2007; Chen, Kim, Lin,
Carbonell & Xing, Graph-structured multi-task regression and an efficient optimization method for
general fused lasso, 2010.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polytask.core.data import Ints
from polytask.core.task import Floats

_TOLERANCE = 1e-13  # gap of a proximal map relative to its squared length
_SWEEPS = 10_000
_TOGETHER = 1e-6


@dataclass(frozen=True)
class SignedGraph:
    """Edges between tasks: ends ``first`` and ``second``, ``signs`` 1 or -1, ``weights`` above 0, each ``(E,)``."""

    first: Ints
    second: Ints
    signs: Floats
    weights: Floats

    @classmethod
    def of_matrix(cls, matrix: Floats) -> SignedGraph:
        """Read the upper triangle of a signed weight matrix ``(T, T)``; 0 is no edge."""
        first, second = np.nonzero(np.triu(matrix, 1))
        values = matrix[first, second]
        return cls(first, second, np.sign(values), np.abs(values))

    def differences(self, W: Floats) -> Floats:
        """Return w_s - sigma w_t for all edges, ``(E, d)``."""
        return np.asarray(W[self.first] - self.signs[:, None] * W[self.second])

    def gather(self, U: Floats, n_tasks: int) -> Floats:
        """Return D^T U ``(T, d)`` for ``U`` ``(E, d)``."""
        total = np.zeros((n_tasks, U.shape[1]))
        np.add.at(total, self.first, U)
        np.add.at(total, self.second, -self.signs[:, None] * U)
        return total


class FusedNorm:
    """alpha sum |W_tj| + gamma sum over edges of weight |W_sj - sigma W_tj|.

    It remembers the dual point of its last proximal map, from which the next one and the certificate start.

    Parameters
    ----------
    alpha
        Strength on the coefficients, positive.
    gamma
        Strength on differences, not negative.
    graph
        Edges.
    share
        A proximal map is also done when its gap is at most this share of that at its start, which falls as
        the steps around it converge; the certificate solves the last one to the end. 0: all of them are.
    """

    def __init__(self, alpha: float, gamma: float, graph: SignedGraph, share: float = 0.0) -> None:
        self.alpha = alpha
        self.graph = graph
        self.share = share
        self.bounds = gamma * graph.weights
        self._dual: Floats | None = None  # U^T, (d, E)
        self._last: Floats | None = None  # V^T / step of the last proximal map, until solved exactly

    def value(self, W: Floats) -> float:
        differences = np.abs(self.graph.differences(W)).sum(axis=1)
        return float(self.alpha * np.abs(W).sum() + self.bounds @ differences)

    def prox(self, V: Floats, step: float) -> Floats:
        w = np.array(V.T / step, order="C")
        if self.bounds.any():
            if self._dual is None or self._dual.shape != (len(w), len(self.bounds)):
                self._dual = np.zeros((len(w), len(self.bounds)))
            self._last = w.copy()
            self._fuse(w, self._dual, self.share)
        return np.asarray((np.sign(w) * np.maximum(np.abs(w) - self.alpha, 0.0)).T * step)

    def _fuse(self, w: Floats, U: Floats, share: float) -> None:
        """Solve for differences alone, in place, from the dual point ``U`` of the last time, also in place."""
        from polytask.linear.solvers.fusion import fuse, join  # numba: loaded when a fit needs it

        graph = self.graph
        fuse(w, graph.first, graph.second, graph.signs, self.bounds, U, _TOLERANCE, share, _SWEEPS)
        join(w, graph.first, graph.second, graph.signs, self.bounds, U, _TOGETHER)

    def shrinkage(self, G: Floats) -> float:
        rest = G
        if self._dual is not None and self._dual.shape == (G.shape[1], len(self.bounds)):
            if self.share > 0.0 and self._last is not None:
                self._fuse(self._last, self._dual, 0.0)  # the last proximal map as far as rounding allows
                self._last = None
            rest = G + self.graph.gather(self._dual.T, len(G))
        top = float(np.abs(rest).max(initial=0.0))
        return 1.0 if top <= self.alpha else self.alpha / top

    def conjugate(self, G: Floats) -> float:  # noqa: ARG002 - zero wherever it is finite
        return 0.0
