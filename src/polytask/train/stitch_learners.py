"""Networks whose towers exchange features, behind the Learner contract: cross-stitch, sluice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from polytask.core.data import TaskData
from polytask.core.errors import InputError, unknown
from polytask.core.search import Choice, Distribution
from polytask.deep.base import SharingNetwork
from polytask.deep.mixing import MixedTowers
from polytask.train.balancers import Reduction
from polytask.train.network_learner import Run, SharingLearner

_STARTS = ("together", "single-task")


@dataclass(frozen=True, kw_only=True)
class StitchingLearner(SharingLearner):
    """What the learners of towers that exchange features have in common (abstract).

    Parameters
    ----------
    own_weight
        Initial weight of a tower's own features, from 0 to 1.
    mixing_rate
        Factor on the learning rate of the weights that mix towers. The papers' 100 to 1000 are for plain gradient
        descent; AdamW's steps do not depend on the size of gradients, and larger factors made results worse.
    start
        ``"together"``: all towers from the same random weights; ``"single-task"``: from single-task networks that
        are trained first, with the same settings.
    balancer
        As for hard sharing.
    """

    own_weight: float = 0.9
    mixing_rate: float = 1.0
    start: str = "together"

    reduction: ClassVar[Reduction] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.own_weight <= 1:
            raise InputError(f"own_weight is {self.own_weight}; give a share from 0 to 1, such as 0.9")
        if not 0 < self.mixing_rate < float("inf"):
            raise InputError(f"mixing_rate is {self.mixing_rate}; give a positive number, such as 1")
        if self.start not in _STARTS:
            raise InputError(unknown("start", self.start, _STARTS))

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {**super().search_space(), "own_weight": Choice((0.5, 0.9)), "start": Choice(_STARTS)}

    def _description(self, data: TaskData) -> dict[str, Any]:
        own = {"own_weight": float(self.own_weight), "mixing_rate": float(self.mixing_rate)}
        return {**super()._description(data), **own}

    def _start(self, train: TaskData, valid: TaskData | None, run: Run) -> tuple[SharingNetwork, dict[str, Any]]:
        network, description = super()._start(train, valid, run)
        if self.start == "single-task" and len(train.tasks) > 1:
            assert isinstance(network, MixedTowers)
            network.take_towers(self._trained_single_task(train, valid, run))
        return network, description


@dataclass(frozen=True, kw_only=True)
class CrossStitchLearner(StitchingLearner):
    """One network per task, that mix each other's features after every layer (Misra et al., CVPR 2016).

    Parameters
    ----------
    granularity
        ``"layer"``: one weight per pair of towers and layer; ``"channel"``: one per hidden unit too.
    own_weight, mixing_rate, start
        As for all towers that exchange features.
    balancer
        As for hard sharing.
    """

    granularity: str = "layer"

    summary: ClassVar[str] = "one network per task, mixing each other's features after every layer"
    network: ClassVar[str] = "cross-stitch"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.granularity not in ("layer", "channel"):
            raise InputError(unknown("granularity", self.granularity, ("layer", "channel")))

    def _description(self, data: TaskData) -> dict[str, Any]:
        return {**super()._description(data), "granularity": self.granularity}


@dataclass(frozen=True, kw_only=True)
class SluiceLearner(StitchingLearner):
    """One network per task, whose subspaces exchange features and whose output reads all layers (Ruder et al., 2019).

    Parameters
    ----------
    subspaces
        Number of parts of each layer, which divides the layers' widths.
    orthogonality
        Weight of the penalty on units of different subspaces that look alike, at least 0.
    own_weight, mixing_rate, start
        As for all towers that exchange features.
    balancer
        As for hard sharing.
    """

    subspaces: int = 2
    orthogonality: float = 0.0

    summary: ClassVar[str] = "one network per task, subspaces mixed after every layer, outputs read all layers"
    network: ClassVar[str] = "sluice"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subspaces < 1 or any(width % self.subspaces for width in self._layers()):
            raise InputError(f'subspaces is {self.subspaces}; give a number that divides the widths "{self.widths}"')
        if not 0 <= self.orthogonality < float("inf"):
            raise InputError(f"orthogonality is {self.orthogonality}; give a finite number of at least 0")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {**super().search_space(), "orthogonality": Choice((0.0, 0.1, 1.0))}

    def _description(self, data: TaskData) -> dict[str, Any]:
        own = {"subspaces": int(self.subspaces), "orthogonality": float(self.orthogonality)}
        return {**super()._description(data), **own}
