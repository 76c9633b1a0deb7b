"""What the linear methods behind the Learner contract share: a learner says only what it solves.

Every task becomes one column per output: a regression target standardised, a binary target as 0/1
with logistic loss, an ordinal target as its K-1 yes/no columns [y > k], a multiclass target as K
one-vs-rest columns. A column that does not vary among the training labels is not fitted: it predicts
its constant. (In the long form, where tasks are the same quantity in different places, pooled and
coupled models give such a task what the others know.) Penalties are relative (to the number of
labels, or to the smallest penalty that gives no model), so that tuning ranges do not depend on the
size or units of the data.

With a field ``intercepts`` set to ``"coupled"`` the intercept is one more coefficient of every task,
drawn to those of related tasks like the others; in the long form all targets are then taken to be
the same quantity.

Sums of BLAS depend in the last bits on its number of threads, so every fit runs on one: the problems
are small, and ``compare`` fits many of them side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from polytask.core.data import Ints, TaskData
from polytask.core.errors import InputError
from polytask.core.learner import Progress
from polytask.core.relation import Relation
from polytask.core.scaling import TargetScaler
from polytask.core.search import Distribution
from polytask.core.task import Floats, Multiclass, Ordinal, Regression, Task
from polytask.linear.model import IDENTITY, ONE_VS_REST, Design, LinearModel, output_names
from polytask.linear.moments import Block, Column, gather

if TYPE_CHECKING:
    from polytask.linear.solvers.losses import TaskLosses

TOLERANCE = 1e-4  # of the objective without inputs: far below what held-out data can tell
STEPS = 5000
INTERCEPTS = ("own", "coupled")


class LinearLearner(ABC):
    """A linear method of the Learner contract (abstract).

    A learner is a frozen dataclass of its hyper-parameters that says where tuning may look for them
    (:meth:`search_space`) and how it solves a :class:`Problem` (:meth:`_solve`). Fields named in
    ``positive`` must be positive numbers; a field ``intercepts`` must be ``"own"`` or ``"coupled"``.
    """

    sharing: ClassVar[str] = "shared"
    summary: ClassVar[str]
    inner_folds: ClassVar[int] = 5
    refits: ClassVar[bool] = True
    positive: ClassVar[tuple[str, ...]] = ("alpha",)

    def __post_init__(self) -> None:
        for name in self.positive:
            value = getattr(self, name)
            if not 0 < value < np.inf:
                raise InputError(f"{name} must be a positive number, got {value!r}")
        intercepts = getattr(self, "intercepts", "own")
        if intercepts not in INTERCEPTS:
            raise InputError(f'intercepts must be "own" or "coupled", got "{intercepts}"')

    @classmethod
    @abstractmethod
    def search_space(cls) -> dict[str, Distribution]:
        """Return field name → where tuning may draw it from."""

    def refuses(self, task: Task) -> str | None:  # noqa: ARG002 - every kind can be learned
        """Return why the method cannot learn this task, or None."""
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
        """Fit encoded data; the seed matters only to methods that start at random."""
        with threadpool_limits(limits=1, user_api="blas"):
            return self._model(train, seed)

    def _model(self, data: TaskData, seed: int) -> LinearModel:
        """Set up the columns, solve for those that vary, and bring the result back to target units."""
        lent = self._one_quantity() if data.one_task_per_row else ()
        scaler = _one_scaler(data) if lent else TargetScaler.fit(data)
        frame = _Frame(data, scaler, lent)
        if any(len(output.rows) for output in frame.outputs):
            frame.enter(self._solve(Problem(data, frame.design.matrix(data), frame.outputs, seed)))
        return frame.model()

    @abstractmethod
    def _solve(self, problem: Problem) -> Solution:
        """Return the coefficients of every column in standardised units."""

    def _one_quantity(self) -> tuple[str, ...]:
        """Return the kinds of task taken to be one quantity in the long form; none: each has its own unit.

        Regression targets are then standardised by one mean and scale, and columns of these kinds are
        fitted even where they do not vary.
        """
        return ("regression", "binary", "ordinal") if self._coupled else ()

    @property
    def _coupled(self) -> bool:
        return getattr(self, "intercepts", "own") == "coupled"


class LossesSolver(Protocol):
    """An estimator that solves given losses and names tasks and features in what it has learned."""

    tasks_: NDArray[Any]
    feature_names_in_: NDArray[Any]
    coef_: Floats
    intercept_: Floats

    @property
    def relations_(self) -> Mapping[str, Relation]:
        """What was learned about the tasks, by name."""

    def get_params(self) -> dict[str, Any]:
        """Return parameter name → value."""

    def set_params(self, **params: Any) -> Any:
        """Change parameters."""

    def solve(self, losses: TaskLosses) -> None:
        """Set coef_, intercept_ and relations_."""


class EstimatorLearner(LinearLearner):
    """A learner that hands the losses of its columns to an estimator of this room (abstract).

    What the estimator learns about the tasks (``relations_``) is kept in the model. One that starts at
    random gets the seed of the fit.
    """

    @abstractmethod
    def _estimator(self, losses: TaskLosses) -> LossesSolver:
        """Return the estimator with its strengths; ``losses`` are for those relative to the data."""

    def _solve(self, problem: Problem) -> Solution:
        losses = problem.losses(with_constant=self._coupled)
        estimator = self._estimator(losses)
        if "random_state" in estimator.get_params():
            estimator.set_params(random_state=problem.seed)
        estimator.tasks_ = np.array(problem.names)
        features = Design.of(problem.data).names
        estimator.feature_names_in_ = np.array([*features, "intercept"] if self._coupled else features)
        estimator.solve(losses)
        return Solution.of(estimator.coef_, None if self._coupled else estimator.intercept_, estimator.relations_)


@dataclass(frozen=True)
class Output:
    """One column to fit: which task and output it is, its loss, and its training labels.

    Parameters
    ----------
    task, number
        Number of the task, and of the output within the task.
    logistic
        Whether its labels are 0 and 1 under logistic loss.
    rows, values
        Rows that have a label, and the labels (those of regression standardised).
    """

    task: int
    number: int
    logistic: bool
    rows: Ints
    values: Floats


@dataclass(frozen=True)
class Problem:
    """What a learner solves: the design matrix and the columns that vary.

    Parameters
    ----------
    data
        The training data.
    X
        Design matrix, ``(n, width)``.
    outputs
        The columns.
    seed
        For methods that start at random.
    """

    data: TaskData
    X: Floats
    outputs: list[Output]
    seed: int = 0

    @property
    def n_features(self) -> int:
        """Width of the design matrix."""
        return self.X.shape[1]

    @property
    def names(self) -> list[str]:
        """One name per column."""
        return [output_names(self.data.tasks[output.task])[output.number] for output in self.outputs]

    @property
    def logistic(self) -> NDArray[np.bool_]:
        """Which columns have logistic loss."""
        return np.array([output.logistic for output in self.outputs], dtype=np.bool_)

    def blocks(self, chosen: Sequence[int] | None = None) -> list[Block]:
        """Return the rows of all or some columns, columns with the same rows together."""
        outputs = self.outputs if chosen is None else [self.outputs[column] for column in chosen]
        return gather(self.X, [Column(output.rows, output.values) for output in outputs])

    def losses(
        self, chosen: Sequence[int] | None = None, *, with_constant: bool = False, weighting: str = "equal"
    ) -> TaskLosses:
        """Return the losses of all or some columns.

        ``with_constant``: the intercept is a last coefficient, of a feature that is always 1.
        """
        from polytask.linear import mean_regularised
        from polytask.linear.layout import weights_of
        from polytask.linear.solvers.losses import TaskLosses

        every = np.arange(len(self.outputs)) if chosen is None else np.asarray(chosen, dtype=np.int64)
        blocks = self.blocks(every.tolist())
        totals = np.array([len(self.outputs[column].rows) for column in every], dtype=np.float64)
        return TaskLosses(
            [mean_regularised.with_constant(block) for block in blocks] if with_constant else blocks,
            logistic=self.logistic[every],
            weights=weights_of(weighting, totals),
            n_features=self.n_features + with_constant,
            fit_intercept=not with_constant,
        )


@dataclass(frozen=True)
class Solution:
    """What a learner has found, in standardised units.

    Parameters
    ----------
    coef, intercept
        ``(n_columns, width)`` and ``(n_columns,)``.
    relations
        What was learned about the tasks besides the coefficients, by name.
    """

    coef: Floats
    intercept: Floats
    relations: Mapping[str, Relation] = field(default_factory=dict)

    @classmethod
    def of(cls, W: Floats, intercept: Floats | None, relations: Mapping[str, Relation] | None = None) -> Solution:
        """Read coefficients ``(n_columns, width)``; without intercepts these are the last coefficient."""
        if intercept is None:
            W, intercept = W[:, :-1], W[:, -1]
        return cls(W, intercept, dict(relations or {}))


class _Frame:
    """Columns of the tasks of some data, and the places in the model that their coefficients go to."""

    def __init__(self, data: TaskData, scaler: TargetScaler, lent: Sequence[str]) -> None:
        self.data = data
        self.design = Design.of(data)
        self.scaler = scaler
        self.outputs: list[Output] = []
        self._offsets = np.concatenate([[0], np.cumsum([task.n_outputs for task in data.tasks])])
        self._coef = np.zeros((self.design.width, self._offsets[-1]))
        self._intercept = np.zeros(self._offsets[-1])
        self._relations: Mapping[str, Relation] = {}
        for number, task in enumerate(data.tasks):
            labels = data.labels[task.name]
            constants, columns = _columns(task, labels.values)
            self._intercept[self._offsets[number] : self._offsets[number + 1]] = constants
            for output, values in enumerate(columns):
                if task.kind in lent or (len(values) and values.min() < values.max()):
                    fitted = values if task.labels else scaler.apply(number, values)
                    self.outputs.append(Output(number, output, bool(task.labels), labels.rows, fitted))

    def enter(self, solution: Solution) -> None:
        for column, output in enumerate(self.outputs):
            place = self._offsets[output.task] + output.number
            scale, mean = self.scaler.scale[output.task], self.scaler.mean[output.task]
            self._coef[:, place] = solution.coef[column] * scale
            self._intercept[place] = solution.intercept[column] * scale + mean
        self._relations = solution.relations

    def model(self) -> LinearModel:
        links = [ONE_VS_REST if isinstance(task, Multiclass) else IDENTITY for task in self.data.tasks]
        return LinearModel(
            self.data.tasks, self.design, self._coef, self._intercept, self.scaler.scale, links, self._relations
        )


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


def gradient_at_zero(losses: TaskLosses) -> Floats:
    """Return the gradient of the losses at W = 0, ``(T, d)``: its dual norm is the strength that gives no model."""
    return losses.at(np.zeros((losses.n_tasks, losses.n_features))).gradient


def share_of(share: float, most: float) -> float:
    """Return a share of the smallest strength that gives no model; 1 where no strength is needed for that."""
    return share * most if most > 0 else 1.0
