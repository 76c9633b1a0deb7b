"""What an encoder is: named stages between which sharing may happen, once or n times.

An encoder reads the mapping of inputs described in :mod:`polytask.deep.base` and returns features
``(B, n_features)``. Its first stage, ``"input"``, turns the mapping into one tensor (joins numbers and
embedded codes); the others are blocks that :class:`~polytask.deep.branches.Branches` can stack.

A stage's output has a batch axis, an axis of channels and any number of positions: ``(B, C)``,
``(B, C, H, W)``, ``(B, L, C)``. :func:`pooled` takes the mean over positions, which gives features of one
shape at any depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from polytask.core.errors import InputError, unknown
from polytask.deep.branches import Branches


def pooled(x: Tensor, channel_axis: int, own: bool = False, *, length: Tensor | None = None) -> Tensor:
    """Return the mean over positions ``(B, C)`` or, with a branch axis, ``(n, B, C)``.

    Parameters
    ----------
    x
        A stage's output: ``(B, C)``, which is returned as it is, ``(B, C, *positions)`` with channel axis 1,
        or ``(B, *positions, C)`` with channel axis -1; with ``own`` after a branch axis.
    channel_axis
        1 or -1, the axis of channels in an output without branch axis.
    own
        Whether ``x`` has a branch axis.
    length
        Number of valid positions of each row of a sequence, ``(B,)`` or ``(n, B)``; None: all are valid.
        The mean of a row of length 0 is 0.
    """
    lead = 1 + own
    if x.dim() == lead + 1:
        return x
    if channel_axis == 1:
        return x.flatten(lead + 1).mean(-1)
    if length is None or x.dim() != lead + 2:
        return x.flatten(lead, -2).mean(-2)
    valid = (torch.arange(x.shape[-2], device=x.device) < length.unsqueeze(-1)).unsqueeze(-1)
    return x.masked_fill(~valid, 0).sum(-2) / length.clamp(min=1).unsqueeze(-1)


class Encoder(nn.Module):
    """Named stages in order; the first reads the mapping of inputs.

    A stage whose block says ``reads_length = True`` is handed ``{"sequence": x, "length": length}`` where the
    inputs have a ``"length"``, and ``x`` alone otherwise.

    Parameters
    ----------
    stages
        Stage name → block; names have no dots.
    n_features
        Number of channels of the last stage's output.
    channels
        Stage name → number of channels of its output; None where nobody asks for them.
    channel_axis
        Axis of channels in a stage's output: 1 for tables ``(B, C)`` and images ``(B, C, H, W)``, -1 for
        sequences ``(B, L, C)``.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        *,
        n_features: int,
        channels: Mapping[str, int] | None = None,
        channel_axis: int = 1,
    ) -> None:
        super().__init__()
        if not stages:
            raise InputError("stages is empty; an encoder needs at least its input stage")
        if channel_axis not in (1, -1):
            raise InputError(f"channel_axis is {channel_axis}; give 1 (B, C, …) or -1 (B, …, C)")
        if channels is not None and list(channels) != list(stages):
            raise InputError(f"channels has {list(channels)}, stages has {list(stages)}; name the same stages in order")
        self.stages = nn.ModuleDict(dict(stages))
        self.n_features = n_features
        self.channels = dict(channels or {})
        self.channel_axis = channel_axis

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the stages in order."""
        return tuple(self.stages)

    def outputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the output of every stage, by name."""
        x: Mapping[str, Tensor] | Tensor = inputs
        found = {}
        for name, stage in self.stages.items():
            x = found[name] = stage(_with_length(x, inputs.get("length")) if _reads_length(stage) else x)
        return found

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return features ``(B, n_features)``."""
        last = list(self.outputs(inputs).values())[-1]
        return pooled(last, self.channel_axis, length=inputs.get("length"))


def _reads_length(stage: nn.Module) -> bool:
    """Return whether a stage, or the first block of a sequence, wants the lengths beside its input."""
    if isinstance(stage, nn.Sequential) and len(stage):
        return _reads_length(stage[0])
    return bool(getattr(stage, "reads_length", False))


def _with_length(x: Mapping[str, Tensor] | Tensor, length: Tensor | None) -> Mapping[str, Tensor] | Tensor:
    return {"sequence": x, "length": length} if isinstance(x, Tensor) and length is not None else x


class BranchedEncoder(nn.Module):
    """n copies of an encoder, one :class:`Branches` per stage.

    Parameters
    ----------
    encoder
        The encoder to copy; every copy starts with its weights unless ``identical`` is False.
    n
        Number of copies.
    seed, identical
        As in :class:`Branches`; each stage draws from a seed of its own.

    ``stages`` (name → :class:`Branches`), ``names``, ``channels``, ``channel_axis`` and ``n_features`` are
    those of the encoder.
    """

    def __init__(self, encoder: Encoder, n: int, *, seed: int = 0, identical: bool = True) -> None:
        super().__init__()
        self.n = n
        self.n_features, self.channel_axis = encoder.n_features, encoder.channel_axis
        self.names, self.channels = encoder.names, dict(encoder.channels)
        self._reading_length = frozenset(name for name, stage in encoder.stages.items() if _reads_length(stage))
        self.stages = nn.ModuleDict(
            {
                name: Branches(stage, n, seed=seed + number, identical=identical)
                for number, (name, stage) in enumerate(encoder.stages.items())
            }
        )

    def weights(self, stages: Sequence[str] | None = None) -> dict[str, nn.Parameter]:
        """Return ``stage.weight name`` → stacked weights ``W[branch, …]`` of the stages named (None: all)."""
        for name in stages or ():
            if name not in self.stages:
                raise InputError(unknown("stage", name, self.stages))
        return {
            f"{name}.{weight}": tensor
            for name, branches in self.stages.items()
            if stages is None or name in stages
            for weight, tensor in branches.weights.items()  # type: ignore[union-attr, operator]  # they are Branches
        }

    def run_stage(
        self,
        name: str,
        x: Mapping[str, Tensor] | Tensor,
        own: bool = False,
        only: Tensor | None = None,
        *,
        length: Tensor | None = None,
    ) -> tuple[Tensor, bool]:
        """Return the output of one stage and whether it has a branch axis.

        Parameters
        ----------
        name
            The stage.
        x
            The mapping of inputs (first stage) or the output of the stage before, mixed or not.
        own
            Whether ``x`` has a branch axis.
        only
            Numbers of the branches to compute, None: all.
        length
            The inputs' ``"length"``, if there is one: ``(B,)``, or ``(n, B)`` where each task has its own rows.
        """
        stage = self.stages[name]
        assert isinstance(stage, Branches)
        return stage.run(_with_length(x, length) if name in self._reading_length else x, own, only=only)

    def forward(self, inputs: Mapping[str, Tensor], own: bool = False, *, only: Tensor | None = None) -> Tensor:
        """Return features ``(n, B, n_features)``; arguments as in :meth:`Branches.forward`."""
        x: Mapping[str, Tensor] | Tensor = inputs
        length = inputs.get("length")
        for name in self.names:
            x, own = self.run_stage(name, x, own, only, length=length)
        assert isinstance(x, Tensor)
        features = pooled(x, self.channel_axis, own, length=length)
        return features if own else features.expand(self.n if only is None else len(only), *features.shape)
