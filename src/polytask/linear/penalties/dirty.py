"""Penalty of the dirty model: each coefficient is the sum of a part shared by the tasks and a part of its own.

    Omega(W) = min_{B + S = W}  shared sum_j ||b^j||_inf + own sum_tj |s_tj|          W: (T tasks, d features)

The minimum is known in closed form. With the magnitudes of a feature in descending order and
r = shared / own, it is own (|w|_(1) + ... + |w|_(k) + (r - k) |w|_(k+1)) with k the whole part of r:
the sum of the r largest. A best split cuts the magnitudes at |w|_(ceil(r)): B = sign(W) min(|W|, level).

    prox_{step Omega}(V)^j = sign(v) ((|v| - step own) where that is above m, min(|v|, m) elsewhere),
                             sum_t clip(|v_t| - m, 0, step own) = step shared
    dual norm = max_j max(||g^j||_1 / shared, ||g^j||_inf / own)

Jalali, Ravikumar, Sanghavi & Ruan, A dirty model for multi-task learning, NIPS 2010.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polytask.core.task import Floats
from polytask.linear.penalties.block import FeatureNorm


@dataclass(frozen=True)
class SharedAndOwn(FeatureNorm):
    """The penalty of the module; ``shared`` and ``own`` are positive."""

    shared: float
    own: float

    def value(self, W: Floats) -> float:
        ratio = min(self.shared / self.own, float(len(W)))
        whole = int(ratio)
        descending = -np.sort(-np.abs(W), axis=0)
        total = descending[:whole].sum()
        if whole < len(W):
            total += (ratio - whole) * descending[whole].sum()
        return float(self.own * total)

    def split(self, W: Floats) -> tuple[Floats, Floats]:
        """Return the shared and the own part of ``W``, with as large a shared part as is optimal."""
        ratio = self.shared / self.own
        if ratio >= len(W):
            return np.zeros_like(W), W.copy()
        level = -np.sort(-np.abs(W), axis=0)[int(np.ceil(ratio)) - 1]
        common = np.sign(W) * np.minimum(np.abs(W), level)
        return common, W - common

    def prox(self, V: Floats, step: float) -> Floats:
        size = np.abs(V)
        level = self._level(size, step)
        return np.asarray(np.sign(V) * np.maximum(np.minimum(size, level), size - step * self.own))

    def gauges(self, G: Floats) -> Floats:
        size = np.abs(G)
        return np.asarray(np.maximum(size.sum(axis=0) / self.shared, size.max(axis=0, initial=0.0) / self.own))

    @property
    def rule(self) -> tuple[int, float, float]:
        return 0, self.shared, self.own

    def _level(self, size: Floats, step: float) -> Floats:
        """Return per column the m > 0 with sum_t clip(size_t - m, 0, step own) = step shared, or 0 without one."""
        T = len(size)
        # going down from the largest magnitude, a task starts to add at its size and stops a threshold below
        ends = np.concatenate([size, size - step * self.own])
        order = np.argsort(-ends, axis=0)
        ends = np.take_along_axis(ends, order, axis=0)
        rate = np.cumsum(np.where(order < T, 1.0, -1.0), axis=0)
        sums = np.zeros_like(ends)
        np.cumsum(rate[:-1] * (ends[:-1] - ends[1:]), axis=0, out=sums[1:])
        goal = step * self.shared
        place = np.maximum((sums < goal).sum(axis=0) - 1, 0)[None, :]
        here = [np.take_along_axis(values, place, axis=0)[0] for values in (ends, sums, rate)]
        level = here[0] - np.divide(goal - here[1], here[2], out=np.zeros_like(here[0]), where=here[2] > 0.5)
        return np.asarray(np.where(sums[-1] < goal, 0.0, np.maximum(level, 0.0)))
