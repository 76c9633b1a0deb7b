"""Multi-task attention (MTAN): one trunk, and on the output of each of its stages a soft mask per task.

    p_j   = stage_j(p_{j-1})                                                  shared by all tasks
    m_tj  = sigmoid( U_tj ReLU( V_tj [p_j ; c_j(a_{t,j-1})] ) )               masks of task t, one per unit of p_j
    a_tj  = m_tj ∘ p_j,          scores_t = head_t(pooled a_tJ)

U and V act on channels only: linear layers for tables and sequences, 1×1 convolutions with batch norm after
each for images. c_j carries what the task attended to on to the next stage and is the same for all tasks:
a linear layer and ReLU, or a 3×3 convolution, batch norm, ReLU and max pooling to the size of p_j; the
first stage has nothing to carry. Where a stage of the paper's encoder has two layers, the mask reads the first
and multiplies the second; here it reads what it multiplies. The encoder's first stage, ``"input"``, has no
mask.

With all masks 1 this is hard sharing. All tasks' masks of a stage are computed as one.

Liu, Johns, Davison, End-to-End Multi-Task Learning with Attention, CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.core.task import Task
from polytask.deep.base import SharingNetwork
from polytask.deep.branches import Branches
from polytask.deep.encoders import BranchedEncoder, Encoder, pooled
from polytask.deep.heads import Heads
from polytask.deep.running_mean import RunningMean
from polytask.deep.seeding import seeded


class _Masks(nn.Module):
    """The masks of all tasks on one stage; they read rows of channels ``(N, C)``, N counting positions too."""

    def __init__(self, n_tasks: int, width: int, hidden: int, *, first: bool, norm: bool, seed: int) -> None:
        super().__init__()
        with seeded(seed):
            trunk, past = nn.Linear(width, hidden), nn.Linear(width, hidden, bias=False)
            parts: list[nn.Module] = [nn.ReLU(), nn.Linear(hidden, width), nn.Sigmoid()]
        if norm:
            parts = [nn.BatchNorm1d(hidden), *parts[:2], nn.BatchNorm1d(width), *parts[2:]]
        self.trunk = Branches(trunk, n_tasks, seed=seed + 1)
        self.past = None if first else Branches(past, n_tasks, seed=seed + 2)
        self.mask = Branches(nn.Sequential(*parts), n_tasks, seed=seed + 3)

    def forward(self, x: Tensor, own: bool, past: Tensor | None, only: Tensor | None) -> Tensor:
        """Return the masks ``(T, N, C)`` from ``(N, C)`` or ``(T, N, C)`` and what was carried, ``(T, N, C)``."""
        hidden = self.trunk(x, own, only=only)
        if self.past is not None:
            hidden = hidden + self.past(past, True, only=only)
        masks: Tensor = self.mask(hidden, True, only=only)
        return masks


class _Carry(nn.Module):
    """What a task attended to in one stage, as the next one's masks read it; the same for all tasks."""

    def __init__(self, width: int, wider: int, *, images: bool, axis: int, seed: int) -> None:
        super().__init__()
        self.images, self.axis = images, axis
        with seeded(seed):
            if images:
                conv = nn.Conv2d(width, wider, 3, padding=1)
                self.layer = nn.Sequential(conv, nn.BatchNorm2d(wider), nn.ReLU())
            else:
                self.layer = nn.Sequential(nn.Linear(width, wider), nn.ReLU())

    def forward(self, attended: Tensor, positions: torch.Size) -> Tensor:
        """Return ``(T, N, C)`` from ``(T, B, …)``; ``positions`` are those of the next stage's output."""
        if not self.images:
            last = _channels_last(attended, self.axis, True)
            if last.shape[2:-1] != positions:
                raise InputError(
                    f"a stage turns positions {tuple(last.shape[2:-1])} into {tuple(positions)}; MTAN carries "
                    "attention over such a change for images only"
                )
            carried: Tensor = self.layer(last)
            return carried.flatten(1, -2)
        maps = attended.flatten(0, 1)
        maps = self.layer(maps if maps.dim() == 4 else maps[..., None, None])
        maps = functional.adaptive_max_pool2d(maps, tuple(positions) or (1, 1))
        return _channels_last(torch.unflatten(maps, 0, attended.shape[:2]), 1, True).flatten(1, -2)


def _channels_last(x: Tensor, axis: int, own: bool) -> Tensor:
    return x.movedim(1 + own, -1) if axis == 1 else x


class MTAN(SharingNetwork):
    """One trunk with soft attention masks per task.

    Parameters
    ----------
    tasks
        The tasks.
    encoder
        The shared trunk (copied); needs ``channels``. One with 2-d convolutions is taken for images.
    reduction
        The masks' hidden layers have a stage's number of channels divided by this.
    seed
        Seed of the initial weights of masks and heads.
    """

    def __init__(self, tasks: Sequence[Task], encoder: Encoder, *, reduction: int = 1, seed: int = 0) -> None:
        super().__init__(tasks)
        if reduction < 1:
            raise InputError(f"reduction is {reduction}; give a whole number of at least 1")
        if len(encoder.names) < 2 or not encoder.channels:
            raise InputError("the encoder needs a stage after its first to attend to, and channels= for all its stages")
        self.axis = encoder.channel_axis
        images = self.axis == 1 and any(isinstance(module, nn.Conv2d) for module in encoder.modules())
        self.trunk = BranchedEncoder(encoder, 1)
        self.stages = encoder.names[1:]
        widths = [encoder.channels[name] for name in self.stages]
        self.masks, self.carries, self.use = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for number, width in enumerate(widths):
            hidden = max(1, width // reduction)
            start = seed + 10 * (number + 1)
            if number:
                self.carries.append(_Carry(widths[number - 1], width, images=images, axis=self.axis, seed=start + 5))
            self.masks.append(_Masks(len(tasks), width, hidden, first=not number, norm=images, seed=start))
            self.use.append(RunningMean(len(tasks), width))
        self.heads = Heads(tasks, encoder.n_features, seed=seed)

    def all_scores(
        self, inputs: Mapping[str, Tensor], own_rows: bool = False, *, only: Sequence[int] | None = None
    ) -> Tensor:
        chosen = None if only is None else torch.tensor(only, device=self.heads.used.device)
        length = inputs.get("length")
        shape = next(iter(inputs.values())).shape[:2]
        joined = {name: tensor.flatten(0, 1) for name, tensor in inputs.items()} if own_rows else inputs
        x, has_axis = self.trunk.run_stage(self.trunk.names[0], joined, length=joined.get("length"))
        attended: Tensor | None = None
        for number, name in enumerate(self.stages):
            x, has_axis = self.trunk.run_stage(name, x, has_axis, length=joined.get("length"))
            plain = x[0] if has_axis else x
            seen = torch.unflatten(plain, 0, shape) if own_rows else plain
            attended = self._attend(number, seen, own_rows, attended, chosen)
        assert attended is not None
        scores: Tensor = self.heads(pooled(attended, self.axis, True, length=length), True, only=chosen)
        return scores

    def _attend(self, number: int, x: Tensor, own: bool, past: Tensor | None, only: Tensor | None) -> Tensor:
        """Return ``mask ∘ x`` of one stage, ``(T, B, …)``."""
        last = _channels_last(x, self.axis, own)
        carried = None if past is None else self.carries[number - 1](past, last.shape[1 + own : -1])
        masks = self.masks[number](last.flatten(int(own), -2), own, carried, only)
        self.use[number](masks.mean(1), only)
        masks = torch.unflatten(masks, 1, last.shape[int(own) : -1])
        return (masks.movedim(-1, 2) if self.axis == 1 else masks) * x

    def shared_parameters(self) -> list[nn.Parameter]:
        return [*self.trunk.parameters(), *self.carries.parameters()] if len(self.tasks) > 1 else []

    @torch.no_grad()
    def relations(self) -> dict[str, Relation]:
        """Return each task's mean mask per stage, and how alike the tasks' masks are over all channels."""
        names = tuple(task.name for task in self.tasks)
        means = [use.get_buffer("mean").double() for use in self.use]
        attention = torch.stack([mean.mean(1) for mean in means]).cpu().numpy()
        about = "mean mask of each task on each stage over the last training batches: 1 = all passes, 0 = nothing"
        found = {"attention": Relation("loadings", attention, self.stages, names, about)}
        profiles = torch.cat(means, dim=1)
        unit = functional.normalize(profiles - profiles.mean(1, keepdim=True), dim=1)
        alike = (unit @ unit.T).clamp(-1, 1).fill_diagonal_(1.0).cpu().numpy()
        about = "correlation of two tasks' mean masks over all channels: 1 = they attend to the same channels"
        return found | {"masks": Relation("correlation", alike, names, names, about)}
