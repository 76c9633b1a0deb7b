"""Networks whose tasks' weights are related, behind the Learner contract: by a learned prior, by shared factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

from polytask.core.data import TaskData
from polytask.core.errors import InputError, unknown
from polytask.core.search import Choice, Distribution, LogUniform
from polytask.deep.base import SharingNetwork
from polytask.deep.factorisation import FORMS, Form
from polytask.deep.tensor_factor import TensorFactorisation
from polytask.train.balancers import Reduction
from polytask.train.network_learner import Run, SharingLearner


@dataclass(frozen=True, kw_only=True)
class RelationshipNetworkLearner(SharingLearner):
    """A shared trunk, upper layers for each task, and a learned prior that relates them (Long et al., NIPS 2017).

    Parameters
    ----------
    strength
        Weight of the prior, at least 0: the mean over weights of their squares as the learned covariances see them.
    own_layers
        Number of hidden layers, from the last, that each task has of its own; 0: the output layers alone, which
        are then related and need tasks with equally many outputs.
    mode
        ``"stable"``, ``"paper"`` or ``"authors"``, see :class:`~polytask.deep.relationship.RelationshipNetwork`.
    cov
        ``"ml"`` or ``"mtrl"``.
    refresh_every
        Steps between two updates of the covariances.
    balancer
        As for hard sharing.
    """

    strength: float = 10.0
    own_layers: int = 1
    mode: str = "stable"
    cov: str = "ml"
    refresh_every: int = 25

    summary: ClassVar[str] = "shared trunk, upper layers per task related by a learned prior"
    network: ClassVar[str] = "relationship-network"
    reduction: ClassVar[Reduction] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.strength < float("inf"):
            raise InputError(f"strength is {self.strength}; give a finite number of at least 0")
        most = len(self._layers())
        if not 0 <= self.own_layers <= most:
            raise InputError(f'own_layers is {self.own_layers}; widths is "{self.widths}", so give 0 to {most}')
        if self.refresh_every < 1:
            raise InputError(f"refresh_every is {self.refresh_every}; give a number of steps of at least 1")
        for name, known in (("mode", ("stable", "paper", "authors")), ("cov", ("ml", "mtrl"))):
            if getattr(self, name) not in known:
                raise InputError(unknown(name, getattr(self, name), known))

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {**super().search_space(), "strength": LogUniform(1e-1, 1e3)}

    def _description(self, data: TaskData) -> dict[str, Any]:
        return {
            **super()._description(data),
            "strength": float(self.strength),
            "own_layers": int(self.own_layers),
            "mode": self.mode,
            "cov": self.cov,
            "refresh_every": int(self.refresh_every),
        }


@dataclass(frozen=True, kw_only=True)
class TensorFactorisationLearner(SharingLearner):
    """A network for each task, whose weights are products of shared factors (Yang & Hospedales, ICLR 2017).

    Training starts from single-task networks, trained with the same settings, whose stacked weights are
    decomposed within ``tolerance``; the factors are then trained on. ``weight_decay`` acts on the products.

    Parameters
    ----------
    form
        ``"laf"``, ``"tucker"`` or ``"tt"``.
    tolerance
        Largest relative error of each layer's decomposition, in [0, 1): 0 keeps everything, more shares more.
    components
        Where it is above 0, training starts from random factors with that many components instead.
    balancer
        As for hard sharing.
    """

    form: str = "tucker"
    tolerance: float = 0.1
    components: int = 0

    summary: ClassVar[str] = "one network per task, weights are products of shared factors"
    network: ClassVar[str] = "tensor-factorisation"
    reduction: ClassVar[Reduction] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in FORMS:
            raise InputError(unknown("form", self.form, FORMS))
        if not 0 <= self.tolerance < 1:
            raise InputError(f"tolerance is {self.tolerance}; give a share from 0 up to, but without, 1")
        if self.components < 0:
            raise InputError(f"components is {self.components}; give 0, or the number of components of a random start")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {
            **super().search_space(),
            "form": Choice(FORMS),
            "tolerance": Choice((0.05, 0.1, 0.2, 0.4, 0.6)),
        }

    def _description(self, data: TaskData) -> dict[str, Any]:
        own = {"form": self.form, "weight_decay": float(self.weight_decay), "ranks": max(1, int(self.components))}
        return {**super()._description(data), **own}

    def _start(self, train: TaskData, valid: TaskData | None, run: Run) -> tuple[SharingNetwork, dict[str, Any]]:
        if self.components or len(train.tasks) == 1:
            return super()._start(train, valid, run)
        description = self._description(train)
        single = self._trained_single_task(train, valid, run)
        network = TensorFactorisation.from_single_task(
            single, tolerance=self.tolerance, form=cast("Form", self.form), weight_decay=self.weight_decay
        )
        ranks = {name: list(some) for name, some in network.ranks.items()}
        return network, {**description, "ranks": ranks}
