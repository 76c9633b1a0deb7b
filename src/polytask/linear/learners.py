"""The baselines, the block-sparse and the mean-regularised method behind the Learner contract.

Outputs and units as in ``learning``, which holds what all linear learners share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from polytask.core.data import TaskData
from polytask.core.search import Choice, Distribution, LogUniform
from polytask.core.task import Floats, Multiclass, Task
from polytask.linear.learning import INTERCEPTS, TOLERANCE, LinearLearner, Problem, Solution, gradient_at_zero
from polytask.linear.model import IDENTITY, Design, LinearModel


@dataclass(frozen=True)
class RidgeLearner(LinearLearner):
    """Every task alone: ridge regression, and L2-penalised logistic regression for classes.

    Minimises mean loss + alpha / 2 ||w||² per output, in scikit-learn's terms ``Ridge(alpha=n alpha)`` and
    ``LogisticRegression(C=1 / (n alpha))``; multiclass targets use softmax.

    Parameters
    ----------
    alpha
        Strength per labelled row, positive.
    """

    alpha: float = 0.01

    sharing: ClassVar[str] = "single"
    summary: ClassVar[str] = "ridge or L2 logistic regression for every task alone"

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {"alpha": LogUniform(1e-4, 10.0)}

    def _model(self, data: TaskData, seed: int) -> LinearModel:
        others = [task.name for task in data.tasks if not isinstance(task, Multiclass)]
        found = super()._model(data.only(others), seed) if others else None
        if found is not None and len(others) == len(data.tasks):
            return found
        return _with_softmax(data, found, self.alpha)

    def _solve(self, problem: Problem) -> Solution:
        return _coupled_ridge(problem, None, self.alpha, 0.0, "own", "equal")


def _with_softmax(data: TaskData, found: LinearModel | None, alpha: float) -> LinearModel:
    """Add softmax regressions for the multiclass tasks to the model of the other tasks."""
    from sklearn.linear_model import LogisticRegression

    design = Design.of(data)
    X = design.matrix(data)
    coefs, intercepts, scales = [], [], []
    done = 0
    for task in data.tasks:
        labels = data.labels[task.name]
        if not isinstance(task, Multiclass):
            assert found is not None
            number = found.tasks.index(task)
            coefs.append(found.coef[:, done : done + task.n_outputs])
            intercepts.append(found.intercept[done : done + task.n_outputs])
            scales.append(found.scale[number])
            done += task.n_outputs
            continue
        coef, intercept = np.zeros((design.width, task.n_outputs)), task.constant_scores(labels.values)
        present = np.unique(labels.values).astype(np.int64)
        if len(present) > 1:
            rows = X[labels.rows]
            model = LogisticRegression(C=1.0 / (len(rows) * alpha), max_iter=1000)
            model.fit(rows, labels.values)
            if len(present) == 2:
                # two classes: scikit-learn gives the difference of the two; halves are the softmax solution
                coef[:, present] = model.coef_.T * [-0.5, 0.5]
                intercept[present] = model.intercept_ * [-0.5, 0.5]
            else:
                coef[:, present], intercept[present] = model.coef_.T, model.intercept_
            scores = rows @ coef[:, present] + intercept[present]
            absent = np.setdiff1d(np.arange(task.n_outputs), present)
            shares = task.frequencies(labels.values)
            level = float(np.logaddexp.reduce(scores, axis=1).mean())
            intercept[absent] = level + np.log(shares[absent] / shares[present].sum())
        coefs.append(coef)
        intercepts.append(intercept)
        scales.append(1.0)
    return LinearModel(
        data.tasks,
        design,
        np.concatenate(coefs, axis=1),
        np.concatenate(intercepts),
        np.array(scales),
        [IDENTITY] * len(data.tasks),
    )


@dataclass(frozen=True)
class LassoLearner(LinearLearner):
    """Every task alone: lasso, and L1-penalised logistic regression for classes.

    Parameters
    ----------
    alpha
        Strength as a share of the smallest one at which all coefficients are 0 (per output), 0 … 1.
    """

    alpha: float = 0.05

    sharing: ClassVar[str] = "single"
    summary: ClassVar[str] = "lasso or L1 logistic regression for every task alone"

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {"alpha": LogUniform(1e-4, 1.0)}

    def _solve(self, problem: Problem) -> Solution:
        coef, intercept = _empty(problem)
        for column in range(len(problem.outputs)):
            found = _row_sparse(problem, [column], self.alpha)
            coef[[column]], intercept[[column]] = found.coef, found.intercept
        return Solution(coef, intercept)


@dataclass(frozen=True)
class PooledLearner(LinearLearner):
    """One ridge model for all tasks: the same coefficients everywhere (one vector per kind of task).

    In the long form (each row has the label of one task) all targets are taken to be the same
    quantity; otherwise every regression target is standardised first.

    Parameters
    ----------
    alpha
        Strength per labelled cell, positive.
    task_intercepts
        Whether each task has its own intercept.
    """

    alpha: float = 0.01
    task_intercepts: bool = True

    sharing: ClassVar[str] = "pooled"
    summary: ClassVar[str] = "one ridge or L2 logistic model for all tasks"

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {"alpha": LogUniform(1e-4, 10.0), "task_intercepts": Choice((True, False))}

    def refuses(self, task: Task) -> str | None:
        if task.kind in ("regression", "binary"):
            return None
        return f"the classes of different {task.kind} tasks do not correspond, so they cannot share one model"

    def _one_quantity(self) -> tuple[str, ...]:
        return ("regression",) if self.task_intercepts else ("regression", "binary")

    def _solve(self, problem: Problem) -> Solution:
        coef, intercept = _empty(problem)
        intercepts = "own" if self.task_intercepts else "common"
        for kind in (False, True):
            chosen = np.flatnonzero(problem.logistic == kind)
            if len(chosen):
                # the coupled ridge sums the mean losses of the tasks, so alpha per cell is alpha T
                alpha = self.alpha * len(chosen)
                found = _coupled_ridge(problem, chosen.tolist(), alpha, 1.0, intercepts, "examples")
                coef[chosen], intercept[chosen] = found.coef, found.intercept
        return Solution(coef, intercept)


@dataclass(frozen=True)
class BlockSparseLearner(LinearLearner):
    """All tasks use the same few inputs, each with its own coefficients (l1/l2 penalty).

    See :class:`~polytask.linear.block_sparse.BlockSparse`.

    Parameters
    ----------
    alpha
        Strength as a share of the smallest one at which all coefficients are 0, 0 … 1.
    """

    alpha: float = 0.05

    summary: ClassVar[str] = "an input is used by all tasks or by none (l1/l2 penalty)"

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {"alpha": LogUniform(1e-4, 1.0)}

    def _solve(self, problem: Problem) -> Solution:
        return _row_sparse(problem, None, self.alpha)


@dataclass(frozen=True)
class MeanRegularisedLearner(LinearLearner):
    """Every task has its own ridge model, drawn towards the mean of all tasks.

    See :class:`~polytask.linear.mean_regularised.MeanRegularised`.

    Parameters
    ----------
    alpha
        Strength of the penalty, positive.
    mu
        How independent the tasks are: the prior correlation of their coefficients is 1 / (1 + mu).
    intercepts
        ``"own"``: each task's intercept is free. ``"coupled"``: intercepts are drawn together too, which
        is meant for the long form, where all targets are taken to be the same quantity.
    """

    alpha: float = 0.1
    mu: float = 0.1
    intercepts: str = "own"

    summary: ClassVar[str] = "every task's coefficients are drawn towards the mean of all tasks"
    positive: ClassVar[tuple[str, ...]] = ("alpha", "mu")

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {
            "alpha": LogUniform(1e-4, 10.0),
            "mu": LogUniform(1e-3, 100.0),
            "intercepts": Choice(INTERCEPTS),
        }

    def refuses(self, task: Task) -> str | None:
        if task.kind == "multiclass":
            return "the classes of a multiclass task have one coefficient vector each and no common direction to share"
        return None

    def _solve(self, problem: Problem) -> Solution:
        return _coupled_ridge(problem, None, self.alpha, 1.0 / (1.0 + self.mu), self.intercepts, "equal")


def _empty(problem: Problem) -> tuple[Floats, Floats]:
    return np.empty((len(problem.outputs), problem.n_features)), np.empty(len(problem.outputs))


def _coupled_ridge(
    problem: Problem,
    chosen: Sequence[int] | None,
    alpha: float,
    correlation: float,
    intercepts: str,
    weighting: str,
) -> Solution:
    """Solve some columns by the coupled ridge (correlation 0: each alone; 1: one vector for all)."""
    from polytask.linear.mean_regularised import couple

    augmented = intercepts != "own"
    losses = problem.losses(chosen, with_constant=augmented, weighting=weighting)
    found = couple(losses, alpha, correlation, intercepts=intercepts, tol=TOLERANCE)
    return Solution.of(found.W, None if augmented else found.intercept)


def _row_sparse(problem: Problem, chosen: Sequence[int] | None, relative: float) -> Solution:
    from polytask.linear.penalties.block import RowNorm
    from polytask.linear.solvers.row_sparse import solve_row_sparse

    losses = problem.losses(chosen)
    top = RowNorm.dual_norm(gradient_at_zero(losses))
    if top == 0.0:
        zero = losses.at(np.zeros((losses.n_tasks, losses.n_features)))
        return Solution(zero.W, zero.intercept)
    found = solve_row_sparse(losses, relative * top, tol=TOLERANCE, max_passes=5000)
    return Solution(found.W, found.intercept)
