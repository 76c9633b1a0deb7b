"""What every stacked form of a block is, and the table of kinds.

Activations of n branches have the axes ``(n, B, …)``. Which of the two leading axes comes first in memory is
left to each kind: a grouped convolution leaves rows first, a batched product leaves branches first. Kinds
that fold the two axes take whichever order lies in memory (:func:`fold_rows`, :func:`fold_channels`), so a
chain of like kinds copies nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.core.errors import InputError


class Stacked(nn.Module):
    """Equal modules with stacked state (abstract): one subclass per kind of block, in :data:`STACKS`.

    ``forward(x, own, only)`` reads ``x`` with a branch axis if ``own``, without one otherwise, and
    returns the output with whether it has a branch axis. ``only`` picks branches, None means all.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.n = len(modules)

    def forward(self, x: Any, own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        raise NotImplementedError

    def copy(self, branch: int) -> nn.Module:
        """Return a plain module equal to one branch."""
        raise NotImplementedError

    def asked(self, only: Tensor | None) -> int:
        """Return how many branches a call computes."""
        return self.n if only is None else len(only)


STACKS: dict[type[nn.Module], Callable[[Any], Stacked]] = {}
"""Kind of block → its stacked form; ``nn.Module`` stands for every other kind. A room that brings a block of
its own adds a line."""


def stack(modules: Sequence[nn.Module]) -> Stacked:
    """Stack modules of one kind, by the form of their kind or else by that of any module.

    Raises
    ------
    InputError
        If the modules are not equally built, or their form refuses an option they have.
    """
    first = modules[0]
    if any(module is not first and str(module) != str(first) for module in modules):
        raise InputError(f"branches must be equally built, got {first} and others; only their weights may differ")
    kind = nn.Sequential if type(first).forward is nn.Sequential.forward else type(first)
    if kind not in STACKS or first._forward_hooks or first._forward_pre_hooks:
        kind = nn.Module
    return STACKS[kind](modules)


def stacked_parameter(tensors: Sequence[Tensor | None]) -> nn.Parameter | None:
    """Stack one weight of all branches; frozen where the first one is, None where there is none."""
    kept = [tensor for tensor in tensors if tensor is not None]
    if len(kept) not in (0, len(tensors)):
        raise InputError("branches must be equally built, but only some of them have a bias or scale")
    if not kept:
        return None
    return nn.Parameter(torch.stack([tensor.detach() for tensor in kept]), requires_grad=kept[0].requires_grad)


def pick(tensor: Tensor, only: Tensor | None) -> Tensor:
    """Return the slices of the branches asked for."""
    return tensor if only is None else tensor.index_select(0, only)


def own_input(x: Tensor, own: bool, n: int) -> Tensor:
    """Return ``x`` with a branch axis, a view where all branches read the same."""
    return x if own else x.expand(n, *x.shape)


def over_channels(weight: Tensor, x: Tensor) -> Tensor:
    """Return ``(n, C)`` weights so that they broadcast over ``x`` ``(n, B, C, …)``."""
    return weight.view(len(weight), 1, -1, *(1,) * (x.dim() - 3))


def fold_channels(x: Tensor) -> Tensor:
    """Return ``(n, B, C, …)`` as ``(B, n·C, …)``; free where rows come first in memory."""
    return x.transpose(0, 1).flatten(1, 2)


def unfold_channels(y: Tensor, n: int) -> Tensor:
    """Return ``(B, n·C, …)`` as ``(n, B, C, …)``, a view."""
    return torch.unflatten(y, 1, (n, -1)).transpose(0, 1)


def fold_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function of rows to all branches, ``(n, B, …)``, in whichever order they lie in memory."""
    turned = not x.is_contiguous() and x.transpose(0, 1).is_contiguous()
    if turned:
        x = x.transpose(0, 1)
    y = torch.unflatten(function(x.flatten(0, 1)), 0, x.shape[:2])
    return y.transpose(0, 1) if turned else y


def filled(plain: nn.Module, stacked: Stacked, branch: int) -> nn.Module:
    """Give a plain module the state of one branch; the names of the state are the same."""
    values = {name: tensor[branch].clone() for name, tensor in stacked.state_dict().items()}
    plain.load_state_dict(values, assign=True)
    for name, weight in plain.named_parameters():
        weight.requires_grad_(stacked.get_parameter(name).requires_grad)
    return plain
