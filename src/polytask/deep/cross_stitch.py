"""Cross-stitch networks: one tower per task, and after chosen stages each goes on with a learned mixture of all.

    x̃_t = Σ_s α_ts x_s                              granularity "layer":    α (T, T) per stage
    x̃_tc = Σ_s α_tsc x_sc   at every position       granularity "channel":  α (T, T, C) per stage

α starts convex, ``own_weight`` on the diagonal and ``(1 - own_weight)/(T - 1)`` off it, and is not constrained
afterwards. It learns ``mixing_rate`` times as fast as the other weights and never decays. α = I are T separate
networks; equal towers with rows of α that sum to one are one shared encoder.

Use it where towers may want each other's features but not all to the same degree; best from trained
single-task networks (:meth:`CrossStitch.from_single_task`). The factor on the learning rate is the paper's, for
plain gradient descent; with Adam, whose steps do not depend on the scale of gradients, take 1.

Misra, Shrivastava, Gupta, Hebert, Cross-stitch Networks for Multi-task Learning, CVPR 2016.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn

from polytask.core.errors import InputError, unknown
from polytask.core.relation import Relation
from polytask.core.task import Task
from polytask.deep.encoders import Encoder
from polytask.deep.mixing import MixedTowers, channels_of, mix, mix_channels, mix_own_rows, single_encoder
from polytask.deep.single import SingleTask

Granularity = Literal["layer", "channel"]


class CrossStitch(MixedTowers):
    """T towers with cross-stitch units.

    With own rows the rows of all tasks go through all towers (T² passes); batch norm then takes its statistics
    over the rows of all tasks.

    Parameters
    ----------
    tasks
        The tasks. A lone task has no units: its network is the single-task network.
    encoder
        The encoder each task gets a copy of.
    granularity
        ``"layer"``: one weight per pair of towers; ``"channel"``: one per pair and channel.
    stages
        Names of the stages that units follow; None: every stage but the first.
    own_weight
        Initial weight of a tower's own features, from 0 to 1.
    mixing_rate
        Factor on the learning rate of the units' weights.
    seed
        Seed of the initial weights.
    identical
        Start all towers and heads from the same weights; False draws new ones for every task but the first.

    Raises
    ------
    InputError
        A setting out of its range, an unknown stage, or units per channel after a stage whose number of
        channels the encoder does not tell.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        encoder: Encoder,
        *,
        granularity: Granularity = "layer",
        stages: Sequence[str] | None = None,
        own_weight: float = 0.9,
        mixing_rate: float = 100.0,
        seed: int = 0,
        identical: bool = True,
    ) -> None:
        super().__init__(tasks, encoder, stages=stages, mixing_rate=mixing_rate, seed=seed, identical=identical)
        if granularity not in ("layer", "channel"):
            raise InputError(unknown("granularity", granularity, ("layer", "channel")))
        if not 0 <= own_weight <= 1:
            raise InputError(f"own_weight is {own_weight}; give a share from 0 to 1, such as 0.9")
        self.granularity = granularity
        for name in self.sites:
            alpha = convex(len(tasks), own_weight)
            if granularity == "channel":
                alpha = alpha.unsqueeze(-1).repeat(1, 1, channels_of(encoder, name))
            self.mixing[name] = nn.Parameter(alpha)

    @classmethod
    def from_single_task(
        cls,
        network: SingleTask,
        *,
        granularity: Granularity = "layer",
        stages: Sequence[str] | None = None,
        own_weight: float = 0.9,
        mixing_rate: float = 100.0,
    ) -> Self:
        """Return a cross-stitch network whose towers and heads are copies of trained single-task networks."""
        made = cls(
            network.tasks,
            single_encoder(network),
            granularity=granularity,
            stages=stages,
            own_weight=own_weight,
            mixing_rate=mixing_rate,
        )
        return made.take_towers(network)

    def all_scores(
        self, inputs: Mapping[str, Tensor], own_rows: bool = False, *, only: Sequence[int] | None = None
    ) -> Tensor:
        chosen = None if only is None else torch.tensor(only, device=self.heads.used.device)
        if self.sites:
            (features,) = self.read(inputs, own_rows, chosen, self.encoder.names[-1:])
        else:
            features = self.encoder(inputs, own_rows, only=chosen)
        scores: Tensor = self.heads(features, own=True, only=chosen)
        return scores

    def mixed(self, site: str, x: Tensor, own_rows: bool, only: Tensor | None) -> Tensor:
        alpha = self.mixing[site] if only is None else self.mixing[site][only]
        if not own_rows:
            if alpha.dim() == 2:
                return mix(alpha[:, None, :, None], x, self.encoder.channel_axis)
            return mix_channels(alpha, x, self.encoder.channel_axis)
        parts = x.unflatten(1, (len(alpha), -1))  # type: ignore[no-untyped-call]
        if alpha.dim() == 2:
            return mix_own_rows(alpha[:, None, :, None], parts, self.encoder.channel_axis)
        axis = 3 if self.encoder.channel_axis == 1 else -1
        shape = [len(alpha), len(x), *[1] * (x.dim() - 1)]
        shape[axis] = alpha.shape[-1]
        return (alpha.view(shape) * parts.transpose(0, 1)).sum(1)

    @torch.no_grad()
    def relations(self) -> dict[str, Relation]:
        """Return α of every unit, tasks × tasks (the mean over channels, where there is one per channel)."""
        names = tuple(task.name for task in self.tasks)
        about = "share of each column's tower in the features that each row's task goes on with after this stage"
        if self.granularity == "channel":
            about += ", mean over channels"
        return {
            f"mixing_{site}": Relation(
                "weights", (alpha if alpha.dim() == 2 else alpha.mean(-1)).double().cpu().numpy(), names, names, about
            )
            for site, alpha in self.mixing.items()
        }


def convex(n: int, own_weight: float) -> Tensor:
    """Return ``(n, n)`` with ``own_weight`` on the diagonal and the rest of 1 spread evenly over the row."""
    others = (1 - own_weight) / (n - 1) if n > 1 else 0.0
    return torch.full((n, n), others).fill_diagonal_(own_weight if n > 1 else 1.0)
