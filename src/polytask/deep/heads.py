"""Heads and losses of all tasks at once.

Scores are one tensor ``(T, B, K)``, K the largest number of outputs; outputs that a task does not have
are 0. The meaning of scores and the losses are those of :mod:`polytask.core.task`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytask.core.errors import InputError
from polytask.core.task import Task
from polytask.deep.branches import Branches
from polytask.deep.seeding import seeded


class Heads(nn.Module):
    """One linear output layer per task, computed as one: ``scores_t = h_t W_t + b_t``.

    Parameters
    ----------
    tasks
        The tasks; head t has ``tasks[t].n_outputs`` outputs, padded with zeros to the widest.
    n_features
        Width of the representation the heads read: one number, or one per task, whose head then reads the first so
        many features of representations padded with zeros to the widest.
    seed
        Seed of the initial weights; global random state is not touched.
    identical
        Draw every head from the same random numbers, so that heads of equal size start equal.
    """

    used: Tensor

    def __init__(
        self, tasks: Sequence[Task], n_features: int | Sequence[int], *, seed: int = 0, identical: bool = False
    ) -> None:
        super().__init__()
        widest = max(task.n_outputs for task in tasks)
        read = [n_features] * len(tasks) if isinstance(n_features, int) else list(n_features)
        used = torch.zeros(len(tasks), 1, widest)
        padded = []
        with seeded(seed) as generator:
            for number, (task, own) in enumerate(zip(tasks, read, strict=True)):
                if identical:
                    generator.manual_seed(seed)
                head, wide = nn.Linear(own, task.n_outputs), nn.Linear(max(read), widest, device="meta")
                missing = (0, max(read) - own, 0, widest - task.n_outputs)
                wide.weight = nn.Parameter(functional.pad(head.weight.detach(), missing))
                wide.bias = nn.Parameter(functional.pad(head.bias.detach(), (0, widest - task.n_outputs)))
                used[number, :, : task.n_outputs] = 1
                padded.append(wide)
        self.linear = Branches.from_modules(padded)
        self.ragged = bool((used == 0).any())
        self.register_buffer("used", used, persistent=False)

    def forward(self, features: Tensor, own: bool = False, *, only: Tensor | None = None) -> Tensor:
        """Return scores ``(T, B, K)`` from features ``(B, n_features)`` or, with ``own``, ``(T, B, n_features)``."""
        scores: Tensor = self.linear(features, own, only=only)
        if self.ragged:
            scores = scores * (self.used if only is None else self.used[only])
        return scores

    @torch.no_grad()
    def start(self, constants: Tensor) -> None:
        """Set the biases to ``constants`` ``(T, K)``; those of outputs that a task does not have become 0."""
        bias = self.linear.weights["bias"]
        bias.copy_(constants.to(bias) * self.used[:, 0])


class MultiTaskLoss(nn.Module):
    """Mean loss of each task over its labelled rows.

        loss_t = sum_b present_tb l_t(scores_tb, y_tb) / max(1, sum_b present_tb)

    Rows without a label are filled before the loss and masked after it, so whatever stands there (NaN
    too) reaches neither values nor gradients. A task without any labelled row has loss 0 and gradient 0.
    Tasks of one kind are computed together.

    Parameters
    ----------
    tasks
        The tasks, in the order of the task axis.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        if not tasks:
            raise InputError("tasks is empty; a loss needs at least one task")
        self.n_tasks = len(tasks)
        self.kinds = tuple(sorted({task.kind for task in tasks}))
        self.widths: dict[str, int] = {}
        for kind in self.kinds:
            members = [number for number, task in enumerate(tasks) if task.kind == kind]
            counts = torch.tensor([tasks[number].n_outputs for number in members])
            self.widths[kind] = int(counts.max())
            used = torch.arange(self.widths[kind]) < counts[:, None, None]
            self.register_buffer(f"{kind}_members", torch.tensor(members), persistent=False)
            self.register_buffer(f"{kind}_used", used, persistent=False)

    def forward(self, scores: Tensor, targets: Tensor, present: Tensor) -> Tensor:
        """Return the losses ``(T,)``.

        Parameters
        ----------
        scores
            Shape ``(T, B, K)``.
        targets
            Values or class codes as floats, shape ``(T, B)``; anything where the label is missing.
        present
            Which rows carry the label, boolean ``(T, B)``.
        """
        absent = ~present
        targets = targets.masked_fill(absent, 0.0)
        scores = scores.masked_fill(absent.unsqueeze(-1), 0.0)
        shares = present.to(scores.dtype)
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1)
        return (self._rows(scores, targets) * shares).sum(1)

    def _rows(self, scores: Tensor, targets: Tensor) -> Tensor:
        if len(self.kinds) == 1:
            return _ROW_LOSSES[self.kinds[0]](scores, targets, self.get_buffer(f"{self.kinds[0]}_used"))
        parts, order = [], []
        for kind in self.kinds:
            members = self.get_buffer(f"{kind}_members")
            width = self.widths[kind]
            parts.append(
                _ROW_LOSSES[kind](scores[members, :, :width], targets[members], self.get_buffer(f"{kind}_used"))
            )
            order.append(members)
        return torch.cat(parts)[torch.argsort(torch.cat(order))]


def _squared(scores: Tensor, targets: Tensor, _: Tensor) -> Tensor:
    return functional.mse_loss(_first(scores), targets, reduction="none")


def _logistic(scores: Tensor, targets: Tensor, _: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(_first(scores), targets, reduction="none")


def _first(scores: Tensor) -> Tensor:
    """Return the first output; where there is no other, without the zeros that a selection's gradient fills in."""
    return scores.squeeze(-1) if scores.shape[-1] == 1 else scores[:, :, 0]


def _softmax(scores: Tensor, targets: Tensor, used: Tensor) -> Tensor:
    logits = scores.masked_fill(~used, -torch.inf)
    return logits.logsumexp(-1) - scores.gather(-1, targets.long().unsqueeze(-1)).squeeze(-1)


def _cumulative(scores: Tensor, targets: Tensor, used: Tensor) -> Tensor:
    above = (targets.unsqueeze(-1) > torch.arange(scores.shape[-1], device=scores.device)).to(scores.dtype)
    losses = functional.binary_cross_entropy_with_logits(scores, above, reduction="none")
    return (losses * used).sum(-1)


_ROW_LOSSES = {"regression": _squared, "binary": _logistic, "multiclass": _softmax, "ordinal": _cumulative}
