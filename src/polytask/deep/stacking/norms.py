"""Normalisations of n branches as one call, with own scale, shift and statistics per branch.

* ``LayerNorm``: one normalisation, then the branches' scales and shifts ``(n, *shape)``;
* ``GroupNorm``: one normalisation over ``n·groups`` groups;
* ``BatchNorm1d``, ``BatchNorm2d``: one normalisation over ``n·features`` channels.

Batch norm needs an input with a branch axis because each branch keeps its own running statistics; the others
normalise a shared input once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.core.errors import InputError
from polytask.deep.stacking.base import (
    STACKS,
    Stacked,
    filled,
    fold_channels,
    over_channels,
    own_input,
    pick,
    stacked_parameter,
    unfold_channels,
)


class _Scaled(Stacked):
    """A normalisation with scale and shift per branch (abstract)."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, modules: Sequence[nn.LayerNorm | nn.GroupNorm | nn.BatchNorm1d | nn.BatchNorm2d]) -> None:
        super().__init__(modules)
        self.eps = modules[0].eps
        self.register_parameter("weight", stacked_parameter([module.weight for module in modules]))
        self.register_parameter("bias", stacked_parameter([module.bias for module in modules]))


class _LayerNorm(_Scaled):
    """Scale and shift ``(n, *normalized_shape)``."""

    def __init__(self, modules: Sequence[nn.LayerNorm]) -> None:
        super().__init__(modules)
        self.shape = tuple(modules[0].normalized_shape)

    def forward(self, x: Tensor, own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        y = functional.layer_norm(x, self.shape, None, None, self.eps)
        if self.weight is None:
            return y, own
        y = own_input(y, own, self.asked(only))
        inner = (1,) * (y.dim() - 1 - len(self.shape))
        weight = pick(self.weight, only)
        y = y * weight.view(len(y), *inner, *self.shape)
        if self.bias is not None:
            y = y + pick(self.bias, only).view(len(y), *inner, *self.shape)
        return y, True

    def copy(self, branch: int) -> nn.Module:
        plain = nn.LayerNorm(
            self.shape, self.eps, elementwise_affine=self.weight is not None, bias=self.bias is not None
        )
        return filled(plain, self, branch)


class _GroupNorm(_Scaled):
    """Scale and shift ``(n, channels)``."""

    def __init__(self, modules: Sequence[nn.GroupNorm]) -> None:
        super().__init__(modules)
        self.groups, self.channels = modules[0].num_groups, modules[0].num_channels

    def forward(self, x: Tensor, own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        if own:
            n = self.asked(only)
            scale, shift = _flat(self.weight, only), _flat(self.bias, only)
            y = functional.group_norm(fold_channels(x), n * self.groups, scale, shift, self.eps)
            return unfold_channels(y, n), True
        y = functional.group_norm(x, self.groups, None, None, self.eps)
        if self.weight is None:
            return y, False
        y = y.unsqueeze(0) * over_channels(pick(self.weight, only), y.unsqueeze(0))
        return y if self.bias is None else y + over_channels(pick(self.bias, only), y), True

    def copy(self, branch: int) -> nn.Module:
        plain = nn.GroupNorm(self.groups, self.channels, self.eps, affine=self.weight is not None)
        return filled(plain, self, branch)


class _BatchNorm(_Scaled):
    """Scale, shift and running statistics ``(n, features)``; the folded call sees ``n·features`` channels."""

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, modules: Sequence[nn.BatchNorm1d | nn.BatchNorm2d]) -> None:
        super().__init__(modules)
        first = modules[0]
        self.kind = type(first)
        if first.momentum is None:
            raise InputError(
                f"Branches cannot stack {self.kind.__name__} with momentum=None (cumulative average); give a number"
            )
        self.momentum, self.n_features = first.momentum, first.num_features
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            values = [getattr(module, name) for module in modules]
            self.register_buffer(name, None if values[0] is None else torch.stack(values))

    def forward(self, x: Tensor, own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        n = self.asked(only)
        x = own_input(x, own, n)
        self._check(x)
        mean, var = _flat(self.running_mean, only), _flat(self.running_var, only)
        y = functional.batch_norm(
            fold_channels(x),
            mean,
            var,
            _flat(self.weight, only),
            _flat(self.bias, only),
            self.training or mean is None,
            self.momentum,
            self.eps,
        )
        if self.training and self.num_batches_tracked is not None:
            self._remember(mean, var, only)
        return unfold_channels(y, n), True

    def _check(self, x: Tensor) -> None:
        axes = (3, 4) if self.kind is nn.BatchNorm1d else (5,)
        if x.dim() not in axes:
            wanted = "(B, features) or (B, features, L)" if self.kind is nn.BatchNorm1d else "(B, channels, H, W)"
            raise InputError(f"stacked {self.kind.__name__} reads {wanted} per branch, got {tuple(x.shape[1:])}")

    def _remember(self, mean: Tensor | None, var: Tensor | None, only: Tensor | None) -> None:
        """Count the batch; statistics of picked branches were updated in a copy and are written back."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert mean is not None
        assert var is not None
        if only is None:
            self.num_batches_tracked += 1
            return
        self.num_batches_tracked[only] += 1
        self.running_mean[only] = mean.view(len(only), -1)
        self.running_var[only] = var.view(len(only), -1)

    def copy(self, branch: int) -> nn.Module:
        plain = self.kind(
            self.n_features, self.eps, self.momentum, self.weight is not None, self.running_mean is not None
        )
        return filled(plain, self, branch)


def _flat(tensor: Tensor | None, only: Tensor | None) -> Tensor | None:
    return None if tensor is None else pick(tensor, only).view(-1)


STACKS.update(
    {nn.LayerNorm: _LayerNorm, nn.GroupNorm: _GroupNorm, nn.BatchNorm1d: _BatchNorm, nn.BatchNorm2d: _BatchNorm}
)
