"""Low supervision: one trunk whose heads sit at different depths.

    h_0 = input,   h_l = f_l(h_{l-1}),   scores_t = W_t' h_{l_t} + b_t          l_t: level of task t

The loss of task t reaches stages 1 … l_t only: low-level tasks shape low layers and leave the upper ones to the
tasks that need them. Stages above the highest level of the tasks asked for are not computed. With all tasks at
the last stage this is hard sharing.

Søgaard, Goldberg, Deep multi-task learning with low level tasks supervised at lower layers, ACL 2016.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional

from polytask.core.relation import Relation
from polytask.core.task import Task
from polytask.deep.base import SharingNetwork
from polytask.deep.encoders import BranchedEncoder, Encoder, pooled
from polytask.deep.heads import Heads
from polytask.deep.levels import levels_relation, lower_part, stage_numbers, stage_widths
from polytask.deep.rows import Input, all_joined, in_order, joined, parted, selection, taken


class LowSupervision(SharingNetwork):
    """One trunk, heads at any depth.

    With one batch per task a stage sees the rows of all tasks that pass through it together, so batch norm
    takes its statistics over them.

    Parameters
    ----------
    tasks
        The tasks.
    encoder
        The trunk (copied). Stages above the highest level are left out.
    levels
        Task name → the stage that its head reads, by number (0 is the input, 1 the first layer) or by name. None:
        the last stage for every task, which is hard sharing.
    seed
        Seed of the heads' initial weights.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        encoder: Encoder,
        *,
        levels: Mapping[str, int | str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(tasks)
        self.levels = stage_numbers(tasks, encoder, levels)
        """Number of the stage that each task's head reads."""
        self.trunk = BranchedEncoder(lower_part(encoder, max(self.levels)), 1)
        if min(self.levels) == len(encoder.names) - 1:
            self.widths = [encoder.n_features] * len(tasks)
        else:
            widths = stage_widths(encoder)
            self.widths = [widths[level] for level in self.levels]
        self.heads = Heads(tasks, self.widths, seed=seed)

    def all_scores(
        self, inputs: Mapping[str, Tensor], own_rows: bool = False, *, only: Sequence[int] | None = None
    ) -> Tensor:
        asked = list(range(len(self.tasks))) if only is None else list(only)
        found = self._own_features(inputs, asked) if own_rows else self._features(inputs, asked)
        parts = []
        for features, places in found:
            members = [asked[place] for place in places]
            parts.append(
                (places, self.heads(features, own_rows, only=selection(members, len(self.tasks), features.device)))
            )
        return in_order(parts, self.heads.used.shape[-1])

    def _features(self, inputs: Mapping[str, Tensor], asked: list[int]) -> list[tuple[Tensor, list[int]]]:
        """Return, level by level, the features ``(B, h)`` and the places of the tasks that read them."""
        x: Input = inputs
        own, length = False, inputs.get("length")
        found = []
        for stage, name in enumerate(self.trunk.names[: 1 + max(self.levels[task] for task in asked)]):
            x, own = self.trunk.run_stage(name, x, own, length=length)
            if places := [place for place, task in enumerate(asked) if self.levels[task] == stage]:
                here = pooled(x[0] if own else x, self.trunk.channel_axis, length=length)
                found.append((self._widened(here), places))
        return found

    def _own_features(self, inputs: Mapping[str, Tensor], asked: list[int]) -> list[tuple[Tensor, list[int]]]:
        """Return the same for rows of each task's own, features ``(T', B, h)``; only tasks further up go on."""
        x: Input = inputs
        length = inputs.get("length")
        n_rows = next(iter(inputs.values())).shape[1]
        going, found = list(range(len(asked))), []
        for stage, name in enumerate(self.trunk.names):
            shape = (1, len(going))
            everyone = range(len(going))
            lengths = None if length is None else joined(length, everyone, shape)
            y, _ = self.trunk.run_stage(name, all_joined(x, everyone, shape), True, length=lengths)
            x = parted(y, len(going), n_rows)
            stays = [self.levels[asked[place]] == stage for place in going]
            done = [number for number, stay in enumerate(stays) if stay]
            on = [number for number, stay in enumerate(stays) if not stay]
            if done:
                own_length = None if length is None else taken(length, done)
                here = pooled(taken(x, done), self.trunk.channel_axis, True, length=own_length)
                found.append((self._widened(here), [going[number] for number in done]))
            if not on:
                break
            going = [going[number] for number in on]
            x, length = taken(x, on), None if length is None else taken(length, on)
        return found

    def _widened(self, features: Tensor) -> Tensor:
        """Pad features with zeros to the width that the stacked heads read."""
        missing = max(self.widths) - features.shape[-1]
        return functional.pad(features, (0, missing)) if missing else features

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the weights of the stages that two or more tasks pass through."""
        return [
            parameter
            for stage, name in enumerate(self.trunk.names)
            if sum(level >= stage for level in self.levels) > 1
            for parameter in self.trunk.stages[name].parameters()
        ]

    def relations(self) -> dict[str, Relation]:
        """Return through which stages each task passes."""
        return levels_relation(self.tasks, self.trunk.names, self.levels)
