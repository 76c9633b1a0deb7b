"""Branches: n copies of a block computed as one call; the engine under every sharing architecture.

    y_k = block_k(x)      or      y_k = block_k(x_k),          k = 0 … n-1

The copies' weights are stacked along a leading branch axis, ``W[k, …]``, so that a layer of all branches
is one operation, and what couples branches (penalties, factors, mixing) acts on one tensor per layer. The
forms of the kinds of block are in :mod:`polytask.deep.stacking`, one kind per file:

* ``Linear``: one batched product; ``Embedding``: one lookup;
* ``Conv1d``, ``Conv2d``: one convolution in groups;
* ``LayerNorm``, ``GroupNorm``, ``BatchNorm1d``, ``BatchNorm2d``: one normalisation, own scale, shift and statistics;
* pooling, ``Flatten``, activations as they are, ``PReLU`` with own slopes, dropout with own masks;
* ``Sequential`` and :class:`~polytask.deep.stacking.composite.Residual` of these;
* :class:`~polytask.deep.stacking.recurrent.Recurrent` (LSTM, GRU): a loop over branches;
* any other module: ``torch.func.vmap`` of its forward (:mod:`polytask.deep.stacking.generic`).

Tasks with different numbers of rows are padded to the largest: :func:`padded` returns the tensor ``(n, B, …)``
and which rows are real. All kinds treat rows apart from each other, so a real row's output and gradient are
those of the plain module; batch norm in training, which takes padding into its statistics, is the exception.

``torch.compile`` (one graph, all kinds), ``torch.export`` and autocast work on the result. A compiled attention
layer in evaluation mode loops over branches inside PyTorch and says so in a warning. A block with forward hooks is
run through vmap, hooks included.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from polytask.core.errors import InputError
from polytask.deep.seeding import seeded
from polytask.deep.stacking.base import STACKS as STACKS
from polytask.deep.stacking.base import Stacked as Stacked
from polytask.deep.stacking.base import own_input
from polytask.deep.stacking.base import stack as stack

Input = Tensor | Mapping[str, Tensor]

_BYTES = 32 * 2**20
"""Largest result that branches compute together on a CPU (measured): beyond, memory is taken from the system anew
in every step, which cost half of a step of 50 small convolutional networks."""


class Branches(nn.Module):
    """n copies of a block as one module.

    Parameters
    ----------
    block
        A module that returns one tensor. Branch 0 starts with its weights.
    n
        Number of copies.
    seed
        Seed of the other branches' initial weights, drawn by each layer's ``reset_parameters`` on the
        CPU; global random state is not touched.
    identical
        Start every branch with the block's weights.

    Raises
    ------
    InputError
        If the block, or a part of it, cannot be stacked; a block that vmap cannot batch is found out by the
        first call.
    """

    def __init__(self, block: nn.Module, n: int, *, seed: int = 0, identical: bool = False) -> None:
        super().__init__()
        if n < 1:
            raise InputError(f"n is {n}; Branches needs at least one copy")
        copies = [block] * n if identical else [block, *_redrawn(block, n - 1, seed)]
        self._hold(copies)

    def _hold(self, copies: Sequence[nn.Module]) -> None:
        self.n = len(copies)
        self.stack = stack(copies)
        kernels = [weight for weight in self.stack.parameters() if weight.dim() >= 4]
        self._channels = max((weight.shape[1] for weight in kernels), default=0)

    @classmethod
    def from_modules(cls, modules: Sequence[nn.Module]) -> Self:
        """Stack modules that differ only in their weights; branch k equals ``modules[k]``."""
        if not modules:
            raise InputError("modules is empty; Branches needs at least one")
        branches = cls(modules[0], 1)
        branches._hold(modules)
        return branches

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """Name of a weight in the block → the weights of all branches, ``W[branch, …]``.

        A linear layer's ``weight`` is ``(n, in, out)``: transposed, compared with ``nn.Linear``.
        """
        return dict(self.stack.named_parameters())

    def copy(self, branch: int) -> nn.Module:
        """Return a plain module equal to one branch, with weights of its own."""
        if not 0 <= branch < self.n:
            raise InputError(f"branch is {branch}; there are branches 0 … {self.n - 1}")
        return self.stack.copy(branch).train(self.training)

    def run(self, x: Input, own: bool = False, *, only: Tensor | None = None) -> tuple[Tensor, bool]:
        """Like :meth:`forward`, but an output equal for all branches comes as one; returns (output, own)."""
        together = self._together(x, own) if self._channels else self.n
        if together >= (self.n if only is None else len(only)):
            y, own = self.stack(x, own, only)
            return y, own
        assert isinstance(x, Tensor)
        numbers = torch.arange(self.n, device=x.device) if only is None else only
        parts = torch.split(x, together) if own else [x] * len(numbers)
        found = [
            self.stack(part, own, some)[0] for part, some in zip(parts, torch.split(numbers, together), strict=False)
        ]
        return torch.cat(found), True

    def _together(self, x: Input, own: bool) -> int:
        """Return how many branches to compute as one: on a CPU, convolutions of many branches in parts."""
        if not isinstance(x, Tensor) or x.device.type != "cpu" or torch.compiler.is_compiling():
            return self.n
        rows, positions = x.shape[int(own)], x.shape[2 + own :].numel()
        return max(1, _BYTES // max(1, rows * positions * self._channels * x.element_size()))

    def forward(self, x: Input, own: bool = False, *, only: Tensor | None = None) -> Tensor:
        """Return the outputs ``(n, B, …)``.

        Parameters
        ----------
        x
            Input ``(B, …)`` of all branches or, with ``own``, ``(n, B, …)``, one per branch.
        own
            Whether ``x`` has a branch axis.
        only
            Numbers of the branches to compute, int64 ``(m,)``; n is then m throughout.
        """
        y, own = self.run(x, own, only=only)
        return own_input(y, own, self.n if only is None else len(only))


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return inputs of different numbers of rows as one tensor, and which of its rows are real.

    Parameters
    ----------
    rows
        One tensor ``(B_k, …)`` per branch.

    Returns
    -------
    tuple
        ``(n, B, …)``, B the largest number of rows, filled with 0; and booleans ``(n, B)``.
    """
    if not rows:
        raise InputError("rows is empty; give one tensor per branch")
    if len({(tensor.shape[1:], tensor.dtype) for tensor in rows}) > 1:
        raise InputError(f"rows has shapes {[tuple(tensor.shape) for tensor in rows]}; only the first axis may differ")
    counts = torch.tensor([len(tensor) for tensor in rows], device=rows[0].device)
    present = torch.arange(int(counts.max()), device=rows[0].device) < counts.unsqueeze(1)
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True), present


def _redrawn(block: nn.Module, n: int, seed: int) -> list[nn.Module]:
    copies = []
    with seeded(seed):
        for _ in range(n):
            fresh = copy.deepcopy(block).cpu()
            for layer in fresh.modules():
                reset = getattr(layer, "reset_parameters", getattr(layer, "_reset_parameters", None))
                if callable(reset):
                    reset()
            copies.append(fresh.to(next((weight.device for weight in block.parameters()), torch.device("cpu"))))
    return copies
