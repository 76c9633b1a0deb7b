"""Methods that learn the prior of the tasks' coefficients, behind the Learner contract; units as in ``learning``."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from polytask.core.errors import InputError
from polytask.core.search import Choice, Distribution
from polytask.core.task import Task
from polytask.linear.learning import INTERCEPTS, LinearLearner, Problem, Solution
from polytask.linear.model import Design

if TYPE_CHECKING:
    from polytask.linear.bayesian import BayesianEstimator
    from polytask.linear.gaussian_mixture_tasks import GaussianMixtureTasks
    from polytask.linear.task_hierarchy import TaskHierarchy


class BayesianLearner(LinearLearner):
    """A learner that hands the rows of its columns to an estimator that learns its own strengths (abstract)."""

    positive: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def _estimator(self, seed: int) -> BayesianEstimator:
        """Return the estimator."""

    def _solve(self, problem: Problem) -> Solution:
        estimator = self._estimator(problem.seed)
        estimator.tasks_ = np.array(problem.names)
        estimator.logistic_ = problem.logistic
        estimator.feature_names_in_ = np.array(Design.of(problem.data).names)
        estimator.solve(problem.blocks(), problem.n_features)
        return Solution(estimator.coef_, estimator.intercept_, estimator.relations_)


@dataclass(frozen=True)
class GaussianMixtureTasksLearner(BayesianLearner):
    """Coefficients come from a few Gaussians that are learned from all tasks.

    See :class:`~polytask.linear.gaussian_mixture_tasks.GaussianMixtureTasks`; strengths are learned.

    Parameters
    ----------
    n_clusters
        Number of Gaussians; 0: chosen by the marginal likelihood.
    covariance
        ``"spherical"``, ``"diagonal"`` or ``"full"``.
    intercepts
        ``"own"`` or ``"coupled"``; see :mod:`~polytask.linear.learning`.
    """

    n_clusters: int = 0
    covariance: str = "diagonal"
    intercepts: str = "own"

    summary: ClassVar[str] = "coefficients come from a few Gaussians that are learned from all tasks"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_clusters < 0:
            raise InputError(f"n_clusters must be at least 0, got {self.n_clusters!r}; 0 lets the data choose")
        if self.covariance not in _COVARIANCES:
            raise InputError(f"covariance must be one of {', '.join(_COVARIANCES)}, got {self.covariance!r}")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {
            "n_clusters": Choice((0, 1)),
            "covariance": Choice(_COVARIANCES),
            "intercepts": Choice(INTERCEPTS),
        }

    def refuses(self, task: Task) -> str | None:
        if task.kind == "regression":
            return None
        return f"coefficients are integrated out in closed form, which needs squared loss; this is a {task.kind} task"

    def _estimator(self, seed: int) -> GaussianMixtureTasks:
        from polytask.linear.gaussian_mixture_tasks import GaussianMixtureTasks

        return GaussianMixtureTasks(
            self.n_clusters or None, covariance=self.covariance, intercepts=self.intercepts, random_state=seed
        )


@dataclass(frozen=True)
class TaskHierarchyLearner(BayesianLearner):
    """Coefficients diffuse down a tree of tasks that is learned with them.

    See :class:`~polytask.linear.task_hierarchy.TaskHierarchy`; strengths are learned.

    Parameters
    ----------
    intercepts
        ``"own"`` or ``"coupled"``; see :mod:`~polytask.linear.learning`.
    """

    intercepts: str = "own"

    summary: ClassVar[str] = "learns a tree of tasks; closely related ones have similar coefficients"

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {"intercepts": Choice(INTERCEPTS)}

    def _estimator(self, seed: int) -> TaskHierarchy:  # noqa: ARG002 - no randomness
        from polytask.linear.task_hierarchy import TaskHierarchy

        return TaskHierarchy(intercepts=self.intercepts)


_COVARIANCES = ("spherical", "diagonal", "full")
