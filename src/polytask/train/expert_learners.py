"""Networks of experts and of attention behind the Learner contract: MMoE, CGC, PLE, DSelect-k, MTAN.

An expert is a network of ``widths``, so E experts cost about E times a shared trunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from polytask.core.data import TaskData
from polytask.core.errors import InputError
from polytask.core.search import Choice, Distribution
from polytask.train.balancers import Reduction
from polytask.train.network_learner import SharingLearner


@dataclass(frozen=True, kw_only=True)
class _ExpertLearner(SharingLearner):
    """What learners of networks of experts or attention have in common (abstract)."""

    reduction: ClassVar[Reduction] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self._layers():
            raise InputError(f'widths is "{self.widths}"; this network needs at least one hidden layer, such as "64"')

    def _at_least(self, least: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; give a whole number of at least {least}")

    def _description(self, data: TaskData) -> dict[str, Any]:
        return {**super()._description(data), **self._options()}

    def _options(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True, kw_only=True)
class MmoeLearner(_ExpertLearner):
    """Experts that all tasks share, mixed for each task by a gate of its own (Ma et al., KDD 2018).

    Parameters
    ----------
    n_experts
        Number of experts.
    balancer
        As for hard sharing.
    """

    n_experts: int = 4

    summary: ClassVar[str] = "shared experts, each task mixes them by its own gate (MMoE)"
    network: ClassVar[str] = "mmoe"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "n_experts")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {**super().search_space(), "n_experts": Choice((2, 4, 8))}

    def _options(self) -> dict[str, Any]:
        return {"n_experts": self.n_experts}


@dataclass(frozen=True, kw_only=True)
class DselectKLearner(_ExpertLearner):
    """Shared experts, of which each task learns to take at most k (Hazimeh et al., NeurIPS 2021).

    Parameters
    ----------
    n_experts
        Number of experts, at least 2.
    n_selected
        Most experts a task takes, k.
    strength
        Weight of the gates' entropy in the penalty: the larger, the sooner gates decide.
    balancer
        As for hard sharing.
    """

    n_experts: int = 4
    n_selected: int = 2
    strength: float = 1e-6

    summary: ClassVar[str] = "shared experts, each task learns to take at most k of them (DSelect-k)"
    network: ClassVar[str] = "dselect-k"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(2, "n_experts")
        if not 1 <= self.n_selected <= self.n_experts:
            raise InputError(f"n_selected is {self.n_selected}; give a number from 1 to n_experts, {self.n_experts}")
        if not 0 <= self.strength < float("inf"):
            raise InputError(f"strength is {self.strength}; give a finite number of at least 0")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {**super().search_space(), "n_experts": Choice((2, 4, 8))}

    def _options(self) -> dict[str, Any]:
        return {"n_experts": self.n_experts, "n_selected": self.n_selected, "strength": float(self.strength)}


@dataclass(frozen=True, kw_only=True)
class _ExtractionLearner(_ExpertLearner):
    """What learners with shared and private experts have in common (abstract)."""

    n_shared: int = 2
    n_private: int = 1

    network: ClassVar[str] = "ple"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "n_shared")
        self._at_least(0, "n_private")

    def _options(self) -> dict[str, Any]:
        return {"n_shared": self.n_shared, "n_private": self.n_private, "levels": 1}


@dataclass(frozen=True, kw_only=True)
class CGCLearner(_ExtractionLearner):
    """Shared experts and private ones of each task, mixed by a gate per task (Tang et al., RecSys 2020).

    Parameters
    ----------
    n_shared, n_private
        Number of shared experts, and of private ones of each task.
    balancer
        As for hard sharing.
    """

    summary: ClassVar[str] = "shared and private experts, each task mixes them by its own gate (CGC)"


@dataclass(frozen=True, kw_only=True)
class PLELearner(_ExtractionLearner):
    """Shared and private experts in several levels, with a shared stream of its own (Tang et al., RecSys 2020).

    Parameters
    ----------
    n_shared, n_private
        Number of shared experts, and of private ones of each task, in each level.
    levels
        Number of levels, among which the hidden layers are dealt; at most as many as there are.
    balancer
        As for hard sharing.
    """

    levels: int = 2

    summary: ClassVar[str] = "shared and private experts in levels, with a shared stream (PLE)"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "levels")
        if self.levels > len(self._layers()):
            raise InputError(f'levels is {self.levels}, but widths "{self.widths}" has fewer hidden layers')

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {**super().search_space(), "widths": Choice(("32-32", "64-64", "128-128"))}

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "levels": self.levels}


@dataclass(frozen=True, kw_only=True)
class MTANLearner(_ExpertLearner):
    """One trunk, and on each of its layers a soft attention mask per task (Liu et al., CVPR 2019).

    Parameters
    ----------
    mask_reduction
        The masks' hidden layers are narrower than the trunk's by this factor.
    balancer
        As for hard sharing.
    """

    mask_reduction: int = 1

    summary: ClassVar[str] = "one shared network with a soft attention mask per task on each layer (MTAN)"
    network: ClassVar[str] = "mtan"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "mask_reduction")

    def _options(self) -> dict[str, Any]:
        return {"reduction": self.mask_reduction}
