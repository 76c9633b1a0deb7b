"""Metrics of one task on its test rows, and scores over all regression tasks together.

What cannot be measured (one class only, a constant target, fewer than two rows) is left out with a
reason; no metric is ever NaN. scikit-learn is imported inside the functions that use it.

Over-all scores of regression tasks, with SSE the sum of squared errors over all test rows of all tasks:

    explained_variance_global   = 100 (1 - SSE / sum_i (y_i - ybar)^2)          ybar: mean of all tasks' test rows
    explained_variance_per_task = 100 (1 - SSE / sum_t sum_i (y_ti - ybar_t)^2)
    mean_task_rmse              = mean_t sqrt(MSE_t)
    arrmse                      = mean_t sqrt(SSE_t / sum_i (y_ti - train mean of t)^2)

The first assumes that all targets share a unit, so it is given in the long form only.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from polytask.core.data import TaskData
from polytask.core.metrics import METRICS
from polytask.core.task import Floats, Regression, Task

Scored = tuple[dict[str, float], dict[str, str]]


def score_task(task: Task, scores: Floats, targets: Floats) -> Scored:
    """Return (metric → value, metric → why it is left out) for one task.

    Parameters
    ----------
    scores
        Of the labelled test rows, ``(m, n_outputs)``.
    targets
        Of the same rows, ``(m,)``.
    """
    values: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for name in task.metrics:
        reason = _why_not(task, targets)
        if reason is None:
            value = _measure(name, task, scores, targets)
            if np.isfinite(value):
                values[name] = value
            else:
                reason = f"{METRICS[name].label} is not a finite number on these rows"
        if reason is not None:
            reasons[name] = reason
    return values, reasons


def _why_not(task: Task, targets: Floats) -> str | None:
    if len(targets) < 2:
        return f"{len(targets)} labelled test row{'' if len(targets) == 1 else 's'}; at least 2 are needed"
    if isinstance(task, Regression):
        if _constant(targets):
            return "the target is constant in the test rows"
    elif len(np.unique(targets)) < 2:
        return "the test rows have one class only"
    return None


def _constant(values: Floats) -> bool:
    return bool(np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())))


def _measure(name: str, task: Task, scores: Floats, targets: Floats) -> float:
    from sklearn import metrics

    codes = np.arange(max(2, len(task.labels)))
    match name:
        case "rmse":
            return float(metrics.root_mean_squared_error(targets, task.decide(scores)))
        case "r2":
            return float(metrics.r2_score(targets, task.decide(scores)))
        case "explained_variance":
            return float(metrics.explained_variance_score(targets, task.decide(scores)))
        case "log_loss":
            return float(metrics.log_loss(targets, _normalised(task.probabilities(scores)), labels=codes))
        case "auc":
            return float(metrics.roc_auc_score(targets, scores[:, 0]))
        case "accuracy":
            return float(metrics.accuracy_score(targets, task.decide(scores)))
        case "f1":
            average = "binary" if task.kind == "binary" else "macro"
            present = None if task.kind == "binary" else np.unique(targets)
            decided = task.decide(scores)
            return float(metrics.f1_score(targets, decided, average=average, labels=present, zero_division=0.0))
        case "ordinal_mae":
            return float(metrics.mean_absolute_error(targets, task.decide(scores)))
        case "quadratic_kappa":
            decided = task.decide(scores)
            if len(np.unique(np.concatenate([targets, decided]))) < 2:
                return float("nan")
            return float(metrics.cohen_kappa_score(targets, decided, weights="quadratic", labels=codes))
    raise AssertionError(f"metric {name} has no computation")


def _normalised(probabilities: Floats) -> Floats:
    """Clip and renormalise, so that a certain but wrong prediction costs a large finite log-loss."""
    clipped = np.clip(probabilities, 1e-15, 1.0)
    return np.asarray(clipped / clipped.sum(axis=1, keepdims=True))


def influences(task: Task, scores: Floats, targets: Floats) -> Floats:
    """Return the influence of each test row on the primary metric, ``(m,)``, with mean 0.

    For a metric M of the empirical distribution of the test rows, u_i = dM when row i gains weight, so
    that M is about its true value plus the mean of u over rows. Then sum_i u_i² / m² estimates the
    variance of M over test rows.

    Parameters
    ----------
    scores, targets
        As in :func:`score_task`, on rows on which the primary metric can be measured.
    """
    name = task.metric
    if task.kind == "regression":
        return _regression_influences(name, targets, task.decide(scores))
    if name == "auc":
        return _auc_influences(scores[:, 0], targets)
    if name == "log_loss":
        probabilities = _normalised(task.probabilities(scores))
        return _centred(-np.log(probabilities[np.arange(len(targets)), targets.astype(np.int64)]))
    decided = task.decide(scores)
    match name:
        case "accuracy":
            return _centred((decided == targets).astype(np.float64))
        case "ordinal_mae":
            return _centred(np.abs(decided - targets))
        case "f1":
            classes = [1.0] if task.kind == "binary" else np.unique(targets).tolist()
            return np.asarray(np.mean([_f1_influences(targets == k, decided == k) for k in classes], axis=0))
        case "quadratic_kappa":
            return _kappa_influences(targets, decided)
    raise AssertionError(f"metric {name} has no influences")


def _centred(values: Floats) -> Floats:
    return np.asarray(values - values.mean())


def _regression_influences(name: str, targets: Floats, predicted: Floats) -> Floats:
    errors = predicted - targets
    squares = np.square(errors)
    if name == "rmse":
        root = np.sqrt(squares.mean())
        return _centred(squares) / (2.0 * root) if root > 0.0 else np.zeros(len(targets))
    top = squares if name == "r2" else np.square(_centred(errors))
    bottom = np.square(_centred(targets))
    return np.asarray(-_centred(top - top.mean() / bottom.mean() * bottom) / bottom.mean())


def _auc_influences(scores: Floats, targets: Floats) -> Floats:
    """Each row's placement: the share of the other class it is ranked rightly against."""
    second = targets == 1.0
    low, high = np.sort(scores[~second]), np.sort(scores[second])
    found = np.empty(len(targets))
    for mine, others, rows in ((scores[second], low, second), (scores[~second], high, ~second)):
        below = np.searchsorted(others, mine, side="left") + np.searchsorted(others, mine, side="right")
        share = below / (2.0 * len(others))
        right = share if others is low else 1.0 - share
        found[rows] = _centred(right) / rows.mean()
    return found


def _f1_influences(is_class: NDArray[np.bool_], decided: NDArray[np.bool_]) -> Floats:
    top = 2.0 * (is_class & decided)
    bottom = is_class.astype(np.float64) + decided
    if bottom.sum() == 0.0:
        return np.zeros(len(top))
    return np.asarray((top - top.mean() / bottom.mean() * bottom) / bottom.mean())


def _kappa_influences(targets: Floats, decided: Floats) -> Floats:
    """Kappa = 1 - O / E: O the mean squared distance of the pairs, E that of independent pairs."""
    observed = np.square(targets - decided)
    from_targets = np.square(targets - decided.mean()) + decided.var()
    from_decided = np.square(decided - targets.mean()) + targets.var()
    expected = from_targets + from_decided
    bottom = expected.mean() / 2.0
    return np.asarray((observed.mean() / bottom * _centred(expected) - _centred(observed)) / bottom)


def score_overall(
    data: TaskData, scores: Mapping[str, Floats], train_means: Mapping[str, float], *, long_form: bool
) -> dict[str, float]:
    """Return the scores over all tasks together; empty unless every task is a regression.

    Parameters
    ----------
    data
        Test rows.
    scores
        Task → scores of all rows of ``data``, ``(n, 1)``.
    train_means
        Task → mean target of its training rows, for aRRMSE.
    long_form
        Whether each row carries one task, so that targets share a unit.
    """
    if not all(isinstance(task, Regression) for task in data.tasks):
        return {}
    targets, errors, around_own, around_train, task_mses = [], 0.0, 0.0, [], []
    for task in data.tasks:
        labels = data.labels[task.name]
        if task.name not in scores or not len(labels):
            continue
        squares = np.square(task.decide(scores[task.name][labels.rows]) - labels.values)
        targets.append(labels.values)
        errors += float(squares.sum())
        around_own += float(np.square(labels.values - labels.values.mean()).sum())
        task_mses.append(float(squares.mean()))
        base = float(np.square(labels.values - train_means[task.name]).mean())
        if base > 0.0:
            around_train.append(np.sqrt(squares.mean() / base))
    found: dict[str, float] = {}
    if not targets:
        return found
    every = np.concatenate(targets)
    if long_form and not _constant(every):
        found["explained_variance_global"] = 100.0 * (1.0 - errors / float(np.square(every - every.mean()).sum()))
    if around_own > 0.0:
        found["explained_variance_per_task"] = 100.0 * (1.0 - errors / around_own)
    found["mean_task_rmse"] = float(np.sqrt(task_mses).mean())
    if around_train:
        found["arrmse"] = float(np.mean(around_train))
    return {name: value for name, value in found.items() if np.isfinite(value)}
