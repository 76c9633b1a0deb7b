"""Online multi-task learning with an interaction matrix: a row of one task moves the models of all.

    perceptron:  on a mistake at (x, t, y), y = 1 or -1:   w_s += y (A^-1)_st x                        for all tasks s
    squared:     at every row (x, t, y):                   w_s += step (y - x^T w_t) (A^-1)_st x / ((A^-1)_tt ||x||²)

W: (T tasks, d features), A: (T, T) symmetric positive definite. It is the perceptron (the normalised
least mean squares algorithm) on the inputs e_t (x) x with the kernel (A^-1)_st <x, z>. Fixed:

    A = I + b (I - 11^T / T),    A^-1 = (I + b / T 11^T) / (1 + b)

b = 0: every task alone; b to infinity: one model for all tasks. Learned: after a warm-up, at every row,
with C = T W W^T / tr(W W^T) and A^-1 scaled to trace T afterwards (so that steps keep their size):

    logdet        A^-1 <- A^-1 + rate C             minimises the LogDet divergence to the last A + rate <A, C>
    von-neumann   A <- exp(log A - rate C)          the same for the von Neumann divergence
    batch         A^-1 <- (C + small I)^(1/2)       minimises <A, C> for the models of now, tr A^-1 = T

Cavallanti, Cesa-Bianchi & Gentile, Linear algorithms for online multitask classification, JMLR 2010;
Saha, Rai, Daumé III & Venkatasubramanian, Online learning of multiple tasks and their relationships,
AISTATS 2011.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from polytask.core.data import Ints
from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.core.task import Floats
from polytask.linear.layout import split_tasks, task_numbers
from polytask.linear.parameters import count, positive, yes_or_no
from polytask.linear.penalised import task_relations

_LOSSES = ("squared", "perceptron")
_INTERACTIONS = ("fixed", "logdet", "von-neumann", "batch")
_SMALL = 1e-6  # added to C, relative to its trace / T
_WIDEST = math.log(1e10)  # of the eigenvalues of A under the von Neumann divergence


class OnlineMultiTask(RegressorMixin, BaseEstimator):
    """Linear models of several tasks that learn row by row, each row for all tasks (see the module).

    :meth:`partial_fit` goes on from where the last call stopped; rows are learned in the order given,
    with y of shape ``(n, n_tasks)`` the labelled tasks of a row from the first to the last.

    Parameters
    ----------
    coupling
        b, not negative, or A itself, symmetric positive definite ``(n_tasks, n_tasks)`` in the order of ``tasks_``.
    loss
        ``"squared"``, or ``"perceptron"`` with targets 0 and 1, for all tasks.
    interaction
        ``"fixed"``, or how A is learned from the start above: ``"logdet"``, ``"von-neumann"``, ``"batch"``.
    rate
        Rate of A, positive; without meaning for ``"fixed"`` and ``"batch"``. The von Neumann divergence
        forgets nothing and acts exponentially: with a rate far above 1 / rows one direction takes all.
    warm_up
        Rows before A is learned: a number of rows (int), or a share of those of :meth:`fit`, or of the
        first :meth:`partial_fit` (float, 0 … 1).
    step
        Share of an error that a row corrects under squared loss, between 0 and 2 exclusive.
    n_passes
        How often :meth:`fit` goes over the rows.
    fit_intercept
        Whether each task has an intercept, which is one more coefficient here, moved with those of other tasks.

    Attributes
    ----------
    coef_ : ndarray of shape (n_tasks, n_features)
    intercept_ : ndarray of shape (n_tasks,)
    covariance_ : ndarray of shape (n_tasks, n_tasks)
        A^-1.
    cumulative_loss_ : ndarray of shape (n_tasks,)
        Sum of the losses 1/2 error² of each task's rows when they came; mistakes of the perceptron, of
        which a score of 0 is one.
    n_seen_ : ndarray of shape (n_tasks,)
        Rows of each task so far.
    relations_ : dict of Relation
        A^-1, its correlation and tree.
    tasks_ : ndarray of shape (n_tasks,)
        Task labels (column numbers where ``tasks`` was not given).

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(400, 5))
    >>> tasks = rng.integers(0, 4, size=400)
    >>> y = X @ [1.0, -1.0, 2.0, 0.0, 0.0] > 0
    >>> together, alone = OnlineMultiTask(10.0, loss="perceptron"), OnlineMultiTask(0.0, loss="perceptron")
    >>> for part in np.split(np.arange(400), 4):
    ...     for model in (together, alone):
    ...         model = model.partial_fit(X[part], y[part], tasks[part])
    >>> together.cumulative_loss_.sum() < alone.cumulative_loss_.sum()
    np.True_
    """

    def __init__(
        self,
        coupling: Any = 1.0,
        *,
        loss: str = "squared",
        interaction: str = "fixed",
        rate: float = 0.001,
        warm_up: float = 0.5,
        step: float = 0.5,
        n_passes: int = 1,
        fit_intercept: bool = True,
    ) -> None:
        self.coupling = coupling
        self.loss = loss
        self.interaction = interaction
        self.rate = rate
        self.warm_up = warm_up
        self.step = step
        self.n_passes = n_passes
        self.fit_intercept = fit_intercept

    def fit(self, X: Any, y: Any, tasks: Any = None) -> OnlineMultiTask:
        """Forget everything and learn from the rows, ``n_passes`` times.

        Parameters
        ----------
        X
            Inputs, ``(n_samples, n_features)``, finite.
        y
            Targets: ``(n_samples, n_tasks)`` with NaN where a label is missing, or ``(n_samples,)``. There
            are no row weights: to an online learner a row that comes twice is not a row of weight 2.
        tasks
            Task label of each row, ``(n_samples,)``, with ``y`` of shape ``(n_samples,)``, or the name of the
            column of the frame ``X`` that holds them; None means that the columns of ``y`` are the tasks.

        Returns
        -------
        self
        """
        self._check()
        passes = count("n_passes", self.n_passes, "how often fit goes over the rows")
        X, rows, numbers, values = self._labels(X, y, tasks, None, first=True)
        without = np.bincount(numbers, minlength=len(self.tasks_)) == 0
        if without.any():
            raise InputError(f"task {self.tasks_[without].tolist()[0]!r} has no labelled row; leave the task out")
        self._start(X.shape[1], passes * len(rows))
        for _ in range(passes):
            self._learn(X, rows, numbers, values)
        return self

    def partial_fit(self, X: Any, y: Any, tasks: Any = None, all_tasks: Any = None) -> OnlineMultiTask:
        """Learn from further rows.

        Parameters
        ----------
        X, y, tasks
            As of :meth:`fit`.
        all_tasks
            At the first call with ``tasks``: labels of all tasks that will come; None: those of this call.

        Returns
        -------
        self
        """
        self._check()
        first = not hasattr(self, "coef_")
        X, rows, numbers, values = self._labels(X, y, tasks, all_tasks, first=first)
        if first:
            self._start(X.shape[1], len(rows))
        self._learn(X, rows, numbers, values)
        return self

    def _labels(self, X: Any, y: Any, tasks: Any, all_tasks: Any, *, first: bool) -> tuple[Floats, Ints, Ints, Floats]:
        """Return the inputs, and row, task and target of every label in order."""
        if first:
            self._task_column = tasks if isinstance(tasks, str) else None
        X, tasks = self._inputs(X, tasks, reset=first)
        if y is None:
            raise InputError("requires y to be passed, but the target y is None")
        target = check_array(y, dtype=np.float64, ensure_2d=False, ensure_all_finite="allow-nan", input_name="y")
        if target.ndim not in (1, 2) or len(target) != len(X) or (tasks is not None and target.ndim == 2):
            raise InputError(
                f"y has shape {target.shape} and X {len(X)} rows; give y (n_samples, n_tasks), or (n_samples,) with "
                "one task label per row as tasks"
            )
        form = "stacked" if tasks is not None else "single" if target.ndim == 1 else "columns"
        table = target.reshape(len(target), -1)
        if first:
            self._form = form
            self.tasks_ = np.arange(table.shape[1])
            if tasks is not None:
                self.tasks_ = _distinct(tasks if all_tasks is None else all_tasks)
        elif form != self._form or (tasks is None and table.shape[1] != len(self.tasks_)):
            raise InputError(
                f"y has shape {target.shape} {'with' if tasks is not None else 'without'} tasks, but the model has "
                f"{len(self.tasks_)} tasks in another form; give all parts in the form of the first"
            )
        rows, columns = np.nonzero(~np.isnan(table))
        numbers = columns if tasks is None else task_numbers(tasks, self.tasks_, len(X))[rows]
        values = table[rows, columns]
        if self.loss == "perceptron" and not np.isin(values, (0.0, 1.0)).all():
            raise InputError("a perceptron needs targets 0 and 1; code the classes so")
        return X, rows, numbers, values

    def _inputs(self, X: Any, tasks: Any, *, reset: bool) -> tuple[Floats, Any]:
        """Return checked inputs and the task labels, which may be a column of ``X``."""
        column = self._task_column
        if tasks is None and column is not None and column in list(getattr(X, "columns", ())):
            tasks = column
        X, tasks = split_tasks(X, tasks)
        return np.ascontiguousarray(validate_data(self, X, dtype=np.float64, reset=reset)), tasks

    def _check(self) -> None:
        if self.loss not in _LOSSES:
            raise InputError(f'loss must be "squared" or "perceptron", got {self.loss!r}')
        if self.interaction not in _INTERACTIONS:
            listed = ", ".join(f'"{name}"' for name in _INTERACTIONS)
            raise InputError(f"interaction must be one of {listed}, got {self.interaction!r}")
        positive("rate", self.rate, "the rate of the interaction matrix")
        yes_or_no("fit_intercept", self.fit_intercept)
        if not 0 < positive("step", self.step, "the share of an error that a row corrects") < 2:
            raise InputError(f"step must be below 2, got {self.step!r}; from there on errors grow")
        warm_up = self.warm_up
        wrong = not isinstance(warm_up, Real) or isinstance(warm_up, bool) or not 0 <= float(warm_up) < np.inf
        if wrong or (not isinstance(warm_up, int | np.integer) and float(warm_up) > 1):
            raise InputError(f"warm_up must be a number of rows or a share of them, 0.0 to 1.0, got {warm_up!r}")

    def _start(self, d: int, n: int) -> None:
        T = len(self.tasks_)
        self.covariance_ = self._first_inverse(T)
        self._logarithm = np.zeros((0, 0))  # of A^-1, for the von Neumann divergence
        self._W = np.zeros((T, d + 1))
        whole = isinstance(self.warm_up, int | np.integer)
        self._left = int(self.warm_up) if whole else math.ceil(float(self.warm_up) * n)
        self.cumulative_loss_ = np.zeros(T)
        self.n_seen_ = np.zeros(T, dtype=np.int64)

    def _first_inverse(self, T: int) -> Floats:
        """Return A^-1 at the start."""
        if isinstance(self.coupling, Real) and not isinstance(self.coupling, bool):
            b = float(self.coupling)
            if not 0 <= b < np.inf:
                raise InputError(f"coupling must be at least 0 and finite, got {b!r}; 0 leaves every task alone")
            return np.asarray((np.eye(T) + b / T) / (1.0 + b))
        A = np.array(self.coupling, dtype=np.float64)
        if A.shape != (T, T):
            raise InputError(f"coupling has shape {A.shape}; give a number or an interaction matrix ({T}, {T})")
        size = np.abs(A).max(initial=0.0)
        if not np.isfinite(A).all() or np.abs(A - A.T).max(initial=0.0) > 1e-10 * size:
            raise InputError("coupling is not a symmetric matrix of finite numbers")
        A = 0.5 * (A + A.T)
        least = float(np.linalg.eigvalsh(A)[0])
        if least <= 1e-12 * size:
            raise InputError(f"coupling is not positive definite: its least eigenvalue is {least:.3g}")
        return _inverse(A)

    def _learn(self, X: Floats, rows: Ints, numbers: Ints, values: Floats) -> None:
        """Learn from labels in order."""
        from polytask.linear.solvers.online import learn  # numba: loaded when a fit needs it

        perceptron = self.loss == "perceptron"
        if perceptron:
            values = 2.0 * values - 1.0

        def go(start: int, end: int) -> bool:
            return bool(
                learn(
                    X,
                    rows[start:end],
                    numbers[start:end],
                    values[start:end],
                    self._W,
                    self.covariance_,
                    1.0 if self.fit_intercept else 0.0,
                    perceptron,
                    float(self.step),
                    self.cumulative_loss_,
                    self.n_seen_,
                )
            )

        n = len(rows)
        plain = n if self.interaction == "fixed" else min(n, self._left)
        go(0, plain)
        self._left = max(self._left - plain, 0)
        C: Floats | None = None
        for row in range(plain, n):
            if go(row, row + 1) or C is None:
                C = self._spread()
            self._interact(C)
        self.coef_ = self._W[:, :-1].copy()
        self.intercept_ = self._W[:, -1].copy()

    def _spread(self) -> Floats:
        """Return C, 0 while all models are 0."""
        product = self._W @ self._W.T
        total = float(np.trace(product))
        return np.asarray(len(product) / total * product) if total > 0 else np.zeros_like(product)

    def _interact(self, C: Floats) -> None:
        """Learn A from C."""
        if not C.any():
            return
        T = len(C)
        if self.interaction == "logdet":
            inverse = self.covariance_ + float(self.rate) * C
        else:
            if self.interaction == "batch":
                values, vectors = np.linalg.eigh(C + _SMALL * np.eye(T))
                values = np.sqrt(np.maximum(values, _SMALL))
            else:
                if not self._logarithm.size:
                    values, vectors = np.linalg.eigh(self.covariance_)
                    self._logarithm = (vectors * np.log(values)) @ vectors.T
                values, vectors = np.linalg.eigh(self._logarithm + float(self.rate) * C)
                values = np.maximum(values - values[-1], -_WIDEST)
                self._logarithm = (vectors * values) @ vectors.T
                values = np.exp(values)
            inverse = (vectors * values) @ vectors.T
        self.covariance_ = np.asarray(0.5 * T / np.trace(inverse) * (inverse + inverse.T))

    @property
    def interaction_(self) -> Floats:
        """A, ``(n_tasks, n_tasks)``."""
        check_is_fitted(self)
        return _inverse(self.covariance_)

    @property
    def relations_(self) -> dict[str, Relation]:
        """What is known about the tasks by now."""
        check_is_fitted(self)
        about = "Inverse of the interaction matrix: how much a row of one task moves the model of another."
        return task_relations(self.covariance_, self.tasks_, about)

    def task_scores(self, X: Any, tasks: Any = None) -> Floats:
        """Return x^T w_t + b_t: ``(n_samples,)`` for one task or with ``tasks``, else ``(n_samples, n_tasks)``."""
        check_is_fitted(self)
        X, tasks = self._inputs(X, tasks, reset=False)
        if tasks is None and self._form == "stacked":
            raise InputError("the model was fitted with task labels; give the task of each row as tasks")
        if tasks is not None and self._form == "columns":
            raise InputError("the model was fitted on columns of y; call predict without tasks for all columns")
        if tasks is not None:
            number = task_numbers(tasks, self.tasks_, len(X))
            return np.asarray(np.einsum("nd,nd->n", X, self.coef_[number]) + self.intercept_[number])
        scores = X @ self.coef_.T + self.intercept_
        return np.asarray(scores[:, 0] if self._form == "single" else scores)

    def predict(self, X: Any, tasks: Any = None) -> Floats:
        """Return the prediction: a number for squared loss, class 0 or 1 of a perceptron; shapes as of task_scores."""
        scores = self.task_scores(X, tasks)
        return (scores > 0).astype(np.float64) if self.loss == "perceptron" else scores

    def score(self, X: Any, y: Any, sample_weight: Any = None, tasks: Any = None) -> float:
        """Return the mean over tasks of R² (squared loss) or accuracy (perceptron) on the labelled cells."""
        from sklearn.metrics import r2_score  # loaded when it is asked for

        check_is_fitted(self)
        predicted = self.predict(X, tasks).reshape(len(X), -1)
        weight = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        X, rows, numbers, values = self._labels(X, y, tasks, None, first=False)
        found = predicted[rows, numbers if predicted.shape[1] > 1 else 0]
        scores = []
        for task in np.unique(numbers).tolist():
            mine = numbers == task
            truth, guess, a = values[mine], found[mine], weight[rows[mine]]
            if self.loss == "perceptron":
                scores.append(float(np.average(truth == guess, weights=a)))
            else:
                scores.append(float(r2_score(truth, guess, sample_weight=a)))
        return float(np.mean(scores))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _inverse(matrix: Floats) -> Floats:
    """Return the inverse of a symmetric positive definite matrix, symmetric to the last bit."""
    values, vectors = np.linalg.eigh(matrix)
    half = vectors / np.sqrt(values)
    return np.asarray(half @ half.T)


def _distinct(tasks: Any) -> NDArray[Any]:
    """Return the distinct task labels, sorted."""
    labels = np.asarray(tasks)
    return np.asarray(np.unique(labels.astype(str) if labels.dtype == object else labels))
