"""Branches: n copies of a block computed as one call; the engine under every sharing architecture.

    y_k = block_k(x)      or      y_k = block_k(x_k),          k = 0 … n-1

The copies' weights are stacked along a leading branch axis, ``W[k, …]``, so that a layer of all branches
is one operation, and what couples branches (penalties, factors, mixing) acts on one tensor per layer:

* ``Linear``: one batched product (``baddbmm``) with weights ``(n, in, out)``; heads on a shared input
  are folded into ``(B, in) @ (in, n·out)``, and a single output is a product and a sum;
* ``LayerNorm``: one normalisation, own scale and shift per branch;
* ``BatchNorm1d``: one normalisation over ``n·features`` channels, own statistics per branch;
* ``Embedding``: one lookup in ``(n·rows, dim)``;
* elementwise activations as they are; ``Dropout`` with an own mask per branch;
* ``Sequential`` of these.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.core.errors import InputError
from polytask.deep.seeding import seeded

_NARROW = 8
"""Up to this many outputs a linear layer on a shared input is quicker folded than batched (measured)."""

Input = Tensor | Mapping[str, Tensor]


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


def stack(modules: Sequence[nn.Module]) -> Stacked:
    """Stack modules of one kind; a kind without a stacked form is refused by name."""
    first = modules[0]
    kind = nn.Sequential if type(first).forward is nn.Sequential.forward else type(first)
    if any(module is not first and str(module) != str(first) for module in modules):
        raise InputError(f"branches must be equally built, got {first} and others; only their weights may differ")
    if kind in _ELEMENTWISE:
        return _Elementwise(modules)
    if kind not in STACKS:
        known = ", ".join(sorted(known.__name__ for known in (*STACKS, *_ELEMENTWISE)))
        raise InputError(f"Branches cannot stack a block of type {type(first).__name__}; it can stack {known}")
    return STACKS[kind](modules)


def _stacked(tensors: Sequence[Tensor | None]) -> nn.Parameter | None:
    kept = [tensor.detach() for tensor in tensors if tensor is not None]
    if len(kept) not in (0, len(tensors)):
        raise InputError("branches must be equally built, but only some of them have a bias or scale")
    return nn.Parameter(torch.stack(kept)) if kept else None


def _flat(tensor: Tensor | None, only: Tensor | None) -> Tensor | None:
    return None if tensor is None else _pick(tensor, only).view(-1)


def _own_input(x: Tensor, own: bool, n: int) -> Tensor:
    return x if own else x.expand(n, *x.shape)


def _pick(tensor: Tensor, only: Tensor | None) -> Tensor:
    return tensor if only is None else tensor.index_select(0, only)


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
        self.weight = nn.Parameter(torch.stack([module.weight.detach().T for module in modules]).contiguous())
        self.register_parameter("bias", _stacked([module.bias for module in modules]))

    def forward(self, x: Tensor, own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        weight = _pick(self.weight, only)
        n, n_in, n_out = weight.shape
        shift = weight.new_zeros(n, n_out) if self.bias is None else _pick(self.bias, only)
        rows = x if x.dim() == 2 + own else x.reshape(*x.shape[: int(own)], -1, n_in)
        y = _affine(rows, own, weight, shift)
        return (y if rows is x else y.reshape(n, *x.shape[int(own) : -1], n_out)), True

    def copy(self, branch: int) -> nn.Module:
        _, n_in, n_out = self.weight.shape
        plain = nn.Linear(n_in, n_out, bias=self.bias is not None, device="meta")
        plain.weight = nn.Parameter(self.weight[branch].detach().T.clone(memory_format=torch.contiguous_format))
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias[branch].detach().clone())
        return plain


class _LayerNorm(Stacked):
    """Scale and shift ``(n, *normalized_shape)``."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, modules: Sequence[nn.LayerNorm]) -> None:
        super().__init__(modules)
        self.shape = tuple(modules[0].normalized_shape)
        self.eps = modules[0].eps
        self.register_parameter("weight", _stacked([module.weight for module in modules]))
        self.register_parameter("bias", _stacked([module.bias for module in modules]))

    def forward(self, x: Tensor, own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        y = functional.layer_norm(x, self.shape, None, None, self.eps)
        if self.weight is None:
            return y, own
        y = _own_input(y, own, self.n if only is None else len(only))
        inner = (1,) * (y.dim() - 1 - len(self.shape))
        weight = _pick(self.weight, only)
        y = y * weight.view(len(y), *inner, *self.shape)
        if self.bias is not None:
            y = y + _pick(self.bias, only).view(len(y), *inner, *self.shape)
        return y, True

    def copy(self, branch: int) -> nn.Module:
        plain = nn.LayerNorm(
            self.shape, self.eps, elementwise_affine=self.weight is not None, bias=self.bias is not None
        )
        return _filled(plain, self, branch)


class _BatchNorm1d(Stacked):
    """Scale, shift and running statistics ``(n, features)``; the folded call sees ``n·features`` channels."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, modules: Sequence[nn.BatchNorm1d]) -> None:
        super().__init__(modules)
        first = modules[0]
        if first.momentum is None:
            raise InputError("Branches cannot stack BatchNorm1d with momentum=None (cumulative average); give a number")
        self.eps, self.momentum, self.n_features = first.eps, first.momentum, first.num_features
        self.register_parameter("weight", _stacked([module.weight for module in modules]))
        self.register_parameter("bias", _stacked([module.bias for module in modules]))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            values = [getattr(module, name) for module in modules]
            self.register_buffer(name, None if values[0] is None else torch.stack(values))

    def forward(self, x: Tensor, own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        n = self.n if only is None else len(only)
        x = _own_input(x, own, n)
        if x.dim() != 3:
            raise InputError(f"stacked BatchNorm1d reads rows of features, (B, features) per branch, got {x.shape[1:]}")
        mean, var = _flat(self.running_mean, only), _flat(self.running_var, only)
        y = functional.batch_norm(
            x.transpose(0, 1).reshape(-1, n * self.n_features),
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
        return y.view(-1, n, self.n_features).transpose(0, 1), True

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
        plain = nn.BatchNorm1d(
            self.n_features, self.eps, self.momentum, self.weight is not None, self.running_mean is not None
        )
        return _filled(plain, self, branch)


class _Embedding(Stacked):
    """Tables ``(n, rows, dim)``."""

    def __init__(self, modules: Sequence[nn.Embedding]) -> None:
        super().__init__(modules)
        first = modules[0]
        if first.padding_idx is not None or first.max_norm is not None or first.sparse or first.scale_grad_by_freq:
            raise InputError(f"Branches stacks plain embeddings only, got {first}; leave its options at their defaults")
        self.weight = nn.Parameter(torch.stack([module.weight.detach() for module in modules]))

    def forward(self, x: Tensor, own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        n, rows, dim = self.weight.shape
        branch = torch.arange(n, device=x.device) if only is None else only
        codes = x + rows * branch.view(-1, *(1,) * (x.dim() - own))
        return functional.embedding(codes, self.weight.view(n * rows, dim)), True

    def copy(self, branch: int) -> nn.Module:
        _, rows, dim = self.weight.shape
        return nn.Embedding(rows, dim, _weight=self.weight[branch].detach().clone())


class _Elementwise(Stacked):
    """Modules without state that act on every element; a shared input stays shared, except under dropout."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__(modules)
        self.function = copy.deepcopy(modules[0])
        self.random = isinstance(self.function, nn.Dropout) and self.function.p > 0

    def forward(self, x: Tensor, own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        if self.random and self.training and not own:
            x, own = _own_input(x, False, self.n if only is None else len(only)), True
        return self.function(x), own

    def copy(self, branch: int) -> nn.Module:  # noqa: ARG002  # all branches are alike
        return copy.deepcopy(self.function)


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


def _filled(plain: nn.Module, stacked: Stacked, branch: int) -> nn.Module:
    """Give a plain module the state of one branch; the names of the state are the same."""
    values = {name: tensor[branch].clone() for name, tensor in stacked.state_dict().items()}
    plain.load_state_dict(values, assign=True)
    return plain


STACKS: dict[type[nn.Module], Callable[[Any], Stacked]] = {
    nn.Linear: _Linear,
    nn.LayerNorm: _LayerNorm,
    nn.BatchNorm1d: _BatchNorm1d,
    nn.Embedding: _Embedding,
    nn.Sequential: _Sequential,
}
"""Kind of block → its stacked form. A room that brings a block of its own adds a line."""

_ELEMENTWISE = (
    nn.Identity, nn.Dropout, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Tanh, nn.Hardtanh, nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign,
)  # fmt: skip


class Branches(nn.Module):
    """n copies of a block as one module.

    Parameters
    ----------
    block
        A module of the kinds named at the top of this file. Branch 0 starts with its weights.
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
        If the block, or a part of it, has no stacked form.
    """

    def __init__(self, block: nn.Module, n: int, *, seed: int = 0, identical: bool = False) -> None:
        super().__init__()
        if n < 1:
            raise InputError(f"n is {n}; Branches needs at least one copy")
        copies = [block] * n if identical else [block, *_redrawn(block, n - 1, seed)]
        self.n = n
        self.stack = stack(copies)

    @classmethod
    def from_modules(cls, modules: Sequence[nn.Module]) -> Self:
        """Stack modules that differ only in their weights; branch k equals ``modules[k]``."""
        if not modules:
            raise InputError("modules is empty; Branches needs at least one")
        branches = cls(modules[0], 1)
        branches.n = len(modules)
        branches.stack = stack(modules)
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
        y, own = self.stack(x, own, only)
        return y, own

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
        return _own_input(y, own, self.n if only is None else len(only))


def _redrawn(block: nn.Module, n: int, seed: int) -> list[nn.Module]:
    copies = []
    with seeded(seed):
        for _ in range(n):
            fresh = copy.deepcopy(block).cpu()
            for layer in fresh.modules():
                if callable(reset := getattr(layer, "reset_parameters", None)):
                    reset()
            copies.append(fresh.to(next((weight.device for weight in block.parameters()), torch.device("cpu"))))
    return copies
