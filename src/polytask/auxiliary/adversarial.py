"""Adversarial auxiliary task: learn features from which a domain cannot be told.

    forward:  r(h) = h              backward:  dL/dh = -strength · dL/dr

A head behind the reversal learns to predict the domain (hospital, camera, sensitive attribute); the
reversed gradient makes the trunk unlearn it. The head's own gradient is not reversed. Strength 0: the
trunk ignores the domain.

Ganin & Lempitsky, Unsupervised Domain Adaptation by Backpropagation, ICML 2015.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.core.errors import InputError
from polytask.deep.seeding import seeded


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * -ctx.strength, None


class GradientReversal(nn.Module):
    """Identity whose gradient is multiplied by ``-strength``.

    Parameters
    ----------
    strength
        At least 0; may be set anew at any time, for example to :func:`ramp`.
    """

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength

    @property
    def strength(self) -> float:
        """How strongly the reversed gradient counts."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if not 0 <= value < math.inf:
            raise InputError(f"strength is {value}; give a finite number of at least 0")
        self._strength = float(value)

    def get_extra_state(self) -> dict[str, float]:
        return {"strength": self._strength}

    def set_extra_state(self, state: dict[str, float]) -> None:
        self.strength = state["strength"]

    def forward(self, features: Tensor) -> Tensor:
        reversed_: Tensor = _Reverse.apply(features, self._strength)  # type: ignore[no-untyped-call]  # torch's is
        return reversed_


class DomainHead(nn.Module):
    """Predict the domain from features behind a gradient reversal; train it with cross-entropy.

    Parameters
    ----------
    n_features
        Width of the features.
    n_domains
        Number of domains, at least 2.
    widths
        Hidden layers of the head.
    strength
        Of the reversal.
    seed
        Seed of the initial weights; global random state is not touched.
    """

    def __init__(
        self, n_features: int, n_domains: int, *, widths: Sequence[int] = (32,), strength: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__()
        if n_domains < 2:
            raise InputError(f"n_domains is {n_domains}; telling domains apart needs at least 2")
        self.reversal = GradientReversal(strength)
        with seeded(seed):
            layers: list[nn.Module] = []
            for width in widths:
                layers += [nn.Linear(n_features, width), nn.ReLU()]
                n_features = width
            self.head = nn.Sequential(*layers, nn.Linear(n_features, n_domains))

    def forward(self, features: Tensor) -> Tensor:
        """Return domain logits ``(B, n_domains)`` from features ``(B, n_features)``."""
        logits: Tensor = self.head(self.reversal(features))
        return logits


def ramp(progress: float, *, steepness: float = 10.0) -> float:
    """Return the paper's strength ``2 / (1 + exp(-steepness · progress)) - 1`` for progress in [0, 1]."""
    if not 0 <= progress <= 1:
        raise InputError(f"progress is {progress}; it runs from 0 to 1")
    return 2 / (1 + math.exp(-steepness * progress)) - 1
