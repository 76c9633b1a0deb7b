"""Kernel methods behind the Learner contract: they fit encoded TaskData and give a KernelModel.

They learn regression tasks. Targets are standardised; a task whose training labels do not vary is not
fitted and predicts its constant. Inputs are the encoded columns with one indicator per category. The
cost grows with the cube of the number of labels (of rows, where every row has every label), so larger
data are refused.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from threadpoolctl import threadpool_limits

from polytask.core.data import Ints, TaskData
from polytask.core.errors import InputError
from polytask.core.learner import Arrays, Model, Progress
from polytask.core.relation import Relation
from polytask.core.scaling import TargetScaler
from polytask.core.search import Choice, Distribution, LogUniform
from polytask.core.task import Floats, Task
from polytask.linear.kernels import KERNELS, kernel_matrix
from polytask.linear.learning import INTERCEPTS
from polytask.linear.model import Design

if TYPE_CHECKING:
    from polytask.linear.gaussian_process import MultiTaskGaussianProcess
    from polytask.linear.task_kernel_ridge import TaskKernelRidge

_CHUNK = 4_000_000  # numbers in a piece of the kernel between new and known rows
_TOLERANCE = 1e-4


class KernelModel(Model):
    """Scores = k(x, rows) @ weights^T + intercept, one column per regression task.

    Parameters
    ----------
    tasks
        The tasks.
    design
        Layout of the inputs.
    kernel
        Name of the kernel.
    length_scale
        ``(1,)`` or ``(width,)``.
    rows
        The known rows, ``(n, width)``.
    weights, intercept
        ``(T, n)`` and ``(T,)``, in units of the targets.
    learned
        What the method has learned about the tasks, by name.
    """

    def __init__(
        self,
        tasks: tuple[Task, ...],
        design: Design,
        kernel: str,
        length_scale: Floats,
        rows: Floats,
        weights: Floats,
        intercept: Floats,
        learned: Mapping[str, Relation] | None = None,
    ) -> None:
        super().__init__(tasks)
        self.design = design
        self.kernel = kernel
        self.length_scale = length_scale
        self.rows = rows
        self.weights = weights
        self.intercept = intercept
        self.learned = dict(learned or {})

    def predict(self, data: TaskData) -> dict[str, Floats]:
        X = self.design.matrix(data)
        scores = np.empty((len(X), len(self.tasks)))
        step = max(1, _CHUNK // max(1, len(self.rows)))
        for start in range(0, len(X), step):
            part = slice(start, start + step)
            scores[part] = self.intercept
            if len(self.rows):
                scores[part] += kernel_matrix(self.kernel, X[part], self.rows, self.length_scale) @ self.weights.T
        return {task.name: np.array(scores[:, [number]]) for number, task in enumerate(self.tasks)}

    def state(self) -> tuple[dict[str, Any], Arrays]:
        description: dict[str, Any] = {"design": self.design.describe(), "kernel": self.kernel}
        if self.learned:
            description["learned"] = {name: relation.to_json() for name, relation in self.learned.items()}
        return description, {
            "length_scale": self.length_scale,
            "rows": self.rows,
            "weights": self.weights,
            "intercept": self.intercept,
        }

    @classmethod
    def from_state(cls, tasks: tuple[Task, ...], description: Mapping[str, Any], arrays: Mapping[str, Any]) -> Self:
        design = Design.read(description["design"])
        kernel = str(description["kernel"])
        names = ("length_scale", "rows", "weights", "intercept")
        scale, rows, weights, intercept = (np.asarray(arrays[name], dtype=np.float64) for name in names)
        if kernel not in KERNELS:
            raise InputError(f'kernel "{kernel}" is not one of {", ".join(KERNELS)}')
        if (
            rows.ndim != 2
            or rows.shape[1] != design.width
            or weights.shape != (len(tasks), len(rows))
            or intercept.shape != (len(tasks),)
            or scale.shape not in ((1,), (design.width,))
        ):
            raise InputError(
                f"rows of shape {rows.shape} and weights of shape {weights.shape} do not fit {design.width} columns "
                f"and {len(tasks)} tasks"
            )
        learned = {str(name): Relation.from_json(plain) for name, plain in description.get("learned", {}).items()}
        return cls(tasks, design, kernel, scale, rows, weights, intercept, learned)

    def relations(self) -> dict[str, Relation]:
        return dict(self.learned)


class KernelLearner(ABC):
    """A kernel method of the Learner contract (abstract)."""

    sharing: ClassVar[str] = "shared"
    refits: ClassVar[bool] = True
    largest: ClassVar[int]
    """Most labels (rows, where every row has every label) that are fitted."""

    @classmethod
    @abstractmethod
    def search_space(cls) -> dict[str, Distribution]:
        """Return field name → where tuning may draw it from."""

    def refuses(self, task: Task) -> str | None:
        """Return why the method cannot learn this task, or None."""
        if task.kind == "regression":
            return None
        return f"it fits squared errors, which give no probabilities of the classes of a {task.kind} task"

    def fit(
        self,
        train: TaskData,
        *,
        valid: TaskData | None = None,  # noqa: ARG002 - nothing to stop early
        seed: int = 0,
        progress: Progress | None = None,  # noqa: ARG002 - reports nothing before its end
        checkpoint: Path | None = None,  # noqa: ARG002 - short enough to begin again
    ) -> KernelModel:
        """Fit encoded data; the seed matters only to methods that start at random."""
        for task in train.tasks:
            reason = self.refuses(task)
            if reason is not None:
                raise InputError(f'task "{task.name}" cannot be learned: {reason}')
        with threadpool_limits(limits=1, user_api="blas"):
            return self._model(train, seed)

    def _model(self, data: TaskData, seed: int) -> KernelModel:
        design = Design.of(data)
        counts = np.array([len(data.labels[name]) for name in data.names])
        coupled = self._coupled and data.one_task_per_row and bool(counts.any())
        scaler = _one_scaler(data) if coupled else TargetScaler.fit(data)
        spread = np.array([len(np.unique(data.labels[name].values)) > 1 for name in data.names], dtype=np.bool_)
        chosen = np.flatnonzero(counts > 0 if coupled else spread)
        intercept = np.array([task.constant_scores(data.labels[task.name].values)[0] for task in data.tasks])
        if not len(chosen):
            nothing = np.zeros((0, design.width))
            return KernelModel(data.tasks, design, "linear", np.ones(1), nothing, np.zeros((len(counts), 0)), intercept)
        self._check_size(data, chosen)
        Y = (data.columns()[:, chosen] - scaler.mean[chosen]) / scaler.scale[chosen]
        labelled = ~np.isnan(Y).all(axis=1)
        estimator = self._estimator(seed, design.width)
        estimator.fit(design.matrix(data)[labelled], Y[labelled])
        estimator.tasks_ = np.array([data.names[number] for number in chosen])
        weights = np.zeros((len(counts), len(estimator.X_fit_)))
        weights[chosen] = estimator._weights[0] * scaler.scale[chosen, None]
        intercept[chosen] = estimator.intercept_ * scaler.scale[chosen] + scaler.mean[chosen]
        common = self._common(estimator) if coupled else None
        if common is not None:
            empty = np.flatnonzero(counts == 0)
            weights[empty] = common[0] * scaler.scale[empty, None]
            intercept[empty] = common[1] * scaler.scale[empty] + scaler.mean[empty]
        return KernelModel(
            data.tasks,
            design,
            str(estimator._kernels[0]),
            estimator._scales[0],
            estimator.X_fit_,
            weights,
            intercept,
            estimator.relations_,
        )

    def _check_size(self, data: TaskData, chosen: Ints) -> None:
        parts = [data.labels[data.names[number]].rows for number in chosen]
        full = all(len(rows) == len(parts[0]) and bool((rows == parts[0]).all()) for rows in parts)
        size = len(parts[0]) if full else sum(len(rows) for rows in parts)
        if size > self.largest:
            what = "rows with every label" if full else "labels"
            raise InputError(
                f"the training data have {size:,} {what}, but {type(self).__name__} takes at most {self.largest:,}: "
                "its cost grows with their cube; use fewer rows or tasks, or a method whose cost grows with the number "
                "of rows, such as mean-regularised or task-covariance"
            )

    @property
    def _coupled(self) -> bool:
        """Whether tasks that measure one quantity in different places are one unit and share their level."""
        return False

    @abstractmethod
    def _estimator(self, seed: int, width: int) -> TaskKernelRidge | MultiTaskGaussianProcess:
        """Return the estimator, not yet fitted."""

    def _common(self, estimator: Any) -> tuple[Floats, float] | None:  # noqa: ARG002 - the default has none
        """Return kernel weights ``(n,)`` and intercept of what coupled tasks share, for a task without labels."""
        return None


def _one_scaler(data: TaskData) -> TargetScaler:
    """Return the mean and standard deviation of all labels together, for every task."""
    values = np.concatenate([data.labels[name].values for name in data.names])
    spread = float(values.std())
    scale = spread if spread > 1e-12 * max(1.0, abs(float(values.mean()))) else 1.0
    T = len(data.tasks)
    return TargetScaler(np.full(T, values.mean()), np.full(T, scale))


@dataclass(frozen=True)
class TaskKernelRidgeLearner(KernelLearner):
    """Kernel ridge regression with a kernel over inputs times a kernel over tasks.

    See :class:`~polytask.linear.task_kernel_ridge.TaskKernelRidge`.

    Parameters
    ----------
    alpha
        Strength of the penalty, positive.
    task_kernel
        ``"mean"``: tasks are drawn to their mean; ``"learned"``: the covariance of the tasks is learned.
    mu
        How independent the tasks are with ``"mean"``: the prior correlation of their functions is 1 / (1 + mu).
    kernel
        ``"rbf"``, ``"matern32"``, ``"matern52"`` or ``"linear"``.
    length_scale
        Length scale of the inputs, in units of sqrt(number of input columns).
    intercepts
        ``"own"``: each task's intercept is free. ``"coupled"``: intercepts are drawn together too, for the long
        form, where all targets are taken to be the same quantity. With ``"learned"`` they are free.
    """

    alpha: float = 0.001
    task_kernel: str = "mean"
    mu: float = 0.1
    kernel: str = "rbf"
    length_scale: float = 1.0
    intercepts: str = "own"

    summary: ClassVar[str] = "kernel ridge regression, tasks drawn to their mean or with a learned covariance"
    inner_folds: ClassVar[int] = 5
    largest: ClassVar[int] = 5000

    def __post_init__(self) -> None:
        for name in ("alpha", "mu", "length_scale"):
            _check_positive(name, getattr(self, name))
        _check_choice("task_kernel", self.task_kernel, ("mean", "learned"))
        _check_choice("kernel", self.kernel, KERNELS)
        _check_choice("intercepts", self.intercepts, INTERCEPTS)

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {
            "alpha": LogUniform(1e-5, 1.0),
            "task_kernel": Choice(("mean", "learned")),
            "mu": LogUniform(1e-3, 100.0),
            "kernel": Choice(("rbf", "matern32", "linear")),
            "length_scale": LogUniform(0.3, 10.0),
            "intercepts": Choice(INTERCEPTS),
        }

    @property
    def _coupled(self) -> bool:
        return self.intercepts == "coupled" and self.task_kernel == "mean"

    def _estimator(self, seed: int, width: int) -> TaskKernelRidge:  # noqa: ARG002 - the problem is convex
        from polytask.linear.task_kernel_ridge import TaskKernelRidge

        return TaskKernelRidge(
            self.alpha,
            task_kernel=self.task_kernel,
            mu=self.mu,
            kernel=self.kernel,
            length_scale=self.length_scale * np.sqrt(max(width, 1)),
            intercepts="coupled" if self._coupled else "own",
            tol=_TOLERANCE,
        )

    def _common(self, estimator: TaskKernelRidge) -> tuple[Floats, float]:
        shared = estimator.dual_coef_.sum(axis=0) / (1.0 + self.mu)
        common = float(estimator.intercept_[0] - estimator._weights[0][0].sum())
        return shared, common + float(shared.sum())


@dataclass(frozen=True)
class GaussianProcessLearner(KernelLearner):
    """Gaussian process regression with a learned covariance of the tasks (ICM).

    See :class:`~polytask.linear.gaussian_process.MultiTaskGaussianProcess`. Length scales, noise and the
    covariance of the tasks maximise the marginal likelihood, so little is left to tuning.

    Parameters
    ----------
    rank
        Rank of the shared part of the covariance, 0 … (0: independent tasks with the same length scales).
    kernel
        ``"rbf"``, ``"matern32"``, ``"matern52"`` or ``"linear"``.
    ard
        Whether every input column has a length scale of its own.
    n_restarts
        Number of starts of the optimiser.
    """

    rank: int = 2
    kernel: str = "rbf"
    ard: bool = False
    n_restarts: int = 2

    summary: ClassVar[str] = "Gaussian process with a learned covariance of the tasks (ICM)"
    inner_folds: ClassVar[int] = 1
    largest: ClassVar[int] = 1500

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 0:
            raise InputError(f"rank must be a whole number of at least 0, got {self.rank!r}")
        if isinstance(self.n_restarts, bool) or not isinstance(self.n_restarts, int) or self.n_restarts < 1:
            raise InputError(f"n_restarts must be a whole number of at least 1, got {self.n_restarts!r}")
        _check_choice("kernel", self.kernel, KERNELS)

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        return {
            "rank": Choice((1, 2, 3)),
            "kernel": Choice(("rbf", "matern32", "matern52")),
            "ard": Choice((False, True)),
        }

    def _estimator(self, seed: int, width: int) -> MultiTaskGaussianProcess:  # noqa: ARG002 - starts at its own scale
        from polytask.linear.gaussian_process import MultiTaskGaussianProcess

        return MultiTaskGaussianProcess(
            kernel=self.kernel, rank=self.rank, ard=self.ard, n_restarts=self.n_restarts, random_state=seed
        )


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < np.inf:
        raise InputError(f"{name} must be a positive number, got {value!r}")


def _check_choice(name: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise InputError(f"{name} must be one of {', '.join(options)}, got {value!r}")
