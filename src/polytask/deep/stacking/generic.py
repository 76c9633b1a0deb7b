"""Any module, n times: ``torch.func.vmap`` of its forward over stacked state, or a loop over the branches.

    y_k = f(x_k; W_k)          f: the module's own forward, one call for all k (:class:`Vmapped`)

serves every kind without a form of its own. It works where forward is made of tensor operations that vmap can
batch; it cannot where forward looks at values (``if x.sum() > 0``, ``.item()``, ``nonzero``) or writes the
results of its input into a tensor that is neither parameter nor buffer. Such a block is given the loop:
``STACKS[MyBlock] = Looped``. A single branch is never batched, so any module can be a trunk.

Buffers are stacked like parameters, and what forward makes of them in training is kept per branch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from polytask.core.errors import InputError
from polytask.deep.stacking.base import STACKS, Stacked, pick, stacked_parameter

Input = Tensor | Mapping[str, Tensor]


class Templated(Stacked):
    """Stacked state under the module's own names, and the module without its state (abstract)."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__(modules)
        first = modules[0]
        if any(isinstance(module, nn.modules.lazy.LazyModuleMixin) for module in first.modules()):
            raise InputError(f"Branches cannot stack {first}, whose weights have no shape yet; run it once first")
        for name, _ in first.named_parameters():
            weight = stacked_parameter([module.get_parameter(name) for module in modules])
            _owner(self, name).register_parameter(name.rpartition(".")[2], weight)
        for name, _ in first.named_buffers():
            parent, _, leaf = name.rpartition(".")
            lasting = leaf not in first.get_submodule(parent)._non_persistent_buffers_set
            values = torch.stack([module.get_buffer(name) for module in modules])
            _owner(self, name).register_buffer(leaf, values, persistent=lasting)
        # in a list, so that it is no child; without memory of its own
        self._template = [copy.deepcopy(first).to("meta")]

    def train(self, mode: bool = True) -> Templated:
        """Set the mode of the module too."""
        self._template[0].train(mode)
        return super().train(mode)

    def copy(self, branch: int) -> nn.Module:
        plain = copy.deepcopy(self._template[0])
        for name, weight in self.named_parameters():
            values = nn.Parameter(weight[branch].detach().clone(), requires_grad=weight.requires_grad)
            setattr(_found(plain, name), name.rpartition(".")[2], values)
        for name, buffer in self.named_buffers():
            setattr(_found(plain, name), name.rpartition(".")[2], buffer[branch].clone())
        return plain

    def state(self, only: Tensor | None) -> dict[str, Tensor]:
        """Return name → stacked tensors of the branches asked for."""
        return {name: pick(tensor, only) for name, tensor in (*self.named_parameters(), *self.named_buffers())}

    def called(self, state: dict[str, Tensor], x: Input) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the output of one branch, and the buffers to which forward gave a new tensor."""
        given = dict(state)
        y = functional_call(self._template[0], state, (x,))
        if not isinstance(y, Tensor):
            raise InputError(
                f"{type(self._template[0]).__name__} returns a {type(y).__name__}; a block of Branches returns one "
                "tensor (wrap it in a module that picks it)"
            )
        return y, {name: state[name] for name, _ in self.named_buffers() if state[name] is not given[name]}

    @torch.no_grad()
    def remember(self, state: Mapping[str, Tensor], changed: Mapping[str, Tensor], only: Tensor | None) -> None:
        """Keep what forward made of the buffers: written into ``state``, copies where picked, or new tensors."""
        for name, kept in self.named_buffers():
            if only is not None and self.training:
                kept[only] = changed.get(name, state[name]).to(kept.dtype)
            elif name in changed:
                kept.copy_(changed[name])

    def each(self, x: Input, own: bool, only: Tensor | None) -> Tensor:
        """Return the outputs ``(n, B, …)``, one branch after the other."""
        state, outputs, buffers = self.state(only), [], []
        for place in range(self.asked(only)):
            slices = {name: tensor[place] for name, tensor in state.items()}
            y, changed = self.called(slices, _slice(x, own, place))
            outputs.append(y)
            buffers.append(changed)
        self.remember(state, {name: torch.stack([changed[name] for changed in buffers]) for name in buffers[0]}, only)
        return torch.stack(outputs)


class Vmapped(Templated):
    """All branches in one batched call."""

    def forward(self, x: Input, own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        if self.asked(only) == 1:
            return self.each(x, own, only), True
        places: Any = 0 if own else None
        if isinstance(x, Mapping):
            places = {name: 0 if _has_branches(name, tensor, own) else None for name, tensor in x.items()}
        state = self.state(only)
        # the numbers are there for modules without state on a shared input: something must have a branch axis
        numbers = torch.arange(self.asked(only))
        run = torch.vmap(lambda _, state, x: self.called(state, x), in_dims=(0, 0, places), randomness="different")
        try:
            with sdpa_kernel(SDPBackend.MATH) if torch.compiler.is_compiling() else _batchable_attention():
                y, changed = run(numbers, state, x)
        except RuntimeError as error:
            if not any(word in str(error) for word in ("vmap", "atching rule")):
                raise
            name = type(self._template[0]).__name__
            raise InputError(
                f"Branches cannot batch {name} over branches ({_first_line(error)}); keep values out of its control "
                f"flow, or let it run branch by branch: polytask.deep.branches.STACKS[{name}] = Looped"
            ) from error
        self.remember(state, changed, only)
        return y, True


class Looped(Templated):
    """One branch after the other; for blocks that cannot be batched."""

    def forward(self, x: Input, own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        return self.each(x, own, only), True


@contextmanager
def _batchable_attention() -> Iterator[None]:
    """Compute attention by products, which vmap batches; over fused kernels it would loop."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _owner(root: nn.Module, name: str) -> nn.Module:
    """Return the container of a weight of that name under ``root``, made where there is none."""
    for part in name.split(".")[:-1]:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    return root


def _found(plain: nn.Module, name: str) -> nn.Module:
    return plain.get_submodule(name.rpartition(".")[0])


def _has_branches(name: str, tensor: Tensor, own: bool) -> bool:
    """Return whether a tensor of a mapping has a branch axis; lengths keep that of the inputs."""
    return tensor.dim() == 2 if name == "length" else own


def _slice(x: Input, own: bool, place: int) -> Any:
    if isinstance(x, Mapping):
        return {name: tensor[place] if _has_branches(name, tensor, own) else tensor for name, tensor in x.items()}
    return x[place] if own else x


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


STACKS[nn.Module] = Vmapped
