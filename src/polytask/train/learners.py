"""The plain networks behind the Learner contract: single-task, hard sharing, soft sharing by distance or rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from polytask.core.data import TaskData
from polytask.core.errors import InputError, unknown
from polytask.core.search import Distribution, LogUniform
from polytask.train.balancers import Reduction
from polytask.train.network_learner import NetworkLearner, SharingLearner


@dataclass(frozen=True, kw_only=True)
class SingleTaskNetworkLearner(NetworkLearner):
    """One network per task, nothing shared: the neural baseline. Each task stops at its own best epoch.

    Parameters
    ----------
    widths, dropout, norm, activation, learning_rate, weight_decay, batch_size, max_epochs, patience, clip
        As for all networks of this room.
    """

    sharing: ClassVar[str] = "single"
    summary: ClassVar[str] = "one neural network per task, nothing shared"
    network: ClassVar[str] = "single-task"


@dataclass(frozen=True, kw_only=True)
class HardSharingLearner(SharingLearner):
    """One trunk for all tasks and one linear head per task (Caruana, Multitask Learning, 1997).

    Parameters
    ----------
    balancer
        How the losses become one update: ``"equal"`` (the mean of the task losses), ``"uncertainty"``
        (learned noise per task) or any other of :data:`~polytask.train.balancers.BALANCERS`. Tuning
        chooses between the first two.
    """

    summary: ClassVar[str] = "one shared network, one head per task"
    network: ClassVar[str] = "hard-sharing"
    reduction: ClassVar[Reduction] = "mean"


@dataclass(frozen=True, kw_only=True)
class SoftSharingLearner(SharingLearner):
    """One network per task, pulled towards their mean (Duong et al., ACL 2015).

    Parameters
    ----------
    strength
        Weight of the penalty, at least 0: 0 is single-task learning, infinity one shared encoder.
    balancer
        ``"equal"`` (the sum of the task losses), ``"uncertainty"`` or another loss weighting.
    """

    strength: float = 0.1

    summary: ClassVar[str] = "one network per task, weights pulled towards their mean"
    network: ClassVar[str] = "soft-sharing"
    shares_parameters: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.strength < float("inf"):
            raise InputError(f"strength is {self.strength}; give a finite number of at least 0")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {**super().search_space(), "strength": LogUniform(1e-4, 10.0)}

    def _description(self, data: TaskData) -> dict[str, Any]:
        return {**super()._description(data), "strength": float(self.strength)}


@dataclass(frozen=True, kw_only=True)
class TraceNormSharingLearner(SharingLearner):
    """One network per task, whose stacked weights are pulled to low rank (Yang & Hospedales, 2017).

    Parameters
    ----------
    strength
        Weight of the trace norm, at least 0: 0 is single-task learning.
    form
        ``"laf"``, ``"tucker"`` or ``"tt"``: which unfoldings of the stacked weights have a low rank.
    balancer
        ``"equal"`` (the sum of the task losses), ``"uncertainty"`` or another loss weighting.
    """

    strength: float = 1.0
    form: str = "laf"

    summary: ClassVar[str] = "one network per task, stacked weights pulled to low rank"
    network: ClassVar[str] = "trace-norm-sharing"
    shares_parameters: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.strength < float("inf"):
            raise InputError(f"strength is {self.strength}; give a finite number of at least 0")
        if self.form not in ("laf", "tucker", "tt"):
            raise InputError(unknown("form", self.form, ("laf", "tucker", "tt")))

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {**super().search_space(), "strength": LogUniform(1e-2, 100.0)}

    def _description(self, data: TaskData) -> dict[str, Any]:
        return {**super()._description(data), "strength": float(self.strength), "form": self.form}
