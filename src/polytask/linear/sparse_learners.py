"""Sparse methods behind the Learner contract; outputs and units as in ``learning``.

Strengths are shares of the smallest ones at which all coefficients are 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from polytask.core.errors import InputError
from polytask.core.search import Choice, Distribution, LogUniform
from polytask.linear.learning import STEPS, TOLERANCE, EstimatorLearner, gradient_at_zero, share_of

if TYPE_CHECKING:
    from polytask.linear.dirty_model import DirtyModel
    from polytask.linear.simultaneous_lasso import SimultaneousLasso
    from polytask.linear.solvers.losses import TaskLosses
    from polytask.linear.sparse_group import SparseGroup


@dataclass(frozen=True)
class SimultaneousLassoLearner(EstimatorLearner):
    """All tasks use the same few inputs, to a similar extent (l1/linf penalty).

    See :class:`~polytask.linear.simultaneous_lasso.SimultaneousLasso`.

    Parameters
    ----------
    alpha
        Strength as a share of the smallest one at which all coefficients are 0, 0 … 1.
    """

    alpha: float = 0.05

    summary: ClassVar[str] = "an input is used by all tasks, to a similar extent, or by none (l1/linf penalty)"

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {"alpha": LogUniform(1e-4, 1.0)}

    def _estimator(self, losses: TaskLosses) -> SimultaneousLasso:
        from polytask.linear.penalties.block import RowMaximum
        from polytask.linear.simultaneous_lasso import SimultaneousLasso

        alpha = share_of(self.alpha, RowMaximum.dual_norm(gradient_at_zero(losses)))
        return SimultaneousLasso(alpha, tol=TOLERANCE, max_iter=STEPS)


@dataclass(frozen=True)
class SparseGroupLearner(EstimatorLearner):
    """Few inputs, and among the tasks of an input few that use it (l1 + l1/l2 penalty).

    See :class:`~polytask.linear.sparse_group.SparseGroup`.

    Parameters
    ----------
    alpha
        Strength as a share of the smallest one at which all coefficients are 0, 0 … 1.
    l1_ratio
        Share of the l1 penalty, 0 … 1.
    """

    alpha: float = 0.05
    l1_ratio: float = 0.5

    summary: ClassVar[str] = "few inputs, each used by some of the tasks (l1 + l1/l2 penalty)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.l1_ratio <= 1:
            raise InputError(f"l1_ratio must be a number from 0 to 1, got {self.l1_ratio!r}")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {"alpha": LogUniform(1e-4, 1.0), "l1_ratio": Choice((0.1, 0.3, 0.5, 0.7, 0.9))}

    def _estimator(self, losses: TaskLosses) -> SparseGroup:
        from polytask.linear.penalties.sparse_group import SparseRowNorm
        from polytask.linear.sparse_group import SparseGroup

        norm = SparseRowNorm(self.l1_ratio, 1.0 - self.l1_ratio)
        alpha = share_of(self.alpha, float(norm.gauges(gradient_at_zero(losses)).max(initial=0.0)))
        return SparseGroup(alpha, self.l1_ratio, tol=TOLERANCE, max_iter=STEPS)


@dataclass(frozen=True)
class DirtyModelLearner(EstimatorLearner):
    """Some inputs are shared by all tasks, others are used by single ones (dirty model).

    See :class:`~polytask.linear.dirty_model.DirtyModel`.

    Parameters
    ----------
    alpha
        Strength as a share of the smallest one at which all coefficients are 0, 0 … 1.
    own
        How dear a task's own part is against the shared one, between 0 (everything is a task's own) and
        1 (everything is shared): the ratio of the strengths is T^(own - 1) for T tasks.
    """

    alpha: float = 0.05
    own: float = 0.5

    summary: ClassVar[str] = "a part of the coefficients that all tasks share and a sparse part of their own"
    positive: ClassVar[tuple[str, ...]] = ("alpha", "own")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.own >= 1:
            raise InputError(f"own must be between 0 and 1, got {self.own!r}; from 1 on, nothing is a task's own")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {"alpha": LogUniform(1e-4, 1.0), "own": Choice((0.1, 0.3, 0.5, 0.7, 0.9))}

    def _estimator(self, losses: TaskLosses) -> DirtyModel:
        from polytask.linear.dirty_model import DirtyModel
        from polytask.linear.penalties.dirty import SharedAndOwn

        ratio = float(losses.n_tasks) ** (self.own - 1.0)  # own / shared, strictly between 1 / T and 1
        norm = SharedAndOwn(1.0, ratio)
        alpha = share_of(self.alpha, float(norm.gauges(gradient_at_zero(losses)).max(initial=0.0)))
        return DirtyModel(alpha, ratio * alpha, tol=TOLERANCE, max_iter=STEPS)
