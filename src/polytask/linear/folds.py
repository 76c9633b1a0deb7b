"""Folds of rows for cross-validation within tasks: every fold has its share of every task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytask.core.data import Ints
from polytask.core.errors import InputError
from polytask.core.task import Floats
from polytask.linear.layout import Layout, read
from polytask.linear.moments import Moments

Fold = tuple[Ints, Ints]  # rows to train on, rows to validate on
_FOLDS = 5


@dataclass(frozen=True)
class Rows:
    """Checked data of a fit, of which parts can be read.

    Parameters
    ----------
    X, y
        Inputs ``(n, d)``, and targets ``(n,)`` or ``(n, T)``.
    tasks, weight
        Task label and weight of each row, or None.
    """

    X: Any
    y: Floats
    tasks: Any
    weight: Floats | None

    @cached_property
    def whole(self) -> Layout:
        """All rows."""
        return read(self.X, self.y, self.tasks, self.weight)

    def part(self, rows: Ints) -> Layout:
        """Return these rows as rows of all tasks, of which some may have none here."""
        tasks = None if self.tasks is None else np.asarray(self.tasks)[rows]
        weight = self.weight if self.weight is None or self.weight.ndim == 0 else self.weight[rows]
        return read(self.X[rows], self.y[rows], tasks, weight, known=self.whole.names)

    @cached_property
    def kept(self) -> NDArray[np.bool_]:
        """Which rows have a label and a weight above 0, ``(n,)``."""
        seen = ~np.isnan(self.y)
        if self.weight is not None:
            weight = self.weight[:, None] if self.weight.ndim == 1 < seen.ndim else self.weight
            seen = seen & (weight > 0)
        return np.asarray(seen if seen.ndim == 1 else seen.any(axis=1))

    # -- folds --------------------------------------------------------------------------------

    def folds(self, cv: Any, with_classes: Sequence[bool]) -> list[Fold]:
        """Return the folds that ``cv`` says, without the rows that are not kept.

        Parameters
        ----------
        cv
            None (5) or a number of folds: the rows of each task, and of each class of it, are dealt out in
            order. A splitter of scikit-learn: stratified ones see the tasks (or ``y``, where rows have a target for
            each task). Or pairs of row numbers to train and to validate on.
        with_classes
            Whether the targets of a task are classes, ``(T,)``.
        """
        if cv is None or (isinstance(cv, Integral) and not isinstance(cv, bool)):
            return self._dealt(_FOLDS if cv is None else int(cv), with_classes)
        if hasattr(cv, "split") and not isinstance(cv, (str, bytes)):
            found = cv.split(np.zeros((len(self.y), 1)), self.y if self.tasks is None else np.asarray(self.tasks))
        elif isinstance(cv, (str, bytes)) or not hasattr(cv, "__iter__"):
            raise InputError(
                f"cv must be a number of folds, a scikit-learn splitter or pairs of row numbers, got {cv!r}"
            )
        else:
            found = cv
        folds = [self._checked(number, pair) for number, pair in enumerate(found)]
        if not folds:
            raise InputError("cv has no folds; give at least one pair of row numbers to train and to validate on")
        return folds

    def _dealt(self, k: int, with_classes: Sequence[bool]) -> list[Fold]:
        rows = np.flatnonzero(self.kept)
        if not 2 <= k <= len(rows):
            raise InputError(f"cv={k} folds of n_samples={len(rows)} labelled rows cannot be; give from 2 to that many")
        fold = deal(self._groups(rows, with_classes), k)
        return [(rows[fold != number], rows[fold == number]) for number in range(k)]

    def _groups(self, rows: Ints, with_classes: Sequence[bool]) -> Ints:
        """Return the number of the group of each row: its task and, of a task with classes, its class."""
        if self.y.ndim == 2:
            return np.zeros(len(rows), dtype=np.int64)
        task = np.zeros(len(rows), dtype=np.int64)
        if self.tasks is not None:
            task = np.unique(np.asarray(self.tasks)[rows], return_inverse=True)[1]
        value = np.unique(self.y[rows], return_inverse=True)[1]
        return np.asarray(task * (value.max() + 1) + np.where(np.asarray(with_classes)[task], value, 0))

    def _checked(self, number: int, pair: Any) -> Fold:
        """Return the kept rows of a fold; refuse one that validates on rows of its training."""
        n, parts = len(self.y), []
        for rows in pair:
            index = np.asarray(rows)
            index = np.flatnonzero(index) if index.dtype == bool and len(index) == n else index
            if index.ndim != 1 or (
                len(index) and (index.dtype.kind not in "iu" or not -n <= index.min() <= index.max() < n)
            ):
                raise InputError(f"fold {number} of cv has row numbers that are not from 0 to {n - 1}")
            index = np.unique(index.astype(np.int64) % n)
            parts.append(index[self.kept[index]])
        train, test = parts
        if len(np.intersect1d(train, test)):
            raise InputError(f"fold {number} of cv trains on rows that it validates on; give other rows to each")
        if len(train) == 0 or len(test) == 0:
            raise InputError(f"fold {number} of cv has no labelled row to {'train' if len(test) else 'validate'} on")
        return train, test

    # -- moments ------------------------------------------------------------------------------

    def moments(self, folds: Sequence[Fold]) -> tuple[Moments, Iterator[tuple[Moments, Moments]]]:
        """Return the moments of all rows and, for each fold, those to train and to validate on."""
        tests = [self._moments(self.part(test)) for _, test in folds]
        n = int(self.kept.sum())
        each = np.sort(np.concatenate([test for _, test in folds]))
        if len(each) == n and bool((each[1:] > each[:-1]).all()):
            total = sum(tests[1:], start=tests[0])
        else:
            total = self._moments(self.whole)
        trains = (
            total - test if len(rows) + len(left_out) == n else self._moments(self.part(rows))
            for (rows, left_out), test in zip(folds, tests, strict=True)
        )
        return total, zip(trains, tests, strict=True)

    def _moments(self, layout: Layout) -> Moments:
        found = Moments.of_blocks(layout.blocks, len(layout.names), self.X.shape[1])
        return replace(found, names=layout.names, form="stacked" if layout.form == "stacked" else "columns")


def deal(groups: Ints, k: int) -> Ints:
    """Return the fold of each row: the rows of each group in k runs of nearly equal length, ``(m,)``.

    One group gives the folds of scikit-learn's ``KFold(k)``. Where the rows of a group do not divide evenly, the
    longer runs go to the folds whose turn it is, so that small groups do not all meet in the first.
    """
    fold = np.empty(len(groups), dtype=np.int64)
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order[0]] - 1))
    turn = 0
    for rows in np.split(order, starts[1:]):
        sizes = np.full(k, len(rows) // k)
        sizes[: len(rows) % k] += 1
        fold[rows] = (np.repeat(np.arange(k), sizes) + turn) % k
        turn += len(rows) % k
    return fold
