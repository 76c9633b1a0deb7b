"""Choose the strength of a penalty by cross-validation within tasks, with warm starts along the path.

    alpha_ = argmin over alphas of the mean over folds of
             sum_t c_t D_t / sum_t c_t,   D_t = 2 mean over the fold's rows of task t of loss_t

D is the squared error for squared loss and the deviance for logistic and multinomial loss; c_t are the
task weights of the model. Every fold has its share of the rows of every task; a task without rows in the
fold, or without any outside it, has no say there.

With squared loss and not too many features rows are read once, into the moments of every fold: those
of a training part are the moments of all rows less those of the fold, and the errors in the fold come
from its moments too. Otherwise the path is solved on the rows of each training part.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.base import clone

from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.core.task import Floats
from polytask.linear.estimator import TaskEstimator
from polytask.linear.folds import Fold, Rows
from polytask.linear.layout import Layout, losses_of, weights_of
from polytask.linear.moments import Moments, MomentsOnly, totals_of
from polytask.linear.paths import Path, PathEstimator, given_levels, level_grid, worth_moments

_TOGETHER = 10  # strengths whose errors are computed together, on the features that any of them uses
_ROUNDING = 1e-14
_UNSEEN_CLASS = -2.0 * float(np.log(np.finfo(np.float64).eps))  # deviance of a class that training rows lack


class CrossValidatedEstimator(TaskEstimator):
    """A model whose ``alpha`` is chosen by cross-validation (abstract)."""

    takes_sparse = True
    takes_multinomial = True

    alphas: Any
    n_alphas: int
    eps: float
    cv: Any
    estimator_: PathEstimator

    @abstractmethod
    def _plain(self) -> PathEstimator:
        """Return the model without a chosen strength, not fitted."""

    def fit(self, X: Any, y: Any, tasks: Any = None, sample_weight: Any = None) -> CrossValidatedEstimator:
        """Choose the strength, and fit the model with it to all rows.

        Parameters
        ----------
        X, y, tasks, sample_weight
            As of :class:`~polytask.linear.block_sparse.BlockSparse`. Rows without a label or a weight above 0
            are in no fold.

        Returns
        -------
        self
        """
        plain = self._plain()
        model = clone(plain)
        model._check_common()
        model._task_column = tasks if isinstance(tasks, str) else None
        weight = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        inputs, target, labels = model._arrays(X, y, tasks, reset=True)
        rows = Rows(inputs, target, labels, weight)
        layout, names = model._take(rows.whole), rows.whole.names
        model._warn_of_idle_tasks()
        folds = rows.folds(self.cv, [kind in ("logistic", "multinomial") for kind in losses_of(model.loss, names)])
        c = weights_of(model.task_weighting, totals_of(rows.whole.blocks, np.zeros(len(names))))
        if model._squared() and worth_moments(rows.whole, rows.X.shape, len(folds) + 2):
            total, parts = rows.moments(folds)
            own = total if model._idle is None else total.without(model._idle.rows)
            layout = replace(layout, blocks=MomentsOnly(own))
            levels = self._levels(model, rows.X, layout)
            errors = [_errors_by_moments(plain, levels, c, total, *part) for part in parts]
        else:
            levels = self._levels(model, rows.X, layout)
            errors = [_errors_by_rows(plain, levels, c, rows, fold) for fold in folds]
        self._choose(model, rows.X, layout, levels, errors)
        return self

    def fit_moments(self, moments: Any) -> CrossValidatedEstimator:
        """Choose the strength and fit a model with squared loss, given the statistics of every fold.

        Parameters
        ----------
        moments
            Two or more :class:`~polytask.linear.moments.Moments`, those of the rows of each fold.

        Returns
        -------
        self
        """
        if isinstance(moments, Moments) or len(moments) < 2:
            raise InputError("moments of all rows have no folds; give a list with the moments of each fold's rows")
        plain = self._plain()
        model = clone(plain)
        total = sum(moments[1:], start=moments[0])
        X, layout = model._begin_labelled_moments(total)
        model._warn_of_idle_tasks()
        c = weights_of(model.task_weighting, total.n)
        levels = self._levels(model, X, layout)
        errors = [
            _errors_by_moments(plain, levels, c, total, total - part, part.among(total.names)) for part in moments
        ]
        self._choose(model, X, layout, levels, errors)
        return self

    def _levels(self, model: PathEstimator, X: Any, layout: Layout) -> Floats:
        if self.alphas is not None:
            return given_levels(self.alphas)
        return level_grid(model._top(X, layout), self.n_alphas, self.eps)

    def _choose(self, model: PathEstimator, X: Any, layout: Layout, levels: Floats, errors: Sequence[Floats]) -> None:
        """Set the results, those of the model fitted with the best strength among them."""
        mse = np.stack(errors, axis=1)
        useful = ~np.isnan(mse[0])
        if not useful.any():
            raise InputError("no task has rows both in a fold and outside it; give folds within tasks")
        alpha = float(levels[np.argmin(mse[:, useful].mean(axis=1))])
        if hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        self.estimator_ = model.set_params(alpha=alpha)
        self._fit(X, layout)
        self.alpha_, self.alphas_, self.mse_path_ = alpha, levels, mse

    def _fit(self, X: Any, layout: Layout) -> None:
        """Fit the model with the strength chosen, and take over what it has learned."""
        model = self.estimator_
        model._fit(X, layout)
        model._set_idle_tasks()
        for name in set(vars(model)) - set(vars(clone(model))):
            setattr(self, name, getattr(model, name))

    @property
    def relations_(self) -> dict[str, Relation]:
        """What the model has learned about the tasks, where it says so."""
        found: dict[str, Relation] = self.estimator_.relations_
        return found

    def _unseen(self) -> tuple[Floats, float, bool] | None:
        return self.estimator_._unseen()


class PathCV(CrossValidatedEstimator):
    """Any estimator with a ``path``, with its ``alpha`` chosen by cross-validation within tasks.

    Parameters
    ----------
    estimator
        The model; its other parameters stay as they are.
    alphas, n_alphas, eps, cv
        As of :class:`~polytask.linear.cross_validated.BlockSparseCV`.

    Attributes
    ----------
    alpha_ : float
        The strength chosen.
    alphas_ : ndarray of shape (n_alphas,)
        Strengths tried, in descending order.
    mse_path_ : ndarray of shape (n_alphas, n_folds)
        Errors; see the module for the formula.
    estimator_ : estimator
        The model fitted with ``alpha_`` to all rows; its attributes are also those of this one.

    Examples
    --------
    >>> import numpy as np
    >>> from polytask.linear import SparseGroup
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(60, 4))
    >>> Y = X[:, :1] @ [[1.0, 2.0]] + 0.1 * rng.normal(size=(60, 2))
    >>> model = PathCV(SparseGroup(l1_ratio=0.2)).fit(X, Y)
    >>> model.coef_.round(1) + 0.0
    array([[1., 0., 0., 0.],
           [2., 0., 0., 0.]])
    """

    def __init__(
        self, estimator: Any, *, alphas: Any = None, n_alphas: int = 100, eps: float = 0.01, cv: Any = None
    ) -> None:
        self.estimator = estimator
        self.alphas = alphas
        self.n_alphas = n_alphas
        self.eps = eps
        self.cv = cv

    def _plain(self) -> PathEstimator:
        if not isinstance(self.estimator, PathEstimator):
            raise InputError(
                f"estimator must have one strength and a path, such as SparseGroup(), got {self.estimator!r}"
            )
        return clone(self.estimator)


# -- errors of a fold ---------------------------------------------------------------------------------


def _errors_by_moments(
    plain: PathEstimator, levels: Floats, c: Floats, total: Moments, train: Moments, test: Moments
) -> Floats:
    """Return the errors ``(m,)`` in a fold, NaN where no task has any, of squared loss."""
    model = clone(plain)
    X, layout = model._begin_moments(train, _constant(train, total))
    path = model._path(X, layout, levels)
    return _mean(_squared_errors(path, test), c, (test.n > 0) & (train.n > 0))


def _errors_by_rows(plain: PathEstimator, levels: Floats, c: Floats, rows: Rows, fold: Fold) -> Floats:
    train, test = (rows.part(part) for part in fold)
    model = clone(plain)
    path = model._path(rows.X, model._take(train), levels)
    return _mean(_deviances(model, path, test), c, (test.n_rows > 0) & (train.n_rows > 0))


def _constant(train: Moments, total: Moments) -> NDArray[np.bool_]:
    """Return which tasks have the same target in all their rows, but for the rounding of a difference."""
    n = np.maximum(total.n, 1e-300)
    spread = np.sqrt(total.yy / n)
    return train.yy <= _ROUNDING * n * spread * (spread + np.abs(total.mean_y))


def _mean(errors: Floats, c: Floats, known: NDArray[np.bool_]) -> Floats:
    """Return the means over the ``known`` tasks of errors ``(m, T)``."""
    if not known.any():
        return np.full(len(errors), np.nan)
    return np.asarray(errors[:, known] @ c[known] / c[known].sum())


def _stretches(path: Path) -> list[slice]:
    return [slice(low, low + _TOGETHER) for low in range(0, len(path.alphas), _TOGETHER)]


def _squared_errors(path: Path, test: Moments) -> Floats:
    """Return the mean squared errors ``(m, T)`` on rows known by their moments; 0 of a task without rows."""
    m, T, _ = path.coefs.shape
    found = np.zeros((m, T))
    for pattern, n in enumerate(test.weight.tolist()):
        tasks = np.flatnonzero(test.pattern == pattern)
        if n <= 0.0:
            continue
        for part in _stretches(path):
            W = path.coefs[part][:, tasks]
            used = np.flatnonzero(W.any(axis=(0, 1)))
            W = W[:, :, used]
            flat = W.reshape(W.shape[0] * W.shape[1], len(used))
            explained = np.einsum("kd,kd->k", flat @ test.gram[pattern][np.ix_(used, used)], flat).reshape(W.shape[:2])
            rest = test.yy[tasks] - 2.0 * np.einsum("mtd,td->mt", W, test.cross[tasks][:, used]) + explained
            shift = test.mean_y[tasks] - W @ test.mean_x[pattern, used] - path.intercepts[part][:, tasks]
            found[part, tasks] = np.maximum(rest, 0.0) / n + np.square(shift)
    return found


def _deviances(model: PathEstimator, path: Path, layout: Layout) -> Floats:
    """Return twice the mean losses ``(m, T)`` of the rows of a layout; 0 of a task without rows."""
    names, outputs = layout.names, model._outputs
    kinds = losses_of(model.loss, names)
    found = np.zeros((len(path.alphas), len(names)))
    for block in layout.blocks:
        for y, task in zip(block.Y.T, block.outputs.tolist(), strict=True):
            places = np.array([task]) if outputs is None else outputs.rows(task)
            classes = None if outputs is None else outputs.classes.get(task)
            delta = np.inf if model._thresholds is None else float(model._thresholds[places[0]])
            for part in _stretches(path):
                W = path.coefs[part][:, places]
                used = np.flatnonzero(W.any(axis=(0, 1)))
                flat = W[:, :, used].reshape(W.shape[0] * W.shape[1], len(used))
                scores = np.asarray(block.X[:, used] @ flat.T).reshape(len(y), *W.shape[:2])
                losses = _losses_of_rows(kinds[task], y, scores + path.intercepts[part][:, places], classes, delta)
                found[part, task] = 2.0 * (block.weights @ losses) / block.total
    return found


def _losses_of_rows(kind: str, y: Floats, scores: Floats, classes: Floats | None, delta: float) -> Floats:
    """Return the losses ``(n, m)`` of targets ``(n,)`` for scores ``(n, m, K)``."""
    if classes is not None:
        place = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
        own = np.take_along_axis(scores, place[:, None, None], axis=2)[:, :, 0]
        return np.where((classes[place] == y)[:, None], logsumexp(scores, axis=2) - own, 0.5 * _UNSEEN_CLASS)
    z = scores[:, :, 0]
    if kind == "logistic":
        return np.asarray(np.logaddexp(0.0, z) - y[:, None] * z)
    residual = y[:, None] - z
    cut = np.clip(residual, -delta, delta)
    return np.asarray(cut * (residual - 0.5 * cut))
