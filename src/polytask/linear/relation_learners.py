"""Methods that learn how tasks are related, behind the Learner contract; outputs and units as in ``learners``.

With ``intercepts="coupled"`` the intercept is one more coefficient of every task, drawn to those of
related tasks like the others; in the long form all targets are then taken to be the same quantity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from polytask.core.data import TaskData
from polytask.core.errors import InputError
from polytask.core.learner import Progress
from polytask.core.relation import Relation
from polytask.core.search import Choice, Distribution, LogUniform
from polytask.core.task import Task
from polytask.linear import learners
from polytask.linear.model import Design, LinearModel, output_names

if TYPE_CHECKING:
    from polytask.linear.alternating_structure import AlternatingStructure
    from polytask.linear.clustered_tasks import ClusteredTasks
    from polytask.linear.grouping_overlap import GroupingOverlap
    from polytask.linear.robust_multi_task import RobustMultiTask
    from polytask.linear.solvers.losses import TaskLosses
    from polytask.linear.task_covariance import TaskCovariance
    from polytask.linear.trace_norm import TraceNorm

    RelationEstimator = (
        TraceNorm | TaskCovariance | ClusteredTasks | RobustMultiTask | AlternatingStructure | GroupingOverlap
    )

_TOLERANCE = 1e-4  # of the objective without inputs: far below what held-out data can tell
_STEPS = 5000
_INTERCEPTS = ("own", "coupled")


def _fit(data: TaskData, intercepts: str, make: Callable[[TaskLosses], RelationEstimator]) -> LinearModel:
    """Fit the estimator that ``make`` returns for the losses, and keep the relations it has learned."""
    learned: dict[str, Relation] = {}
    coupled = intercepts == "coupled"

    def solve(problem: learners._Problem) -> learners.Fitted:
        from polytask.linear.mean_regularised import with_constant
        from polytask.linear.solvers.losses import TaskLosses

        every = range(len(problem.outputs))
        blocks = problem.blocks(every)
        losses = TaskLosses(
            [with_constant(block) for block in blocks] if coupled else blocks,
            logistic=np.array(problem.logistic(every)),
            weights=np.ones(len(problem.outputs)),
            n_features=problem.n_features + coupled,
            fit_intercept=not coupled,
        )
        estimator = make(losses)
        names = [output_names(data.tasks[output.task])[output.number] for output in problem.outputs]
        estimator.tasks_ = np.array(names)
        features = Design.of(data).names
        estimator.feature_names_in_ = np.array([*features, "intercept"] if coupled else features)
        estimator.solve(losses)
        learned.update(estimator.relations_)
        W = estimator.coef_
        return (W[:, :-1], W[:, -1]) if coupled else (W, estimator.intercept_)

    lend_to = ("regression", "binary", "ordinal") if coupled else ()
    return learners._fit(data, solve, one_unit=coupled, lend_to=lend_to).with_learned(learned)


def _check(learner: object, *positive: str) -> None:
    for name in positive:
        learners._check_positive(name, getattr(learner, name))
    intercepts = getattr(learner, "intercepts", "own")
    if intercepts not in _INTERCEPTS:
        raise InputError(f'intercepts must be "own" or "coupled", got "{intercepts}"')


@dataclass(frozen=True)
class TraceNormLearner:
    """The coefficients of all tasks span few directions (trace norm).

    See :class:`~polytask.linear.trace_norm.TraceNorm`.

    Parameters
    ----------
    alpha
        Strength as a share of the smallest one at which all coefficients are 0, 0 … 1.
    intercepts
        ``"own"`` or ``"coupled"``; see the module.
    """

    alpha: float = 0.05
    intercepts: str = "own"

    sharing: ClassVar[str] = "shared"
    summary: ClassVar[str] = "the coefficients of all tasks mix a few common directions (trace norm)"
    inner_folds: ClassVar[int] = 5
    refits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self, "alpha")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {"alpha": LogUniform(1e-4, 1.0), "intercepts": Choice(_INTERCEPTS)}

    def refuses(self, task: Task) -> str | None:  # noqa: ARG002 - every kind can be learned
        return None

    def fit(
        self,
        train: TaskData,
        *,
        valid: TaskData | None = None,  # noqa: ARG002 - nothing to stop early
        seed: int = 0,  # noqa: ARG002 - the problem is convex
        progress: Progress | None = None,  # noqa: ARG002 - quick
        checkpoint: Path | None = None,  # noqa: ARG002 - quick
    ) -> LinearModel:
        from polytask.linear.trace_norm import TraceNorm

        def make(losses: TaskLosses) -> TraceNorm:
            from polytask.linear.penalties.spectral import TraceNorm as Penalty

            top = Penalty.dual_norm(losses.at(np.zeros((losses.n_tasks, losses.n_features))).gradient)
            return TraceNorm(self.alpha * top if top > 0 else 1.0, tol=_TOLERANCE, max_iter=_STEPS)

        return _fit(train, self.intercepts, make)


@dataclass(frozen=True)
class TaskCovarianceLearner:
    """The covariance of the tasks' coefficients is learned with them (MTRL).

    See :class:`~polytask.linear.task_covariance.TaskCovariance`.

    Parameters
    ----------
    alpha
        Strength of the relationship penalty, positive.
    ridge
        Strength of the plain squared penalty, positive.
    intercepts
        ``"own"`` or ``"coupled"``; see the module.
    """

    alpha: float = 0.01
    ridge: float = 0.01
    intercepts: str = "own"

    sharing: ClassVar[str] = "shared"
    summary: ClassVar[str] = "learns which tasks are alike, unrelated or opposed (task covariance, MTRL)"
    inner_folds: ClassVar[int] = 5
    refits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self, "alpha", "ridge")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {
            "alpha": LogUniform(1e-5, 1.0),
            "ridge": LogUniform(1e-4, 1.0),
            "intercepts": Choice(_INTERCEPTS),
        }

    def refuses(self, task: Task) -> str | None:  # noqa: ARG002 - every kind can be learned
        return None

    def fit(
        self,
        train: TaskData,
        *,
        valid: TaskData | None = None,  # noqa: ARG002 - nothing to stop early
        seed: int = 0,  # noqa: ARG002 - the problem is convex
        progress: Progress | None = None,  # noqa: ARG002 - quick
        checkpoint: Path | None = None,  # noqa: ARG002 - quick
    ) -> LinearModel:
        from polytask.linear.task_covariance import TaskCovariance

        def make(losses: TaskLosses) -> TaskCovariance:  # noqa: ARG001 - strengths are absolute
            return TaskCovariance(self.alpha, self.ridge, tol=_TOLERANCE, max_iter=_STEPS)

        return _fit(train, self.intercepts, make)


@dataclass(frozen=True)
class ClusteredTasksLearner:
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
        ``"own"`` or ``"coupled"``; see the module.
    """

    alpha: float = 0.1
    n_clusters: int = 3
    between: float = 0.1
    intercepts: str = "own"

    sharing: ClassVar[str] = "shared"
    summary: ClassVar[str] = "finds clusters of tasks whose coefficients are alike"
    inner_folds: ClassVar[int] = 5
    refits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self, "alpha", "between")
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
            "intercepts": Choice(_INTERCEPTS),
        }

    def refuses(self, task: Task) -> str | None:
        if task.kind == "multiclass":
            return "the classes of a multiclass task have one coefficient vector each and no common mean to share"
        return None

    def fit(
        self,
        train: TaskData,
        *,
        valid: TaskData | None = None,  # noqa: ARG002 - nothing to stop early
        seed: int = 0,
        progress: Progress | None = None,  # noqa: ARG002 - quick
        checkpoint: Path | None = None,  # noqa: ARG002 - quick
    ) -> LinearModel:
        from polytask.linear.clustered_tasks import ClusteredTasks

        def make(losses: TaskLosses) -> ClusteredTasks:  # noqa: ARG001 - strengths are absolute
            return ClusteredTasks(
                self.alpha,
                self.n_clusters,
                mean=0.1 * self.between,
                between=self.between,
                tol=_TOLERANCE,
                max_iter=_STEPS,
                random_state=seed,
            )

        return _fit(train, self.intercepts, make)


@dataclass(frozen=True)
class RobustMultiTaskLearner:
    """Low-rank coefficients for most tasks, coefficients of their own for outlier tasks.

    See :class:`~polytask.linear.robust_multi_task.RobustMultiTask`.

    Parameters
    ----------
    alpha
        Strength on the shared part as a share of the smallest one at which it is 0, 0 … 1.
    outlier
        Strength on the tasks' own parts as a share of the smallest one at which they are 0, 0 … 1.
    intercepts
        ``"own"`` or ``"coupled"``; see the module.
    """

    alpha: float = 0.05
    outlier: float = 0.5
    intercepts: str = "own"

    sharing: ClassVar[str] = "shared"
    summary: ClassVar[str] = "a common low-rank part, and a part of their own for outlier tasks"
    inner_folds: ClassVar[int] = 5
    refits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self, "alpha", "outlier")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {
            "alpha": LogUniform(1e-4, 1.0),
            "outlier": LogUniform(1e-2, 1.0),
            "intercepts": Choice(_INTERCEPTS),
        }

    def refuses(self, task: Task) -> str | None:  # noqa: ARG002 - every kind can be learned
        return None

    def fit(
        self,
        train: TaskData,
        *,
        valid: TaskData | None = None,  # noqa: ARG002 - nothing to stop early
        seed: int = 0,  # noqa: ARG002 - the problem is convex
        progress: Progress | None = None,  # noqa: ARG002 - quick
        checkpoint: Path | None = None,  # noqa: ARG002 - quick
    ) -> LinearModel:
        from polytask.linear.robust_multi_task import RobustMultiTask

        def make(losses: TaskLosses) -> RobustMultiTask:
            from polytask.linear.penalties.spectral import TaskNorm, TraceNorm

            gradient = losses.at(np.zeros((losses.n_tasks, losses.n_features))).gradient
            top, most = TraceNorm.dual_norm(gradient), TaskNorm.dual_norm(gradient)
            return RobustMultiTask(
                self.alpha * top if top > 0 else 1.0,
                self.outlier * most if most > 0 else 1.0,
                tol=_TOLERANCE,
                max_iter=_STEPS,
            )

        return _fit(train, self.intercepts, make)


@dataclass(frozen=True)
class AlternatingStructureLearner:
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
        ``"own"`` or ``"coupled"``; see the module.
    """

    alpha: float = 0.1
    n_directions: int = 2
    ridge: float = 0.01
    intercepts: str = "own"

    sharing: ClassVar[str] = "shared"
    summary: ClassVar[str] = "all tasks use a few shared directions freely, anything else at a cost (ASO)"
    inner_folds: ClassVar[int] = 5
    refits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self, "alpha", "ridge", "n_directions")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {
            "alpha": LogUniform(1e-3, 10.0),
            "n_directions": Choice((1, 2, 3, 5, 8)),
            "ridge": LogUniform(1e-4, 1.0),
            "intercepts": Choice(_INTERCEPTS),
        }

    def refuses(self, task: Task) -> str | None:  # noqa: ARG002 - every kind can be learned
        return None

    def fit(
        self,
        train: TaskData,
        *,
        valid: TaskData | None = None,  # noqa: ARG002 - nothing to stop early
        seed: int = 0,  # noqa: ARG002 - no randomness
        progress: Progress | None = None,  # noqa: ARG002 - quick
        checkpoint: Path | None = None,  # noqa: ARG002 - quick
    ) -> LinearModel:
        from polytask.linear.alternating_structure import AlternatingStructure

        def make(losses: TaskLosses) -> AlternatingStructure:  # noqa: ARG001 - strengths are absolute
            return AlternatingStructure(
                self.alpha, self.n_directions, ridge=self.ridge, tol=_TOLERANCE, max_iter=_STEPS
            )

        return _fit(train, self.intercepts, make)


@dataclass(frozen=True)
class GroupingOverlapLearner:
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
        ``"own"`` or ``"coupled"``; see the module.
    """

    n_latent: int = 3
    alpha: float = 0.01
    ridge: float = 0.01
    intercepts: str = "own"

    sharing: ClassVar[str] = "shared"
    summary: ClassVar[str] = "every task mixes a few of k latent tasks (GO-MTL)"
    inner_folds: ClassVar[int] = 5
    refits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self, "alpha", "ridge", "n_latent")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {
            "n_latent": Choice((1, 2, 3, 5, 8)),
            "alpha": LogUniform(1e-3, 1.0),
            "ridge": LogUniform(1e-3, 1.0),
            "intercepts": Choice(_INTERCEPTS),
        }

    def refuses(self, task: Task) -> str | None:  # noqa: ARG002 - every kind can be learned
        return None

    def fit(
        self,
        train: TaskData,
        *,
        valid: TaskData | None = None,  # noqa: ARG002 - nothing to stop early
        seed: int = 0,  # noqa: ARG002 - no randomness
        progress: Progress | None = None,  # noqa: ARG002 - quick
        checkpoint: Path | None = None,  # noqa: ARG002 - quick
    ) -> LinearModel:
        from polytask.linear.grouping_overlap import GroupingOverlap

        def make(losses: TaskLosses) -> GroupingOverlap:  # noqa: ARG001 - strengths are absolute
            return GroupingOverlap(self.n_latent, alpha=self.alpha, ridge=self.ridge, tol=_TOLERANCE, max_iter=_STEPS)

        return _fit(train, self.intercepts, make)
