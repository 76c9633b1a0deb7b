"""The contract of every network that shares: scores of all tasks in one tensor, penalty, what is shared.

Inputs are a mapping of tensors: for tables ``"numeric"`` ``(B, p)`` floats and, when there are any,
``"categorical"`` ``(B, q)`` codes; for images ``"image"`` ``(B, C, H, W)``; for sequences ``"sequence"``
``(B, L, p)`` or ``"tokens"`` ``(B, L)``, with ``"length"`` ``(B,)`` where rows are padded. With ``own_rows``
every tensor has a leading task axis, ``(T, B, …)``, and task t sees only its own B rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polytask.core.errors import InputError, unknown
from polytask.core.relation import Relation
from polytask.core.task import Task
from polytask.deep.heads import Heads


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that the optimiser treats alike.

    Parameters
    ----------
    parameters
        The parameters; each of a network's is in exactly one of its groups.
    learning_rate_scale
        Factor on the learning rate.
    weight_decay
        Whether the weights decay (biases never do).
    """

    parameters: Sequence[nn.Parameter]
    learning_rate_scale: float = 1.0
    weight_decay: bool = True


@dataclass(frozen=True)
class HeldOut:
    """What a network says about rows that it was not trained on.

    Parameters
    ----------
    scores
        Shape ``(T, N, K)``.
    targets, present
        Targets, standardised for regression, and which rows carry the label, ``(T, N)``.
    """

    scores: Tensor
    targets: Tensor
    present: Tensor


Origins = dict[nn.Parameter, tuple[nn.Parameter, Tensor]]
"""New stacked parameter → the one it replaces, and of which of its branches each new branch is a copy, ``(n,)``."""


class SharingNetwork(nn.Module, ABC):
    """A network with one output per task (abstract).

    Parameters
    ----------
    tasks
        The tasks, in the order of every task axis.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        if not tasks:
            raise InputError("tasks is empty; a network needs at least one task")
        self.tasks = tuple(tasks)
        _keep_freed_memory()

    @abstractmethod
    def all_scores(
        self, inputs: Mapping[str, Tensor], own_rows: bool = False, *, only: Sequence[int] | None = None
    ) -> Tensor:
        """Return the scores ``(T, B, K)`` of all tasks; K is the largest ``n_outputs``, padding outputs are 0.

        Parameters
        ----------
        inputs
            Tensors ``(B, …)`` read by every task, or ``(T, B, …)``, one batch per task, with ``own_rows``.
        own_rows
            Whether the inputs have a leading task axis.
        only
            Numbers of the tasks to compute; the task axes of inputs and scores then have these tasks only.
        """

    def forward(self, inputs: Mapping[str, Tensor], tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return task → scores ``(B, n_outputs)``; only the tasks asked for are computed."""
        names = [task.name for task in self.tasks]
        for name in tasks or ():
            if name not in names:
                raise InputError(unknown("task", name, names))
        only = None if tasks is None else [names.index(name) for name in tasks]
        asked = self.tasks if only is None else [self.tasks[number] for number in only]
        if not asked:
            return {}
        scores = self.all_scores(inputs, only=only)
        return {task.name: scores[place, :, : task.n_outputs] for place, task in enumerate(asked)}

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that two or more task losses reach through :meth:`forward`.

        A tensor that stacks one slice per task is not shared unless forward mixes its slices.
        """
        return []

    def has_towers(self) -> bool:
        """Return whether each task's scores come from a network of its own, whatever its weights are made of.

        A row that carries one task's label then costs least in that task's network alone. By default: where no
        parameters are shared.
        """
        return not self.shared_parameters()

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return all parameters by how the optimiser is to treat them; by default one group."""
        return [ParameterGroup(list(self.parameters()))]

    def start_heads(self, constants: Tensor) -> None:
        """Let every task's score start near ``constants`` ``(T, K)``, by the biases of its output layer.

        The default is for networks whose output layer is a :class:`~polytask.deep.heads.Heads` called ``heads``.
        """
        heads = getattr(self, "heads", None)
        if not isinstance(heads, Heads):
            raise NotImplementedError(
                f"{type(self).__name__} has no Heads called heads, so it must override start_heads"
            )
        heads.start(constants)

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor | None:  # noqa: ARG002  # for methods that have some
        """Return the last representation ``(B, n_features)`` that all tasks share, or None."""
        return None

    def scores_and_features(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor] | None:  # noqa: ARG002
        """Return scores ``(T, B, K)``, the features ``(B, h)`` and the heads' weights ``(T, h, K)``, in one pass.

        For networks whose scores are linear in their last shared features; None for the others.
        """
        return None

    def penalty(self) -> Tensor:
        """Return the weighted penalty, a scalar without gradient; for reports and learning curves."""
        return torch.zeros((), device=next(self.parameters()).device)

    def penalty_gradient(self) -> None:
        """Add the penalty's closed-form gradient to ``.grad``; called after backward, before the step."""

    def after_step(self, learning_rate: float) -> None:
        """Apply the penalty's proximal step; called after every optimiser step."""

    def relations(self) -> dict[str, Relation]:
        """Return what the tasks share, by name; empty when there is nothing to show."""
        return {}

    def end_epoch(self) -> None:
        """Close an epoch: anneal what anneals. Growth is :meth:`grow`."""

    def task_order(self) -> Sequence[Sequence[int]] | None:
        """Return groups of tasks, by number, that an epoch goes through one after the other, or None: all at once."""
        return None

    def begin_tasks(self, tasks: Sequence[int]) -> None:
        """Note that an epoch comes to a group of :meth:`task_order`; called before the first of its steps."""

    def ready_to_grow(self, epochs: int, stalled: bool) -> bool:  # noqa: ARG002  # for networks that grow
        """Return True when :meth:`grow` wants to be asked; called after every epoch.

        Parameters
        ----------
        epochs
            Epochs since training began or the network was last asked to grow.
        stalled
            Whether early stopping would end training now.
        """
        return False

    def grow(self, held_out: HeldOut) -> Origins | None:  # noqa: ARG002  # for networks that grow
        """Add parameters without changing any score, and return where they come from; None: nothing was added.

        Training asks with the weights of the best epoch in place, and only where there are held-out rows.
        """
        return None


def _keep_freed_memory() -> None:
    """Make the C library keep what every training step frees and takes again (a fifth of a small step's time).

    glibc returns freed memory to the system beyond a limit that starts near 100 kB and follows the
    largest block freed so far, up to 32 MB; so one such block, never written to, is taken and freed.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
