"""Squared trace norm of every group of tasks: tasks of one group use the same few directions.

    Omega(W) = alpha sum_g ||W_g||_*²        W: (T tasks, d features), W_g: the rows of group g

Value, proximal map and conjugate split by group.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from polytask.core.data import Ints
from polytask.core.task import Floats
from polytask.linear.penalties.spectral import SquaredTraceNorm


@dataclass(frozen=True)
class GroupedSquaredTraceNorm:
    """alpha times the sum over groups of the squared trace norm of the group's coefficients.

    Parameters
    ----------
    alpha
        Strength, positive.
    labels
        Group of each task, ``(T,)``.
    """

    alpha: float
    labels: Ints

    @cached_property
    def _groups(self) -> list[Ints]:
        return [np.flatnonzero(self.labels == group) for group in np.unique(self.labels)]

    @property
    def _part(self) -> SquaredTraceNorm:
        return SquaredTraceNorm(2.0 * self.alpha)

    def value(self, W: Floats) -> float:
        return sum(self._part.value(W[group]) for group in self._groups)

    def prox(self, V: Floats, step: float) -> Floats:
        W = np.empty_like(V)
        for group in self._groups:
            W[group] = self._part.prox(V[group], step)
        return W

    def shrinkage(self, G: Floats) -> float:  # noqa: ARG002 - finite everywhere
        return 1.0

    def conjugate(self, G: Floats) -> float:
        return sum(self._part.conjugate(G[group]) for group in self._groups)
