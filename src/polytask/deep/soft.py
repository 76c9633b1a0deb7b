"""Soft parameter sharing: every task has its own network, and a penalty keeps the networks close.

    minimise  sum_t L_t(W_t) + strength · R(W),        W: stacked encoder weights (T, …)

    form "mean":      R = sum_t ||W_t - mean W||²
    form "pairwise":  R = sum_{s<t} ||W_s - W_t||²  =  T · R_mean

With update "prox" each optimiser step of size η is followed by the exact proximal step

    W_t ← mean W + (W_t - mean W) / (1 + 2 η strength)              (pairwise: T · strength)

which is stable for every strength and keeps the mean; with "gradient" the closed-form gradient
``2 strength (W_t - mean W)`` joins that of the losses. All tasks start from the same weights, otherwise
the penalty would compare arbitrarily permuted hidden units. Strength 0 is single-task learning; strength
→ ∞ is one encoder trained on the mean of the losses. Heads are not coupled.

Duong, Cohn, Bird, Cook, Low Resource Dependency Parsing: Cross-lingual Parameter Sharing in a Neural
Network Parser, ACL 2015.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polytask.core.errors import InputError, unknown
from polytask.core.relation import Relation
from polytask.core.task import Task
from polytask.deep.base import SharingNetwork
from polytask.deep.encoders import BranchedEncoder, Encoder
from polytask.deep.heads import Heads


class SoftSharing(SharingNetwork):
    """T networks whose encoder weights are pulled towards their mean.

    Parameters
    ----------
    tasks
        The tasks.
    encoder
        The encoder each task gets a copy of, with the same weights.
    strength
        Weight of the penalty, at least 0; 1e-4 … 1e1 is a usual range.
    form
        ``"mean"`` or ``"pairwise"``.
    update
        ``"prox"`` or ``"gradient"``.
    stages
        Names of the encoder's stages that are coupled; None couples all.
    biases
        Whether one-dimensional weights (biases, scales and shifts of norms) are coupled too.
    seed
        Seed of the heads' initial weights.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        encoder: Encoder,
        *,
        strength: float,
        form: Literal["mean", "pairwise"] = "mean",
        update: Literal["prox", "gradient"] = "prox",
        stages: Sequence[str] | None = None,
        biases: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(tasks)
        if not 0 <= strength < float("inf"):
            raise InputError(f"strength is {strength}; give a finite number of at least 0")
        if form not in ("mean", "pairwise"):
            raise InputError(unknown("form", form, ("mean", "pairwise")))
        if update not in ("prox", "gradient"):
            raise InputError(unknown("update", update, ("prox", "gradient")))
        self.strength, self.form, self.update = float(strength), form, update
        self.encoder = BranchedEncoder(encoder, len(tasks))
        self.heads = Heads(tasks, encoder.n_features, seed=seed, identical=True)
        self._average = torch.full((1, len(tasks)), 1 / len(tasks))
        owners = {
            id(weight): (module._parameters, name)
            for module in self.encoder.modules()
            for name, weight in module.named_parameters(recurse=False)
        }
        # found once, because every step asks for them; the owner's table, because a weight may be replaced
        self._owners: dict[str, tuple[dict[str, Any], str]] = {
            name: owners[id(weight)]
            for name, weight in self.encoder.weights(stages).items()
            if biases or weight.dim() > 2
        }
        for name, weight in self.coupled().items():
            self.register_buffer(_start(name), weight[0].detach().clone())

    def coupled(self) -> dict[str, nn.Parameter]:
        """Return name → stacked weights ``(T, …)`` that the penalty acts on."""
        return {name: owner[attribute] for name, (owner, attribute) in self._owners.items()}

    def all_scores(
        self, inputs: Mapping[str, Tensor], own_rows: bool = False, *, only: Sequence[int] | None = None
    ) -> Tensor:
        chosen = None if only is None else torch.tensor(only, device=self.heads.used.device)
        features = self.encoder(inputs, own_rows, only=chosen)
        scores: Tensor = self.heads(features, own=True, only=chosen)
        return scores

    @property
    def _pull(self) -> float:
        """Strength of the equivalent penalty of form "mean"; a lone task has nothing to be pulled to."""
        if len(self.tasks) == 1:
            return 0.0
        return self.strength * (len(self.tasks) if self.form == "pairwise" else 1)

    @torch.no_grad()
    def penalty(self) -> Tensor:
        distances = [(weight - weight.mean(0)).square().sum() for weight in self.coupled().values()]
        return self._pull * torch.stack(distances).sum() if distances else super().penalty()

    def penalty_gradient(self) -> None:
        if self.update != "gradient" or self._pull == 0:
            return
        with torch.no_grad():
            for weight in self.coupled().values():
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
                flat, gradient = weight.flatten(1), weight.grad.view(len(weight), -1)
                gradient.add_(flat, alpha=2 * self._pull).sub_(self._mean(flat), alpha=2 * self._pull)

    def after_step(self, learning_rate: float) -> None:
        if self.update != "prox" or self._pull == 0:
            return
        share = 1 - 1 / (1 + 2 * learning_rate * self._pull)
        with torch.no_grad():
            for weight in self.coupled().values():
                flat = weight.flatten(1)
                flat.lerp_(self._mean(flat), share)

    def _mean(self, flat: Tensor) -> Tensor:
        """Return the mean over tasks ``(1, size)``, by a product: quicker than a reduction over the first axis."""
        if self._average.dtype != flat.dtype or self._average.device != flat.device:
            self._average = flat.new_full((1, len(flat)), 1 / len(flat))
        return self._average @ flat

    @torch.no_grad()
    def relations(self) -> dict[str, Relation]:
        """Return the cosines between what each task's training added to the common starting weights."""
        moved = [
            (weight - self.get_buffer(_start(name))).flatten(1).double() for name, weight in self.coupled().items()
        ]
        if not moved:
            return {}
        unit = nn.functional.normalize(torch.cat(moved, dim=1), dim=1)
        cosines = (unit @ unit.T).fill_diagonal_(1.0).clamp(-1, 1).cpu().numpy()
        names = tuple(task.name for task in self.tasks)
        about = "cosine between the changes of two tasks' encoders since the common start: 1 = moved the same way"
        return {"encoder_changes": Relation("correlation", cosines, names, names, about)}


def _start(name: str) -> str:
    return "start_" + name.replace(".", "_")
