"""Convolutions of n branches.

    y_k = x_k * W_k + b_k          W: (n, out, in / groups, *kernel),  b: (n, out)

Branches with inputs of their own are one convolution in ``n·groups`` groups over ``n·in`` channels; a shared
input is one convolution with ``n·out`` outputs and no groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from polytask.deep.stacking.base import (
    STACKS,
    Stacked,
    filled,
    fold_channels,
    own_input,
    pick,
    stacked_parameter,
    unfold_channels,
)


class _Convolution(Stacked):
    """Weights ``(n, out, in / groups, *kernel)``, bias ``(n, out)``."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, modules: Sequence[nn.Conv1d | nn.Conv2d]) -> None:
        super().__init__(modules)
        first = modules[0]
        self.kind = type(first)
        self.convolve = functional.conv1d if self.kind is nn.Conv1d else functional.conv2d
        self.options: dict[str, Any] = {
            "kernel_size": first.kernel_size,
            "stride": first.stride,
            "padding": first.padding,
            "dilation": first.dilation,
            "groups": first.groups,
            "padding_mode": first.padding_mode,
        }
        self.channels = (first.in_channels, first.out_channels)
        self.groups = first.groups
        # how functional.pad wants it, last axis first
        self.margins = None if first.padding_mode == "zeros" else list(first._reversed_padding_repeated_twice)
        self.register_parameter("weight", stacked_parameter([module.weight for module in modules]))
        self.register_parameter("bias", stacked_parameter([module.bias for module in modules]))

    def forward(self, x: Tensor, own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        n = self.asked(only)
        weight = pick(self.weight, only)
        bias = None if self.bias is None else pick(self.bias, only).flatten()
        if not own and self.groups > 1:
            x, own = own_input(x, own, n), True
        y = self._folded(fold_channels(x) if own else x, weight.flatten(0, 1), bias, n * self.groups if own else 1)
        return unfold_channels(y, n), True

    def _folded(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        padding = self.options["padding"]
        if self.margins is not None:
            x, padding = functional.pad(x, self.margins, mode=self.options["padding_mode"]), 0
        return self.convolve(x, weight, bias, self.options["stride"], padding, self.options["dilation"], groups)

    def copy(self, branch: int) -> nn.Module:
        plain = self.kind(*self.channels, **self.options, bias=self.bias is not None, device="meta")
        return filled(plain, self, branch)


STACKS.update({nn.Conv1d: _Convolution, nn.Conv2d: _Convolution})
