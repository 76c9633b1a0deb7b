"""Embeddings of n branches: one lookup in a table of ``n·rows`` rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.core.errors import InputError
from polytask.deep.stacking.base import STACKS, Stacked, stacked_parameter


class _Embedding(Stacked):
    """Tables ``(n, rows, dim)``; the row of ``padding_idx`` gets no gradient in any branch."""

    weight: nn.Parameter

    def __init__(self, modules: Sequence[nn.Embedding]) -> None:
        super().__init__(modules)
        first = modules[0]
        if first.max_norm is not None or first.sparse or first.scale_grad_by_freq:
            raise InputError(
                f"Branches cannot stack {first}; leave max_norm, sparse and scale_grad_by_freq at their defaults"
            )
        self.padding_idx = first.padding_idx
        self.register_parameter("weight", stacked_parameter([module.weight for module in modules]))

    def forward(self, x: Tensor, own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        n, rows, dim = self.weight.shape
        branch = torch.arange(n, device=x.device) if only is None else only
        codes = x + rows * branch.view(-1, *(1,) * (x.dim() - own))
        y = functional.embedding(codes, self.weight.view(n * rows, dim))
        if self.padding_idx is not None:
            y = torch.where((x == self.padding_idx).unsqueeze(-1), y.detach(), y)
        return y, True

    def copy(self, branch: int) -> nn.Module:
        _, rows, dim = self.weight.shape
        values = self.weight[branch].detach().clone()
        plain = nn.Embedding(rows, dim, padding_idx=self.padding_idx, _weight=values)
        plain.weight.requires_grad_(self.weight.requires_grad)
        return plain


STACKS[nn.Embedding] = _Embedding
