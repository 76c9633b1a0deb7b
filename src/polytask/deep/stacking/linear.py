"""Linear layers of n branches as one product.

    y_k = x_k W_k + b_k          W: (n, in, out),  b: (n, out)

One batched product (``baddbmm``); narrow layers on a shared input are folded into ``(B, in) @ (in, n·out)``,
and a single output is a product and a sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.deep.stacking.base import STACKS, Stacked, pick, stacked_parameter

_NARROW = 8
"""Up to this many outputs a linear layer on a shared input is quicker folded than batched (measured)."""


def _affine(rows: Tensor, own: bool, weight: Tensor, shift: Tensor) -> Tensor:
    """Return ``rows_k W_k + b_k``, ``(n, B, out)``, from rows ``(B, in)`` or, with ``own``, ``(n, B, in)``."""
    n, n_in, n_out = weight.shape
    if n == 1 or (not own and n_out <= _NARROW):
        folded = weight.transpose(0, 1).reshape(n_in, n * n_out)
        return torch.addmm(shift.view(-1), rows.reshape(-1, n_in), folded).view(-1, n, n_out).transpose(0, 1)
    if not own:
        rows = rows.expand(n, *rows.shape)
    if n_out == 1:
        return (rows * weight.transpose(1, 2)).sum(-1, keepdim=True) + shift.unsqueeze(1)
    return torch.baddbmm(shift.unsqueeze(1), rows, weight)


class _Linear(Stacked):
    """Weights ``(n, in, out)``, bias ``(n, out)``."""

    bias: nn.Parameter | None

    def __init__(self, modules: Sequence[nn.Linear]) -> None:
        super().__init__(modules)
        trained = modules[0].weight.requires_grad
        weight = torch.stack([module.weight.detach().T for module in modules]).contiguous()
        self.weight = nn.Parameter(weight, requires_grad=trained)
        self.register_parameter("bias", stacked_parameter([module.bias for module in modules]))

    def forward(self, x: Tensor, own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        weight = pick(self.weight, only)
        n, n_in, n_out = weight.shape
        shift = weight.new_zeros(n, n_out) if self.bias is None else pick(self.bias, only)
        rows = x if x.dim() == 2 + own else x.reshape(*x.shape[: int(own)], -1, n_in)
        y = _affine(rows, own, weight, shift)
        return (y if rows is x else y.reshape(n, *x.shape[int(own) : -1], n_out)), True

    def copy(self, branch: int) -> nn.Module:
        _, n_in, n_out = self.weight.shape
        plain = nn.Linear(n_in, n_out, bias=self.bias is not None, device="meta")
        weight = self.weight[branch].detach().T.clone(memory_format=torch.contiguous_format)
        plain.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias[branch].detach().clone(), requires_grad=self.bias.requires_grad)
        return plain


STACKS[nn.Linear] = _Linear
