"""The last shared representation: where the tasks part, and what each task's loss asks of it.

    z: (B, h) shared representation      D_t = ∂L_t / ∂z: (B, h), one per task

One pass through the heads gives every D_t; a weighted sum of them, sent back through the trunk once,
is the update. Heads that are computed together must not be differentiated one task at a time (that
costs T passes through all T heads), so there are three ways to name the representation:

* the tensor z itself: heads are separate modules and the losses a list of scalars;
* :class:`Copies`: heads are stacked and read one copy of z each;
* :class:`LinearHeads`: heads are stacked linear layers; D_t = δ_t W_tᵀ is never formed, and the Gram
  matrix of T tasks costs (T K)² (B + h) instead of T² B h.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polytask.core.errors import InputError

Losses = Tensor | Sequence[Tensor]
"""Mean loss of each task: a tensor ``(T,)`` or a list of T scalars."""


@dataclass(frozen=True)
class Copies:
    """One copy of the shared representation for each task; made by :func:`copies`.

    Parameters
    ----------
    shared
        The representation z, shape ``(B, …)``.
    each
        The copies, shape ``(T, B, …)``; task t reads slice t and no other.
    """

    shared: Tensor
    each: Tensor


def copies(features: Tensor, n_tasks: int) -> Copies:
    """Return T copies of a representation ``(B, …)`` for stacked heads: ``heads(copies(z, T).each)``."""
    return Copies(features, features.expand(n_tasks, *features.shape))


@dataclass(frozen=True)
class LinearHeads:
    """Stacked linear heads, ``scores_t = z W_t + b_t``.

    Parameters
    ----------
    shared
        The representation z, shape ``(B, h)`` (or ``(B, …, h)``).
    scores
        What the losses are computed from, shape ``(T, B, K)`` (or ``(T, B, …, K)``).
    weight
        W, shape ``(T, h, K)``.
    """

    shared: Tensor
    scores: Tensor
    weight: Tensor

    def __post_init__(self) -> None:
        n_tasks, width, outputs = self.weight.shape
        if self.shared.shape[-1] != width or self.scores.shape != (n_tasks, *self.shared.shape[:-1], outputs):
            raise InputError(
                f"LinearHeads: features {tuple(self.shared.shape)}, scores {tuple(self.scores.shape)} and weight "
                f"{tuple(self.weight.shape)} do not belong together; give (B, h), (T, B, K) and (T, h, K)"
            )


Features = Tensor | Copies | LinearHeads
"""The shared representation, in one of the three ways above."""


class TaskGradients(ABC):
    """Gradients of P losses with respect to the representation, without saying how they are held (abstract)."""

    @abstractmethod
    def row(self, place: int) -> Tensor:
        """Return ``D`` of the loss at that place, in the shape of the representation."""

    @abstractmethod
    def gram(self) -> Tensor:
        """Return the inner products ``(P, P)``."""

    @abstractmethod
    def combined(self, weights: Tensor) -> Tensor:
        """Return ``sum_t w_t D_t`` in the shape of the representation."""

    @abstractmethod
    def over_rows(self, factors: Tensor) -> Tensor:
        """Return ``sum_b f_b ∘ D_tb``, ``(P, …)``, for factors ``(B, …)`` in the shape of the representation."""

    @abstractmethod
    def over_tasks(self, factors: Tensor) -> Tensor:
        """Return ``sum_t f_t ∘ D_tb``, ``(B, …)``, for factors ``(P, …)`` that are the same for all rows."""


class Dense(TaskGradients):
    """Gradients held as they are, ``(P, B, …)``."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def row(self, place: int) -> Tensor:
        return self.rows[place]

    def gram(self) -> Tensor:
        flat = self.rows.flatten(1).float() if self.rows.element_size() < 4 else self.rows.flatten(1)
        return flat @ flat.T

    def combined(self, weights: Tensor) -> Tensor:
        return (weights.to(self.rows) @ self.rows.flatten(1)).view(self.rows.shape[1:])

    def over_rows(self, factors: Tensor) -> Tensor:
        return (self.rows * factors).sum(1)

    def over_tasks(self, factors: Tensor) -> Tensor:
        return (self.rows * factors.unsqueeze(1)).sum(0)


class _LowRank(TaskGradients):
    """``D_t = δ_t W_tᵀ`` with δ ``(P, n, K)`` and W ``(P, h, K)``."""

    def __init__(self, delta: Tensor, weight: Tensor, shape: torch.Size) -> None:
        self.delta, self.weight, self.shape = delta, weight, shape

    def row(self, place: int) -> Tensor:
        return (self.delta[place] @ self.weight[place].T).view(self.shape)

    def gram(self) -> Tensor:
        n_tasks, n_rows, outputs = self.delta.shape
        exact = torch.float32 if self.delta.element_size() < 4 else self.delta.dtype
        delta = self.delta.transpose(1, 2).reshape(-1, n_rows).to(exact)
        weight = self.weight.transpose(1, 2).reshape(len(delta), -1).to(exact)
        products = (delta @ delta.T).mul_(weight @ weight.T)
        return products if outputs == 1 else products.view(n_tasks, outputs, n_tasks, outputs).sum((1, 3))

    def combined(self, weights: Tensor) -> Tensor:
        n_tasks, n_rows, outputs = self.delta.shape
        scaled = (self.delta * weights.to(self.delta)[:, None, None]).transpose(0, 1).reshape(n_rows, -1)
        return (scaled @ self.weight.transpose(1, 2).reshape(n_tasks * outputs, -1)).view(self.shape)

    def dense(self) -> Dense:
        return Dense(torch.bmm(self.delta, self.weight.transpose(1, 2)).view(len(self.delta), *self.shape))

    def over_rows(self, factors: Tensor) -> Tensor:
        if len(self.shape) > 2:
            return self.dense().over_rows(factors)
        return (torch.einsum("tbk,bh->thk", self.delta, factors) * self.weight).sum(2)

    def over_tasks(self, factors: Tensor) -> Tensor:
        if len(self.shape) > 2:
            return self.dense().over_tasks(factors)
        return torch.einsum("tbk,thk->bh", self.delta, self.weight * factors.unsqueeze(2))


def representation(features: Features) -> Tensor:
    """Return z."""
    return features if isinstance(features, Tensor) else features.shared


def total(losses: Losses, tasks: Sequence[int], factors: Tensor | None = None) -> Tensor:
    """Return the sum, or weighted sum, of the losses of some tasks; the other losses are left alone."""
    if isinstance(losses, Tensor):
        chosen = losses if len(tasks) == len(losses) else losses[torch.as_tensor(tasks, device=losses.device)]
    else:
        chosen = torch.stack([losses[task] for task in tasks])
    return chosen.sum() if factors is None else (factors.to(chosen) * chosen).sum()


def through_heads(
    losses: Losses,
    tasks: Sequence[int],
    features: Features,
    private: Sequence[nn.Parameter],
    factors: Tensor | None,
) -> tuple[TaskGradients, list[Tensor | None]]:
    """Send the losses back to the representation: one pass through the heads.

    Parameters
    ----------
    losses, tasks
        The losses and the numbers of the P tasks to look at.
    features
        The representation.
    private
        Parameters of the heads.
    factors
        Weight of each loss in the gradient of its head, ``(P,)`` and not 0; None means 1.

    Returns
    -------
    gradients, private_gradients
        The unweighted ``D_t``, and the gradients of ``private`` (None where a loss does not reach).
    """
    everyone = len(tasks) == len(losses)
    index = slice(None) if everyone else torch.as_tensor(tasks, device=representation(features).device)
    if isinstance(features, Tensor):
        if isinstance(losses, Tensor) and len(tasks) > 1:
            starts = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
            rows = [torch.autograd.grad(losses, features, starts[task], retain_graph=True)[0] for task in tasks]
        else:
            rows = [torch.autograd.grad(losses[task], features, retain_graph=True)[0] for task in tasks]
        own = gradients(total(losses, tasks, factors), private, retain_graph=True) if private else []
        return Dense(torch.stack(rows)), own
    if isinstance(features, Copies):
        found, *own = gradients(total(losses, tasks, factors), [features.each, *private], retain_graph=True)
        rows_ = _reached(found)[index]
        if factors is not None:
            rows_ = rows_ / factors.to(rows_).view(-1, *[1] * (rows_.dim() - 1))
        return Dense(rows_), own
    found, *own = gradients(total(losses, tasks, factors), [features.scores, *private], retain_graph=True)
    delta = _reached(found).flatten(1, -2)[index]
    if factors is not None:
        delta = delta / factors.to(delta)[:, None, None]
    weight = features.weight.detach()[index].to(delta)
    n_rows, outputs, width = delta.shape[1], delta.shape[2], weight.shape[1]
    held = _LowRank(delta, weight, features.shared.shape)
    return (held.dense() if outputs**2 * (n_rows + width) > 4 * n_rows * width else held), own


def gradients(root: Tensor, inputs: Sequence[Tensor], *, retain_graph: bool) -> list[Tensor | None]:
    """Return gradients of a scalar, None where it does not reach."""
    return list(torch.autograd.grad(root, list(inputs), retain_graph=retain_graph, allow_unused=True))


def send(tensors: Sequence[Tensor], starts: Sequence[Tensor | None]) -> None:
    """Send gradients back from tensors, parameters among them, in one backward pass; None is left out.

    A parameter gets what it is given through the same door as in any backward pass, so its hooks run once.
    """
    pairs = [(tensor, start) for tensor, start in zip(tensors, starts, strict=True) if start is not None]
    torch.autograd.backward([tensor for tensor, _ in pairs], [start for _, start in pairs])


def _reached(gradient: Tensor | None) -> Tensor:
    if gradient is None:
        raise InputError("features: the losses do not depend on the tensor given; give what the heads were applied to")
    return gradient
