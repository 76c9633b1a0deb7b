"""Blocks made of blocks: ``Sequential``, and :class:`Residual`, a block beside a shortcut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from polytask.deep.stacking.base import STACKS, Stacked, stack


class Residual(nn.Module):
    """``y = block(x) + shortcut(x)``.

    Parameters
    ----------
    block
        What is learned on top of the shortcut.
    shortcut
        What brings ``x`` to the shape of the block's output; None is the identity.

    References
    ----------
    He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, CVPR 2016.
    """

    def __init__(self, block: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.block = block
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return ``block(x) + shortcut(x)``."""
        y: Tensor = self.block(x) + self.shortcut(x)
        return y


class _Residual(Stacked):
    """Both ways stacked; a shortcut equal for all branches is broadcast."""

    def __init__(self, modules: Sequence[Residual]) -> None:
        super().__init__(modules)
        self.block = stack([module.block for module in modules])
        self.shortcut = stack([module.shortcut for module in modules])

    def forward(self, x: Tensor, own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        y, own_y = self.block(x, own, only)
        short, own_short = self.shortcut(x, own, only)
        return y + short, own_y or own_short

    def copy(self, branch: int) -> nn.Module:
        return Residual(self.block.copy(branch), self.shortcut.copy(branch))


class _Sequential(Stacked):
    """Stacked children in order, under their own names."""

    def __init__(self, modules: Sequence[nn.Sequential]) -> None:
        super().__init__(modules)
        for name in dict(modules[0].named_children()):
            self.add_module(name, stack([module.get_submodule(name) for module in modules]))

    def forward(self, x: Any, own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        for child in self.children():
            x, own = child(x, own, only)
        return x, own

    def copy(self, branch: int) -> nn.Module:
        plain = nn.Sequential()
        for name, child in self.named_children():
            plain.add_module(name, child.copy(branch))  # type: ignore[operator]  # children are Stacked
        return plain


STACKS[nn.Sequential] = _Sequential
STACKS[Residual] = _Residual
