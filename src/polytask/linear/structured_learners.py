"""Methods that share along a tree, a graph or groups of tasks, behind the Learner contract.

Outputs and units as in ``learning``. Tree and graph are those of single-task ridge models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from polytask.core.errors import InputError
from polytask.core.search import Choice, Distribution, LogUniform
from polytask.linear.learning import INTERCEPTS, STEPS, TOLERANCE, EstimatorLearner, gradient_at_zero, share_of

if TYPE_CHECKING:
    from polytask.linear.graph_guided_fused_lasso import GraphGuidedFusedLasso
    from polytask.linear.learned_task_groups import LearnedTaskGroups
    from polytask.linear.solvers.losses import TaskLosses
    from polytask.linear.tree_guided_group_lasso import TreeGuidedGroupLasso


@dataclass(frozen=True)
class TreeGuidedGroupLassoLearner(EstimatorLearner):
    """Features are selected together for tasks that a tree of the tasks joins early.

    See :class:`~polytask.linear.tree_guided_group_lasso.TreeGuidedGroupLasso`.

    Parameters
    ----------
    alpha
        Strength as a share of the smallest one at which all coefficients are 0, 0 … 1.
    root_height
        Height of the root, 0 … 1; below 1 there is a group of all tasks.
    intercepts
        ``"own"`` or ``"coupled"``; see :mod:`~polytask.linear.learning`.
    """

    alpha: float = 0.05
    root_height: float = 1.0
    intercepts: str = "own"

    summary: ClassVar[str] = "features are selected together for tasks that a learned tree joins early"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.root_height <= 1:
            raise InputError(f"root_height must be from 0 to 1, got {self.root_height!r}; at 1 no group has all tasks")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {
            "alpha": LogUniform(1e-4, 1.0),
            "root_height": Choice((1.0, 0.8, 0.5)),
            "intercepts": Choice(INTERCEPTS),
        }

    def _estimator(self, losses: TaskLosses) -> TreeGuidedGroupLasso:
        from polytask.linear.tree_guided_group_lasso import TreeGuidedGroupLasso

        estimator = TreeGuidedGroupLasso(root_height=self.root_height, tol=TOLERANCE, max_iter=STEPS)
        return estimator.set_params(alpha=share_of(self.alpha, estimator.strongest(losses)))


@dataclass(frozen=True)
class GraphGuidedFusedLassoLearner(EstimatorLearner):
    """Sparse coefficients that tasks joined in a signed graph share, or oppose.

    See :class:`~polytask.linear.graph_guided_fused_lasso.GraphGuidedFusedLasso`.

    Parameters
    ----------
    alpha, gamma
        Strengths on coefficients and on differences as shares of the smallest alpha at which all
        coefficients are 0 without differences.
    threshold
        Least size of the cosine of two tasks' ridge coefficients for an edge, 0 … 1.
    intercepts
        ``"own"`` or ``"coupled"``; see :mod:`~polytask.linear.learning`.
    """

    alpha: float = 0.02
    gamma: float = 0.02
    threshold: float = 0.5
    intercepts: str = "own"

    summary: ClassVar[str] = "sparse coefficients that tasks joined in a learned graph share, or oppose"
    positive: ClassVar[tuple[str, ...]] = ("alpha", "gamma", "threshold")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {
            "alpha": LogUniform(1e-4, 1.0),
            "gamma": LogUniform(1e-4, 1.0),
            "threshold": Choice((0.3, 0.5, 0.7)),
            "intercepts": Choice(INTERCEPTS),
        }

    def _estimator(self, losses: TaskLosses) -> GraphGuidedFusedLasso:
        from polytask.linear.graph_guided_fused_lasso import GraphGuidedFusedLasso

        most = float(np.abs(gradient_at_zero(losses)).max(initial=0.0))
        return GraphGuidedFusedLasso(
            share_of(self.alpha, most),
            share_of(self.gamma, most),
            threshold=self.threshold,
            tol=TOLERANCE,
            max_iter=STEPS,
        )


@dataclass(frozen=True)
class LearnedTaskGroupsLearner(EstimatorLearner):
    """Which tasks share directions is learned: whole groups, each with its own few directions.

    See :class:`~polytask.linear.learned_task_groups.LearnedTaskGroups`.

    Parameters
    ----------
    n_groups
        Number of groups.
    alpha
        Strength of the penalty, positive.
    intercepts
        ``"own"`` or ``"coupled"``; see :mod:`~polytask.linear.learning`.
    """

    n_groups: int = 3
    alpha: float = 0.01
    intercepts: str = "own"

    summary: ClassVar[str] = "finds groups of tasks that use the same few directions"
    positive: ClassVar[tuple[str, ...]] = ("alpha", "n_groups")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {
            "n_groups": Choice((1, 2, 3, 5, 8)),
            "alpha": LogUniform(1e-5, 1.0),
            "intercepts": Choice(INTERCEPTS),
        }

    def _estimator(self, losses: TaskLosses) -> LearnedTaskGroups:  # noqa: ARG002 - strengths are absolute
        from polytask.linear.learned_task_groups import LearnedTaskGroups

        return LearnedTaskGroups(self.n_groups, self.alpha, tol=TOLERANCE)
