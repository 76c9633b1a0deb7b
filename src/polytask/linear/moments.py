"""Per-task sufficient statistics of squared loss: one pass over the data, then no data any more.

For every task t with labelled rows i and row weights a_i:

    n_t  = sum_i a_i                        mean_x_t, mean_y_t: weighted means
    G_t  = sum_i a_i (x_i - mean_x_t)(x_i - mean_x_t)^T            (d, d)
    c_t  = sum_i a_i (x_i - mean_x_t)(y_i - mean_y_t)              (d,)
    yy_t = sum_i a_i (y_i - mean_y_t)²

Tasks that are labelled on the same rows with the same weights share n, mean_x and G, which are
stored once per such *pattern*. Statistics of disjoint rows add, and a part can be taken away
again, so that the statistics of a training fold are those of all rows minus those of the fold
(Chan, Golub & LeVeque, Algorithms for computing the sample variance, 1983). Means are always removed
before products are formed, whatever the type of the inputs; sums are of float64.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import diags_array, issparse

from polytask.core.data import Ints
from polytask.core.errors import InputError
from polytask.core.task import Floats


@dataclass(frozen=True)
class Block:
    """Tasks that are labelled on the same rows.

    Parameters
    ----------
    X
        Inputs of those rows, ``(m, d)``: an array of float64 or float32, or a sparse CSR array.
    weights
        Weight of each row, ``(m,)``, all positive.
    Y
        Targets, ``(m, k)``.
    outputs
        Which tasks the columns of ``Y`` are, ``(k,)``.
    """

    X: Any
    weights: Floats
    Y: Floats
    outputs: Ints

    @cached_property
    def total(self) -> float:
        """Sum of the weights."""
        return float(self.weights.sum())


@dataclass(frozen=True)
class Column:
    """The labelled rows of one output: row numbers, targets and weights (None: all 1), each ``(m,)``."""

    rows: Ints
    values: Floats
    weights: Floats | None = None


def is_sparse(X: Any) -> bool:
    """Return whether ``X`` is a sparse matrix or array."""
    return bool(issparse(X))


def gather(X: Any, columns: Sequence[Column]) -> list[Block]:
    """Group the columns into blocks of equal rows and weights; a column without labels is in no block."""
    groups: dict[tuple[bytes, bytes], list[int]] = {}
    for number, column in enumerate(columns):
        if len(column.rows):
            key = b"" if column.weights is None else column.weights.tobytes()
            groups.setdefault((column.rows.tobytes(), key), []).append(number)
    blocks = []
    for numbers in groups.values():
        first = columns[numbers[0]]
        every = len(first.rows) == X.shape[0] and bool((first.rows == np.arange(X.shape[0])).all())
        weights = np.ones(len(first.rows)) if first.weights is None else first.weights
        values = [columns[number].values for number in numbers]
        Y = (values[0][:, None] if len(values) == 1 else np.column_stack(values)).astype(np.float64, copy=False)
        blocks.append(Block(X if every else _rows(X, first.rows), weights, Y, np.array(numbers, dtype=np.int64)))
    return blocks


def _rows(X: Any, rows: Ints) -> Any:
    """Return these rows of ``X``; a view where they follow each other."""
    start, end = int(rows[0]), int(rows[-1]) + 1
    if end - start == len(rows) and bool((rows[1:] - rows[:-1] == 1).all()):
        return X[start:end]
    return X[rows]


_ARRAYS = ("weight", "mean_x", "gram", "pattern", "mean_y", "cross", "yy")
_CHUNK = 1 << 17  # numbers in the rows that are centred at a time
_LOST = 1e4  # sums about a row so many times larger than those about the mean are not used


class Stack(Sequence[Block]):
    """Blocks of tasks that each have rows of their own, kept as one table with the rows of a task together.

    Parameters
    ----------
    X
        Inputs, ``(m, d)``.
    y
        Targets, ``(m,)``.
    bounds
        The rows of the k-th task are ``bounds[k]`` up to ``bounds[k + 1]``, ``(K + 1,)``; none is without rows.
    weights
        Weight of each row, ``(m,)``, all positive; None: all 1.
    outputs
        Numbers of the tasks, ``(K,)``; None: 0, 1 and so on.
    """

    def __init__(
        self, X: Any, y: Floats, bounds: Ints, weights: Floats | None = None, outputs: Ints | None = None
    ) -> None:
        self.X, self.y, self.bounds, self.weights = X, y, bounds, weights
        self.outputs = np.arange(len(bounds) - 1) if outputs is None else outputs

    @classmethod
    def of(cls, X: Any, y: Floats, tasks: NDArray[Any], sample_weight: Any = None) -> tuple[NDArray[Any], Stack]:
        """Return the distinct labels in order and the rows of each that have a target and a weight above 0.

        Labels all of whose rows are left out are not among them.
        """
        kept = ~np.isnan(y)
        weights = None
        if sample_weight is not None:
            weights = checked_weights(sample_weight, len(y))
            kept &= weights > 0
        if not kept.all():
            X, y, tasks = X[kept], y[kept], tasks[kept]
            weights = None if weights is None else weights[kept]
        if len(y) == 0:
            raise InputError("no row has a target and a weight above zero; give at least one")
        names, order, bounds = grouped(tasks)
        if order is not None:
            X, y = X[order], y[order]
            weights = None if weights is None else weights[order]
        return names, cls(X, y, bounds, weights)

    @cached_property
    def totals(self) -> Floats:
        """Sum of the weights of each task, ``(K,)``."""
        if self.weights is None:
            return np.diff(self.bounds).astype(np.float64)
        return np.add.reduceat(self.weights, self.bounds[:-1])

    def constant(self) -> NDArray[np.bool_]:
        """Return which tasks have the same target in all their rows, ``(K,)``."""
        starts = self.bounds[:-1]
        return np.asarray(np.minimum.reduceat(self.y, starts) == np.maximum.reduceat(self.y, starts))

    def binary(self) -> bool:
        """Return whether all targets are 0 or 1."""
        return bool(((self.y == 0.0) | (self.y == 1.0)).all())

    def __len__(self) -> int:
        return len(self.outputs)

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> list[Block]: ...
    def __getitem__(self, index: int | slice) -> Block | list[Block]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start, end = int(self.bounds[index]), int(self.bounds[index + 1])
        weights = np.ones(end - start) if self.weights is None else self.weights[start:end]
        return Block(self.X[start:end], weights, self.y[start:end, None], self.outputs[index : index + 1])


class MomentsOnly(Sequence[Block]):
    """Stands where the blocks of the rows stand when only their moments are left."""

    def __init__(self, moments: Moments) -> None:
        self.moments = moments

    def __len__(self) -> int:
        raise _needs_rows()

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> list[Block]: ...
    def __getitem__(self, index: int | slice) -> Block | list[Block]:
        raise _needs_rows()


def _needs_rows() -> InputError:
    return InputError("this model needs the rows, of which moments are not enough; use fit(X, y, tasks)")


def totals_of(blocks: Sequence[Block], totals: Floats) -> Floats:
    """Write the sums of weights of the tasks that blocks have into ``totals`` ``(T,)``, and return it."""
    if isinstance(blocks, Stack):
        totals[blocks.outputs] = blocks.totals
    elif isinstance(blocks, MomentsOnly):
        n = blocks.moments.n
        totals[n > 0] = n[n > 0]
    else:
        for block in blocks:
            totals[block.outputs] = block.total
    return totals


def checked_weights(sample_weight: Any, n: int) -> Floats:
    """Return weights of ``n`` rows, finite and not negative."""
    weights = np.asarray(sample_weight, dtype=np.float64)
    if weights.shape != (n,):
        raise InputError(f"sample_weight has shape {weights.shape}; give one weight per row ({n},)")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise InputError("sample_weight must be finite and not negative; use 0 to leave a row out")
    return weights


def grouped(labels: NDArray[Any]) -> tuple[NDArray[Any], Ints | None, Ints]:
    """Return the distinct labels in order, the rows sorted by them, and where the rows of each start and end.

    Rows of equal labels stay in order; None in place of the rows: they are sorted as they are.
    """
    order: Ints | None = None
    if len(labels) and not bool((labels[1:] >= labels[:-1]).all()):
        small = labels
        if labels.dtype.kind in "iu":
            low = int(labels.min())
            if int(labels.max()) - low < 1 << 16 and low > -(1 << 62):
                wide = np.uint64 if labels.dtype.kind == "u" else np.int64
                small = (labels.astype(wide) - wide(low)).astype(np.uint16)  # sorted by counting
        order = np.argsort(small, kind="stable")
        labels = labels[order]
    starts = np.flatnonzero(labels[1:] != labels[:-1]) + 1
    bounds = np.concatenate([[0], starts, [len(labels)]])
    return labels[bounds[:-1]], order, bounds


def centred_sums(X: Any, y: Floats, bounds: Ints, weights: Floats | None) -> Sums:
    """Return the sums of the rows of each task; arguments as of :class:`Stack`, ``X`` dense."""
    K, d = len(bounds) - 1, X.shape[1]
    found = Sums(np.empty((K, d, d)), np.empty((K, d)), np.empty(K), np.empty((K, d)), np.empty(K))
    sizes = np.diff(bounds)
    most = max(_CHUNK // max(d, 1), 1)
    buffer = np.empty((min(most, len(y)), d))
    some_long = sizes.max() > most
    far = np.ones(K, dtype=np.bool_) if some_long else found.read_quickly(X, y, bounds, weights, buffer)
    for task in np.flatnonzero(far).tolist():
        own = slice(int(bounds[task]), int(bounds[task + 1]))
        found.read_carefully(task, X[own], y[own], None if weights is None else weights[own], buffer)
    return found


@dataclass(frozen=True)
class Sums:
    """Sums of products about the means and means of K tasks; fields as of :class:`Moments`, written in place."""

    gram: Floats
    cross: Floats
    yy: Floats
    mean_x: Floats
    mean_y: Floats

    def read_quickly(
        self, X: Any, y: Floats, bounds: Ints, weights: Floats | None, buffer: Floats
    ) -> NDArray[np.bool_]:
        """Read all tasks, from sums about the first row of each; return which are still to be read with care.

        The sums lose no digits unless the first row lies far from the others. Columns that are constant
        in a task get sums that are exactly 0.
        """
        starts, sizes = bounds[:-1], np.diff(bounds)
        K, d = self.mean_x.shape
        first_x, first_y = X[starts].astype(np.float64), y[starts]
        right = np.empty((2, len(y)))
        np.subtract(y, np.repeat(first_y, sizes), out=right[0])
        right[1] = 1.0
        totals = sizes.astype(np.float64)
        sums_y, squares = np.add.reduceat(right[0], starts), np.add.reduceat(np.square(right[0]), starts)
        root = None
        if weights is not None:
            totals, root = np.add.reduceat(weights, starts), np.sqrt(weights)
            sums_y = np.add.reduceat(weights * right[0], starts)
            squares = np.add.reduceat(weights * np.square(right[0]), starts)
            right *= root
        sums = np.empty((K, 2, d))
        edges, first = bounds.tolist(), 0
        while first < K:
            last = max(int(np.searchsorted(bounds, bounds[first] + len(buffer), side="right")) - 1, first + 1)
            low, high = edges[first], edges[last]
            rows = buffer[: high - low]
            np.subtract(X[low:high], np.repeat(first_x[first:last], sizes[first:last], axis=0), out=rows)
            if root is not None:
                rows *= root[low:high, None]
            for task in range(first, last):
                start, end = edges[task], edges[task + 1]
                own = rows[start - low : end - low]
                # the product of a matrix with its own transpose is symmetric to the last bit
                np.dot(own.T, own, out=self.gram[task])
                np.dot(right[:, start:end], own, out=sums[task])
            first = last
        step_x, step_y = sums[:, 1] / totals[:, None], sums_y / totals
        root_step = np.sqrt(totals)[:, None] * step_x
        np.subtract(self.gram, root_step[:, :, None] * root_step[:, None, :], out=self.gram)
        np.subtract(sums[:, 0], sums_y[:, None] * step_x, out=self.cross)
        np.maximum(squares - sums_y * step_y, 0.0, out=self.yy)
        np.add(first_x, step_x, out=self.mean_x)
        np.add(first_y, step_y, out=self.mean_y)
        far = (np.square(root_step) > _LOST * np.einsum("tjj->tj", self.gram)).any(axis=1)
        return np.asarray(far | (sums_y * step_y > _LOST * self.yy))

    def read_carefully(self, task: int, X: Any, y: Floats, weights: Floats | None, buffer: Floats) -> None:
        """Read one task of any number of rows, its means first."""
        most = len(buffer)
        a = np.ones(len(y)) if weights is None else weights
        parts = [slice(start, start + most) for start in range(0, len(y), most)]
        total = a.sum()
        mean_x, mean_y = sum(a[part] @ X[part] for part in parts) / total, a @ y / total
        gram, product = self.gram[task], np.empty_like(self.gram[task])
        gram[:] = 0.0
        self.cross[task] = 0.0
        for part in parts:
            rows = np.subtract(X[part], mean_x, out=buffer[: len(y[part])])
            self.cross[task] += (a[part] * (y[part] - mean_y)) @ rows
            if weights is not None:
                rows *= np.sqrt(weights[part])[:, None]
            np.dot(rows.T, rows, out=product)
            gram += product
        self.yy[task] = a @ np.square(y - mean_y)
        self.mean_x[task], self.mean_y[task] = mean_x, mean_y


def _as_stack(blocks: Sequence[Block]) -> Stack | None:
    """Return blocks of one task each with dense inputs as a stack; None: they are others."""
    if isinstance(blocks, Stack):
        return None if is_sparse(blocks.X) else blocks
    if len(blocks) < 2 or not all(block.Y.shape[1] == 1 and not is_sparse(block.X) for block in blocks):
        return None
    weights = np.concatenate([block.weights for block in blocks])
    return Stack(
        np.concatenate([block.X for block in blocks]),
        np.concatenate([block.Y[:, 0] for block in blocks]),
        np.cumsum([0, *(len(block.X) for block in blocks)]),
        None if (weights == 1.0).all() else weights,
        np.concatenate([block.outputs for block in blocks]),
    )


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of T tasks in P patterns; see the module for the formulas.

    Every estimator with squared loss is fitted by ``fit_moments`` of them as by ``fit`` of the rows.
    Statistics of other rows are added with ``+`` and taken away with ``-``. With the same ``names``
    tasks are matched by position, otherwise by name; the sum has the tasks of both.

    Parameters
    ----------
    weight, mean_x, gram
        Per pattern: ``(P,)``, ``(P, d)``, ``(P, d, d)``.
    pattern
        Which pattern each task has, ``(T,)``.
    mean_y, cross, yy
        Per task: ``(T,)``, ``(T, d)``, ``(T,)``.
    names
        Labels of the tasks in ascending order, ``(T,)``; 0, 1 and so on unless given.
    form
        ``"stacked"``: every row belongs to one task. ``"columns"``: rows have a target for each task.

    Examples
    --------
    >>> import numpy as np
    >>> from polytask.linear import TraceNorm
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(40, 3))
    >>> y, tasks = X @ [1.0, 0.0, 2.0], np.repeat(["a", "b"], 20)
    >>> old, new = Moments.stacked(X[:30], y[:30], tasks[:30]), Moments.stacked(X[30:], y[30:], tasks[30:])
    >>> model = TraceNorm(alpha=0.01).fit_moments(old + new)
    >>> bool(np.allclose(model.coef_, TraceNorm(alpha=0.01).fit(X, y, tasks).coef_))
    True
    """

    weight: Floats
    mean_x: Floats
    gram: Floats
    pattern: Ints
    mean_y: Floats
    cross: Floats
    yy: Floats
    names: NDArray[Any] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    form: str = "columns"

    def __post_init__(self) -> None:
        if len(self.names) == 0:
            object.__setattr__(self, "names", np.arange(len(self.pattern)))

    # -- construction -------------------------------------------------------------------------

    @classmethod
    def of(cls, X: Any, Y: Any, sample_weight: Any = None) -> Moments:
        """Read the statistics of ``Y`` ``(n, T)``, NaN where a label is missing, on inputs ``X`` ``(n, d)``.

        ``sample_weight`` is ``(n,)`` or None; rows of weight 0 are left out.
        """
        inputs, targets = np.asarray(X, dtype=np.float64), np.asarray(Y, dtype=np.float64)
        if inputs.ndim != 2 or targets.ndim != 2 or len(inputs) != len(targets):
            raise InputError(f"X has shape {inputs.shape} and Y {targets.shape}; give (n, d) and (n, T)")
        weights = np.ones(len(inputs)) if sample_weight is None else checked_weights(sample_weight, len(inputs))
        columns = []
        for target in targets.T:
            rows = np.flatnonzero(~np.isnan(target) & (weights > 0))
            columns.append(Column(rows, target[rows], weights[rows]))
        return cls.of_blocks(gather(inputs, columns), targets.shape[1], inputs.shape[1])

    @classmethod
    def stacked(cls, X: Any, y: Any, tasks: Any, sample_weight: Any = None) -> Moments:
        """Read the statistics of rows that belong to one task each.

        Parameters
        ----------
        X
            Inputs, ``(n, d)``.
        y
            Targets, ``(n,)``; rows with NaN are left out.
        tasks
            Task label of each row, ``(n,)``.
        sample_weight
            None, or the weight of each row ``(n,)``; rows of weight 0 are left out.
        """
        inputs, targets, labels = np.asarray(X), np.asarray(y, dtype=np.float64), np.asarray(tasks)
        if inputs.ndim != 2 or targets.shape != (len(inputs),) or labels.shape != (len(inputs),):
            raise InputError(
                f"X has shape {inputs.shape}, y {targets.shape} and tasks {labels.shape}; give (n, d), (n,) and (n,)"
            )
        names, stack = Stack.of(inputs, targets, labels, sample_weight)
        return replace(cls.of_blocks(stack, len(names), inputs.shape[1]), names=names, form="stacked")

    @classmethod
    def of_blocks(cls, blocks: Sequence[Block], n_tasks: int, n_features: int) -> Moments:
        """Read the statistics of blocks; a task that is in no block has weight 0."""
        if isinstance(blocks, MomentsOnly):
            return blocks.moments
        stack = _as_stack(blocks)
        if stack is not None:
            return cls._of_stack(stack, n_tasks)
        found = cls.empty(n_tasks, n_features, n_patterns=len(blocks) + 1)
        for number, block in enumerate(blocks, start=1):
            if is_sparse(block.X):
                found._read_sparse(number, block)
                continue
            total = block.total
            a = block.weights
            mean_x = a @ block.X / total
            mean_y = a @ block.Y / total
            X, Y = block.X - mean_x, block.Y - mean_y
            plain = bool((a == 1.0).all())
            aX = X if plain else X * a[:, None]
            found.weight[number] = total
            found.mean_x[number] = mean_x
            # the product of a matrix with its own transpose is symmetric to the last bit
            root = X if plain else X * np.sqrt(a)[:, None]
            np.matmul(root.T, root, out=found.gram[number])
            found.pattern[block.outputs] = number
            found.mean_y[block.outputs] = mean_y
            found.cross[block.outputs] = Y.T @ aX
            found.yy[block.outputs] = a @ np.square(Y)
        return found._compact()

    def _read_sparse(self, number: int, block: Block) -> None:
        """Read a block with sparse inputs, which are never made dense: sums about zero, then about the means."""
        a, total = block.weights, block.total
        X = block.X.astype(np.float64)
        mean_x, mean_y = X.T @ a / total, a @ block.Y / total
        Y = block.Y - mean_y
        root = diags_array(np.sqrt(a)) @ X
        gram = (root.T @ root).toarray()
        second = np.diag(gram).copy()
        gram -= total * np.outer(mean_x, mean_x)
        flat = np.diag(gram) <= 1e-14 * second  # constant columns: only rounding is left
        gram[flat] = 0.0
        gram[:, flat] = 0.0
        cross = (X.T @ (a[:, None] * Y)).T
        cross[:, flat] = 0.0
        self.weight[number] = total
        self.mean_x[number] = mean_x
        self.gram[number] = gram
        self.pattern[block.outputs] = number
        self.mean_y[block.outputs] = mean_y
        self.cross[block.outputs] = cross
        self.yy[block.outputs] = a @ np.square(Y)

    @classmethod
    def _of_stack(cls, stack: Stack, n_tasks: int) -> Moments:
        sums = centred_sums(stack.X, stack.y, stack.bounds, stack.weights)
        found = cls(stack.totals, sums.mean_x, sums.gram, np.arange(len(stack)), sums.mean_y, sums.cross, sums.yy)
        if len(stack) == n_tasks and (stack.outputs == np.arange(n_tasks)).all():
            return found
        return found._spread(stack.outputs, n_tasks)

    @classmethod
    def empty(cls, n_tasks: int, n_features: int, *, n_patterns: int = 1) -> Moments:
        """Return the statistics of no rows."""
        T, d, P = n_tasks, n_features, n_patterns
        return cls(
            np.zeros(P),
            np.zeros((P, d)),
            np.zeros((P, d, d)),
            np.zeros(T, dtype=np.int64),
            np.zeros(T),
            np.zeros((T, d)),
            np.zeros(T),
        )

    def _spread(self, places: Ints, n_tasks: int, names: NDArray[Any] | None = None) -> Moments:
        """Return the statistics of ``n_tasks`` tasks, of which these are at ``places`` and the others have no rows."""
        T, d = n_tasks, self.n_features
        pattern = np.full(T, len(self.weight))
        pattern[places] = self.pattern
        mean_y, cross, yy = np.zeros(T), np.zeros((T, d)), np.zeros(T)
        mean_y[places], cross[places], yy[places] = self.mean_y, self.cross, self.yy
        labels = np.arange(T) if names is None else names
        if not (pattern == len(self.weight)).any():
            return replace(self, pattern=pattern, mean_y=mean_y, cross=cross, yy=yy, names=labels)
        return Moments(
            np.append(self.weight, 0.0),
            np.concatenate([self.mean_x, np.zeros((1, d))]),
            np.concatenate([self.gram, np.zeros((1, d, d))]),
            pattern,
            mean_y,
            cross,
            yy,
            labels,
            self.form,
        )._compact()

    def _compact(self) -> Moments:
        used, pattern = np.unique(self.pattern, return_inverse=True)
        if len(used) == len(self.weight):
            return self
        return replace(self, weight=self.weight[used], mean_x=self.mean_x[used], gram=self.gram[used], pattern=pattern)

    # -- views --------------------------------------------------------------------------------

    @property
    def n_tasks(self) -> int:
        """T."""
        return len(self.pattern)

    @property
    def n_features(self) -> int:
        """Number of features d."""
        return self.mean_x.shape[1]

    @property
    def n(self) -> Floats:
        """Sum of the row weights of each task, ``(T,)``."""
        return np.asarray(self.weight[self.pattern])

    def uncentred(self) -> Moments:
        """Return the statistics about zero instead of about the means (for a model without intercept)."""
        gram = self.gram + self.weight[:, None, None] * self.mean_x[:, :, None] * self.mean_x[:, None, :]
        shift = self.n * self.mean_y
        return replace(
            self,
            mean_x=np.zeros_like(self.mean_x),
            gram=gram,
            mean_y=np.zeros_like(self.mean_y),
            cross=self.cross + shift[:, None] * self.mean_x[self.pattern],
            yy=self.yy + shift * self.mean_y,
        )

    def tasks(self, index: Any) -> Moments:
        """Return the statistics of these tasks only."""
        chosen = np.asarray(index)
        return replace(
            self,
            pattern=self.pattern[chosen],
            mean_y=self.mean_y[chosen],
            cross=self.cross[chosen],
            yy=self.yy[chosen],
            names=self.names[chosen],
        )._compact()

    def without(self, left_out: NDArray[np.bool_]) -> Moments:
        """Return the statistics with no rows for the tasks marked in ``left_out``."""
        kept = np.flatnonzero(~left_out)
        return self.tasks(kept)._spread(kept, self.n_tasks, self.names)

    def among(self, names: NDArray[Any]) -> Moments:
        """Return the statistics of the tasks ``names``, in ascending order, which are these and others without rows."""
        strange = self.names[~np.isin(self.names, names)]
        if len(strange):
            raise InputError(f"task {strange.tolist()[0]!r} is not among the names; give all tasks of the moments")
        return self._spread(np.searchsorted(names, self.names), len(names), names)

    def constant(self) -> NDArray[np.bool_]:
        """Return which tasks have the same target in all their rows, ``(T,)``."""
        return np.asarray(self.yy <= 1e-24 * self.n * np.square(self.mean_y))

    def with_constant(self) -> Moments:
        """Return the statistics about zero of the inputs and, after them, a column of ones."""
        about_zero = self.uncentred()
        sums = (self.weight[:, None] * self.mean_x)[:, :, None]
        gram = np.concatenate([about_zero.gram, sums], axis=2)
        below = np.concatenate([sums[:, :, 0], self.weight[:, None]], axis=1)[:, None, :]
        return replace(
            about_zero,
            mean_x=np.zeros((len(self.weight), self.n_features + 1)),
            gram=np.concatenate([gram, below], axis=1),
            cross=np.column_stack([about_zero.cross, self.n * self.mean_y]),
        )

    # -- algebra ------------------------------------------------------------------------------

    def __add__(self, other: Moments) -> Moments:
        """Return the statistics of both sets of rows together."""
        return self._combine(other, 1.0)

    def __sub__(self, other: Moments) -> Moments:
        """Return the statistics without the rows of ``other``, which must be among the rows of ``self``."""
        return self._combine(other, -1.0)

    def _aligned(self, other: Moments, sign: float) -> tuple[Moments, Moments]:
        """Return both with the same tasks in the same order."""
        names, more = self.names, other.names
        if len(names) == len(more) and bool((names == more).all()):
            return self, other
        if (names.dtype.kind == "U") != (more.dtype.kind == "U"):
            raise InputError(
                f"tasks are named {names[:1].tolist()[0]!r} … in one of the moments and {more[:1].tolist()[0]!r} … in "
                "the other; use text or numbers in both"
            )
        if sign < 0:
            strange = more[~np.isin(more, names)]
            if len(strange):
                raise InputError(
                    f"cannot take away the rows of task {strange.tolist()[0]!r}, which the moments do not have; "
                    "subtract a part of the same rows"
                )
        every = np.union1d(names, more)
        return (
            self._spread(np.searchsorted(every, names), len(every), every),
            other._spread(np.searchsorted(every, more), len(every), every),
        )

    def _combine(self, other: Moments, sign: float) -> Moments:
        if self.n_features != other.n_features or (
            self.form == other.form == "columns" and self.n_tasks != other.n_tasks
        ):
            raise InputError(
                f"moments of {self.cross.shape} and of {other.cross.shape} (tasks, features) cannot be combined"
            )
        self, other = self._aligned(other, sign)
        pairs, pattern = np.unique(np.stack([self.pattern, other.pattern]), axis=1, return_inverse=True)
        pattern = pattern.reshape(-1)
        a, b = pairs
        n_a, n_b = self.weight[a], other.weight[b]
        n = n_a + sign * n_b
        if (n < -1e-9 * n_a).any():
            raise InputError("cannot take away more rows than there are; subtract a part of the same rows")
        gone = n <= 1e-9 * n_a
        n = np.where(gone, 0.0, n)
        safe = np.where(gone, 1.0, n)
        mean_x = (n_a[:, None] * self.mean_x[a] + sign * n_b[:, None] * other.mean_x[b]) / safe[:, None]
        mean_y = (n_a[pattern] * self.mean_y + sign * n_b[pattern] * other.mean_y) / safe[pattern]
        # merging: shift between the two means; taking away: the same, with the part's mean against the whole's
        between = np.where(gone, 0.0, n_a * n_b / safe)
        step_x = other.mean_x[b] - self.mean_x[a]
        step_y = other.mean_y - self.mean_y
        gram = self.gram[a] + sign * other.gram[b]
        gram += sign * between[:, None, None] * step_x[:, :, None] * step_x[:, None, :]
        cross = self.cross + sign * other.cross + sign * (between[pattern] * step_y)[:, None] * step_x[pattern]
        yy = self.yy + sign * other.yy + sign * between[pattern] * np.square(step_y)
        left = ~gone
        return Moments(
            n,
            mean_x * left[:, None],
            gram * left[:, None, None],
            pattern,
            mean_y * left[pattern],
            cross * left[pattern][:, None],
            np.maximum(yy, 0.0) * left[pattern],
            self.names,
            self.form,
        )

    # -- files --------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the statistics to a file in the safetensors format."""
        from safetensors.numpy import save_file

        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        names = {"kind": self.names.dtype.kind, "names": self.names.tolist()}
        if self.names.dtype.kind not in "iufbU":
            raise InputError(f"task labels of type {self.names.dtype} cannot be saved; use text or numbers")
        about = {"polytask": "moments", "form": self.form, "tasks": json.dumps(names)}
        save_file(arrays, str(path), metadata=about)

    @classmethod
    def load(cls, path: str | Path) -> Moments:
        """Read what :meth:`save` has written; a file that does not hold moments is refused."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="numpy") as file:
                about = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in _ARRAYS if name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path} cannot be read as moments ({error}); give a file that Moments.save wrote"
            ) from error
        if about.get("polytask") != "moments" or len(arrays) != len(_ARRAYS):
            raise InputError(f"{path} does not hold moments; give a file that Moments.save wrote")
        named = json.loads(about["tasks"])
        names = np.array(
            named["names"], dtype={"i": np.int64, "u": np.uint64, "f": float, "b": bool}.get(named["kind"])
        )
        found = cls(**arrays, names=names, form=about["form"])
        found._check_shapes(path)
        return found

    def _check_shapes(self, path: str | Path) -> None:
        P, T, d = len(self.weight), len(self.pattern), self.mean_x.shape[-1]
        shapes = (P,), (P, d), (P, d, d), (T,), (T,), (T, d), (T,)
        fits = all(getattr(self, name).shape == shape for name, shape in zip(_ARRAYS, shapes, strict=True))
        fits = fits and len(self.names) == T
        if not fits or (T and not 0 <= int(self.pattern.min()) <= int(self.pattern.max()) < P):
            raise InputError(f"{path} holds moments whose parts do not belong together; gather and save them again")
