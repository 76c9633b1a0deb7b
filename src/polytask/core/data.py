"""TaskData: inputs, targets and which rows carry which label.

Labels are kept per task as (row numbers, values), so a table with one label per row and 10,000
tasks costs as much memory as its labels, and a missing label is simply not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytask.core.errors import InputError, unknown
from polytask.core.task import Floats, Task

Ints = NDArray[np.int64]
Array = NDArray[Any]


@dataclass(frozen=True)
class Labels:
    """The labelled rows of one task.

    Parameters
    ----------
    rows
        Row numbers in increasing order, shape ``(m,)``.
    values
        Targets of those rows, shape ``(m,)``: numbers, or class codes 0 … K-1.
    """

    rows: Ints
    values: Floats

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class TaskData:
    """Inputs and targets of several tasks over the same n rows (frozen; checks itself).

    Parameters
    ----------
    tasks
        The tasks, in the order every view uses.
    inputs
        Named arrays with n rows. Raw tables hold one 1-d array per column (float64 with NaN where
        missing, or strings with None where missing). Encoded tables hold ``"numeric"`` ``(n, p)``
        finite floats and, if there are any, ``"categorical"`` ``(n, q)`` int64 codes.
    labels
        Task name → :class:`Labels`.
    features
        Input name → names of that array's columns (encoded tables).
    cardinalities
        Number of codes of each categorical column (encoded tables); code 0 is "other or unseen".
    keys
        Columns that are carried along but are not inputs: groups, times, row identifiers.
    """

    tasks: tuple[Task, ...]
    inputs: Mapping[str, Array]
    labels: Mapping[str, Labels]
    features: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cardinalities: tuple[int, ...] = ()
    keys: Mapping[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f'two tasks are called "{twice}"; give each task its own name')
        if set(self.labels) != set(names):
            odd = sorted(set(self.labels) ^ set(names))
            raise InputError(f"labels and tasks do not match: {odd}; give one entry of labels per task")
        if not self.inputs:
            raise InputError("inputs is empty; give at least one input array")
        lengths = {name: len(array) for name, array in {**self.inputs, **self.keys}.items()}
        if len(set(lengths.values())) != 1:
            raise InputError(f"all inputs and keys need the same number of rows, got {lengths}")
        for task in self.tasks:
            self._check_labels(task, self.labels[task.name])

    def _check_labels(self, task: Task, labels: Labels) -> None:
        rows, values = labels.rows, labels.values
        if rows.ndim != 1 or rows.shape != values.shape:
            raise InputError(f'task "{task.name}": rows {rows.shape} and values {values.shape} must be 1-d and equal')
        if len(rows) == 0:
            return
        if (np.diff(rows) <= 0).any() or rows[0] < 0 or rows[-1] >= self.n_rows:
            raise InputError(f'task "{task.name}": rows must increase and lie in 0 … {self.n_rows - 1}')
        if not np.isfinite(values).all():
            bad = int(rows[~np.isfinite(values)][0])
            raise InputError(f'task "{task.name}" has a target that is not finite in row {bad}; leave the label out')
        if task.labels:
            wrong = (values < 0) | (values >= len(task.labels)) | (values != np.floor(values))
            if wrong.any():
                raise InputError(
                    f'task "{task.name}": row {int(rows[wrong][0])} has class code {values[wrong][0]:g}; '
                    f"codes are 0 … {len(task.labels) - 1}"
                )

    # -- construction -------------------------------------------------------------------------

    @classmethod
    def from_columns(
        cls, tasks: Sequence[Task], inputs: Mapping[str, Array] | Array, targets: Array, **rest: Any
    ) -> TaskData:
        """Build from a target matrix ``(n, T)`` with NaN where a label is missing."""
        matrix = np.asarray(targets, dtype=np.float64)
        if matrix.ndim != 2 or matrix.shape[1] != len(tasks):
            raise InputError(f"targets has shape {matrix.shape}; give one column for each of the {len(tasks)} tasks")
        labels = {}
        for column, task in zip(matrix.T, tasks, strict=True):
            rows = np.flatnonzero(~np.isnan(column))
            labels[task.name] = Labels(rows, column[rows])
        return cls(tuple(tasks), _named(inputs), labels, **rest)

    @classmethod
    def from_stacked(
        cls, tasks: Sequence[Task], inputs: Mapping[str, Array] | Array, task_of_row: Array, target: Array, **rest: Any
    ) -> TaskData:
        """Build from one target ``(n,)`` (NaN: missing) and the number of each row's task ``(n,)``."""
        number, value = np.asarray(task_of_row, dtype=np.int64), np.asarray(target, dtype=np.float64)
        if number.shape != value.shape or number.ndim != 1:
            raise InputError(f"task_of_row has shape {number.shape} but target {value.shape}; both must be (n,)")
        if len(number) and (number.min() < 0 or number.max() >= len(tasks)):
            raise InputError(f"task_of_row must lie in 0 … {len(tasks) - 1}")
        rows = np.flatnonzero(~np.isnan(value))
        rows = rows[np.argsort(number[rows], kind="stable")]
        bounds = np.searchsorted(number[rows], np.arange(len(tasks) + 1))
        labels = {
            task.name: Labels(rows[start:end], value[rows[start:end]])
            for task, start, end in zip(tasks, bounds[:-1], bounds[1:], strict=True)
        }
        return cls(tuple(tasks), _named(inputs), labels, **rest)

    # -- views --------------------------------------------------------------------------------

    @property
    def n_rows(self) -> int:
        """Number of rows, labelled or not."""
        return len(next(iter(self.inputs.values())))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks, in order."""
        return tuple(task.name for task in self.tasks)

    def task(self, name: str) -> Task:
        """Return the task of that name."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise InputError(unknown("task", name, self.names))

    @property
    def targets(self) -> Mapping[str, Floats]:
        """Task → targets ``(n,)``; 0 where the label is missing (see :attr:`present`)."""
        return _Lazy(self.names, self._targets_of)

    @property
    def present(self) -> Mapping[str, NDArray[np.bool_]]:
        """Task → which rows carry its label, ``(n,)``."""
        return _Lazy(self.names, self._present_of)

    def _targets_of(self, name: str) -> Floats:
        full = np.zeros(self.n_rows)
        full[self.labels[name].rows] = self.labels[name].values
        return full

    def _present_of(self, name: str) -> NDArray[np.bool_]:
        full = np.zeros(self.n_rows, dtype=np.bool_)
        full[self.labels[name].rows] = True
        return full

    def columns(self) -> Floats:
        """Return the targets as a matrix ``(n, T)`` with NaN where a label is missing."""
        matrix = np.full((self.n_rows, len(self.tasks)), np.nan)
        for column, name in enumerate(self.names):
            matrix[self.labels[name].rows, column] = self.labels[name].values
        return matrix

    def stacked(self) -> tuple[Ints, Ints, Floats]:
        """Return every label as (row, task number, value), each ``(m,)``, sorted by task, then row."""
        parts = [self.labels[name] for name in self.names]
        counts = [len(part) for part in parts]
        return (
            np.concatenate([part.rows for part in parts]).astype(np.int64),
            np.repeat(np.arange(len(parts)), counts),
            np.concatenate([part.values for part in parts]),
        )

    @property
    def one_task_per_row(self) -> bool:
        """Whether no row carries the labels of two tasks (the long form: schools, patients)."""
        seen = np.zeros(self.n_rows, dtype=np.int64)
        for labels in self.labels.values():
            seen[labels.rows] += 1
        return len(self.tasks) > 1 and bool((seen <= 1).all())

    # -- smaller copies -----------------------------------------------------------------------

    def rows(self, index: Array) -> TaskData:
        """Return the rows of ``index`` (numbers, possibly repeated, or a mask), in that order."""
        chosen = np.asarray(index)
        chosen = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.astype(np.int64)
        place = np.full(self.n_rows, -1, dtype=np.int64)
        labels = {}
        for name, old in self.labels.items():
            place[old.rows] = np.arange(len(old.rows))
            found = place[chosen]
            new_rows = np.flatnonzero(found >= 0)
            labels[name] = Labels(new_rows, old.values[found[new_rows]])
            place[old.rows] = -1
        return replace(
            self,
            inputs={name: array[chosen] for name, array in self.inputs.items()},
            labels=labels,
            keys={name: array[chosen] for name, array in self.keys.items()},
        )

    def only(self, names: Iterable[str]) -> TaskData:
        """Return the same rows with only these tasks, in this order."""
        tasks = tuple(self.task(name) for name in names)
        return replace(self, tasks=tasks, labels={task.name: self.labels[task.name] for task in tasks})

    def without_labels(self) -> TaskData:
        """Return the same rows and tasks with no label at all."""
        empty = Labels(np.zeros(0, dtype=np.int64), np.zeros(0))
        return replace(self, labels=dict.fromkeys(self.names, empty))

    def thinned(self, keep: Mapping[str, int], *, seed: int) -> TaskData:
        """Return the same rows with only ``keep[task]`` randomly chosen labels of the tasks named."""
        labels = dict(self.labels)
        for name, count in keep.items():
            self.task(name)
            if count < 1:
                raise InputError(f'labels: "{name}={count}" must keep at least 1 label')
            old = labels[name]
            if count < len(old):
                rng = np.random.default_rng([seed, self.names.index(name)])
                chosen = np.sort(rng.choice(len(old), size=count, replace=False))
                labels[name] = Labels(old.rows[chosen], old.values[chosen])
        return replace(self, labels=labels)

    def split(
        self, shares: Sequence[float], *, seed: int, group: str | None = None, time: str | None = None
    ) -> tuple[TaskData, ...]:
        """Split the rows into parts; see :func:`polytask.core.splits.split_rows`."""
        from polytask.core.splits import split_rows

        return tuple(self.rows(part) for part in split_rows(self, shares, seed=seed, group=group, time=time))


def _named(inputs: Mapping[str, Array] | Array) -> Mapping[str, Array]:
    return inputs if isinstance(inputs, Mapping) else {"numeric": np.asarray(inputs)}


class _Lazy(Mapping[str, Any]):
    """A mapping whose values are made when asked for."""

    def __init__(self, names: tuple[str, ...], make: Any) -> None:
        self._names = names
        self._make = make

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
