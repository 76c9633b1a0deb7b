"""Towers that exchange features: after chosen stages each tower goes on with a mixture of all towers' outputs.

    x̃ = A x            x: (n·S, B, C/S, …) the channels of n towers' outputs in S parts,   A: (m·S, n·S)

One matrix product mixes all of them, ``(m·S, n·S) @ (n·S, B·C/S)``; per channel it is one batch of C products.
On a CPU large outputs are mixed a few rows at a time, so that bringing the parts of the rows next to each other
and back happens in the cache. What cross-stitch and sluice networks have in common is here: the product, where
towers mix, how rows of different tasks travel, which parameters that makes shared.

Own rows: a tower needs the other towers' features of *its* rows, so the rows of all tasks go through all
towers, T² passes instead of T; from the last mixture on each tower is computed on its task's rows alone.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from polytask.core.errors import InputError, unknown
from polytask.core.task import Task
from polytask.deep.base import ParameterGroup, SharingNetwork
from polytask.deep.encoders import BranchedEncoder, Encoder, pooled
from polytask.deep.heads import Heads
from polytask.deep.single import SingleTask

_CACHED = 1 << 17
"""Numbers that are mixed at a time on a CPU; larger outputs are mixed in parts (measured)."""


def mix(weight: Tensor, x: Tensor, channel_axis: int = 1) -> Tensor:
    """Return the mixtures ``(m, B, …)`` of outputs ``x (n, B, …)``.

    Where rows come first in memory, as convolutions leave them, they do so in the result.

    Parameters
    ----------
    weight
        Shape ``(m, S, n, S)``: of the n towers' S parts of the channels in each of the m mixtures' S parts.
    x
        Shape ``(n, B, C, …)`` with channel axis 1, ``(n, B, …, C)`` with channel axis -1.
    channel_axis
        1 or -1, as in an output without branch axis.
    """
    m, parts, n, _ = weight.shape
    matrix = weight.reshape(m * parts, n * parts)
    row_axes = slice(2, 2) if channel_axis == 1 else slice(2, x.dim() - 1)
    inner = x.shape[row_axes.stop :].numel() // parts
    if x.stride(0) < x.stride(1) and not x.shape[row_axes]:
        rows = x.transpose(0, 1)
        return (
            torch.matmul(matrix, rows.reshape(len(rows), n * parts, inner))
            .view(len(rows), m, *x.shape[2:])
            .transpose(0, 1)
        )
    flat = x.reshape(n, -1, parts, inner)
    if _by_hand(x):
        mixed: Tensor = _MixInParts.apply(matrix, flat)  # type: ignore[no-untyped-call]
    else:
        mixed = _join(torch.mm(matrix, _split(flat)), m, flat)
    return mixed.reshape(m, *x.shape[1:])


def weighted_sum(weight: Tensor, layers: Sequence[Tensor]) -> Tensor:
    """Return ``Σ_k weight_tk layers_k``, ``(m, B, C)``, from ``weight (m, K)`` and K layers ``(m, B, C)``."""
    if _by_hand(layers[0]):
        total: Tensor = _WeightedSum.apply(weight, *layers)  # type: ignore[no-untyped-call]
        return total
    return _weighted_sum(weight, layers)


def _by_hand(x: Tensor) -> bool:
    """Return whether to take the forms for large outputs on a CPU, with gradients of their own."""
    plain = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
    return plain and x.numel() > _CACHED


def _weighted_sum(weight: Tensor, layers: Sequence[Tensor]) -> Tensor:
    shares = weight.T.unsqueeze(-1).unsqueeze(-1)
    total = shares[0] * layers[0]
    for share, layer in zip(shares[1:], layers[1:], strict=True):
        total = torch.addcmul(total, share, layer)
    return total


class _WeightedSum(torch.autograd.Function):
    """:func:`weighted_sum`, whose gradient for the weights is made of inner products, without tensors in between."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, *layers: Tensor) -> Tensor:
        ctx.save_for_backward(weight, *layers)
        return _weighted_sum(weight, layers)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        weight, *layers = ctx.saved_tensors
        rows = gradient.flatten(1).unsqueeze(1)
        of_weight = torch.cat([torch.bmm(rows, layer.flatten(1).unsqueeze(2)).squeeze(2) for layer in layers], dim=1)
        return of_weight, *(share * gradient for share in weight.T.unsqueeze(-1).unsqueeze(-1))


def _split(x: Tensor) -> Tensor:
    """Return ``(n, R, S, c)`` as ``(n·S, R·c)``."""
    return x.transpose(1, 2).reshape(x.shape[0] * x.shape[2], -1)


def _join(mixed: Tensor, m: int, like: Tensor) -> Tensor:
    """Return ``(m·S, R·c)`` as ``(m, R, S, c)``, a view."""
    _, n_rows, parts, inner = like.shape
    return mixed.view(m, parts, n_rows, inner).transpose(1, 2)


class _MixInParts(torch.autograd.Function):
    """``matrix (m·S, n·S)`` times the parts of ``x (n, R, S, c)``, some rows at a time: ``(m, R, S, c)``."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(matrix, x)
        mixed = x.new_empty(len(matrix) // x.shape[2], *x.shape[1:])
        for rows in _rows_at_a_time(x):
            _multiply(matrix, _split(x[:, rows]), mixed[:, rows])
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        matrix, x = ctx.saved_tensors
        of_matrix, of_x, transposed = torch.zeros_like(matrix), torch.empty_like(x), matrix.T.contiguous()
        for rows in _rows_at_a_time(x):
            arriving = _split(gradient[:, rows])
            of_matrix.addmm_(arriving, _split(x[:, rows]).T)
            _multiply(transposed, arriving, of_x[:, rows])
        return of_matrix, of_x


def _multiply(matrix: Tensor, parts: Tensor, found: Tensor) -> None:
    """Write ``matrix (m·S, n·S)`` times ``parts (n·S, R·c)`` into ``found (m, R, S, c)``; one part needs no copy."""
    if found.shape[2] == 1:
        torch.mm(matrix, parts, out=found.flatten(1))
    else:
        found.copy_(_join(torch.mm(matrix, parts), len(found), found))


def _rows_at_a_time(x: Tensor) -> Iterator[slice]:
    step = max(1, _CACHED * x.shape[1] // x.numel())
    return (slice(start, start + step) for start in range(0, x.shape[1], step))


def mix_channels(weight: Tensor, x: Tensor, channel_axis: int) -> Tensor:
    """Return ``Σ_s weight_tsc x_sc``, ``(m, B, …)``: a weight per channel.

    Parameters
    ----------
    weight
        Shape ``(m, n, C)``.
    x
        Shape ``(n, B, C, …)`` with channel axis 1, ``(n, B, …, C)`` with channel axis -1.
    channel_axis
        1 or -1, as in an output without branch axis.
    """
    axis = 2 if channel_axis == 1 else -1
    channels_first = x.movedim(axis, 0)
    mixed = torch.bmm(weight.permute(2, 0, 1), channels_first.flatten(2))
    return mixed.view(-1, len(weight), *channels_first.shape[2:]).movedim(0, axis).contiguous()


def mix_own_rows(weight: Tensor, x: Tensor, channel_axis: int = 1) -> Tensor:
    """Return the mixtures ``(m, B, …)``, the t-th on the t-th task's rows only.

    Parameters
    ----------
    weight
        Shape ``(m, S, n, S)``.
    x
        Shape ``(n, m, B, …)``: every tower's output on the rows of every task.
    channel_axis
        1 or -1, as in an output without branch axis.
    """
    m, parts, n, _ = weight.shape
    axis = 3 if channel_axis == 1 else x.dim() - 1
    parted = x.unflatten(axis, (parts, -1))  # type: ignore[no-untyped-call]
    split = parted.movedim(axis, 1).movedim(2, 0)  # (m, n, S, B, …)
    mixed = torch.bmm(weight.flatten(2), split.reshape(m, n * parts, -1)).view(m, parts, *split.shape[3:])
    return mixed.movedim(1, axis - 1).flatten(axis - 1, axis)


class MixedTowers(SharingNetwork):
    """T towers, mixed after chosen stages (abstract).

    Parameters
    ----------
    tasks
        The tasks. A lone task has nothing to mix with: its network is the single-task network.
    encoder
        The encoder each task gets a copy of.
    stages
        Names of the stages after which the towers are mixed; None: every stage but the first.
    mixing_rate
        Factor on the learning rate of the mixing weights, which never decay; take 1 with Adam.
    seed
        Seed of the initial weights.
    identical
        Start all towers and heads from the same weights; False draws new ones for every task but the first.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        encoder: Encoder,
        *,
        stages: Sequence[str] | None,
        mixing_rate: float,
        seed: int,
        identical: bool,
    ) -> None:
        super().__init__(tasks)
        if not 0 < mixing_rate < float("inf"):
            raise InputError(f"mixing_rate is {mixing_rate}; give a positive number, such as 100")
        sites = _sites(encoder, stages)
        self.sites = sites if len(tasks) > 1 else ()
        self.mixing_rate = float(mixing_rate)
        self.encoder = BranchedEncoder(encoder, len(tasks), seed=seed + 1, identical=identical)
        self.heads = Heads(tasks, encoder.n_features, seed=seed, identical=identical)
        self.mixing = nn.ParameterDict()

    @abstractmethod
    def mixed(self, site: str, x: Tensor, own_rows: bool, only: Tensor | None) -> Tensor:
        """Return the mixtures ``(m, B, …)`` of the towers' outputs after a stage.

        Parameters
        ----------
        site
            The stage.
        x
            Outputs of all towers, ``(T, B, …)`` or, with ``own_rows``, ``(T, m·B, …)``, the rows of m tasks
            after each other.
        own_rows
            Whether mixture t is wanted on the t-th part of the rows only.
        only
            Numbers of the towers whose mixture is wanted, None: all.
        """

    def read(
        self, inputs: Mapping[str, Tensor], own_rows: bool, only: Tensor | None, stages: Collection[str]
    ) -> list[Tensor]:
        """Return what the tasks see after each of ``stages``, mixed and pooled: ``(m, B, C)`` each."""
        everyone = {name: tensor.flatten(0, 1) for name, tensor in inputs.items()} if own_rows else inputs
        x: Mapping[str, Tensor] | Tensor = everyone
        own, narrow, length = False, False, everyone.get("length")
        found = []
        for name in self.encoder.names:
            x, own = self.encoder.run_stage(name, x, own, only if narrow else None, length=length)
            if name in self.mixing:
                outputs = x if own else x.expand(len(self.tasks), *x.shape)
                own, narrow = True, name == self.sites[-1]
                x = self.mixed(name, outputs, own_rows and narrow, only if narrow else None)
                length = inputs.get("length") if narrow else length
            if name in stages:
                part = x if narrow else _read(x, own_rows, only)
                found.append(pooled(part, self.encoder.channel_axis, True, length=inputs.get("length")))
        return found

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the towers and mixing weights before the last mixture; its own weights belong to one task each."""
        shared: list[nn.Parameter] = []
        for name in self.encoder.names if self.sites else ():
            shared += self.encoder.stages[name].parameters()
            if name == self.sites[-1]:
                break
            if name in self.mixing:
                shared.append(self.mixing[name])
        return shared

    def mixing_parameters(self) -> list[nn.Parameter]:
        """Return the weights that learn at a rate of their own."""
        return list(self.mixing.parameters())

    def parameter_groups(self) -> list[ParameterGroup]:
        mixing = self.mixing_parameters()
        known = {id(parameter) for parameter in mixing}
        others = [parameter for parameter in self.parameters() if id(parameter) not in known]
        return [ParameterGroup(others), ParameterGroup(mixing, self.mixing_rate, weight_decay=False)]

    def take_towers(self, network: SingleTask) -> Self:
        """Replace the towers and heads by copies of trained single-task networks; returns the network itself."""
        self.encoder, self.heads = copy.deepcopy(network.encoder), copy.deepcopy(network.heads)
        weight = network.heads.linear.weights["weight"]
        return self.to(weight.device, weight.dtype).train(network.training)


def single_encoder(network: SingleTask) -> Encoder:
    """Return the first task's encoder, as a plain module."""
    stages = {name: network.encoder.stages[name].copy(0) for name in network.encoder.names}  # type: ignore[operator]  # they are Branches
    encoder = network.encoder
    return Encoder(
        stages,
        n_features=encoder.n_features,
        channels=encoder.channels or None,
        channel_axis=encoder.channel_axis,
    )


def channels_of(encoder: Encoder, stage: str) -> int:
    """Return the number of channels of a stage's output; an encoder that does not tell them is refused."""
    if stage not in encoder.channels:
        raise InputError(
            f'the encoder does not tell the number of channels of stage "{stage}"; pass channels to Encoder, '
            'or take a cross-stitch network of granularity "layer"'
        )
    return encoder.channels[stage]


def _sites(encoder: Encoder, stages: Sequence[str] | None) -> tuple[str, ...]:
    if stages is None and len(encoder.names) == 1:
        raise InputError(
            f"the encoder's only stage is {encoder.names[0]}, its input; give it a layer to mix after, "
            "such as mlp(n, [64]), or name stages"
        )
    for name in stages or ():
        if name not in encoder.names:
            raise InputError(unknown("stage", name, encoder.names))
    return tuple(name for name in encoder.names if name in (encoder.names[1:] if stages is None else stages))


def _read(x: Tensor, own_rows: bool, only: Tensor | None) -> Tensor:
    """Return the outputs ``(m, B, …)`` on each task's rows, of ``(T, B, …)`` or, with own rows, ``(T, m·B, …)``."""
    if not own_rows:
        return x if only is None else x[only]
    n_asked = len(x) if only is None else len(only)
    each = torch.arange(n_asked, device=x.device)
    return x.unflatten(1, (n_asked, -1))[each if only is None else only, each]  # type: ignore[no-untyped-call]
