"""The linear methods behind the Learner contract: they fit encoded TaskData and give a LinearModel.

Every task becomes one column per output: a regression target standardised, a binary target as 0/1
with logistic loss, an ordinal target as its K-1 yes/no columns [y > k], a multiclass target as K
one-vs-rest columns (softmax in :class:`RidgeLearner`). A column that does not vary among the training
labels is not fitted: it predicts its constant. (In the long form, where tasks are the same quantity
in different places, pooled and coupled models give such a task what the others know.) Penalties are
relative (to the number of labels, or to the smallest penalty that gives no model), so that tuning
ranges do not depend on the size or units of the data.

Sums of BLAS depend in the last bits on its number of threads, so every fit runs on one: the problems
are small, and ``compare`` fits many of them side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from threadpoolctl import threadpool_limits

from polytask.core.data import Ints, TaskData
from polytask.core.errors import InputError
from polytask.core.learner import Progress
from polytask.core.scaling import TargetScaler
from polytask.core.search import Choice, Distribution, LogUniform
from polytask.core.task import Floats, Multiclass, Ordinal, Regression, Task
from polytask.linear.model import IDENTITY, ONE_VS_REST, Design, LinearModel
from polytask.linear.moments import Block, Column, gather

_TOLERANCE = 1e-4  # of the objective without inputs: far below what held-out data can tell


@dataclass(frozen=True)
class _Output:
    """One column to fit: which task and output it is, its loss, and its training labels."""

    task: int
    number: int
    logistic: bool
    rows: Ints
    values: Floats


@dataclass(frozen=True)
class _Problem:
    """What a learner solves: the design matrix and the columns that vary."""

    data: TaskData
    X: Floats
    outputs: list[_Output]

    @property
    def n_features(self) -> int:
        return self.X.shape[1]

    def blocks(self, chosen: Sequence[int]) -> list[Block]:
        return gather(self.X, [Column(self.outputs[c].rows, self.outputs[c].values) for c in chosen])

    def logistic(self, chosen: Sequence[int]) -> list[bool]:
        return [self.outputs[c].logistic for c in chosen]


Fitted = tuple[Floats, Floats]
"""Coefficients ``(n_columns, width)`` and intercepts ``(n_columns,)`` in standardised units."""


def _fit(
    data: TaskData, solve: Callable[[_Problem], Fitted], *, one_unit: bool = False, lend_to: Sequence[str] = ()
) -> LinearModel:
    """Set up the columns, solve for those that vary, and bring the result back to target units.

    ``one_unit``: in the long form, standardise all regression targets by one mean and scale (they
    are the same quantity) instead of each task's own; then columns of the kinds in ``lend_to`` are
    fitted even where they do not vary.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        return _fit_on_one_thread(data, solve, one_unit and data.one_task_per_row, lend_to)


def _fit_on_one_thread(
    data: TaskData, solve: Callable[[_Problem], Fitted], one_unit: bool, lend_to: Sequence[str]
) -> LinearModel:
    design = Design.of(data)
    scaler = _one_scaler(data) if one_unit else TargetScaler.fit(data)
    offsets = np.concatenate([[0], np.cumsum([task.n_outputs for task in data.tasks])])
    coef, intercept = np.zeros((design.width, offsets[-1])), np.zeros(offsets[-1])
    links, outputs = [], []
    for number, task in enumerate(data.tasks):
        labels = data.labels[task.name]
        links.append(ONE_VS_REST if isinstance(task, Multiclass) else IDENTITY)
        constants, columns = _columns(task, labels.values)
        intercept[offsets[number] : offsets[number + 1]] = constants
        lent = one_unit and task.kind in lend_to
        for output, values in enumerate(columns):
            if lent or (len(values) and values.min() < values.max()):
                fitted = values if task.labels else scaler.apply(number, values)
                outputs.append(_Output(number, output, bool(task.labels), labels.rows, fitted))
    if any(len(fit.rows) for fit in outputs):
        problem = _Problem(data, design.matrix(data), outputs)
        W, b = solve(problem)
        for column, fit in enumerate(outputs):
            place = offsets[fit.task] + fit.number
            scale, mean = scaler.scale[fit.task], scaler.mean[fit.task]
            coef[:, place] = W[column] * scale
            intercept[place] = b[column] * scale + mean
    return LinearModel(data.tasks, design, coef, intercept, scaler.scale, links)


def _columns(task: Task, values: Floats) -> tuple[Floats, list[Floats]]:
    """Return the constant score of every output and its training targets."""
    constants = task.constant_scores(values)
    if isinstance(task, Multiclass):
        shares = task.frequencies(values)
        constants = np.log(shares) - np.log1p(-shares)
        return constants, [(values == k).astype(np.float64) for k in range(task.n_outputs)]
    if isinstance(task, Ordinal):
        return constants, list(task.thresholds(values).T)
    return constants, [values]


def _one_scaler(data: TaskData) -> TargetScaler:
    own = TargetScaler.fit(data)
    regression = np.array([isinstance(task, Regression) for task in data.tasks])
    parts = [data.labels[task.name].values for task in data.tasks if isinstance(task, Regression)]
    values = np.concatenate(parts) if parts else np.zeros(0)
    if len(values) == 0 or values.std() <= 1e-12 * max(1.0, abs(float(values.mean()))):
        return own
    return TargetScaler(np.where(regression, values.mean(), own.mean), np.where(regression, values.std(), own.scale))


def _coupled(
    problem: _Problem, chosen: Sequence[int], alpha: float, correlation: float, intercepts: str, weighting: str
) -> Fitted:
    """Solve some columns by the coupled ridge (correlation 0: each alone; 1: one vector for all)."""
    from polytask.linear.layout import weights_of
    from polytask.linear.mean_regularised import couple, with_constant
    from polytask.linear.solvers.losses import TaskLosses

    blocks = problem.blocks(chosen)
    augmented = intercepts != "own"
    if augmented:
        blocks = [with_constant(block) for block in blocks]
    totals = np.array([len(problem.outputs[c].rows) for c in chosen], dtype=np.float64)
    losses = TaskLosses(
        blocks,
        logistic=np.array(problem.logistic(chosen)),
        weights=weights_of(weighting, totals),
        n_features=problem.n_features + augmented,
        fit_intercept=not augmented,
    )
    found = couple(losses, alpha, correlation, intercepts=intercepts, tol=_TOLERANCE)
    if augmented:
        return found.W[:, :-1], found.W[:, -1]
    return found.W, found.intercept


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < np.inf:
        raise InputError(f"{name} must be a positive number, got {value!r}")


@dataclass(frozen=True)
class RidgeLearner:
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
    inner_folds: ClassVar[int] = 5
    refits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_positive("alpha", self.alpha)

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {"alpha": LogUniform(1e-4, 10.0)}

    def refuses(self, task: Task) -> str | None:  # noqa: ARG002 - every kind can be learned
        return None

    def fit(
        self,
        train: TaskData,
        *,
        valid: TaskData | None = None,  # noqa: ARG002 - nothing to stop early
        seed: int = 0,  # noqa: ARG002 - the solution is unique
        progress: Progress | None = None,  # noqa: ARG002 - quick
        checkpoint: Path | None = None,  # noqa: ARG002 - quick
    ) -> LinearModel:
        softmax = {number for number, task in enumerate(train.tasks) if isinstance(task, Multiclass)}
        linear = train.only([task.name for number, task in enumerate(train.tasks) if number not in softmax])
        found = _fit(linear, self._solve) if linear.tasks else None
        if not softmax:
            assert found is not None
            return found
        return _with_softmax(train, found, self.alpha)

    def _solve(self, problem: _Problem) -> Fitted:
        return _coupled(problem, range(len(problem.outputs)), self.alpha, 0.0, "own", "equal")


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
            with threadpool_limits(limits=1, user_api="blas"):
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
class LassoLearner:
    """Every task alone: lasso, and L1-penalised logistic regression for classes.

    Parameters
    ----------
    alpha
        Strength as a share of the smallest one at which all coefficients are 0 (per output), 0 … 1.
    """

    alpha: float = 0.05

    sharing: ClassVar[str] = "single"
    summary: ClassVar[str] = "lasso or L1 logistic regression for every task alone"
    inner_folds: ClassVar[int] = 5
    refits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_positive("alpha", self.alpha)

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {"alpha": LogUniform(1e-4, 1.0)}

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
        return _fit(train, self._solve)

    def _solve(self, problem: _Problem) -> Fitted:
        coef, intercept = np.empty((len(problem.outputs), problem.n_features)), np.empty(len(problem.outputs))
        for column in range(len(problem.outputs)):
            coef[[column]], intercept[[column]] = _row_sparse(problem, [column], self.alpha)
        return coef, intercept


def _row_sparse(problem: _Problem, chosen: Sequence[int], relative: float) -> Fitted:
    from polytask.linear.penalties.block import RowNorm
    from polytask.linear.solvers.losses import TaskLosses
    from polytask.linear.solvers.row_sparse import solve_row_sparse

    d = problem.n_features
    losses = TaskLosses(
        problem.blocks(chosen),
        logistic=np.array(problem.logistic(chosen)),
        weights=np.ones(len(chosen)),
        n_features=d,
    )
    top = RowNorm.dual_norm(losses.at(np.zeros((len(chosen), d))).gradient)
    if top == 0.0:
        zero = losses.at(np.zeros((len(chosen), d)))
        return zero.W, zero.intercept
    found = solve_row_sparse(losses, relative * top, tol=_TOLERANCE, max_passes=5000)
    return found.W, found.intercept


@dataclass(frozen=True)
class PooledLearner:
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
    inner_folds: ClassVar[int] = 5
    refits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_positive("alpha", self.alpha)

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {"alpha": LogUniform(1e-4, 10.0), "task_intercepts": Choice((True, False))}

    def refuses(self, task: Task) -> str | None:
        if task.kind in ("regression", "binary"):
            return None
        return f"the classes of different {task.kind} tasks do not correspond, so they cannot share one model"

    def fit(
        self,
        train: TaskData,
        *,
        valid: TaskData | None = None,  # noqa: ARG002 - nothing to stop early
        seed: int = 0,  # noqa: ARG002 - the solution is unique
        progress: Progress | None = None,  # noqa: ARG002 - quick
        checkpoint: Path | None = None,  # noqa: ARG002 - quick
    ) -> LinearModel:
        lend_to = ("regression",) if self.task_intercepts else ("regression", "binary")
        return _fit(train, self._solve, one_unit=True, lend_to=lend_to)

    def _solve(self, problem: _Problem) -> Fitted:
        coef, intercept = np.empty((len(problem.outputs), problem.n_features)), np.empty(len(problem.outputs))
        intercepts = "own" if self.task_intercepts else "common"
        kinds = np.array([output.logistic for output in problem.outputs])
        for kind in (False, True):
            chosen = np.flatnonzero(kinds == kind)
            if len(chosen):
                # the coupled ridge sums the mean losses of the tasks, so alpha per cell is alpha T
                alpha = self.alpha * len(chosen)
                coef[chosen], intercept[chosen] = _coupled(problem, chosen.tolist(), alpha, 1.0, intercepts, "examples")
        return coef, intercept


@dataclass(frozen=True)
class BlockSparseLearner:
    """All tasks use the same few inputs, each with its own coefficients (l1/l2 penalty).

    See :class:`~polytask.linear.block_sparse.BlockSparse`.

    Parameters
    ----------
    alpha
        Strength as a share of the smallest one at which all coefficients are 0, 0 … 1.
    """

    alpha: float = 0.05

    sharing: ClassVar[str] = "shared"
    summary: ClassVar[str] = "an input is used by all tasks or by none (l1/l2 penalty)"
    inner_folds: ClassVar[int] = 5
    refits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_positive("alpha", self.alpha)

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {"alpha": LogUniform(1e-4, 1.0)}

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
        return _fit(train, self._solve)

    def _solve(self, problem: _Problem) -> Fitted:
        return _row_sparse(problem, range(len(problem.outputs)), self.alpha)


@dataclass(frozen=True)
class MeanRegularisedLearner:
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

    sharing: ClassVar[str] = "shared"
    summary: ClassVar[str] = "every task's coefficients are drawn towards the mean of all tasks"
    inner_folds: ClassVar[int] = 5
    refits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_positive("alpha", self.alpha)
        _check_positive("mu", self.mu)
        if self.intercepts not in ("own", "coupled"):
            raise InputError(f'intercepts must be "own" or "coupled", got "{self.intercepts}"')

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {
            "alpha": LogUniform(1e-4, 10.0),
            "mu": LogUniform(1e-3, 100.0),
            "intercepts": Choice(("own", "coupled")),
        }

    def refuses(self, task: Task) -> str | None:
        if task.kind == "multiclass":
            return "the classes of a multiclass task have one coefficient vector each and no common direction to share"
        return None

    def fit(
        self,
        train: TaskData,
        *,
        valid: TaskData | None = None,  # noqa: ARG002 - nothing to stop early
        seed: int = 0,  # noqa: ARG002 - the solution is unique
        progress: Progress | None = None,  # noqa: ARG002 - quick
        checkpoint: Path | None = None,  # noqa: ARG002 - quick
    ) -> LinearModel:
        return _fit(
            train,
            self._solve,
            one_unit=self.intercepts == "coupled",
            lend_to=("regression", "binary", "ordinal"),
        )

    def _solve(self, problem: _Problem) -> Fitted:
        chosen = range(len(problem.outputs))
        return _coupled(problem, chosen, self.alpha, 1.0 / (1.0 + self.mu), self.intercepts, "equal")
