"""Joint many-task network: tasks at growing depths of one cascade, each told what the lower ones predict.

    x = input,   h_1 = f_1(x),   h_l = f_l([ h_{l-1} ; x ; y_{l-1} ])          l = 2 … levels
    y_l = y_{l-1} + sum_{tasks t at level l} sum_c P_t(c | h_l) E_t[c],        y_0 = 0
    scores_t = W_t' h_l + b_t                                                  tasks t at level l

The input reaches every level by a shortcut; the label embedding y is made of soft predictions, so that gradients
of higher tasks reach the heads below; a regression task adds its prediction times one vector. An epoch goes
through the levels from low to high. While level l is trained, successive regularisation

    penalty = sum_{θ of level l-1 and the input}  δ ||θ - θ'||²,     θ' = θ when the training of the level began,

keeps what lower tasks learned, with a δ of its own for the weights of heads; each optimiser step of size η is
followed by the exact proximal step ``θ ← θ' + (θ - θ') / (1 + 2 η δ)``. With all tasks at the last stage, and all
at once, this is hard sharing; without shortcuts, labels and regularisation it is low supervision.

Hashimoto, Xiong, Tsuruoka, Socher, A Joint Many-Task Model: Growing a Neural Network for Multiple NLP Tasks,
EMNLP 2017.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.core.errors import InputError, unknown
from polytask.core.relation import Relation
from polytask.core.task import Task
from polytask.deep.base import SharingNetwork
from polytask.deep.encoders import BranchedEncoder, Encoder, pooled
from polytask.deep.heads import Heads
from polytask.deep.levels import levels_relation, lower_part, stage_numbers, stage_widths
from polytask.deep.rows import Input, in_order, selection, taken
from polytask.deep.seeding import seeded
from polytask.deep.soft_labels import SoftLabels
from polytask.deep.stacking.recurrent import Recurrent


class _Level(nn.Module):
    """The heads of the tasks at one level, and the embedding of their labels if a level above reads it."""

    def __init__(self, tasks: Sequence[Task], width: int, dim: int, *, seed: int) -> None:
        super().__init__()
        self.heads = Heads(tasks, width, seed=seed)
        self.soft = SoftLabels(tasks)
        self.embedding: nn.Parameter | None = None
        if dim:
            table = torch.zeros(len(tasks), max(self.soft.sizes), dim)
            with seeded(seed + 1):
                for task, size in enumerate(self.soft.sizes):
                    limit = (6 / (dim + size)) ** 0.5
                    table[task, :size].uniform_(-limit, limit)
            self.embedding = nn.Parameter(table)

    def embedded(self, scores: Tensor) -> Tensor:
        """Return the label embedding of scores ``(T, B, K)``, summed over the tasks, ``(B, dim)``."""
        assert self.embedding is not None
        return torch.einsum("tbc,tcd->bd", self.soft(scores), self.embedding)


class _Cascade:
    """Where a pass through the cascade stands.

    Rows of each task's own, ``(T', B, …)``, are joined; when a task has its answer its rows are dropped.

    Attributes
    ----------
    x, first, told
        Output of the last stage, of the first stage, and the label embedding, for all rows left.
    going
        Places of the tasks that have no answer yet.
    """

    def __init__(self, inputs: Mapping[str, Tensor], own_rows: bool, n_tasks: int) -> None:
        self.own_rows, self.going = own_rows, list(range(n_tasks))
        self.n_rows = next(iter(inputs.values())).shape[int(own_rows)]
        self.inputs = {name: value.flatten(0, 1) for name, value in inputs.items()} if own_rows else inputs
        self.length = self.inputs.get("length")
        self.x: Tensor | None = None
        self.first: Tensor | None = None
        self.told: Tensor | None = None

    def rows_of(self, rows: Tensor, places: Sequence[int]) -> Tensor:
        """Return the rows of some of the tasks that go on, ``(T'', B, …)`` out of ``(T'·B, …)``."""
        return taken(rows.reshape(len(self.going), self.n_rows, *rows.shape[1:]), [*map(self.going.index, places)])

    def own_part(self, scores: Tensor, places: Sequence[int]) -> Tensor:
        """Return each task's scores on its own rows, ``(m, B, K)`` out of ``(m, T'·B, K)``."""
        parts = scores.reshape(len(scores), len(self.going), self.n_rows, scores.shape[-1])
        own = torch.tensor([*map(self.going.index, places)], device=scores.device)
        return parts[torch.arange(len(scores), device=scores.device), own]

    def go_on_without(self, here: Sequence[int]) -> None:
        """Drop the tasks that have their answer."""
        left = [place for place in self.going if place not in here]
        if self.own_rows and left and here:
            parts = (self.x, self.first, self.told, self.length)
            self.x, self.first, self.told, self.length = (
                None if part is None else self.rows_of(part, left).flatten(0, 1) for part in parts
            )
        self.going = left


class JointManyTask(SharingNetwork):
    """A cascade of levels with shortcuts and label embeddings, trained level by level.

    A level is the stage that tasks read and the stages below it down to the next level.

    Parameters
    ----------
    tasks
        The tasks.
    encoder
        Its stages become the levels (copied); the first layer of a level above the lowest is drawn anew, wider.
        Stages above the highest level are left out.
    levels
        Task name → the stage that its head reads, by number (0 is the input, 1 the first layer) or by name. None:
        the last stage for every task.
    shortcuts
        Whether every level reads the output of the first stage.
    label_embeddings
        Whether every level reads what the heads below predict.
    dim
        Width of label embeddings.
    delta
        Weight of the successive regularisation, at least 0.
    head_delta
        The same for the weights of heads.
    anchor
        What is kept while a level is trained: ``"level"``, the level below and the first stage (the paper), or
        ``"all"`` levels below.
    order
        How an epoch goes through the tasks: ``"levels"``, level by level, the tasks of one level together;
        ``"tasks"``, one by one; ``"together"``, all in every batch, and nothing is regularised.
    seed
        Seed of the initial weights of heads, embeddings and widened layers.
    """

    current: Tensor

    def __init__(
        self,
        tasks: Sequence[Task],
        encoder: Encoder,
        *,
        levels: Mapping[str, int | str] | None = None,
        shortcuts: bool = True,
        label_embeddings: bool = True,
        dim: int = 8,
        delta: float = 1e-3,
        head_delta: float = 1e-2,
        anchor: Literal["level", "all"] = "level",
        order: Literal["levels", "tasks", "together"] = "levels",
        seed: int = 0,
    ) -> None:
        super().__init__(tasks)
        for name, value in (("delta", delta), ("head_delta", head_delta)):
            if not 0 <= value < float("inf"):
                raise InputError(f"{name} is {value}; give a finite number of at least 0")
        if dim < 1:
            raise InputError(f"dim is {dim}; label embeddings need at least one number")
        if anchor not in ("level", "all"):
            raise InputError(unknown("anchor", anchor, ("level", "all")))
        if order not in ("levels", "tasks", "together"):
            raise InputError(unknown("order", order, ("levels", "tasks", "together")))
        self.levels = stage_numbers(tasks, encoder, levels)
        """Number of the stage that each task's head reads."""
        self.taps = sorted(set(self.levels))
        self.shortcuts, self.label_embeddings, self.order = shortcuts, label_embeddings, order
        self.delta, self.head_delta, self.anchor = float(delta), float(head_delta), anchor
        self.members = {tap: [t for t, level in enumerate(self.levels) if level == tap] for tap in self.taps}
        wanted = dim if label_embeddings else 0
        tops_only = self.taps == [len(encoder.names) - 1]
        widths = [encoder.n_features] * len(encoder.names) if tops_only else stage_widths(encoder)
        self.trunk = BranchedEncoder(self._widened(lower_part(encoder, self.taps[-1]), widths, wanted, seed), 1)
        self.outputs = nn.ModuleDict(
            {
                encoder.names[tap]: _Level(
                    [tasks[t] for t in self.members[tap]],
                    widths[tap],
                    wanted if tap < self.taps[-1] else 0,
                    seed=seed + 2 * place,
                )
                for place, tap in enumerate(self.taps)
            }
        )
        self.register_buffer("current", torch.tensor(-1))
        if order != "together" and (delta or head_delta):
            for level in range(len(self.taps)):
                for name, parameter, _ in self._anchored(level):
                    self.register_buffer(_buffer(name), parameter.detach().clone())

    def _widened(self, encoder: Encoder, widths: list[int], dim: int, seed: int) -> Encoder:
        """Return the encoder with wider first layers in the stages that read more than the stage before."""
        stages = dict(encoder.stages)
        for stage, name in enumerate(encoder.names):
            if self._reads_more(stage):
                extra = dim + (widths[0] if self._has_shortcut(stage) else 0)
                with seeded(seed + stage):
                    stages[name] = _reading_more(stages[name], widths[stage - 1], extra)
        channels = encoder.channels or None
        return Encoder(stages, n_features=encoder.n_features, channels=channels, channel_axis=encoder.channel_axis)

    def _reads_more(self, stage: int) -> bool:
        return stage - 1 in self.taps

    def _has_shortcut(self, stage: int) -> bool:
        return self.shortcuts and self._reads_more(stage) and stage > 1

    # -- scores -------------------------------------------------------------------------------

    def all_scores(
        self, inputs: Mapping[str, Tensor], own_rows: bool = False, *, only: Sequence[int] | None = None
    ) -> Tensor:
        asked = list(range(len(self.tasks))) if only is None else list(only)
        now = _Cascade(inputs, own_rows, len(asked))
        parts = []
        for stage in range(len(self.trunk.names)):
            self._climb(stage, now)
            if stage in self.taps:
                parts.append(self._answers(stage, now, asked))
                if not now.going:
                    break
        return in_order(parts, max(task.n_outputs for task in self.tasks))

    def _climb(self, stage: int, now: _Cascade) -> None:
        """Run one stage."""
        x: Input = now.inputs if now.x is None else now.x
        if self._reads_more(stage):
            assert now.x is not None
            shortcut = [now.first] if self._has_shortcut(stage) else []
            x = _beside(now.x, [part for part in (*shortcut, now.told) if part is not None], self.trunk.channel_axis)
        y, own = self.trunk.run_stage(self.trunk.names[stage], x, length=now.length)
        now.x = y[0] if own else y
        now.first = now.x if stage == 0 else now.first

    def _answers(self, stage: int, now: _Cascade, asked: list[int]) -> tuple[list[int], Tensor]:
        """Return the places in ``asked`` of the tasks of one level, and their scores; the others go on."""
        assert now.x is not None
        features = pooled(now.x, self.trunk.channel_axis, length=now.length)
        here = [place for place in now.going if self.levels[asked[place]] == stage]
        heads, members = self._level(stage).heads, [self.members[stage].index(asked[place]) for place in here]
        if self.label_embeddings and len(here) < len(now.going):  # those above hear of every task of this level
            every = heads(features)
            said = self._level(stage).embedded(every)
            now.told = said if now.told is None else now.told + said
            scores = now.own_part(taken(every, members), here) if now.own_rows else taken(every, members)
        elif not here:
            scores = features[:0]
        else:
            own = now.rows_of(features, here) if now.own_rows else features
            only = selection(members, len(self.members[stage]), features.device)
            scores = heads(own, now.own_rows, only=only)
        now.go_on_without(here)
        return here, scores

    def _level(self, stage: int) -> _Level:
        level = self.outputs[self.trunk.names[stage]]
        assert isinstance(level, _Level)
        return level

    # -- what is shared -----------------------------------------------------------------------

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return what two or more losses reach: stages, and the heads and embeddings that levels above read."""
        shared: list[nn.Parameter] = []
        for stage, name in enumerate(self.trunk.names):
            if sum(level >= stage for level in self.levels) > 1:
                shared += self.trunk.stages[name].parameters()
        for tap in self.taps:
            above = sum(level > tap for level in self.levels)
            level = self._level(tap)
            if above and self.label_embeddings:
                shared += level.heads.parameters()
            if above > 1 and level.embedding is not None:
                shared.append(level.embedding)
        return shared

    def start_heads(self, constants: Tensor) -> None:
        """Let every task's score start near ``constants`` ``(T, K)``; levels above hear of it."""
        for tap, members in self.members.items():
            heads = self._level(tap).heads
            heads.start(constants[members, : heads.used.shape[-1]])

    def relations(self) -> dict[str, Relation]:
        """Return through which stages each task passes."""
        return levels_relation(self.tasks, self.trunk.names, self.levels)

    # -- one level after the other -------------------------------------------------------------

    def task_order(self) -> Sequence[Sequence[int]] | None:
        """Return the tasks from low to high levels."""
        if self.order == "together":
            return None
        groups = [self.members[tap] for tap in self.taps]
        return groups if self.order == "levels" else [[task] for group in groups for task in group]

    @torch.no_grad()
    def begin_tasks(self, tasks: Sequence[int]) -> None:
        """Remember the weights that successive regularisation keeps while these tasks, of one level, are trained."""
        level = self.taps.index(self.levels[tasks[0]])
        self.current.fill_(level)
        if self.delta or self.head_delta:
            for name, parameter, _ in self._anchored(level):
                self.get_buffer(_buffer(name)).copy_(parameter)

    @torch.no_grad()
    def penalty(self) -> Tensor:
        parts = [delta * (parameter - start).square().sum() for parameter, start, delta in self._kept()]
        return torch.stack(parts).sum() if parts else super().penalty()

    @torch.no_grad()
    def after_step(self, learning_rate: float) -> None:
        for parameter, start, delta in self._kept():
            parameter.lerp_(start, 1 - 1 / (1 + 2 * learning_rate * delta))

    def _kept(self) -> Iterator[tuple[nn.Parameter, Tensor, float]]:
        """Yield the weights that are kept now, where they were, and their δ."""
        level = int(self.current)
        if level >= 0 and (self.delta or self.head_delta):
            for name, parameter, delta in self._anchored(level):
                yield parameter, self.get_buffer(_buffer(name)), delta

    def _anchored(self, level: int) -> Iterator[tuple[str, nn.Parameter, float]]:
        """Yield name, weight and δ of what is kept while a level is trained."""
        below = range(level) if self.anchor == "all" else range(max(0, level - 1), level)
        stages = {0} if self.taps[level] else set()
        stages |= {stage for lower in below for stage in range(self._bottom(lower), self.taps[lower] + 1)}
        for stage in sorted(stages):
            name = self.trunk.names[stage]
            for part, parameter in self.trunk.stages[name].named_parameters():
                yield f"trunk.{name}.{part}", parameter, self.delta
        for lower in below:
            name = self.trunk.names[self.taps[lower]]
            for part, parameter in self._level(self.taps[lower]).heads.named_parameters():
                yield f"heads.{name}.{part}", parameter, self.head_delta
            embedding = None if lower == 0 else self._level(self.taps[lower - 1]).embedding
            if embedding is not None:  # of the labels that this level reads
                yield f"labels.{self.trunk.names[self.taps[lower - 1]]}", embedding, self.delta

    def _bottom(self, level: int) -> int:
        return 0 if level == 0 else self.taps[level - 1] + 1


def _buffer(name: str) -> str:
    return "start_" + name.replace(".", "_")


def _beside(x: Tensor, others: Sequence[Tensor], channel_axis: int) -> Tensor:
    """Join tensors along the axis of channels, brought to the positions of ``x``."""
    parts = [x]
    for other in others:
        if other.dim() < x.dim():  # the same at every position
            middle = other.dim() if channel_axis == 1 else 1
            shape = x.shape[2:] if channel_axis == 1 else x.shape[1:-1]
            other = other[(slice(None),) * middle + (None,) * len(shape)]
            other = other.expand(*other.shape[:middle], *shape, *other.shape[middle + len(shape) :])
        elif channel_axis == 1 and other.shape[2:] != x.shape[2:]:
            pool: Any = functional.adaptive_avg_pool1d if x.dim() == 3 else functional.adaptive_avg_pool2d
            other = pool(other, tuple(x.shape[2:]))
        parts.append(other)
    return torch.cat(parts, dim=channel_axis)


def _reading_more(block: nn.Module, width: int, extra: int) -> nn.Module:
    """Return a copy of a block whose first layer, drawn anew, reads ``extra`` more channels than ``width``."""
    if extra == 0:
        return block
    if type(block).forward is nn.Sequential.forward:
        wider = nn.Sequential()
        todo = True
        for name, child in block.named_children():
            has_weights = any(True for _ in child.parameters())
            wider.add_module(name, _reading_more(child, width, extra) if todo and has_weights else copy.deepcopy(child))
            todo = todo and not has_weights
        if not todo:
            return wider
    device: dict[str, Any] = {"device": next(iter(block.parameters()), torch.empty(0)).device}
    if isinstance(block, nn.Linear) and block.in_features % width == 0:
        positions = block.in_features // width
        return nn.Linear((width + extra) * positions, block.out_features, bias=block.bias is not None, **device)
    if isinstance(block, (nn.Conv1d, nn.Conv2d)) and block.groups == 1:
        wide = copy.deepcopy(block)
        wide.in_channels += extra
        wide.weight = nn.Parameter(torch.empty(block.out_channels, width + extra, *block.kernel_size, **device))
        wide.reset_parameters()
        return wide
    if isinstance(block, Recurrent):
        return Recurrent(width + extra, block.hidden, cell=block.cell, bidirectional=block.back is not None).to(
            **device
        )
    raise InputError(
        f"a level of JointManyTask begins with {block}, which cannot be made to read the input and the labels below; "
        "begin it with a linear layer, a convolution or a Recurrent"
    )
