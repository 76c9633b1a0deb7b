"""Trees and hierarchies of tasks behind the Learner contract: adaptive sharing, learned branching, levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from polytask.core.data import TaskData
from polytask.core.errors import InputError
from polytask.core.search import Choice, Distribution, LogUniform
from polytask.deep.base import SharingNetwork
from polytask.deep.encoders import BranchedEncoder, Encoder
from polytask.deep.somp import thin_encoder
from polytask.train.balancers import Reduction
from polytask.train.levels import parse_levels, task_levels
from polytask.train.network_learner import Run, SharingLearner


@dataclass(frozen=True, kw_only=True)
class AdaptiveSharingLearner(SharingLearner):
    """A shared network that grows into a tree of branches while it is trained (Lu et al., CVPR 2017).

    Parameters
    ----------
    alpha
        Weight of the separation of tasks that find different rows difficult, at least 0; 0 never branches.
    phase_epochs
        Most epochs between two splits; 0: the share of ``max_epochs`` that leaves every layer its turn.
    wide
        Start from a trained shared network so many times as wide, thinned layer by layer; 1: start at random.
    balancer
        ``"equal"`` (the mean of the task losses), ``"uncertainty"`` or another loss weighting.
    """

    alpha: float = 4.0
    phase_epochs: int = 0
    wide: int = 1

    summary: ClassVar[str] = "one shared network that grows branches where tasks differ"
    network: ClassVar[str] = "adaptive-sharing"
    shares_parameters: ClassVar[bool] = False  # it may end as a tree in which nothing is shared
    reduction: ClassVar[Reduction] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < float("inf"):
            raise InputError(f"alpha is {self.alpha}; give a finite number of at least 0")
        if self.phase_epochs < 0:
            raise InputError(f"phase_epochs is {self.phase_epochs}; give a number of epochs, or 0")
        if self.wide < 1:
            raise InputError(f"wide is {self.wide}; give a whole factor of at least 1")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {**super().search_space(), "alpha": LogUniform(1.0, 100.0)}

    def _description(self, data: TaskData) -> dict[str, Any]:
        found = super()._description(data)
        phases = len(_filters(found)) + 1
        epochs = self.phase_epochs or max(1, self.max_epochs // phases)
        return {**found, "alpha": float(self.alpha), "phase_epochs": epochs}

    def _start(self, train: TaskData, valid: TaskData | None, run: Run) -> tuple[SharingNetwork, dict[str, Any]]:
        network, description = super()._start(train, valid, run)
        if self.wide == 1:
            return network, description
        wider = {**description, "network": "hard-sharing"}
        wider |= {name: [self.wide * size for size in description[name]] for name in _SIZES if name in description}
        teacher = self._trained_first(wider, self._balancer(train.tasks, run.seed), train, valid, run)
        trunk = teacher.get_submodule("trunk")
        assert isinstance(trunk, BranchedEncoder)
        thin = BranchedEncoder(thin_encoder(_copied(trunk), _filters(description)), 1)
        network.get_submodule("trunk").load_state_dict(thin.state_dict())
        return network, description


_SIZES = ("channels", "widths")


def _filters(description: Mapping[str, Any]) -> list[int]:
    """Return the number of channels or units of every convolution and layer, input to output."""
    return [int(size) for name in _SIZES for size in description.get(name, [])]


def _copied(trunk: BranchedEncoder) -> Encoder:
    stages = {name: trunk.stages[name].copy(0) for name in trunk.names}  # type: ignore[operator]  # they are Branches
    return Encoder(
        stages, n_features=trunk.n_features, channels=trunk.channels or None, channel_axis=trunk.channel_axis
    ).cpu()


@dataclass(frozen=True, kw_only=True)
class LearnedBranchingLearner(SharingLearner):
    """Branches, and tasks that learn which branches they run through (Guo et al., ICML 2020).

    Parameters
    ----------
    n_branches
        Branches of every layer.
    anneal_epochs
        Epochs in which the choices become sharp.
    balancer
        As for hard sharing.
    """

    n_branches: int = 3
    anneal_epochs: int = 30

    summary: ClassVar[str] = "several branches per layer, tasks learn which to run through"
    network: ClassVar[str] = "learned-branching"
    reduction: ClassVar[Reduction] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self._layers():
            raise InputError(f'widths is "{self.widths}"; branches need at least one hidden layer, such as "64"')
        for name in ("n_branches", "anneal_epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give a whole number of at least 1")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {**super().search_space(), "n_branches": Choice((2, 3, 5))}

    def _description(self, data: TaskData) -> dict[str, Any]:
        own = {"n_branches": self.n_branches, "anneal_epochs": self.anneal_epochs}
        return {**super()._description(data), **own}


@dataclass(frozen=True, kw_only=True)
class _LevelsLearner(SharingLearner):
    """What learners of networks with tasks at several depths have in common (abstract)."""

    levels: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_levels(self.levels)

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {**super().search_space(), "widths": Choice(("64-64", "128-128", "64-64-64"))}

    def _description(self, data: TaskData) -> dict[str, Any]:
        found = super()._description(data)
        return {**found, "levels": task_levels(self.levels, data, len(_filters(found)))}


@dataclass(frozen=True, kw_only=True)
class LowSupervisionLearner(_LevelsLearner):
    """One trunk with the heads of low-level tasks at lower layers (Søgaard and Goldberg, ACL 2016).

    Parameters
    ----------
    levels
        ``"auto"``: tasks that a linear fit explains best sit lowest; ``"order"``: the first tasks of the data; or the
        layer of every task, 1 being the first, such as ``"price=1; sold=2"``.
    balancer
        As for hard sharing.
    """

    summary: ClassVar[str] = "one shared network, simple tasks read its lower layers"
    network: ClassVar[str] = "low-supervision"
    reduction: ClassVar[Reduction] = "mean"


@dataclass(frozen=True, kw_only=True)
class JointManyTaskLearner(_LevelsLearner):
    """A cascade in which every task is told what the lower ones predict (Hashimoto et al., EMNLP 2017).

    Parameters
    ----------
    levels
        As for low supervision.
    delta
        Weight of the successive regularisation, at least 0; ten times as much on the heads. It acts in units of the
        learning rate, which for Adam is small.
    balancer
        ``"equal"`` (the sum of the losses of a level), ``"uncertainty"`` or another loss weighting.
    """

    delta: float = 10.0

    summary: ClassVar[str] = "tasks stacked from simple to hard, each told what the lower ones predict"
    network: ClassVar[str] = "joint-many-task"
    shares_parameters: ClassVar[bool] = False  # losses of one level at a time reach what those of others do not

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling not in (None, "sequential"):
            raise InputError(f'sampling is "{self.sampling}"; this network takes its levels in turn: leave it out')
        if not 0 <= self.delta < float("inf"):
            raise InputError(f"delta is {self.delta}; give a finite number of at least 0")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {**super().search_space(), "delta": LogUniform(0.1, 100.0)}

    def _description(self, data: TaskData) -> dict[str, Any]:
        return {**super()._description(data), "delta": float(self.delta)}
