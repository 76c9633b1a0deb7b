"""Weights spread over the processes that train together: each of R keeps a part of every parameter.

    a process holds           between steps     during a step
    whole weights             4 P               4 P
    spread                    4 P / R           P weights, P gradients, 3 P / R      (P weights, 2 P moments of AdamW)

PyTorch's ``fully_shard`` does the work: it gathers the weights when scores are asked for and, after the backward pass,
sums the gradients and leaves each process its part, on which the optimiser steps. A loss weighting needs nothing else;
a method that compares gradients of parameters would need these whole for every task. What is written to a checkpoint,
and what a fit returns, is whole.

Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, SC 2020.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from polytask.balance.base import Balancer, GradientBalancer
from polytask.core.errors import InputError
from polytask.deep.base import SharingNetwork
from polytask.deep.single import SingleTask
from polytask.train.settings import TrainSettings

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

_WHOLE = ("penalty_gradient", "after_step", "grow")
"""What a network does to its weights or gradients as a whole."""


def check_spreadable(network: SharingNetwork, balancer: Balancer, settings: TrainSettings) -> None:
    """Refuse, before the first step, what cannot be trained with weights spread over processes.

    Raises
    ------
    InputError
        A balancer that compares gradients, a network that changes its weights by itself or whose tasks stop one by
        one, or a setting that looks at all weights.
    """
    told = "join_processes(sharded=True)"
    if isinstance(balancer, GradientBalancer):
        raise InputError(
            f"{type(balancer).__name__} compares gradients of parameters, which no process holds whole with {told}; "
            "use a loss weighting such as Uncertainty, or leave sharded out"
        )
    own = [name for name in _WHOLE if getattr(type(network), name) is not getattr(SharingNetwork, name)]
    if own or isinstance(network, SingleTask):
        why = f"{own[0]} needs its weights whole" if own else "its tasks stop one by one"
        raise InputError(
            f"{type(network).__name__} cannot be trained with {told}: {why}; use a network without, such as "
            "HardSharing, or leave sharded out"
        )
    for name, value in (("average", settings.average), ("precision", settings.precision)):
        if value not in (None, "float32", "bfloat16"):
            raise InputError(f"{name} is {value}, which {told} does not allow; leave one of the two out")


def spread_network(network: SharingNetwork, device: torch.device, size: int) -> SharingNetwork:
    """Return a copy of a network on ``device`` of whose parameters each of ``size`` processes holds a part.

    Every parameter is cut along its longest side that ``size`` divides, or along its first.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor import Shard

    def place(parameter: nn.Parameter) -> Shard | None:
        sides = [side for side, length in enumerate(parameter.shape) if length % size == 0]
        return Shard(max(sides, key=lambda side: parameter.shape[side])) if sides else None

    copy = deepcopy(network).to(device)
    given = copy.all_scores

    def all_scores(*args: Any, **options: Any) -> Tensor:
        return given(*args, **options).clone()  # no view, whose hooks an operation in place would lose

    copy.all_scores = all_scores  # type: ignore[method-assign]  # of this copy alone
    mesh = init_device_mesh(device.type, (size,))
    found = fully_shard(copy, mesh=mesh, reshard_after_forward=False, shard_placement_fn=place)
    found.set_gradient_divide_factor(1.0)
    found.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(copy, "all_scores")
    return copy


def is_part(tensor: Tensor) -> TypeGuard[DTensor]:
    """Return whether a process holds only its part of this tensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with those that are spread gathered; every process must ask."""
    return {name: value.full_tensor() if is_part(value) else value for name, value in tensors.items()}


def spread(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors cut as those of the same name and shape in ``like`` are; others as they are."""
    return {name: _spread(value, like.get(name)) for name, value in tensors.items()}


def _spread(value: Tensor, like: Tensor | None) -> Tensor:
    if like is None or not is_part(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Hold the weights of a spread network whole for a while; processes may then compute unlike numbers of batches."""
    if not _is_spread(network):
        yield
        return
    network.unshard()
    try:
        yield
    finally:
        network.reshard()


def _is_spread(network: object) -> TypeGuard[FSDPModule]:
    return hasattr(network, "unshard")
