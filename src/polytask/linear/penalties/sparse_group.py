"""Sparse-group penalty: few features, and among the tasks of a feature few that use it.

    Omega(W) = entry sum_tj |w_tj| + group sum_j ||w^j||_2          W: (T tasks, d features), w^j = W[:, j]

    prox_{step Omega} = prox of the second term after that of the first
    dual norm of a feature: the s with ||(|g| - s entry)_+||_2 = s group       (an epsilon-norm)

Friedman, Hastie & Tibshirani, A note on the group lasso and a sparse group lasso, 2010; Burdakov &
Merkulov, On a new norm for data fitting and optimization problems, 2001 (epsilon-norm).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polytask.core.task import Floats
from polytask.linear.penalties.block import EntryNorm, FeatureNorm, RowNorm


@dataclass(frozen=True)
class SparseRowNorm(FeatureNorm):
    """entry times the l1 norm plus group times the l1/l2 norm; not negative, one of them positive."""

    entry: float
    group: float

    def value(self, W: Floats) -> float:
        return EntryNorm(self.entry).value(W) + RowNorm(self.group).value(W)

    def prox(self, V: Floats, step: float) -> Floats:
        return RowNorm(self.group).prox(EntryNorm(self.entry).prox(V, step), step)

    def gauges(self, G: Floats) -> Floats:
        if self.entry == 0.0:
            return RowNorm(self.group).gauges(G)
        if self.group == 0.0:
            return EntryNorm(self.entry).gauges(G)
        descending = -np.sort(-np.abs(G), axis=0)
        first, second = np.cumsum(descending, axis=0), np.cumsum(descending**2, axis=0)
        numbers = np.arange(1, len(G) + 1)[:, None]
        # at s = size_k / entry the k - 1 larger entries are left over: is what is left below s group?
        ends = descending / self.entry
        left = second - 2.0 * first * descending + numbers * descending**2
        kept = np.maximum((left < (ends * self.group) ** 2).sum(axis=0), 1) - 1  # their number - 1
        pick = kept[None, :]
        one = self.entry * np.take_along_axis(first, pick, axis=0)[0]
        two = np.take_along_axis(second, pick, axis=0)[0]
        curve = (kept + 1.0) * self.entry**2 - self.group**2  # curve s² - 2 one s + two = 0
        root = one + np.sqrt(np.maximum(one**2 - curve * two, 0.0))
        return np.asarray(np.divide(two, root, out=np.zeros_like(two), where=root > 0.0))

    @property
    def rule(self) -> tuple[int, float, float]:
        return (0, np.inf, self.entry) if self.group == 0.0 else (1, self.entry, self.group)
