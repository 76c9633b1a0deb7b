"""Mixed precision: matrix products in half precision, weights and losses in full.

    bfloat16   the range of float32: nothing else is needed
    float16    gradients below 6e-8 vanish, so they are multiplied by a scale S on their way through the network

S enters where the scores leave the network, not at the losses: losses, and with them the weights that a balancer makes
of losses and what it learns, are never scaled; the gradients of all tasks are, all by the same S, and the balancer is
told S. The order of a step: losses, weights, backward (scaled), sum over processes, division by S, penalty, clip, step.
Where a gradient is not finite the step is left out and S is halved; after 2000 steps without it S is doubled.

Micikevicius et al., Mixed Precision Training, ICLR 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

_FIRST, _LARGEST, _PATIENCE = 2.0**16, 2.0**24, 2000
_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """The type of a network's matrix products, and the scale of its gradients.

    Parameters
    ----------
    name
        ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    device
        Where the network is.

    Attributes
    ----------
    scale
        S; 1 where nothing is scaled.
    calm
        Steps since S last changed.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.type = _TYPES.get(name)
        self.device = device
        self.scales = name == "float16"
        self.scale = _FIRST if self.scales else 1.0
        self.calm = 0

    def forward(self) -> AbstractContextManager[Any]:
        """Return the context in which scores are computed."""
        if self.type is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.type)

    def full(self, scores: Tensor, *, scaled: bool) -> Tensor:
        """Return scores in full precision; with ``scaled`` their gradients arrive multiplied by S."""
        if self.type is not None:
            scores = scores.float()
        if scaled and self.scales:
            scores = _Scaled.apply(scores, self.scale)  # type: ignore[no-untyped-call]  # torch's is
        return scores

    @torch.no_grad()
    def unscale(self, parameters: Sequence[nn.Parameter]) -> bool:
        """Divide the gradients by S, choose the next S, and say whether all are finite."""
        if not self.scales:
            return True
        found = [parameter.grad for parameter in parameters if parameter.grad is not None]
        finite = all(bool(gradient.isfinite().all()) for gradient in found)
        for gradient in found:
            gradient /= self.scale
        self.calm += 1
        if not finite:
            self.scale, self.calm = max(1.0, self.scale / 2), 0
        elif self.calm == _PATIENCE:
            self.scale, self.calm = min(_LARGEST, self.scale * 2), 0
        return finite


class _Scaled(torch.autograd.Function):
    """The identity, whose gradient is multiplied."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return scores.view_as(scores)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None
