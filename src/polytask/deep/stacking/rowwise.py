"""Blocks without weights that treat rows alike: activations, dropout, pooling, flattening; and ``PReLU``.

A shared input stays shared, and is computed once, except under dropout, whose masks differ between branches.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.deep.stacking.base import STACKS, Stacked, fold_rows, own_input, pick, stacked_parameter
from polytask.deep.stacking.generic import Vmapped

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)

_ELEMENTWISE = (
    nn.Identity, nn.Dropout, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign,
    nn.AlphaDropout,
)  # fmt: skip
_OF_ROWS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Dropout1d, nn.Dropout2d, nn.ZeroPad1d, nn.ZeroPad2d,
)  # fmt: skip


class _Rowwise(Stacked):
    """Modules without state: of every element, or of every row (the two leading axes are then folded)."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__(modules)
        self.function = copy.deepcopy(modules[0])
        self.random = False
        self.folds = not isinstance(self.function, _ELEMENTWISE)
        if isinstance(self.function, _DROPOUTS) and self.function.p > 0:
            self.random = True
            self.function.inplace = False  # an expanded input cannot be written to

    def forward(self, x: Tensor, own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        if self.random and self.training and not own:
            x, own = own_input(x, False, self.asked(only)), True
        return fold_rows(self.function, x) if self.folds and own else self.function(x), own

    def copy(self, branch: int) -> nn.Module:  # noqa: ARG002  # all branches are alike
        return copy.deepcopy(self.function)


class _MaxPool2d(_Rowwise):
    """Maxima of squares; on the CPU PyTorch finds them several times quicker with channels last.

    The output stays so, which convolutions of one branch like and those of several, in groups, do not.
    """

    def forward(self, x: Tensor, own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        if x.device.type == "cpu" and x.dim() == 4 + own and (not own or self.asked(only) == 1):
            rows = x.flatten(0, 1) if own else x
            rows = self.function(rows.contiguous(memory_format=torch.channels_last))
            return (rows.unsqueeze(0) if own else rows), own
        return super().forward(x, own, only)


class _PReLU(Stacked):
    """Slopes ``(n, 1)`` or ``(n, C)``: ``y = x`` where positive, ``slope x`` elsewhere."""

    weight: nn.Parameter

    def __init__(self, modules: Sequence[nn.PReLU]) -> None:
        super().__init__(modules)
        self.register_parameter("weight", stacked_parameter([module.weight for module in modules]))

    def forward(self, x: Tensor, own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        x = own_input(x, own, self.asked(only))
        slope = pick(self.weight, only)
        return torch.where(x > 0, x, x * slope.view(len(slope), 1, -1, *(1,) * (x.dim() - 3))), True

    def copy(self, branch: int) -> nn.Module:
        plain = nn.PReLU(self.weight.shape[1], device="meta")
        plain.weight = nn.Parameter(self.weight[branch].detach().clone(), requires_grad=self.weight.requires_grad)
        return plain


def _flatten(modules: Sequence[nn.Flatten]) -> Stacked:
    """Stack ``Flatten``; one that joins rows is not rowwise."""
    return _Rowwise(modules) if modules[0].start_dim >= 1 else Vmapped(modules)


STACKS.update(dict.fromkeys((*_ELEMENTWISE, *_OF_ROWS), _Rowwise))
STACKS[nn.MaxPool2d] = _MaxPool2d
STACKS[nn.Flatten] = _flatten
STACKS[nn.PReLU] = _PReLU
