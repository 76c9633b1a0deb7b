"""Elastic penalty: a norm plus half a squared Euclidean norm, which keeps correlated features together.

    Omega(W) = norm(W) + ridge / 2 ||W||_F²          W: (T tasks, d features), ridge > 0

    prox_{step Omega}(V) = prox_{c step norm}(c V),  c = 1 / (1 + step ridge)
    Omega*(G)            = ||prox_norm(G)||_F² / (2 ridge)

The conjugate is the squared distance of G to the dual ball of the norm over 2 ridge, and Moreau's
identity gives what lies outside the ball as a proximal map.

Zou & Hastie, Regularization and variable selection via the elastic net, JRSS-B 2005.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polytask.core.task import Floats
from polytask.linear.penalties.block import FeatureNorm


@dataclass(frozen=True)
class Elastic:
    """``norm`` plus ridge / 2 times the sum of squares; ``ridge`` is positive."""

    norm: FeatureNorm
    ridge: float

    def value(self, W: Floats) -> float:
        return self.norm.value(W) + 0.5 * self.ridge * float(np.square(W).sum())

    def prox(self, V: Floats, step: float) -> Floats:
        shrink = 1.0 / (1.0 + step * self.ridge)
        return self.norm.prox(shrink * V, shrink * step)

    def shrinkage(self, G: Floats) -> float:  # noqa: ARG002 - finite everywhere
        return 1.0

    def conjugate(self, G: Floats) -> float:
        return float(np.square(self.norm.prox(G, 1.0)).sum()) / (2.0 * self.ridge)
