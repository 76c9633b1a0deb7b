"""Read X, y and tasks of an estimator: one target column per task, or one task label per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytask.core.data import Ints
from polytask.core.errors import InputError, nearest
from polytask.core.task import Floats
from polytask.linear.moments import Block, Column, Stack, gather

_NO_LABEL = ("None", "nan", "NaN", "NaT", "<NA>")
LOSSES = ("squared", "logistic", "huber", "multinomial")


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
    constant
        Which tasks have the same target in all their rows (one labelled row, for example), ``(T,)``.
    """

    blocks: Sequence[Block]
    names: NDArray[Any]
    n_rows: Ints
    form: str
    constant: NDArray[np.bool_]

    def without(self, idle: NDArray[np.bool_]) -> Layout:
        """Return the layout whose blocks leave out the tasks marked in ``idle``."""
        blocks = []
        for block in self.blocks:
            kept = ~idle[block.outputs]
            if kept.all():
                blocks.append(block)
            elif kept.any():
                blocks.append(Block(block.X, block.weights, block.Y[:, kept], block.outputs[kept]))
        return replace(self, blocks=blocks)


def split_tasks(X: Any, tasks: Any) -> tuple[Any, Any]:
    """Return inputs and task labels apart where ``tasks`` names a column of the frame ``X``, else both as they are."""
    if not isinstance(tasks, str):
        return X, tasks
    if not hasattr(X, "columns"):
        raise InputError(
            f"tasks={tasks!r} names a column, but X is of type {type(X).__name__}; "
            "pass a pandas or polars frame with that column, or one task label per row"
        )
    columns = list(X.columns)
    if tasks not in columns:
        hit = nearest(tasks, [str(column) for column in columns])
        guess = f' Did you mean "{hit}"?' if hit else ""
        raise InputError(f"tasks={tasks!r} is not among the {len(columns)} columns of X.{guess}")
    return X[[column for column in columns if column != tasks]], X[tasks]


def read(X: Any, y: Floats, tasks: Any, sample_weight: Any, *, known: NDArray[Any] | None = None) -> Layout:
    """Group the labelled rows of ``X`` ``(n, d)``.

    Parameters
    ----------
    y
        ``(n,)`` or ``(n, T)``; NaN where a label is missing.
    tasks
        None, or the task label of every row ``(n,)`` (then ``y`` is ``(n,)``).
    sample_weight
        None, ``(n,)``, or ``(n, T)`` for ``y`` of that shape. A weight of 0 is like a missing label.
    known
        Task labels of more rows, of which these are some: a task without rows here is one that is constant.
        None: the tasks are those of the rows, and each must have one with a label.
    """
    weight = _weights(sample_weight, y)
    if tasks is None:
        names: NDArray[Any] = np.arange(1 if y.ndim == 1 else y.shape[1])
        matrix = y[:, None] if y.ndim == 1 else y
        columns = []
        for number in range(matrix.shape[1]):
            own = None if weight is None else weight if weight.ndim == 1 else weight[:, number]
            columns.append(_column(np.arange(len(y)), matrix[:, number], own))
        form = "single" if y.ndim == 1 else "columns"
    else:
        if y.ndim != 1:
            raise InputError(
                f"y has shape {y.shape} and tasks is given; pass y of shape (n_samples,) with one task label per row, "
                "or tasks=None with y of shape (n_samples, n_tasks)"
            )
        labels = _task_labels(tasks, len(y))
        if known is None:
            _check_labelled(labels, ~np.isnan(y) if weight is None else ~np.isnan(y) & (weight > 0), weight)
        names, stack = Stack.of(X, y, labels, weight)
        if known is None:
            return Layout(stack, names, np.diff(stack.bounds), "stacked", stack.constant())
        return _among(known, names, stack)
    counts = np.array([len(column.rows) for column in columns])
    constant = _constant([column.values for column in columns], counts)
    if known is not None:
        constant |= counts == 0
    elif (counts == 0).any():
        raise _unlabelled(names[counts == 0].tolist()[0], weight)
    return Layout(gather(X, columns), names, counts, form, constant)


def _among(known: NDArray[Any], names: NDArray[Any], stack: Stack) -> Layout:
    """Return the layout of a stack of some of the ``known`` tasks."""
    places = np.searchsorted(known, names)
    counts, constant = np.zeros(len(known), dtype=np.int64), np.ones(len(known), dtype=np.bool_)
    counts[places], constant[places] = np.diff(stack.bounds), stack.constant()
    own = Stack(stack.X, stack.y, stack.bounds, stack.weights, places)
    return Layout(own, known, counts, "stacked", constant)


def _check_labelled(labels: NDArray[Any], kept: NDArray[np.bool_], weight: Floats | None) -> None:
    """Refuse a task all of whose rows are left out."""
    if not kept.all():
        lost = np.setdiff1d(labels[~kept], labels[kept])
        if len(lost):
            raise _unlabelled(lost.tolist()[0], weight)


def _unlabelled(task: Any, weight: Floats | None) -> InputError:
    why = "has no labelled row" if weight is None else "has no labelled row with a sample weight above zero"
    return InputError(f"task {task!r} {why}; leave the task out")


def _constant(values: Sequence[Floats], counts: Ints) -> NDArray[np.bool_]:
    """Return which of the sequences have one distinct value; empty ones do not count."""
    filled = np.flatnonzero(counts)
    found = np.zeros(len(counts), dtype=np.bool_)
    if len(filled):
        every = np.concatenate([values[number] for number in filled.tolist()])
        starts = np.cumsum(counts[filled]) - counts[filled]
        found[filled] = np.minimum.reduceat(every, starts) == np.maximum.reduceat(every, starts)
    return found


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
    if labels.dtype.kind in "cV":
        raise InputError(f"tasks has labels of type {labels.dtype}; give numbers or text")
    missing = np.zeros(n, dtype=np.bool_)
    if labels.dtype.kind in "fM":
        missing = labels != labels
    elif labels.dtype == object:
        text = labels.astype(str)
        missing = np.isin(text, _NO_LABEL) & np.array([not isinstance(label, str) for label in labels.tolist()])
        labels = text
    if missing.any():
        raise InputError(f"tasks has no label in row {int(np.argmax(missing))}; name the task of every row")
    return labels


def task_numbers(tasks: Any, names: NDArray[Any], n: int, *, unseen: bool = False) -> Ints:
    """Return the number of each row's task, ``(n,)``; a label not in the fit is refused, or -1 with ``unseen``."""
    labels = _task_labels(tasks, n)
    place = np.minimum(np.searchsorted(names, labels), len(names) - 1)
    strange = names[place] != labels
    if unseen:
        return np.asarray(np.where(strange, -1, place))
    if strange.any():
        bad = labels[strange].tolist()[0]
        hit = nearest(str(bad), [str(name) for name in names])
        guess = f' Did you mean "{hit}"?' if hit else ""
        raise InputError(f"task {bad!r} was not among the {len(names)} tasks of the fit.{guess}")
    return place


def losses_of(loss: Any, names: NDArray[Any]) -> tuple[str, ...]:
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
            hit = nearest(str(name), LOSSES)
            guess = f' Did you mean "{hit}"?' if hit else ""
            listed = ", ".join(f'"{known}"' for known in LOSSES)
            raise InputError(f"loss must be one of {listed}, got {name!r}.{guess}")
    return tuple(str(name) for name in chosen)


def is_logistic(loss: Any, names: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which tasks have logistic loss; see :func:`losses_of`."""
    return np.array([name == "logistic" for name in losses_of(loss, names)], dtype=np.bool_)


def robust_scale(values: Floats, weights: Floats) -> float:
    """Return 1.4826 times the weighted median absolute deviation from the median (the standard deviation of a normal).

    Where more than half of the values are the same it is the standard deviation, or 1 where all are.
    """
    centre = _median(values, weights)
    scale = 1.4826 * _median(np.abs(values - centre), weights)
    if scale > 0.0:
        return scale
    mean = weights @ values / weights.sum()
    spread = float(np.sqrt(weights @ np.square(values - mean) / weights.sum()))
    return spread if spread > 0.0 else 1.0


def _median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values, kind="stable")
    ranked, sums = values[order], np.cumsum(weights[order])
    half = 0.5 * sums[-1]
    low = int(np.searchsorted(sums, half * (1.0 - 1e-12)))
    high = min(int(np.searchsorted(sums, half * (1.0 + 1e-12), side="right")), len(ranked) - 1)
    return 0.5 * float(ranked[low] + ranked[high])


def weights_of(task_weighting: Any, totals: Floats) -> Floats:
    """Read the argument ``task_weighting``: "equal" (c_t = 1), "examples" (c_t = n_t / mean n) or numbers."""
    if isinstance(task_weighting, str):
        if task_weighting == "equal":
            return np.ones(len(totals))
        if task_weighting == "examples":
            return np.asarray(totals / totals[totals > 0.0].mean())
        raise InputError(f'task_weighting must be "equal", "examples" or an array, got "{task_weighting}"')
    weights = np.asarray(task_weighting, dtype=np.float64)
    if weights.shape != totals.shape or not np.isfinite(weights).all() or (weights <= 0).any():
        raise InputError(f"task_weighting must be {len(totals)} positive numbers, one per task")
    return weights
