"""Towers whose weights are coupled by a penalty: one network per task, a penalty on the stacked encoder weights.

    minimise  Σ_t L_t(W_t) + strength · R(W),        W: stacked encoder weights (T, …)

With update "gradient" a closed-form gradient of R joins that of the losses; with "prox" each optimiser step of
size η is followed by the proximal step of ``η · strength · R``. What soft sharing and the trace norm have in
common is here: which weights are coupled, when the penalty acts, what the coupling led to. Heads are not coupled.
"""

from __future__ import annotations

from abc import abstractmethod
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

Update = Literal["prox", "gradient"]


class CoupledTowers(SharingNetwork):
    """T networks that start from the same weights, with a penalty on their encoders' weights (abstract).

    Parameters
    ----------
    tasks
        The tasks.
    encoder
        The encoder each task gets a copy of, with the same weights.
    strength
        Weight of the penalty, at least 0.
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
        update: Update,
        stages: Sequence[str] | None,
        biases: bool,
        seed: int,
    ) -> None:
        super().__init__(tasks)
        if not 0 <= strength < float("inf"):
            raise InputError(f"strength is {strength}; give a finite number of at least 0")
        if update not in ("prox", "gradient"):
            raise InputError(unknown("update", update, ("prox", "gradient")))
        self.strength, self.update = float(strength), update
        self.encoder = BranchedEncoder(encoder, len(tasks))
        self.heads = Heads(tasks, encoder.n_features, seed=seed, identical=True)
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
            self.register_buffer(buffer_name("start", name), weight[0].detach().clone())

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

    def acts(self) -> bool:
        """Return whether there is anything to couple; a lone task has nothing."""
        return self.strength > 0 and len(self.tasks) > 1

    @abstractmethod
    def value(self, name: str, weight: Tensor) -> Tensor:
        """Return R of one stacked weight."""

    @abstractmethod
    def add_gradient(self, name: str, weight: Tensor, gradient: Tensor) -> None:
        """Add ``strength · ∂R/∂W`` of one stacked weight to ``gradient``."""

    @abstractmethod
    def move(self, name: str, weight: Tensor, learning_rate: float) -> None:
        """Replace one stacked weight by its proximal step of size ``learning_rate · strength``."""

    @torch.no_grad()
    def penalty(self) -> Tensor:
        values = [self.value(name, weight) for name, weight in self.coupled().items()] if self.acts() else []
        return self.strength * torch.stack(values).sum() if values else super().penalty()

    def penalty_gradient(self) -> None:
        if self.update != "gradient" or not self.acts():
            return
        with torch.no_grad():
            for name, weight in self.coupled().items():
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
                self.add_gradient(name, weight, weight.grad)

    def after_step(self, learning_rate: float) -> None:
        if self.update != "prox" or not self.acts():
            return
        with torch.no_grad():
            for name, weight in self.coupled().items():
                self.move(name, weight, learning_rate)

    @torch.no_grad()
    def relations(self) -> dict[str, Relation]:
        """Return the cosines between what each task's training added to the common starting weights."""
        moved = [
            (weight - self.get_buffer(buffer_name("start", name))).flatten(1).double()
            for name, weight in self.coupled().items()
        ]
        if not moved:
            return {}
        unit = nn.functional.normalize(torch.cat(moved, dim=1), dim=1)
        cosines = (unit @ unit.T).fill_diagonal_(1.0).clamp(-1, 1).cpu().numpy()
        names = tuple(task.name for task in self.tasks)
        about = "cosine between the changes of two tasks' encoders since the common start: 1 = moved the same way"
        return {"encoder_changes": Relation("correlation", cosines, names, names, about)}


def buffer_name(kind: str, weight: str) -> str:
    """Return the name of a buffer that belongs to a weight."""
    return f"{kind}_" + weight.replace(".", "_")
