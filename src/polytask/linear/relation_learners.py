"""Methods that learn how tasks are related, behind the Learner contract; outputs and units as in ``learning``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from polytask.core.errors import InputError
from polytask.core.search import Choice, Distribution, LogUniform
from polytask.core.task import Task
from polytask.linear.learning import INTERCEPTS, STEPS, TOLERANCE, EstimatorLearner, gradient_at_zero, share_of

if TYPE_CHECKING:
    from polytask.linear.alternating_structure import AlternatingStructure
    from polytask.linear.clustered_tasks import ClusteredTasks
    from polytask.linear.grouping_overlap import GroupingOverlap
    from polytask.linear.robust_multi_task import RobustMultiTask
    from polytask.linear.solvers.losses import TaskLosses
    from polytask.linear.task_covariance import TaskCovariance
    from polytask.linear.trace_norm import TraceNorm


@dataclass(frozen=True)
class TraceNormLearner(EstimatorLearner):
    """The coefficients of all tasks span few directions (trace norm).

    See :class:`~polytask.linear.trace_norm.TraceNorm`.

    Parameters
    ----------
    alpha
        Strength as a share of the smallest one at which all coefficients are 0, 0 … 1.
    intercepts
        ``"own"`` or ``"coupled"``; see :mod:`~polytask.linear.learning`.
    """

    alpha: float = 0.05
    intercepts: str = "own"

    summary: ClassVar[str] = "the coefficients of all tasks mix a few common directions (trace norm)"

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {"alpha": LogUniform(1e-4, 1.0), "intercepts": Choice(INTERCEPTS)}

    def _estimator(self, losses: TaskLosses) -> TraceNorm:
        from polytask.linear.penalties.spectral import TraceNorm as Penalty
        from polytask.linear.trace_norm import TraceNorm

        alpha = share_of(self.alpha, Penalty.dual_norm(gradient_at_zero(losses)))
        return TraceNorm(alpha, tol=TOLERANCE, max_iter=STEPS)


@dataclass(frozen=True)
class TaskCovarianceLearner(EstimatorLearner):
    """The covariance of the tasks' coefficients is learned with them (MTRL).

    See :class:`~polytask.linear.task_covariance.TaskCovariance`.

    Parameters
    ----------
    alpha
        Strength of the relationship penalty, positive.
    ridge
        Strength of the plain squared penalty, positive.
    intercepts
        ``"own"`` or ``"coupled"``; see :mod:`~polytask.linear.learning`.
    """

    alpha: float = 0.01
    ridge: float = 0.01
    intercepts: str = "own"

    summary: ClassVar[str] = "learns which tasks are alike, unrelated or opposed (task covariance, MTRL)"
    positive: ClassVar[tuple[str, ...]] = ("alpha", "ridge")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {
            "alpha": LogUniform(1e-5, 1.0),
            "ridge": LogUniform(1e-4, 1.0),
            "intercepts": Choice(INTERCEPTS),
        }

    def _estimator(self, losses: TaskLosses) -> TaskCovariance:  # noqa: ARG002 - strengths are absolute
        from polytask.linear.task_covariance import TaskCovariance

        return TaskCovariance(self.alpha, self.ridge, tol=TOLERANCE, max_iter=STEPS)


@dataclass(frozen=True)
class ClusteredTasksLearner(EstimatorLearner):
    """Tasks form unknown clusters whose coefficients are alike (convex relaxation).

    See :class:`~polytask.linear.clustered_tasks.ClusteredTasks`.

    Parameters
    ----------
    alpha
        Strength of the penalty, positive.
    n_clusters
        Number of clusters.
    between
        Strength on clusters' deviations from the mean relative to that on tasks' deviations from their
        cluster, 0 … 1; the mean itself has a tenth of it.
    intercepts
        ``"own"`` or ``"coupled"``; see :mod:`~polytask.linear.learning`.
    """

    alpha: float = 0.1
    n_clusters: int = 3
    between: float = 0.1
    intercepts: str = "own"

    summary: ClassVar[str] = "finds clusters of tasks whose coefficients are alike"
    positive: ClassVar[tuple[str, ...]] = ("alpha", "between")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.between > 1:
            raise InputError(f"between must be at most 1, got {self.between!r}; it is relative to the strength within")
        if self.n_clusters < 1:
            raise InputError(f"n_clusters must be at least 1, got {self.n_clusters!r}")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {
            "alpha": LogUniform(1e-4, 10.0),
            "n_clusters": Choice((2, 3, 4, 5, 7, 10)),
            "between": LogUniform(1e-3, 1.0),
            "intercepts": Choice(INTERCEPTS),
        }

    def refuses(self, task: Task) -> str | None:
        if task.kind == "multiclass":
            return "the classes of a multiclass task have one coefficient vector each and no common mean to share"
        return None

    def _estimator(self, losses: TaskLosses) -> ClusteredTasks:  # noqa: ARG002 - strengths are absolute
        from polytask.linear.clustered_tasks import ClusteredTasks

        return ClusteredTasks(
            self.alpha,
            self.n_clusters,
            mean=0.1 * self.between,
            between=self.between,
            tol=TOLERANCE,
            max_iter=STEPS,
        )


@dataclass(frozen=True)
class RobustMultiTaskLearner(EstimatorLearner):
    """Low-rank coefficients for most tasks, coefficients of their own for outlier tasks.

    See :class:`~polytask.linear.robust_multi_task.RobustMultiTask`.

    Parameters
    ----------
    alpha
        Strength on the shared part as a share of the smallest one at which it is 0, 0 … 1.
    outlier
        Strength on the tasks' own parts as a share of the smallest one at which they are 0, 0 … 1.
    intercepts
        ``"own"`` or ``"coupled"``; see :mod:`~polytask.linear.learning`.
    """

    alpha: float = 0.05
    outlier: float = 0.5
    intercepts: str = "own"

    summary: ClassVar[str] = "a common low-rank part, and a part of their own for outlier tasks"
    positive: ClassVar[tuple[str, ...]] = ("alpha", "outlier")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {
            "alpha": LogUniform(1e-4, 1.0),
            "outlier": LogUniform(1e-2, 1.0),
            "intercepts": Choice(INTERCEPTS),
        }

    def _estimator(self, losses: TaskLosses) -> RobustMultiTask:
        from polytask.linear.penalties.spectral import TaskNorm, TraceNorm
        from polytask.linear.robust_multi_task import RobustMultiTask

        gradient = gradient_at_zero(losses)
        alpha = share_of(self.alpha, TraceNorm.dual_norm(gradient))
        outlier = share_of(self.outlier, TaskNorm.dual_norm(gradient))
        return RobustMultiTask(alpha, outlier, tol=TOLERANCE, max_iter=STEPS)


@dataclass(frozen=True)
class AlternatingStructureLearner(EstimatorLearner):
    """A few directions are free for all tasks, everything else is penalised (ASO).

    See :class:`~polytask.linear.alternating_structure.AlternatingStructure`.

    Parameters
    ----------
    alpha
        Strength on what lies outside the shared directions, positive.
    n_directions
        Number of shared directions.
    ridge
        Strength on all coefficients, positive.
    intercepts
        ``"own"`` or ``"coupled"``; see :mod:`~polytask.linear.learning`.
    """

    alpha: float = 0.1
    n_directions: int = 2
    ridge: float = 0.01
    intercepts: str = "own"

    summary: ClassVar[str] = "all tasks use a few shared directions freely, anything else at a cost (ASO)"
    positive: ClassVar[tuple[str, ...]] = ("alpha", "ridge", "n_directions")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {
            "alpha": LogUniform(1e-3, 10.0),
            "n_directions": Choice((1, 2, 3, 5, 8)),
            "ridge": LogUniform(1e-4, 1.0),
            "intercepts": Choice(INTERCEPTS),
        }

    def _estimator(self, losses: TaskLosses) -> AlternatingStructure:  # noqa: ARG002 - strengths are absolute
        from polytask.linear.alternating_structure import AlternatingStructure

        return AlternatingStructure(self.alpha, self.n_directions, ridge=self.ridge, tol=TOLERANCE, max_iter=STEPS)


@dataclass(frozen=True)
class GroupingOverlapLearner(EstimatorLearner):
    """Every task mixes a few of k latent tasks (GO-MTL).

    See :class:`~polytask.linear.grouping_overlap.GroupingOverlap`.

    Parameters
    ----------
    n_latent
        Number of latent tasks.
    alpha
        Strength of the l1 penalty on the mixtures, positive.
    ridge
        Strength of the squared penalty on the latent tasks, positive.
    intercepts
        ``"own"`` or ``"coupled"``; see :mod:`~polytask.linear.learning`.
    """

    n_latent: int = 3
    alpha: float = 0.01
    ridge: float = 0.01
    intercepts: str = "own"

    summary: ClassVar[str] = "every task mixes a few of k latent tasks (GO-MTL)"
    positive: ClassVar[tuple[str, ...]] = ("alpha", "ridge", "n_latent")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {
            "n_latent": Choice((1, 2, 3, 5, 8)),
            "alpha": LogUniform(1e-3, 1.0),
            "ridge": LogUniform(1e-3, 1.0),
            "intercepts": Choice(INTERCEPTS),
        }

    def _estimator(self, losses: TaskLosses) -> GroupingOverlap:  # noqa: ARG002 - strengths are absolute
        from polytask.linear.grouping_overlap import GroupingOverlap

        return GroupingOverlap(self.n_latent, alpha=self.alpha, ridge=self.ridge, tol=TOLERANCE, max_iter=STEPS)
