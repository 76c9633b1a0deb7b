"""The contract of balancers: how the losses of T tasks become one update.

A balancer sees losses and parameters, never a network, so it serves any training loop.

    loss weighting        update = gradient of  sum_t w_t L_t                   (:class:`LossBalancer`)
    gradient balancing    shared parameters:    sum_t w_t ∂L_t/∂θ,  w from the tasks' gradients
                          private parameters:   ∂L_t/∂θ_t, their own loss alone (:class:`GradientBalancer`)

Most methods that balance gradients need no more of them than their inner products ``A`` ``(T, T)``
(:class:`GramBalancer`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from polytask.balance.exchange import Exchange
from polytask.balance.features import (
    Features,
    Losses,
    TaskGradients,
    gradients,
    representation,
    send,
    through_heads,
    total,
)
from polytask.balance.gram import Start, TaskRows, parameter_gram, reaches_around
from polytask.core.errors import InputError, unknown

Level = Literal["features", "exact", "tasks"]
LEVELS = ("features", "exact", "tasks")

FEW_TASKS = 4
"""Up to so many tasks, forming every gradient and adding them up is quicker than another backward pass (measured)."""


class Balancer(nn.Module, ABC):
    """Turns the losses of T tasks into gradients (abstract).

    What a balancer learns is a parameter, what it remembers a buffer: both are part of its state. Its
    parameters are meant for the optimiser, in a group of their own without weight decay.

    Attributes
    ----------
    needs_shared
        True when there is nothing to balance unless some parameters are shared.
    needs_features
        True when :meth:`backward` must be given the shared representation.
    needs_second_look
        True when :meth:`after_step` must be given the losses of the same batch after the step.
    """

    needs_shared: ClassVar[bool]
    needs_features: bool = False
    needs_second_look: ClassVar[bool] = False

    @abstractmethod
    def backward(
        self,
        losses: Losses,
        shared: Sequence[nn.Parameter],
        private: Sequence[nn.Parameter],
        *,
        present: Tensor | None = None,
        features: Features | None = None,
        exchange: Exchange | None = None,
    ) -> Tensor:
        """Add the balanced gradients to ``.grad`` and return the weights used, ``(T,)``, without gradient.

        Parameters
        ----------
        losses
            Mean loss of each task, shape ``(T,)`` or a list of T scalars.
        shared
            Parameters that two or more losses reach.
        private
            Parameters that one loss reaches.
        present
            Which tasks have labels in this batch, boolean ``(T,)``; None means all. An absent task has
            weight 0 and changes nothing, whatever its entry in ``losses``.
        features
            The last shared representation, for methods that balance gradients.
        exchange
            Where the batch is spread over processes: how to add up. ``present`` is then that of the joint batch, and
            what is added to ``.grad`` is this process's part (parameters of the balancer itself: the whole).

        Every parameter to be trained belongs to one of the two lists.
        """

    def check(
        self,
        shared: Sequence[nn.Parameter],
        *,
        features: bool = True,
        network: str = "the network",
        apart: str | None = None,
    ) -> None:
        """Refuse, before the first step, a network that this method cannot serve.

        Parameters
        ----------
        shared
            The parameters the network shares.
        features
            Whether the network has one last representation that all tasks share.
        network
            What to call it.
        apart
            The setting with which tasks do not see the same rows in a step, so that they share no representation
            whatever the network is; None: they do.
        """
        name = type(self).__name__
        if self.needs_shared and not any(parameter.requires_grad for parameter in shared):
            raise InputError(
                f"{name} balances gradients of shared parameters, but {network} shares none; use a loss weighting "
                "such as Uncertainty, or a network that shares, such as HardSharing"
            )
        if self.needs_features and not (features and apart is None):
            why, remedy = (
                (f"with {apart} tasks do not see the same rows", 'sampling="rows"')
                if features
                else (f"{network} has none", "a network with one trunk, such as HardSharing")
            )
            instead = 'level="exact"' if isinstance(self, GramBalancer) else "PCGrad or UPGrad"
            raise InputError(f"{name} works at the last shared representation, but {why}; use {instead}, or {remedy}")

    def after_step(self, losses: Losses, *, present: Tensor | None = None) -> None:  # few need it
        """Look at the losses of the same batch after the optimiser's step (see ``needs_second_look``)."""

    def end_epoch(self) -> None:  # few need it
        """Close an epoch."""


def joint_values(losses: Losses, exchange: Exchange | None) -> Tensor:
    """Return the losses ``(T,)`` of the joint batch, without gradient."""
    values = losses.detach() if isinstance(losses, Tensor) else torch.stack([loss.detach() for loss in losses])
    return values if exchange is None else exchange.sum(values)


class LossBalancer(Balancer):
    """A balancer that weights the losses: one backward pass of ``sum_t w_t L_t`` (abstract).

    Attributes
    ----------
    constant
        True when the weights are the same whatever the losses.
    """

    needs_shared: ClassVar[bool] = False
    constant: ClassVar[bool] = False

    @abstractmethod
    def weights(self, losses: Tensor, present: Tensor) -> Tensor:
        """Return the weights ``(T,)`` for detached losses ``(T,)`` and presence ``(T,)``."""

    def regulariser(self, present: Tensor) -> Tensor | None:  # noqa: ARG002  # for balancers that learn
        """Return what the balancer's own parameters add to the objective, or None."""
        return None

    def backward(
        self,
        losses: Losses,
        shared: Sequence[nn.Parameter],  # noqa: ARG002  # a plain backward pass
        private: Sequence[nn.Parameter],  # noqa: ARG002  # reaches both
        *,
        present: Tensor | None = None,
        features: Features | None = None,  # noqa: ARG002  # and asks nothing of the representation
        exchange: Exchange | None = None,
    ) -> Tensor:
        values = joint_values(losses, exchange)
        if present is None:
            present = torch.ones_like(values, dtype=torch.bool)
            weights = self.weights(values, present)
        else:
            values = values.masked_fill(~present, 0.0)
            weights = self.weights(values, present).masked_fill(~present, 0.0)
        used = weights.detach().to(values)
        pairs = [(losses, used)] if isinstance(losses, Tensor) else list(zip(losses, used, strict=True))
        roots = [root for root, _ in pairs if root.requires_grad]
        starts: list[Tensor | None] = [start for root, start in pairs if root.requires_grad]
        own = self.regulariser(present)
        if weights.requires_grad or own is not None:
            learned = weights.to(values) @ values
            roots.append(learned if own is None else learned + own)
            starts.append(None)
        torch.autograd.backward(roots, starts)
        return used


class GradientBalancer(Balancer):
    """A balancer that combines the tasks' gradients of shared parameters (abstract).

    Private parameters get the gradient of their own loss, unweighted: a weight of 0 or below must not
    stop a head from learning.
    """

    needs_shared: ClassVar[bool] = True

    def __init__(self, n_tasks: int) -> None:
        super().__init__()
        if n_tasks < 1:
            raise InputError(f"n_tasks is {n_tasks}; there must be at least one task")
        self.n_tasks = n_tasks
        self._checked = False

    def head_weights(self, losses: Tensor, present: Tensor) -> Tensor | None:  # noqa: ARG002  # few need it
        """Return the weights > 0 ``(T,)`` of the losses in their private parameters' gradients; None means 1."""
        return None

    def _look(
        self,
        losses: Losses,
        shared: Sequence[nn.Parameter],
        present: Tensor | None,
        features: Features | None,
        exchange: Exchange | None = None,
    ) -> tuple[Tensor, list[int]]:
        """Check what is handed over; return detached joint losses ``(T,)`` and the numbers of the tasks present."""
        if len(losses) != self.n_tasks:
            raise InputError(f"losses has {len(losses)} entries, but {type(self).__name__} was made for {self.n_tasks}")
        if not self._checked or (features is None and self.needs_features):
            self.check(shared, features=features is not None)
            if features is not None:
                roots = [losses] if isinstance(losses, Tensor) else [each for each in losses if each.requires_grad]
                if reaches_around(roots, representation(features), shared):
                    raise InputError(
                        "features: some shared parameter is reached by a path around the tensor given; "
                        'balance at level="exact" without features, or count that parameter as private'
                    )
            self._checked = True
        values = joint_values(losses, exchange)
        tasks = list(range(self.n_tasks)) if present is None else [int(t) for t in torch.nonzero(present)[:, 0]]
        return values, tasks


class GramBalancer(GradientBalancer):
    """A gradient method that needs inner products only (abstract).

    Parameters
    ----------
    n_tasks
        Number of tasks, T.
    level
        Where gradients are compared. ``"exact"``: with respect to all shared parameters, one backward
        pass per task, from five tasks on without storing the gradients of linear layers and convolutions
        (:mod:`polytask.balance.gram`).
        ``"features"``: with respect to the last shared representation, all tasks in one pass: another
        matrix that costs little more than plain training (Sener and Koltun, NeurIPS 2018). Every task must
        read the representation of the same rows.
        ``"tasks"``: as ``"exact"``, every gradient formed.
    every
        Refresh the weights every so many steps, and train with the last ones between.
    """

    kept: Tensor
    known: Tensor
    age: Tensor

    def __init__(self, n_tasks: int, *, level: Level = "exact", every: int = 1) -> None:
        super().__init__(n_tasks)
        if level not in LEVELS:
            raise InputError(unknown("level", level, LEVELS))
        if every < 1:
            raise InputError(f"every is {every}; refresh the weights every 1 or more steps")
        self.level, self.every = level, every
        self._latest: tuple[Tensor, tuple[int, ...]] | None = None
        self.needs_features = level == "features"
        self.register_buffer("kept", torch.ones(n_tasks, dtype=torch.float64))
        self.register_buffer("known", torch.zeros(n_tasks, dtype=torch.bool))
        self.register_buffer("age", torch.zeros((), dtype=torch.int64))

    @property
    def latest(self) -> tuple[Tensor, tuple[int, ...]] | None:
        """The Gram matrix last looked at, float64 ``(P, P)``, with the numbers of its tasks; not part of the state."""
        return self._latest

    @abstractmethod
    def gram_weights(self, gram: Tensor, losses: Tensor) -> Tensor:
        """Return the weights ``(P,)`` of P tasks; a pure function unless the method says otherwise.

        Parameters
        ----------
        gram
            Inner products of the tasks' gradients, float64 ``(P, P)``, positive semi-definite.
        losses
            Their losses, float64 ``(P,)``.
        """

    def task_weights(self, gram: Tensor, losses: Tensor, tasks: Sequence[int]) -> Tensor:  # noqa: ARG002
        """Return the weights of the tasks with these numbers; methods that remember something per task use them."""
        return self.gram_weights(gram, losses)

    def backward(
        self,
        losses: Losses,
        shared: Sequence[nn.Parameter],
        private: Sequence[nn.Parameter],
        *,
        present: Tensor | None = None,
        features: Features | None = None,
        exchange: Exchange | None = None,
    ) -> Tensor:
        values, tasks = self._look(losses, shared, present, features, exchange)
        if not tasks:
            return torch.zeros_like(values)
        everyone = len(tasks) == self.n_tasks
        index = slice(None) if everyone else torch.as_tensor(tasks, device=values.device)
        mask = torch.ones_like(values, dtype=torch.bool) if present is None else present
        factors = self.head_weights(values, mask)
        factors = None if factors is None else factors[index]
        private = [parameter for parameter in private if parameter.requires_grad]
        found: TaskGradients | None = None
        if features is None:
            own = gradients(total(losses, tasks, factors), private, retain_graph=True) if private else []
            one_hot = torch.eye(self.n_tasks, dtype=values.dtype, device=values.device)
            roots = [losses] * len(tasks) if isinstance(losses, Tensor) else [losses[task] for task in tasks]

            def start(place: int) -> Tensor | None:
                return one_hot[tasks[place]] if isinstance(losses, Tensor) else None

        else:
            found, own = through_heads(losses, tasks, features, private, factors)
            roots, start = [representation(features)] * len(tasks), found.row
        rows: TaskRows | None = None
        if self._due(tasks):
            gram, rows = self._gram(roots, start, shared, found, exchange)
            self._refresh(gram, values, tasks)
        weights = self.kept[index].clone()
        if rows is not None:
            send([*rows.parameters, *private], [*rows.combined(weights), *own])
        elif features is not None and found is not None:
            send([representation(features), *private], [found.combined(weights), *own])
        else:
            self._weighted(total(losses, tasks, weights), private, own)
        if everyone:
            return weights.to(values)
        result = torch.zeros_like(values)
        result[index] = weights.to(values)
        return result

    def _gram(
        self,
        roots: Sequence[Tensor],
        start: Start,
        shared: Sequence[nn.Parameter],
        found: TaskGradients | None,
        exchange: Exchange | None,
    ) -> tuple[Tensor, TaskRows | None]:
        """Return the Gram matrix of the joint batch, and this process's gradients where they were formed."""
        rows: TaskRows | None = None
        add: Callable[[Tensor], Tensor] | None = None if exchange is None or exchange.grams else exchange.sum
        if self.level == "features" and found is not None:
            gram = found.gram()
        elif add is not None or self.level == "tasks" or len(roots) <= FEW_TASKS:
            rows = TaskRows(roots, start, shared)
            gram = rows.gram(add)
        else:
            gram = parameter_gram(roots, start, shared)
        if exchange is None:
            return gram, rows
        if rows is None or add is None:
            gram = exchange.sum(gram)
        return gram / exchange.scale / exchange.scale, rows

    def _due(self, tasks: Sequence[int]) -> bool:
        """Say whether the weights are to be refreshed in this step."""
        due = self.every == 1 or int(self.age) % self.every == 0 or not bool(self.known[list(tasks)].all())
        self.age += 1
        return due

    @torch.no_grad()
    def _refresh(self, gram: Tensor, values: Tensor, tasks: Sequence[int]) -> None:
        """Solve for the weights of the tasks present, unless some gradient is not finite."""
        inner = gram.detach().to("cpu", torch.float64)
        inner = (inner + inner.T).mul_(0.5)
        if math.isfinite(inner.sum()):
            self._latest = (inner, tuple(tasks))
            index = slice(None) if len(tasks) == self.n_tasks else list(tasks)
            losses = values.to("cpu", torch.float64)[index]
            self.kept[index] = self.task_weights(inner, losses, tasks).to(self.kept)
            self.known[index] = True

    @staticmethod
    def _weighted(objective: Tensor, private: Sequence[nn.Parameter], own: Sequence[Tensor | None]) -> None:
        """One backward pass of the weighted sum, in which private parameters take their own gradient instead."""
        hooks = [
            parameter.register_hook(_Instead(gradient))  # type: ignore[no-untyped-call]  # torch's is
            for parameter, gradient in zip(private, own, strict=True)
            if gradient is not None
        ]
        try:
            objective.backward()  # type: ignore[no-untyped-call]  # torch's is
        finally:
            for hook in hooks:
                hook.remove()


class _Instead:
    """A hook that puts a gradient in the place of the one that arrives."""

    def __init__(self, gradient: Tensor) -> None:
        self.gradient = gradient

    def __call__(self, _: Tensor) -> Tensor:
        return self.gradient
