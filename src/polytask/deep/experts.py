"""Mixtures of experts: every task takes its own mixture of what E experts say about a row.

    MMoE       scores_t = head_t( sum_e g_te(x) f_e(x) ),      g_t(x) = softmax(x W_t),      W_t: (p, E)
    OMoE       the same with one gate for all tasks
    DSelect-k  the same with gates that take at most k experts (:class:`~polytask.deep.gates.SelectGates`)
    PLE        in L levels, each with m_s shared and m_p private experts per task:
                 x_t ← sum over private_t and shared   g_te(x_t) f_e(x_t or x_s)
                 x_s ← sum over all experts            g_se(x_s) f_e(x_t or x_s)       (not in the last level)
               private experts read their task's x_t, shared experts x_s, gates the stream they feed;
               L = 1 is customised gate control (CGC)

An expert is a copy f_e of the encoder's stages after ``"input"``; the experts are drawn independently, except
that the first one has the encoder's weights. All read the one output x of ``"input"`` (with one embedding per
category for all), and gates are linear in it, pooled over positions. Between mixture and head there may be a
tower of the task's own, ``Linear, ReLU`` per width.

Without towers the heads are applied to the experts and their scores are mixed, which is the same
(heads are linear) and never forms T copies of the features.

Special cases: one expert is hard sharing; MMoE with frozen gates that give each task an expert of its own is
single-task learning; PLE with L = 1, m_p = 0 is MMoE; PLE with m_s = 0 and m_p = 1 is single-task learning.

Ma, Zhao, Yi, Chen, Hong, Chi, Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts, KDD 2018. Tang, Liu, Zhao, Gong, Progressive Layered Extraction (PLE), RecSys 2020.
Hazimeh et al., DSelect-k, NeurIPS 2021.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.core.task import Task
from polytask.deep.base import SharingNetwork
from polytask.deep.branches import Branches
from polytask.deep.encoders import BranchedEncoder, Encoder, pooled
from polytask.deep.gates import LinearGates, SelectGates
from polytask.deep.heads import Heads
from polytask.deep.running_mean import RunningMean
from polytask.deep.seeding import seeded


class _Reader(nn.Module):
    """The encoder's first stage, and what gates read of a stage's output: its means over positions.

    ``grid`` cells per side of an image are averaged separately, so that a gate sees where something is.
    """

    def __init__(self, encoder: Encoder, grid: int) -> None:
        super().__init__()
        if len(encoder.names) < 2:
            raise InputError(
                f'the encoder has only the stage "{encoder.names[0]}"; experts are made of the stages after it, '
                "give at least one hidden layer"
            )
        if not encoder.channels:
            raise InputError("the encoder does not say how many channels its stages have; give it channels=")
        if grid < 1:
            raise InputError(f"grid is {grid}; give the number of cells per side of an image, at least 1")
        self.stage = copy.deepcopy(encoder.stages[encoder.names[0]])
        self.axis, self.grid = encoder.channel_axis, grid
        self.widths = {name: width * grid**2 for name, width in encoder.channels.items()}

    def forward(self, inputs: Mapping[str, Tensor], own_rows: bool) -> tuple[Tensor, Tensor | None]:
        """Return the first stage's output ``(R, …)`` and the lengths ``(R,)``; R joins the rows of all tasks."""
        if own_rows:
            inputs = {name: tensor.flatten(0, 1) for name, tensor in inputs.items()}
        return self.stage(inputs), inputs.get("length")

    def seen(self, x: Tensor, own: bool, length: Tensor | None) -> Tensor:
        """Return what gates read, ``(R, p)`` or ``(T, R, p)``."""
        if self.grid == 1:
            return pooled(x, self.axis, own, length=length)
        if self.axis != 1 or x.dim() != 4 + own:
            raise InputError(f"grid is {self.grid}, but only images have cells; leave it at 1")
        cells = functional.adaptive_avg_pool2d(x.flatten(0, 1) if own else x, self.grid).flatten(1)
        return torch.unflatten(cells, 0, x.shape[:2]) if own else cells


class _Experts(nn.Module):
    """n copies of some stages of an encoder, drawn independently."""

    def __init__(self, encoder: Encoder, names: Sequence[str], n: int, *, seed: int) -> None:
        super().__init__()
        part = Encoder(
            {name: encoder.stages[name] for name in names},
            n_features=encoder.channels[names[-1]],
            channel_axis=encoder.channel_axis,
        )
        self.stack = BranchedEncoder(part, n, seed=seed, identical=False)

    def forward(
        self,
        x: Tensor,
        own: bool = False,
        *,
        length: Tensor | None = None,
        only: Tensor | None = None,
        pool: bool = True,
    ) -> Tensor:
        """Return features ``(n, R, h)``, or ``(n, R, …)`` with all positions unless ``pool``.

        ``x`` is ``(R, …)`` or, with ``own``, ``(n, R, …)``; ``length`` is ``(R,)`` or ``(n, R)``.
        """
        n = self.stack.n if only is None else len(only)
        if own and length is not None and length.dim() == 1:
            length = length.expand(n, -1)
        for name in self.stack.names:
            x, own = self.stack.run_stage(name, x, own, only, length=length)
        said = x if own else x.expand(n, *x.shape)
        return pooled(said, self.stack.channel_axis, True, length=length) if pool else said


@dataclass(frozen=True)
class _Part:
    """Some experts and how much of them each task takes.

    ``features`` is ``(E, B, …)``, or with ``own`` ``(T, E, B, …)``; ``gates`` is ``(T, B, E)``.
    """

    features: Tensor
    gates: Tensor
    own: bool = False

    def mixed(self) -> Tensor:
        """Return ``sum_e g_tbe f_eb``, ``(T, B, …)``."""
        lead = 3 if self.own else 2
        equation = "tbe,tebh->tbh" if self.own else "tbe,ebh->tbh"
        mixed = torch.einsum(equation, self.gates, self.features.flatten(lead))
        return torch.unflatten(mixed, -1, self.features.shape[lead:])

    def scored(self, heads: Heads, only: Tensor | None) -> Tensor:
        """Return ``sum_e g_tbe head_t(f_eb)``, ``(T, B, K)``, from features ``(…, h)``."""
        n_experts, n_rows = self.features.shape[-3:-1]
        each = heads(self.features.flatten(-3, -2), self.own, only=only)
        each = torch.unflatten(each, 1, (n_experts, n_rows))
        return (each * self.gates.transpose(1, 2).unsqueeze(-1)).sum(1)


class _ExpertNetwork(SharingNetwork):
    """What mixtures of experts have in common (abstract): the first stage, towers and heads."""

    gates_sum_to_one = True

    def __init__(self, tasks: Sequence[Task], encoder: Encoder, *, towers: Sequence[int], grid: int, seed: int) -> None:
        super().__init__(tasks)
        if any(width < 1 for width in towers):
            raise InputError(f"towers is {list(towers)}; every layer needs at least one unit")
        self.reader = _Reader(encoder, grid)
        widths = [encoder.n_features, *towers]
        self.towers: Branches | None = None
        if towers:
            with seeded(seed + 2):
                layers = [[nn.Linear(n, m), nn.ReLU()] for n, m in itertools.pairwise(widths)]
                tower = nn.Sequential(*(part for layer in layers for part in layer))
            self.towers = Branches(tower, len(tasks), seed=seed + 3)
        self.heads = Heads(tasks, widths[-1], seed=seed)

    def top(self, parts: Sequence[_Part], only: Tensor | None) -> Tensor:
        """Return the scores ``(T, B, K)`` of the sum of mixtures of pooled features."""
        if self.towers is not None:
            mixed = _sum(part.mixed() for part in parts)
            scores: Tensor = self.heads(self.towers(mixed, True, only=only), True, only=only)
            return scores
        scores = _sum(part.scored(self.heads, only) for part in parts)
        if self.gates_sum_to_one:
            return scores
        bias = self.heads.linear.weights["bias"].unsqueeze(1) * self.heads.used
        missing = 1 - _sum(part.gates.sum(-1, keepdim=True) for part in parts)
        return scores + missing * (bias if only is None else bias[only])

    def index(self, only: Sequence[int] | None) -> Tensor | None:
        """Return the numbers of tasks as a tensor."""
        return None if only is None else torch.tensor(only, device=self.heads.used.device)

    def use_relation(self, use: RunningMean, experts: Sequence[str]) -> Relation:
        """Return experts × tasks: the mean gates of the last training batches."""
        names = tuple(task.name for task in self.tasks)
        about = "how much of each expert each task took, the mean over the last training batches"
        return Relation("loadings", use.mean.T.double().cpu().numpy(), tuple(experts), names, about)


class _Mixture(_ExpertNetwork):
    """Experts that all tasks share (abstract); ``gates`` says what each task takes of them."""

    gates: LinearGates | SelectGates

    def __init__(
        self,
        tasks: Sequence[Task],
        encoder: Encoder,
        *,
        n_experts: int,
        towers: Sequence[int],
        grid: int,
        seed: int,
    ) -> None:
        super().__init__(tasks, encoder, towers=towers, grid=grid, seed=seed)
        if n_experts < 1:
            raise InputError(f"n_experts is {n_experts}; give at least 1")
        self.experts = _Experts(encoder, encoder.names[1:], n_experts, seed=seed + 1)
        self.use = RunningMean(len(tasks), n_experts)

    def say(self, inputs: Mapping[str, Tensor], own_rows: bool) -> tuple[Tensor, Tensor]:
        """Return what the experts say, ``(E, R, h)``, and what the gates read, ``(R, p)``."""
        x, length = self.reader(inputs, own_rows)
        return self.experts(x, length=length), self.reader.seen(x, False, length)

    def all_scores(
        self, inputs: Mapping[str, Tensor], own_rows: bool = False, *, only: Sequence[int] | None = None
    ) -> Tensor:
        chosen = self.index(only)
        said, seen = self.say(inputs, own_rows)
        if own_rows:
            shape = next(iter(inputs.values())).shape[:2]
            said, seen = torch.unflatten(said, 1, shape).transpose(0, 1), torch.unflatten(seen, 0, shape)
        gates = self.gates(seen, own_rows, only=chosen)
        self.use(gates.mean(1), chosen)
        return self.top([_Part(said, gates, own_rows)], chosen)

    def shared_parameters(self) -> list[nn.Parameter]:
        return [*self.reader.parameters(), *self.experts.parameters()] if len(self.tasks) > 1 else []

    def relations(self) -> dict[str, Relation]:
        """Return how much of each expert each task takes, the mean over the last training batches."""
        return {"experts": self.use_relation(self.use, _numbered("expert", self.use.mean.shape[1]))}


def _numbered(what: str, n: int) -> list[str]:
    return [f"{what} {number}" for number in range(1, n + 1)]


class MMoE(_Mixture):
    """Multi-gate mixture of experts.

    Parameters
    ----------
    tasks
        The tasks.
    encoder
        Its stages after the first are what an expert is; needs ``channels``.
    n_experts
        Number of experts.
    towers
        Widths of the hidden layers of each task's tower; empty: heads read the mixture.
    grid
        For images: cells per side over which the gates' input is averaged.
    seed
        Seed of the initial weights of experts 2 … E, gates, towers and heads.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        encoder: Encoder,
        *,
        n_experts: int = 4,
        towers: Sequence[int] = (),
        grid: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(tasks, encoder, n_experts=n_experts, towers=towers, grid=grid, seed=seed)
        n_read = self.reader.widths[encoder.names[0]]
        self.gates = LinearGates(len(tasks), n_read, n_experts, seed=seed + 4)


class OMoE(_Mixture):
    """One-gate mixture of experts: all tasks take the same mixture, so it is one trunk with heads.

    Parameters
    ----------
    tasks, encoder, n_experts, grid, seed
        As for :class:`MMoE`.
    """

    def __init__(
        self, tasks: Sequence[Task], encoder: Encoder, *, n_experts: int = 4, grid: int = 1, seed: int = 0
    ) -> None:
        super().__init__(tasks, encoder, n_experts=n_experts, towers=(), grid=grid, seed=seed)
        self.gates = LinearGates(1, self.reader.widths[encoder.names[0]], n_experts, seed=seed + 4)

    def _trunk(self, inputs: Mapping[str, Tensor], own_rows: bool) -> Tensor:
        said, seen = self.say(inputs, own_rows)
        gates = self.gates(seen)
        self.use(gates.mean(1).expand(len(self.tasks), -1))
        return _Part(said, gates).mixed()[0]

    def all_scores(
        self, inputs: Mapping[str, Tensor], own_rows: bool = False, *, only: Sequence[int] | None = None
    ) -> Tensor:
        features = self._trunk(inputs, own_rows)
        if own_rows:
            features = torch.unflatten(features, 0, next(iter(inputs.values())).shape[:2])
        scores: Tensor = self.heads(features, own_rows, only=self.index(only))
        return scores

    def shared_parameters(self) -> list[nn.Parameter]:
        return [*super().shared_parameters(), *self.gates.parameters()] if len(self.tasks) > 1 else []

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self._trunk(inputs, False)

    def scores_and_features(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        features = self._trunk(inputs, False)
        scores: Tensor = self.heads(features)
        return scores, features, self.heads.linear.weights["weight"]


class DSelectK(_Mixture):
    """Mixture of experts whose gates learn to take at most k of them.

    Parameters
    ----------
    tasks, encoder, n_experts, towers, grid, seed
        As for :class:`MMoE`.
    n_selected
        Most experts a task takes, k.
    per_example
        Whether a task chooses for each row; False: once for all rows.
    width
        Width γ of the smooth step.
    strength
        Weight of the gates' entropy in the penalty, which pulls them towards few experts.
    """

    gates: SelectGates

    def __init__(
        self,
        tasks: Sequence[Task],
        encoder: Encoder,
        *,
        n_experts: int = 4,
        n_selected: int = 2,
        per_example: bool = False,
        width: float = 1.0,
        strength: float = 1e-6,
        towers: Sequence[int] = (),
        grid: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(tasks, encoder, n_experts=n_experts, towers=towers, grid=grid, seed=seed)
        self.gates = SelectGates(
            len(tasks),
            self.reader.widths[encoder.names[0]],
            n_experts,
            n_selected=n_selected,
            per_example=per_example,
            width=width,
            strength=strength,
            seed=seed + 4,
        )
        self.gates_sum_to_one = self.gates.sums_to_one

    def penalty(self) -> Tensor:
        """Return the gates' penalty: per example, that of the last training batch."""
        return self.gates.penalty()

    def penalty_gradient(self) -> None:
        self.gates.penalty_gradient()


@dataclass(frozen=True)
class _Streams:
    """What a level of extraction reads.

    ``shared`` is ``(R, …)``, ``private`` ``(T, R, …)``, None before the first level, where all is one input;
    ``length`` is ``(R,)`` or None.
    """

    shared: Tensor
    private: Tensor | None
    length: Tensor | None


class _Level(nn.Module):
    """One level of extraction: shared and private experts, a gate per task, and one of the shared stream."""

    def __init__(
        self,
        encoder: Encoder,
        names: Sequence[str],
        *,
        n_tasks: int,
        n_shared: int,
        n_private: int,
        n_read: int,
        last: bool,
        seed: int,
    ) -> None:
        super().__init__()
        self.n_private, self.n_shared = n_private, n_shared
        self.shared = _Experts(encoder, names, n_shared, seed=seed) if n_shared else None
        self.private = _Experts(encoder, names, n_tasks * n_private, seed=seed + 1) if n_private else None
        self.gates = LinearGates(n_tasks, n_read, n_private + n_shared, seed=seed + 2)
        self.shared_gate: LinearGates | None = None
        if n_shared and not last:
            self.shared_gate = LinearGates(1, n_read, n_shared + n_tasks * n_private, seed=seed + 3)
        self.use = RunningMean(n_tasks, n_private + n_shared)

    def forward(self, streams: _Streams, reader: _Reader) -> _Streams:
        """Return the streams that the next level reads."""
        own = streams.private is not None
        x = streams.shared if streams.private is None else streams.private
        gates = self.gates(reader.seen(x, own, streams.length), own)
        self.use(gates.mean(1))
        private, shared = self._say(x, own, streams, pool=False)
        mixed = _sum(part.mixed() for part in self.parts(private, shared, gates))
        if self.shared_gate is None or shared is None:
            return _Streams(streams.shared, mixed, streams.length)
        gate = self.shared_gate(reader.seen(streams.shared, False, streams.length))
        parts = [_Part(shared, gate[..., : self.n_shared])]
        if private is not None:
            parts.append(_Part(private.flatten(0, 1), gate[..., self.n_shared :]))
        return _Streams(_sum(part.mixed() for part in parts)[0], mixed, streams.length)

    def last(self, streams: _Streams, reader: _Reader, shape: torch.Size | None, only: Tensor | None) -> list[_Part]:
        """Return what the tasks' heads read; ``shape`` (tasks, rows) where every task has its own rows."""
        x, own, length = streams.shared, False, streams.length
        if streams.private is not None:
            x, own = streams.private, True
            if shape is not None:
                chosen = torch.arange(len(x), device=x.device) if only is None else only
                x = torch.unflatten(x, 1, shape)[chosen, torch.arange(len(chosen), device=x.device)]
            elif only is not None:
                x = x[only]
        elif shape is not None:
            x, own = torch.unflatten(x, 0, shape), True
        if shape is not None and length is not None:
            length = torch.unflatten(length, 0, shape)
        gates = self.gates(reader.seen(x, own, length), own, only=only)
        self.use(gates.mean(1), only)
        private, shared = self._say(x, own, streams, pool=True, length=length, only=only)
        if shared is not None and shape is not None:
            shared = torch.unflatten(shared, 1, shape).transpose(0, 1)
        return self.parts(private, shared, gates, own_rows=shape is not None)

    def _say(
        self,
        x: Tensor,
        own: bool,
        streams: _Streams,
        *,
        pool: bool,
        length: Tensor | None = None,
        only: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return what private experts say of ``x``, ``(T, m_p, B, …)``, and shared ones of their stream."""
        length = streams.length if length is None else length
        shared = None if self.shared is None else self.shared(streams.shared, length=streams.length, pool=pool)
        if self.private is None:
            return None, shared
        copies = self.n_private
        if own and copies > 1:
            x = x.repeat_interleave(copies, 0)
            length = length.repeat_interleave(copies, 0) if length is not None and length.dim() > 1 else length
        if only is not None:
            only = (only[:, None] * copies + torch.arange(copies, device=only.device)).flatten()
        private = self.private(x, own, length=length, only=only, pool=pool)
        return torch.unflatten(private, 0, (-1, copies)), shared

    def parts(
        self, private: Tensor | None, shared: Tensor | None, gates: Tensor, *, own_rows: bool = False
    ) -> list[_Part]:
        """Return the mixtures whose sum a task takes: of its private experts and of the shared ones."""
        parts = [] if private is None else [_Part(private, gates[..., : self.n_private], own=True)]
        return parts if shared is None else [*parts, _Part(shared, gates[..., self.n_private :], own=own_rows)]


class PLE(_ExpertNetwork):
    """Progressive layered extraction; with one level, customised gate control (CGC).

    With one batch per task and more than one level, the shared stream of every row mixes the private
    experts of all tasks, so all levels but the last are computed for all tasks on the rows of all tasks.

    Parameters
    ----------
    tasks, encoder, towers, grid
        As for :class:`MMoE`. The encoder's stages after the first are dealt to the levels in order.
    n_shared
        Number of shared experts in each level, m_s.
    n_private
        Number of private experts of each task in each level, m_p.
    levels
        Number of levels L, at most the number of stages after the first.
    seed
        Seed of the initial weights.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        encoder: Encoder,
        *,
        n_shared: int = 1,
        n_private: int = 1,
        levels: int = 2,
        towers: Sequence[int] = (),
        grid: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(tasks, encoder, towers=towers, grid=grid, seed=seed)
        stages = encoder.names[1:]
        if n_shared < 0 or n_private < 0 or n_shared + n_private == 0:
            raise InputError(f"n_shared is {n_shared} and n_private {n_private}; a task needs at least one expert")
        if not 1 <= levels <= len(stages):
            raise InputError(
                f"levels is {levels}; give a number from 1 to that of the encoder's stages after its first, "
                f"{len(stages)}"
            )
        cuts = [len(stages) * level // levels for level in range(levels + 1)]
        self.n_shared, self.n_private = n_shared, n_private
        self.levels = nn.ModuleList(
            _Level(
                encoder,
                stages[start:stop],
                n_tasks=len(tasks),
                n_shared=n_shared,
                n_private=n_private,
                n_read=self.reader.widths[encoder.names[start]],
                last=stop == len(stages),
                seed=seed + 10 * (number + 1),
            )
            for number, (start, stop) in enumerate(itertools.pairwise(cuts))
        )

    def all_scores(
        self, inputs: Mapping[str, Tensor], own_rows: bool = False, *, only: Sequence[int] | None = None
    ) -> Tensor:
        chosen = self.index(only)
        x, length = self.reader(inputs, own_rows)
        streams = _Streams(x, None, length)
        for level in self.levels[:-1]:
            streams = level(streams, self.reader)
        last = self.levels[-1]
        assert isinstance(last, _Level)
        shape = next(iter(inputs.values())).shape[:2] if own_rows else None
        return self.top(last.last(streams, self.reader, shape, chosen), chosen)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return what two losses reach: below the last level, private experts too, through the shared stream."""
        if len(self.tasks) == 1:
            return []
        parts: list[nn.Module | None] = [self.reader]
        for above, level in zip(reversed(range(len(self.levels))), self.levels, strict=True):
            assert isinstance(level, _Level)
            parts += [level.shared, level.shared_gate]
            if self.n_shared and above:
                parts.append(level.private)
            if self.n_shared and self.n_private and above > 1:
                parts.append(level.gates)
        return [parameter for part in parts if part is not None for parameter in part.parameters()]

    def relations(self) -> dict[str, Relation]:
        """Return, per level, how much of its private and the shared experts each task takes."""
        names = [*_numbered("private", self.n_private), *_numbered("shared", self.n_shared)]
        found = {}
        for number, level in enumerate(self.levels, start=1):
            assert isinstance(level, _Level)
            name = "experts" if len(self.levels) == 1 else f"experts, level {number}"
            found[name] = self.use_relation(level.use, names)
        return found


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, tensors)
