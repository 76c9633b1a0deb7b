"""What the scikit-learn estimators of this room share: reading X, y and tasks, and predicting."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from polytask.core.errors import InputError
from polytask.core.task import Floats
from polytask.linear.layout import Layout, is_logistic, read, task_numbers, weights_of
from polytask.linear.moments import Block
from polytask.linear.solvers.losses import TaskLosses


class TaskEstimator(RegressorMixin, BaseEstimator, ABC):
    """Linear models of several tasks with coefficients ``coef_`` ``(T, d)`` (abstract).

    Subclasses have the parameters ``loss``, ``task_weights`` and ``fit_intercept``.
    """

    loss: Any
    task_weights: Any
    fit_intercept: bool

    def fit(self, X: Any, y: Any, tasks: Any = None, sample_weight: Any = None) -> TaskEstimator:
        """Fit the model.

        Parameters
        ----------
        X
            Inputs, ``(n_samples, n_features)``, finite.
        y
            Targets: ``(n_samples, n_tasks)`` with NaN where a label is missing, or ``(n_samples,)``.
            Tasks with logistic loss have targets 0 and 1.
        tasks
            Task label of each row, ``(n_samples,)``, with ``y`` of shape ``(n_samples,)``; None means
            that the columns of ``y`` are the tasks.
        sample_weight
            Weight of each row ``(n_samples,)``, or of each cell of ``y``; 0 leaves it out.

        Returns
        -------
        self
        """
        X, layout = self._begin(X, y, tasks, sample_weight)
        self._fit(X, layout)
        return self

    @abstractmethod
    def _fit(self, X: Floats, layout: Layout) -> None:
        """Set coef_, intercept_ and what the method adds."""

    def _begin(self, X: Any, y: Any, tasks: Any, sample_weight: Any) -> tuple[Floats, Layout]:
        X, layout = self._read(X, y, tasks, sample_weight, reset=True)
        self.tasks_ = layout.names
        self._form = layout.form
        self.logistic_ = is_logistic(self.loss, layout.names)
        return X, layout

    def _read(self, X: Any, y: Any, tasks: Any, sample_weight: Any, *, reset: bool) -> tuple[Floats, Layout]:
        X = validate_data(self, X, dtype=np.float64, reset=reset, ensure_min_samples=1)
        if y is None:
            raise InputError("requires y to be passed, but the target y is None")
        target = check_array(y, dtype=np.float64, ensure_2d=False, ensure_all_finite="allow-nan", input_name="y")
        if target.ndim not in (1, 2):
            raise InputError(f"y has shape {target.shape}; give (n_samples,) or (n_samples, n_tasks)")
        if len(target) != len(X):
            raise InputError(f"X has {len(X)} rows but y has {len(target)}; give one row of y per row of X")
        return X, read(X, target, tasks, sample_weight)

    def _losses(self, blocks: list[Block], n_tasks: int, n_features: int, *, fit_intercept: bool) -> TaskLosses:
        totals = np.zeros(n_tasks)
        classes = bool(self.logistic_.any())
        for block in blocks:
            totals[block.outputs] = block.total
            if classes:
                self._check_classes(block, need_both=fit_intercept)
        return TaskLosses(
            blocks,
            logistic=self.logistic_,
            weights=weights_of(self.task_weights, totals),
            n_features=n_features,
            fit_intercept=fit_intercept,
        )

    def _check_classes(self, block: Block, *, need_both: bool) -> None:
        for column, output in zip(block.Y.T, block.outputs, strict=True):
            if not self.logistic_[output]:
                continue
            name = self.tasks_[output : output + 1].tolist()[0]
            if not np.isin(column, (0.0, 1.0)).all():
                raise InputError(f"task {name!r} has logistic loss and needs targets 0 and 1; code its classes so")
            if need_both and column.min() == column.max():
                raise InputError(f"task {name!r} has logistic loss but labels of one class only; leave the task out")

    def task_scores(self, X: Any, tasks: Any = None) -> Floats:
        """Return x^T w_t + b_t: ``(n_samples,)`` for one task or with ``tasks``, else ``(n_samples, n_tasks)``."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        if tasks is not None:
            if self._form == "columns":
                raise InputError("the model was fitted on columns of y; call predict without tasks for all columns")
            number = task_numbers(tasks, self.tasks_, len(X))
            return np.asarray(np.einsum("nd,nd->n", X, self.coef_[number]) + self.intercept_[number])
        scores = X @ self.coef_.T + self.intercept_
        return np.asarray(scores[:, 0] if self._form == "single" else scores)

    def _logistic_of(self, X: Any, tasks: Any) -> NDArray[np.bool_]:
        if tasks is not None:
            return np.asarray(self.logistic_[task_numbers(tasks, self.tasks_, len(X))])
        return np.asarray(self.logistic_[0] if self._form == "single" else self.logistic_)

    def predict(self, X: Any, tasks: Any = None) -> Floats:
        """Return the prediction: a number for squared loss, class 0 or 1 for logistic loss.

        Shapes as of :meth:`task_scores`.
        """
        scores = self.task_scores(X, tasks)
        return np.asarray(np.where(self._logistic_of(X, tasks), scores > 0, scores), dtype=np.float64)

    def predict_probability(self, X: Any, tasks: Any = None) -> Floats:
        """Return P(y = 1) of tasks with logistic loss, NaN for the others; shapes as of ``task_scores``."""
        scores = self.task_scores(X, tasks)
        return np.asarray(np.where(self._logistic_of(X, tasks), expit(scores), np.nan))

    def score(self, X: Any, y: Any, sample_weight: Any = None, tasks: Any = None) -> float:
        """Return the mean over tasks of R² (squared loss) or accuracy (logistic loss) on the labelled cells."""
        check_is_fitted(self)
        X, layout = self._read(X, y, tasks, sample_weight, reset=False)
        place = np.arange(len(layout.names))
        if tasks is not None:
            place = task_numbers(layout.names, self.tasks_, len(layout.names))
        elif len(place) != len(self.tasks_):
            raise InputError(f"y has {len(place)} columns but the model has {len(self.tasks_)} tasks")
        scores = np.empty(len(place))
        for block in layout.blocks:
            known = place[block.outputs]
            margin = block.X @ self.coef_[known].T + self.intercept_[known]
            a = block.weights
            rest = a @ np.square(block.Y - margin)
            spread = a @ np.square(block.Y - a @ block.Y / block.total)
            fit = np.where(spread > 0, 1.0 - rest / np.where(spread > 0, spread, 1.0), np.where(rest > 0, 0.0, 1.0))
            right = a @ ((margin > 0) == (block.Y > 0.5)) / block.total
            scores[block.outputs] = np.where(self.logistic_[known], right, fit)
        return float(scores.mean())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def warn_unconverged(method: str, reached: float, wanted: float, what: str, limit: int) -> None:
    """Warn that the solver stopped at its limit."""
    warnings.warn(
        f"{method} stopped after max_iter={limit} with {what} {reached:.2e}, above the wanted {wanted:.2e}; "
        "increase max_iter or tol, or standardise the columns of X",
        ConvergenceWarning,
        stacklevel=4,
    )
