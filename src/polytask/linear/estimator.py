"""What the scikit-learn estimators of this room share: reading X, y and tasks, and predicting."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from polytask.core.data import Ints
from polytask.core.errors import InputError
from polytask.core.task import Floats
from polytask.linear.layout import Layout, losses_of, read, robust_scale, split_tasks, task_numbers, weights_of
from polytask.linear.moments import Block, Moments, MomentsOnly, Stack, is_sparse, totals_of
from polytask.linear.outputs import Outputs, expand
from polytask.linear.parameters import count, not_negative, positive, yes_or_no
from polytask.linear.solvers.losses import TaskLosses

_MOST_NAMES = 5  # of tasks in a warning


@dataclass(frozen=True)
class _Idle:
    """Rows of coef_ that get their intercept only: which, the intercepts and the sums of weights, ``(k,)``."""

    rows: NDArray[np.bool_]
    intercepts: Floats
    totals: Floats


class TaskEstimator(RegressorMixin, BaseEstimator, ABC):
    """Linear models of several tasks with coefficients ``coef_`` ``(T, d)`` (abstract).

    Subclasses have the parameters ``loss``, ``task_weighting`` and ``fit_intercept``.

    A task with an intercept of its own whose targets are all the same (a single labelled row, a
    constant, one class) says nothing about its coefficients: it gets its intercept only, with a
    UserWarning, and takes no part in the fit of the others. The intercept is the constant, or, of one
    class, the log-odds with half a count added to both classes. Methods with intercepts that tasks
    share keep such tasks: :meth:`_lends`.
    """

    loss: Any
    task_weighting: Any
    fit_intercept: bool
    epsilon: float = 1.35
    takes_sparse: ClassVar[bool] = False
    takes_multinomial: ClassVar[bool] = False
    _idle: _Idle | None = None
    _outputs: Outputs | None = None
    _task_column: str | None = None
    _thresholds: Floats | None = None

    def fit(self, X: Any, y: Any, tasks: Any = None, sample_weight: Any = None) -> TaskEstimator:
        """Fit the model.

        Parameters
        ----------
        X
            Inputs, ``(n_samples, n_features)``, finite: an array or a frame of float64 or float32, or, where
            the method can, a sparse CSR or CSC matrix, which is never made dense.
        y
            Targets: ``(n_samples, n_tasks)`` with NaN where a label is missing, or ``(n_samples,)``.
            Tasks with logistic loss have targets 0 and 1, those with multinomial loss one number per class.
        tasks
            Task label of each row, ``(n_samples,)``, with ``y`` of shape ``(n_samples,)``, or the name of
            the column of the frame ``X`` that holds them (it is no input then, and ``predict`` and
            ``score`` find it again in their ``X``); None means that the columns of ``y`` are the tasks.
        sample_weight
            Weight of each row ``(n_samples,)``, or of each cell of ``y``; 0 leaves it out, and 2 is the
            same as having it twice.

        Returns
        -------
        self
        """
        X, layout = self._begin(X, y, tasks, sample_weight)
        self._warn_of_idle_tasks()
        self._fit(X, layout)
        self._set_idle_tasks()
        return self

    def fit_moments(self, moments: Moments) -> TaskEstimator:
        """Fit a model with squared loss to the statistics of the data, as :meth:`fit` does to the data.

        Parameters
        ----------
        moments
            Statistics of the tasks ``moments.names``, which may be gathered over data of any size, saved,
            added up and taken away from each other.

        Returns
        -------
        self
        """
        X, layout = self._begin_labelled_moments(moments)
        self._warn_of_idle_tasks()
        self._fit(X, layout)
        self._set_idle_tasks()
        return self

    def _begin_labelled_moments(self, moments: Moments) -> tuple[Floats, Layout]:
        self._check_common()
        found = self._begin_moments(moments, moments.constant())
        if (moments.n <= 0).any():
            missing = moments.names[moments.n <= 0].tolist()[0]
            raise InputError(f"task {missing!r} has no rows in moments; leave the task out")
        return found

    def _begin_moments(self, moments: Moments, constant: NDArray[np.bool_]) -> tuple[Floats, Layout]:
        """Return inputs without rows and the layout of moments; ``constant`` as of :class:`Layout`."""
        names = moments.names
        for name, kind in zip(names.tolist(), losses_of(self.loss, names), strict=True):
            if kind != "squared":
                raise InputError(
                    f"task {name!r} has {kind} loss, which needs the rows; moments are enough for squared loss only"
                )
        self.n_features_in_ = moments.n_features
        if hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        self.tasks_, self._form, self._task_column = names, moments.form, None
        self.logistic_ = np.zeros(len(names), dtype=np.bool_)
        self._outputs = self._thresholds = None
        self.classes_: dict[Any, Floats] = {}
        layout = Layout(MomentsOnly(moments), names, np.rint(moments.n).astype(np.int64), moments.form, constant)
        self._idle = self._find_idle_tasks(layout)
        if self._idle is not None:
            layout = replace(layout, blocks=MomentsOnly(moments.without(self._idle.rows)))
        return np.empty((0, moments.n_features)), layout

    @abstractmethod
    def _fit(self, X: Any, layout: Layout) -> None:
        """Set coef_, intercept_ and what the method adds."""

    def _lends(self) -> bool:
        """Whether a task whose targets are all the same gets a model from the others, not just an intercept."""
        return False

    def _begin(self, X: Any, y: Any, tasks: Any, sample_weight: Any) -> tuple[Any, Layout]:
        self._check_common()
        X, layout = self._read(X, y, tasks, sample_weight, reset=True)
        self._task_column = tasks if isinstance(tasks, str) else None
        return X, self._take(layout)

    def _take(self, layout: Layout) -> Layout:
        """Take the tasks of a layout as those of the model; return it with a row for each class, without idle tasks."""
        self.tasks_ = layout.names
        self._form = layout.form
        kinds = losses_of(self.loss, layout.names)
        self.logistic_ = np.array([kind == "logistic" for kind in kinds])
        if self.logistic_.any() and not (isinstance(layout.blocks, Stack) and layout.blocks.binary()):
            for block in layout.blocks:
                self._check_classes(block)
        self._outputs = None
        self._thresholds = self._huber_thresholds(layout, kinds) if "huber" in kinds else None
        self.classes_ = {}
        if "multinomial" in kinds:
            layout = self._expand(layout, kinds)
        self._idle = self._find_idle_tasks(layout)
        return layout if self._idle is None else layout.without(self._idle.rows)

    @property
    def outputs_(self) -> NDArray[Any]:
        """Name of each row of ``coef_``: the tasks, or ``task=class`` for the classes of a multinomial task."""
        return self.tasks_ if self._outputs is None else self._outputs.names

    def _huber_thresholds(self, layout: Layout, kinds: Sequence[str]) -> Floats:
        """Return epsilon times the scale of each task's targets, inf for tasks with another loss."""
        if "epsilon" not in self.get_params():
            raise InputError(f'{type(self).__name__} has no loss="huber"; use "squared", or a method that has it')
        epsilon = positive("epsilon", self.epsilon, "where Huber's loss turns linear, in units of the target's scale")
        found = np.full(len(kinds), np.inf)
        for block in layout.blocks:
            for column, output in zip(block.Y.T, block.outputs.tolist(), strict=True):
                if kinds[output] == "huber":
                    found[output] = epsilon * robust_scale(column, block.weights)
        return found

    def _expand(self, layout: Layout, kinds: Sequence[str]) -> Layout:
        """Give every class of the multinomial tasks a row of coef_."""
        if not self.takes_multinomial:
            raise InputError(
                f'{type(self).__name__} has no loss="multinomial"; use BlockSparse or TraceNorm, '
                "or one logistic task per class"
            )
        layout, self._outputs = expand(layout, [kind == "multinomial" for kind in kinds])
        names = self.tasks_.tolist()
        self.classes_ = {names[task]: classes for task, classes in self._outputs.classes.items()}
        self.logistic_ = self.logistic_[self._outputs.task]
        if self._thresholds is not None:
            self._thresholds = self._thresholds[self._outputs.task]
        return layout

    def _check_common(self) -> None:
        """Check the parameters that most methods have."""
        if hasattr(self, "tol"):
            not_negative("tol", self.tol, "the precision at which the solver stops")
        if hasattr(self, "max_iter"):
            count("max_iter", self.max_iter, "the largest number of steps")
        for name in ("fit_intercept", "warm_start"):
            if hasattr(self, name):
                yes_or_no(name, getattr(self, name))

    def _find_idle_tasks(self, layout: Layout) -> _Idle | None:
        idle = layout.constant  # of a multinomial task with one class, its only row
        if not idle.any() or not self.fit_intercept:
            return None
        if self._lends() and not self._one_class_in_all(layout):
            return None
        if isinstance(layout.blocks, MomentsOnly):
            moments = layout.blocks.moments
            return _Idle(idle, moments.mean_y[idle], moments.n[idle])
        intercepts, totals = np.zeros(len(idle)), np.zeros(len(idle))
        for block in layout.blocks:
            out = block.outputs
            constant = block.Y[0]
            counts = block.total * constant
            odds = np.log((np.abs(counts) + 0.5) / (np.abs(block.total - counts) + 0.5))
            intercepts[out] = np.where(self.logistic_[out], odds, constant)
            totals[out] = block.total
        return _Idle(idle, intercepts[idle], totals[idle])

    def _one_class_in_all(self, layout: Layout) -> bool:
        """Whether all tasks are logistic and all their labels are the same, so that no shared intercept is finite."""
        if not (self.logistic_.all() and layout.constant.all()):
            return False
        return len({float(value) for block in layout.blocks for value in block.Y[0]}) == 1

    def _warn_of_idle_tasks(self) -> None:
        if self._idle is None:
            return
        names = self.outputs_[self._idle.rows].tolist()
        shown = ", ".join(repr(name) for name in names[:_MOST_NAMES])
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        warnings.warn(
            f"{type(self).__name__}: all labelled rows of task {shown}{more} have the same target (or there is one "
            "row only), which says nothing about the coefficients; such a task gets its intercept only",
            UserWarning,
            stacklevel=3,
        )

    def _set_idle_tasks(self) -> None:
        if self._idle is not None:
            self.coef_[self._idle.rows] = 0.0
            self.intercept_[self._idle.rows] = self._idle.intercepts

    def _inputs(self, X: Any, *, reset: bool) -> Any:
        """Return checked inputs: a float64 or float32 array, or a CSR array."""
        if _plain(X) and X.ndim == 2 and min(X.shape) > 0:
            return validate_data(self, X, reset=reset, skip_check_array=True)
        try:
            X = validate_data(
                self,
                X,
                accept_sparse="csr" if self.takes_sparse else False,
                dtype=(np.float64, np.float32),
                reset=reset,
                ensure_min_samples=1,
            )
        except ValueError as error:
            if not str(error).startswith("could not convert string to float"):
                raise
            raise InputError(
                f"X has text in it ({error}); encode it as numbers, or name the column of task labels with tasks=…"
            ) from error
        return csr_array(X) if is_sparse(X) else X

    def _tasks_of(self, X: Any, tasks: Any) -> tuple[Any, Any]:
        """Return inputs and task labels for a fitted model, whose task labels may be a column of ``X``."""
        if tasks is None and self._task_column is not None:
            if self._task_column not in list(getattr(X, "columns", ())):
                raise InputError(
                    f"the model was fitted with the task labels in column {self._task_column!r}, which X lacks; "
                    "pass a frame with that column, or the label of each row as tasks"
                )
            tasks = self._task_column
        elif not isinstance(tasks, str) and self._task_column in list(getattr(X, "columns", ())):
            return split_tasks(X, self._task_column)[0], tasks
        return split_tasks(X, tasks)

    def _read(self, X: Any, y: Any, tasks: Any, sample_weight: Any, *, reset: bool) -> tuple[Any, Layout]:
        X, target, tasks = self._arrays(X, y, tasks, reset=reset)
        return X, read(self._block_inputs(X), target, tasks, sample_weight)

    def _arrays(self, X: Any, y: Any, tasks: Any, *, reset: bool) -> tuple[Any, Floats, Any]:
        """Return checked inputs and targets, and the task labels."""
        X, tasks = split_tasks(X, tasks) if reset else self._tasks_of(X, tasks)
        X = self._inputs(X, reset=reset)
        if y is None:
            raise InputError("requires y to be passed, but the target y is None")
        try:
            target = y
            if not (_plain(y) and y.ndim == 1 and len(y) > 0 and y.dtype == np.float64):
                target = check_array(
                    y, dtype=np.float64, ensure_2d=False, ensure_all_finite="allow-nan", input_name="y"
                )
        except ValueError as error:
            if not str(error).startswith("could not convert string to float"):
                raise
            raise InputError(f"y has text in it ({error}); code it as numbers, two classes as 0 and 1") from error
        if target.ndim not in (1, 2):
            raise InputError(f"y has shape {target.shape}; give (n_samples,) or (n_samples, n_tasks)")
        if len(target) != X.shape[0]:
            raise InputError(f"X has {X.shape[0]} rows but y has {len(target)}; give one row of y per row of X")
        return X, target, tasks

    def _block_inputs(self, X: Any) -> Any:
        """Return what the blocks hold of each row; the inputs, unless a method wants something else."""
        return X

    def _losses(self, blocks: Sequence[Block], n_tasks: int, n_features: int, *, fit_intercept: bool) -> TaskLosses:
        totals = np.zeros(n_tasks)
        if self._idle is not None:
            totals[self._idle.rows] = self._idle.totals
        totals_of(blocks, totals)
        outputs = self._outputs
        if outputs is None:
            weights = weights_of(self.task_weighting, totals)
        else:
            weights = weights_of(self.task_weighting, totals[outputs.first])[outputs.task]
        return TaskLosses(
            blocks,
            logistic=self.logistic_,
            weights=weights,
            n_features=n_features,
            fit_intercept=fit_intercept,
            delta=self._thresholds,
            classes=() if outputs is None else outputs.groups(),
        )

    def _check_classes(self, block: Block) -> None:
        for column, output in zip(block.Y.T, block.outputs, strict=True):
            if not self.logistic_[output]:
                continue
            name = self.tasks_[output : output + 1].tolist()[0]
            if not np.isin(column, (0.0, 1.0)).all():
                raise InputError(f"task {name!r} has logistic loss and needs targets 0 and 1; code its classes so")

    def task_scores(self, X: Any, tasks: Any = None) -> Floats:
        """Return x^T w_t + b_t: ``(n_samples,)`` for one task or with ``tasks``, else ``(n_samples, n_tasks)``.

        With multinomial tasks there is one score for each row of ``coef_``, ``(n_samples, n_outputs)``; with
        ``tasks`` they have none and are refused.
        """
        check_is_fitted(self)
        X, tasks = self._tasks_of(X, tasks)
        X = self._inputs(X, reset=False)
        if tasks is not None:
            if self._form == "columns":
                raise InputError("the model was fitted on columns of y; call predict without tasks for all columns")
            number, coef, intercept, _ = self._places(tasks, X.shape[0])
            if self._outputs is not None:
                if self._outputs.multinomial[number].any():
                    raise InputError("a multinomial task has a score for each class; use class_probabilities")
                number = self._outputs.first[number]
            return _rowwise(X, coef, number) + intercept[number]
        scores = np.asarray(X @ self.coef_.T + self.intercept_)
        return scores[:, 0] if self._form == "single" and self._outputs is None else scores

    def _unseen(self) -> tuple[Floats, float, bool] | None:
        """Return coefficients, intercept and whether the loss is logistic for tasks not in the fit; None: refuse."""
        return None

    def _places(self, tasks: Any, n: int) -> tuple[Ints, Floats, Floats, NDArray[np.bool_]]:
        """Return the number of each label in the coefficients, intercepts and kinds that are returned with it."""
        unseen = self._unseen()
        number = task_numbers(tasks, self.tasks_, n, unseen=unseen is not None)
        if unseen is None or not (number < 0).any():
            return number, self.coef_, self.intercept_, self.logistic_
        coef, intercept, logistic = unseen
        return (
            number,
            np.concatenate([self.coef_, coef[None]]),
            np.append(self.intercept_, intercept),
            np.append(self.logistic_, logistic),
        )

    def _logistic_of(self, X: Any, tasks: Any, n: int) -> NDArray[np.bool_]:
        """Return which scores are of tasks with logistic loss, shaped to go with them."""
        tasks = self._tasks_of(X, tasks)[1]
        if tasks is None:
            return np.asarray(self.logistic_[0] if self._form == "single" else self.logistic_)
        if not self.logistic_.any():
            return np.zeros(n, dtype=np.bool_)
        number, _, _, logistic = self._places(tasks, n)
        return np.asarray(logistic[number])

    def predict(self, X: Any, tasks: Any = None) -> Floats:
        """Return the prediction: a number, class 0 or 1 for logistic loss, the class for multinomial loss.

        ``(n_samples,)`` for one task or with ``tasks``, else ``(n_samples, n_tasks)``.
        """
        if self._outputs is not None:
            return self._predict_classes(X, tasks)
        scores = self.task_scores(X, tasks)
        return np.asarray(np.where(self._logistic_of(X, tasks, len(scores)), scores > 0, scores), dtype=np.float64)

    def _predict_classes(self, X: Any, tasks: Any) -> Floats:
        """Predict with a model some of whose tasks are multinomial."""
        check_is_fitted(self)
        assert self._outputs is not None
        X, tasks = self._tasks_of(X, tasks)
        X = self._inputs(X, reset=False)
        decided = self._outputs.decide(np.asarray(X @ self.coef_.T + self.intercept_), self.logistic_)
        if tasks is None:
            return decided[:, 0] if self._form == "single" else decided
        if self._form == "columns":
            raise InputError("the model was fitted on columns of y; call predict without tasks for all columns")
        return np.asarray(decided[np.arange(len(decided)), task_numbers(tasks, self.tasks_, len(decided))])

    def class_probabilities(self, X: Any, task: Any = None) -> Floats:
        """Return P(y = class) of one multinomial task, ``(n_samples, n_classes)``, in the order of ``classes_[task]``.

        ``task`` may be left out where the model has one task.
        """
        check_is_fitted(self)
        if task is None and len(self.tasks_) == 1:
            task = self.tasks_[0]
        number = int(task_numbers(np.array([task]), self.tasks_, 1)[0])
        if self._outputs is None or not self._outputs.multinomial[number]:
            raise InputError(f"task {task!r} is not multinomial; use predict_probability for logistic loss")
        if self._task_column in list(getattr(X, "columns", ())):
            X = split_tasks(X, self._task_column)[0]
        X = self._inputs(X, reset=False)
        rows = self._outputs.rows(number)
        return np.asarray(softmax(X @ self.coef_[rows].T + self.intercept_[rows], axis=1))

    def predict_probability(self, X: Any, tasks: Any = None) -> Floats:
        """Return P(y = 1) of tasks with logistic loss, NaN for the others; shapes as of ``task_scores``."""
        scores = self.task_scores(X, tasks)
        return np.asarray(np.where(self._logistic_of(X, tasks, len(scores)), expit(scores), np.nan))

    def score(self, X: Any, y: Any, sample_weight: Any = None, tasks: Any = None) -> float:
        """Return the mean over tasks of R² (squared loss) or accuracy (logistic loss) on the labelled cells."""
        check_is_fitted(self)
        X, layout = self._read(X, y, tasks, sample_weight, reset=False)
        if self._outputs is not None:
            return self._score_classes(layout)
        place, coef, intercept, logistic = np.arange(len(layout.names)), self.coef_, self.intercept_, self.logistic_
        if layout.form == "stacked":
            place, coef, intercept, logistic = self._places(layout.names, len(layout.names))
        elif len(place) != len(self.tasks_):
            raise InputError(
                f"y has {len(place)} columns but the model has {len(self.tasks_)} tasks; where each row belongs to one "
                "task, pass tasks too (in cross-validation: sklearn.set_config(enable_metadata_routing=True) and "
                "set_fit_request(tasks=True).set_score_request(tasks=True) on the estimator)"
            )
        scores = np.empty(len(place))
        for block in layout.blocks:
            known = place[block.outputs]
            margin = block.X @ coef[known].T + intercept[known]
            right = block.weights @ ((margin > 0) == (block.Y > 0.5)) / block.total
            scores[block.outputs] = np.where(logistic[known], right, _explained(margin, block))
        return float(scores.mean())

    def _score_classes(self, layout: Layout) -> float:
        """Score a model some of whose tasks are multinomial."""
        assert self._outputs is not None
        number = np.arange(len(layout.names))
        if layout.form == "stacked":
            number = task_numbers(layout.names, self.tasks_, len(number))
        elif len(number) != len(self.tasks_):
            raise InputError(f"y has {len(number)} columns but the model has {len(self.tasks_)} tasks")
        scores = np.empty(len(number))
        for block in layout.blocks:
            known = number[block.outputs]
            margin = np.asarray(block.X @ self.coef_.T + self.intercept_)
            decided = self._outputs.decide(margin, self.logistic_)[:, known]
            a = block.weights
            with_classes = self._outputs.multinomial[known] | self.logistic_[self._outputs.first[known]]
            right = a @ (decided == block.Y) / block.total
            scores[block.outputs] = np.where(with_classes, right, _explained(decided, block))
        return float(scores.mean())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.input_tags.sparse = self.takes_sparse
        return tags


def _plain(array: Any) -> bool:
    """Return whether this is an array of finite float64 or float32 numbers, of which nothing else is to be checked."""
    if type(array) is not np.ndarray or array.dtype not in (np.float64, np.float32):
        return False
    return bool(np.isfinite(array).all())


def _explained(predicted: Floats, block: Block) -> Floats:
    """Return R² of each column; of a constant target 1 where it is predicted exactly and else 0."""
    a = block.weights
    rest = a @ np.square(block.Y - predicted)
    spread = a @ np.square(block.Y - a @ block.Y / block.total)
    constant = np.where(rest > 0, 0.0, 1.0)
    return np.asarray(np.where(spread > 0, 1.0 - rest / np.where(spread > 0, spread, 1.0), constant))


def _rowwise(X: Any, coef: Floats, number: Ints) -> Floats:
    """Return x_i^T w_number(i), ``(n,)``, for tasks in turn."""
    found = np.empty(len(number))
    order = np.argsort(number, kind="stable")
    starts = np.flatnonzero(np.diff(number[order], prepend=np.iinfo(np.int64).min))
    for rows in np.split(order, starts[1:]):
        if len(rows):
            found[rows] = X[rows] @ coef[number[rows[0]]]
    return found


def warn_unconverged(method: str, reached: float, wanted: float, what: str, limit: int) -> None:
    """Warn that the solver stopped at its limit."""
    warnings.warn(
        f"{method} stopped after max_iter={limit} with {what} {reached:.2e}, above the wanted {wanted:.2e}; "
        "increase max_iter or tol, or standardise the columns of X",
        ConvergenceWarning,
        stacklevel=4,
    )
