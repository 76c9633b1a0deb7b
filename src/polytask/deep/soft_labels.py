"""Predicted labels as numbers that let gradients through: what one task's head tells another.

binary       (P(first), P(second))                regression   the prediction itself, one number
multiclass   P(class 1), …, P(class C)            ordinal      P(level 1), …, P(level C)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.core.task import Task


class SoftLabels(nn.Module):
    """Scores ``(T, B, K)`` to soft labels ``(T, B, C)``, C the largest number of classes; the rest is 0.

    Tasks of one kind are computed together.

    Parameters
    ----------
    tasks
        The tasks, in the order of the task axis.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.sizes = tuple(max(1, len(task.labels)) for task in tasks)
        """Number of soft labels of each task."""
        self.kinds = tuple(sorted({task.kind for task in tasks}))
        order = []
        for kind in self.kinds:
            members = [number for number, task in enumerate(tasks) if task.kind == kind]
            order += members
            used = torch.arange(max(tasks[number].n_outputs for number in members))
            counts = torch.tensor([tasks[number].n_outputs for number in members])
            self.register_buffer(f"{kind}_members", torch.tensor(members), persistent=False)
            self.register_buffer(f"{kind}_used", used < counts[:, None, None], persistent=False)
        self.register_buffer("back", torch.tensor(order).argsort(), persistent=False)

    def forward(self, scores: Tensor) -> Tensor:
        """Return the soft labels of scores in the network's units."""
        parts = []
        for kind in self.kinds:
            used = self.get_buffer(f"{kind}_used")
            own = scores.index_select(0, self.get_buffer(f"{kind}_members"))[..., : used.shape[-1]]
            soft = _KINDS[kind](own, used)
            parts.append(nn.functional.pad(soft, (0, max(self.sizes) - soft.shape[-1])))
        return torch.cat(parts).index_select(0, self.get_buffer("back"))


def _value(scores: Tensor, _: Tensor) -> Tensor:
    return scores


def _two(scores: Tensor, _: Tensor) -> Tensor:
    return torch.cat([torch.sigmoid(-scores), torch.sigmoid(scores)], dim=-1)


def _classes(scores: Tensor, used: Tensor) -> Tensor:
    return scores.masked_fill(~used, -torch.inf).softmax(-1)


def _levels(scores: Tensor, used: Tensor) -> Tensor:
    above = torch.sigmoid(scores).cummin(-1).values * used
    edges = torch.cat([torch.ones_like(above[..., :1]), above, torch.zeros_like(above[..., :1])], dim=-1)
    return edges[..., :-1] - edges[..., 1:]


_KINDS = {"regression": _value, "binary": _two, "multiclass": _classes, "ordinal": _levels}
