"""Read X, y and tasks of an estimator: one target column per task, or one task label per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytask.core.data import Ints
from polytask.core.errors import InputError, nearest
from polytask.core.task import Floats
from polytask.linear.moments import Block, Column, gather

LOSSES = ("squared", "logistic")


@dataclass(frozen=True)
class Layout:
    """Checked data of a fit.

    Parameters
    ----------
    blocks
        The labelled rows, grouped.
    names
        Task labels in the order of all results: column numbers, or the sorted distinct task labels.
    n_rows
        Number of labelled cells of each task, ``(T,)``.
    form
        ``"single"`` (y of shape (n,), one task), ``"columns"`` (y of shape (n, T)) or ``"stacked"``.
    """

    blocks: list[Block]
    names: NDArray[Any]
    n_rows: Ints
    form: str


def read(X: Floats, y: Floats, tasks: Any, sample_weight: Any) -> Layout:
    """Group the labelled rows of ``X`` ``(n, d)``.

    Parameters
    ----------
    y
        ``(n,)`` or ``(n, T)``; NaN where a label is missing.
    tasks
        None, or the task label of every row ``(n,)`` (then ``y`` is ``(n,)``).
    sample_weight
        None, ``(n,)``, or ``(n, T)`` for ``y`` of that shape. A weight of 0 is like a missing label.
    """
    weight = _weights(sample_weight, y)
    if tasks is None:
        names: NDArray[Any] = np.arange(1 if y.ndim == 1 else y.shape[1])
        matrix = y[:, None] if y.ndim == 1 else y
        columns = []
        for number in range(matrix.shape[1]):
            own = None if weight is None else weight if weight.ndim == 1 else weight[:, number]
            columns.append(_column(np.arange(len(X)), matrix[:, number], own))
        form = "single" if y.ndim == 1 else "columns"
    else:
        if y.ndim != 1:
            raise InputError(
                f"y has shape {y.shape} and tasks is given; pass y of shape (n_samples,) with one task label per row, "
                "or tasks=None with y of shape (n_samples, n_tasks)"
            )
        labels = _task_labels(tasks, len(X))
        names, number_of = np.unique(labels, return_inverse=True)
        order = np.argsort(number_of, kind="stable")
        bounds = np.searchsorted(number_of[order], np.arange(len(names) + 1))
        columns = []
        whole = weight is None and not np.isnan(y).any()
        for start, end in pairwise(bounds.tolist()):
            rows = order[start:end]
            if whole:
                columns.append(Column(rows, y[rows]))
                continue
            columns.append(_column(rows, y[rows], None if weight is None else weight[rows]))
        form = "stacked"
    counts = np.array([len(column.rows) for column in columns])
    if (counts == 0).any():
        bad = names[counts == 0].tolist()[0]
        why = "has no labelled row" if weight is None else "has no labelled row with a sample weight above zero"
        raise InputError(f"task {bad!r} {why}; leave the task out")
    return Layout(gather(X, columns), names, counts, form)


def _column(rows: Ints, values: Floats, weight: Floats | None) -> Column:
    seen = ~np.isnan(values)
    if weight is not None:
        seen &= weight > 0
    chosen = None if weight is None else np.ascontiguousarray(weight[seen])
    return Column(rows[seen], values[seen], chosen)


def _weights(sample_weight: Any, y: Floats) -> Floats | None:
    if sample_weight is None:
        return None
    weight = np.asarray(sample_weight, dtype=np.float64)
    if weight.ndim == 0:
        weight = np.full(len(y), float(weight))
    if weight.shape not in ((len(y),), y.shape):
        raise InputError(f"sample_weight has shape {weight.shape}; give one weight per row ({len(y)},) or per cell")
    if not np.isfinite(weight).all() or (weight < 0).any():
        raise InputError("sample_weight must be finite and not negative; use 0 to leave a row out")
    return weight


def _task_labels(tasks: Any, n: int) -> NDArray[Any]:
    labels = np.asarray(tasks)
    if labels.shape != (n,):
        raise InputError(
            f"tasks has shape {labels.shape} but X has {n} rows; pass one task label per row, "
            "or tasks=None with y of shape (n_samples, n_tasks)"
        )
    if labels.dtype == object:
        labels = labels.astype(str)
    return labels


def task_numbers(tasks: Any, names: NDArray[Any], n: int) -> Ints:
    """Return the number of each row's task, ``(n,)``; a label that was not in the fit is refused."""
    labels = _task_labels(tasks, n)
    place = np.minimum(np.searchsorted(names, labels), len(names) - 1)
    strange = names[place] != labels
    if strange.any():
        bad = labels[strange].tolist()[0]
        hit = nearest(str(bad), [str(name) for name in names])
        guess = f' Did you mean "{hit}"?' if hit else ""
        raise InputError(f"task {bad!r} was not among the {len(names)} tasks of the fit.{guess}")
    return place


def is_logistic(loss: Any, names: NDArray[Any]) -> NDArray[np.bool_]:
    """Read the argument ``loss``: one name, one per task in order, or a mapping from task label to name."""
    if isinstance(loss, str):
        chosen: Sequence[Any] = [loss] * len(names)
    elif isinstance(loss, Mapping):
        missing = [name for name in names.tolist() if name not in loss]
        if missing:
            raise InputError(f"loss has no entry for task {missing[0]!r}; give one for each of the {len(names)} tasks")
        chosen = [loss[name] for name in names.tolist()]
    else:
        chosen = list(loss)
    if len(chosen) != len(names):
        raise InputError(f"loss has {len(chosen)} entries for {len(names)} tasks; give one name or one per task")
    for name in chosen:
        if name not in LOSSES:
            raise InputError(f'loss must be "squared" or "logistic", got {name!r}')
    return np.array([name == "logistic" for name in chosen], dtype=np.bool_)


def weights_of(task_weights: Any, totals: Floats) -> Floats:
    """Read the argument ``task_weights``: "equal" (c_t = 1), "examples" (c_t = n_t / mean n) or numbers."""
    if isinstance(task_weights, str):
        if task_weights == "equal":
            return np.ones(len(totals))
        if task_weights == "examples":
            return np.asarray(totals / totals.mean())
        raise InputError(f'task_weights must be "equal", "examples" or an array, got "{task_weights}"')
    weights = np.asarray(task_weights, dtype=np.float64)
    if weights.shape != totals.shape or not np.isfinite(weights).all() or (weights <= 0).any():
        raise InputError(f"task_weights must be {len(totals)} positive numbers, one per task")
    return weights
