"""Per-task sufficient statistics of squared loss: one pass over the data, then no data any more.

For every task t with labelled rows i and row weights a_i:

    n_t  = sum_i a_i                        mean_x_t, mean_y_t: weighted means
    G_t  = sum_i a_i (x_i - mean_x_t)(x_i - mean_x_t)^T            (d, d)
    c_t  = sum_i a_i (x_i - mean_x_t)(y_i - mean_y_t)              (d,)
    yy_t = sum_i a_i (y_i - mean_y_t)²

Tasks that are labelled on the same rows with the same weights share n, mean_x and G, which are
stored once per such *pattern*. Statistics of disjoint rows add, and a part can be taken away
again, so that the statistics of a training fold are those of all rows minus those of the fold
(Chan, Golub & LeVeque, Algorithms for computing the sample variance, 1983).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from polytask.core.data import Ints
from polytask.core.errors import InputError
from polytask.core.task import Floats


@dataclass(frozen=True)
class Block:
    """Tasks that are labelled on the same rows.

    Parameters
    ----------
    X
        Inputs of those rows, ``(m, d)``.
    weights
        Weight of each row, ``(m,)``, all positive.
    Y
        Targets, ``(m, k)``.
    outputs
        Which tasks the columns of ``Y`` are, ``(k,)``.
    """

    X: Floats
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


def gather(X: Floats, columns: Sequence[Column]) -> list[Block]:
    """Group the columns into blocks of equal rows and weights; a column without labels is in no block."""
    groups: dict[tuple[bytes, bytes], list[int]] = {}
    for number, column in enumerate(columns):
        if len(column.rows):
            key = b"" if column.weights is None else column.weights.tobytes()
            groups.setdefault((column.rows.tobytes(), key), []).append(number)
    blocks = []
    for numbers in groups.values():
        first = columns[numbers[0]]
        every = len(first.rows) == len(X) and bool((first.rows == np.arange(len(X))).all())
        weights = np.ones(len(first.rows)) if first.weights is None else first.weights
        values = [columns[number].values for number in numbers]
        Y = (values[0][:, None] if len(values) == 1 else np.column_stack(values)).astype(np.float64, copy=False)
        blocks.append(Block(X if every else _rows(X, first.rows), weights, Y, np.array(numbers, dtype=np.int64)))
    return blocks


def _rows(X: Floats, rows: Ints) -> Floats:
    """Return these rows of ``X``; a view where they follow each other."""
    start, end = int(rows[0]), int(rows[-1]) + 1
    if end - start == len(rows) and bool((rows[1:] - rows[:-1] == 1).all()):
        return X[start:end]
    return X[rows]


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of T tasks in P patterns; see the module for the formulas.

    Parameters
    ----------
    weight, mean_x, gram
        Per pattern: ``(P,)``, ``(P, d)``, ``(P, d, d)``.
    pattern
        Which pattern each task has, ``(T,)``.
    mean_y, cross, yy
        Per task: ``(T,)``, ``(T, d)``, ``(T,)``.
    """

    weight: Floats
    mean_x: Floats
    gram: Floats
    pattern: Ints
    mean_y: Floats
    cross: Floats
    yy: Floats

    # -- construction -------------------------------------------------------------------------

    @classmethod
    def of(cls, X: Any, Y: Any, sample_weight: Any = None) -> Moments:
        """Read the statistics of ``Y`` ``(n, T)``, NaN where a label is missing, on inputs ``X`` ``(n, d)``.

        ``sample_weight`` is ``(n,)`` or None; rows of weight 0 are left out.
        """
        inputs, targets = np.asarray(X, dtype=np.float64), np.asarray(Y, dtype=np.float64)
        if inputs.ndim != 2 or targets.ndim != 2 or len(inputs) != len(targets):
            raise InputError(f"X has shape {inputs.shape} and Y {targets.shape}; give (n, d) and (n, T)")
        weights = np.ones(len(inputs)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        columns = []
        for target in targets.T:
            rows = np.flatnonzero(~np.isnan(target) & (weights > 0))
            columns.append(Column(rows, target[rows], weights[rows]))
        return cls.of_blocks(gather(inputs, columns), targets.shape[1], inputs.shape[1])

    @classmethod
    def of_blocks(cls, blocks: Sequence[Block], n_tasks: int, n_features: int) -> Moments:
        """Read the statistics of blocks; a task that is in no block has weight 0."""
        found = cls.empty(n_tasks, n_features, n_patterns=len(blocks) + 1)
        if len(blocks) > 1 and all(block.Y.shape[1] == 1 for block in blocks) and found._read_alone(blocks):
            return found._compact()
        for number, block in enumerate(blocks, start=1):
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

    def _read_alone(self, blocks: Sequence[Block]) -> bool:
        """Read blocks of one task each and of weights 1, means and sums of all at once; False where weights are not."""
        if not all((block.weights == 1.0).all() for block in blocks):
            return False
        sizes = np.array([len(block.X) for block in blocks])
        ends = np.cumsum(sizes)
        starts = ends - sizes
        outputs = np.concatenate([block.outputs for block in blocks])
        X, y = np.concatenate([block.X for block in blocks]), np.concatenate([block.Y[:, 0] for block in blocks])
        mean_x = np.add.reduceat(X, starts, axis=0) / sizes[:, None]
        mean_y = np.add.reduceat(y, starts) / sizes
        X -= np.repeat(mean_x, sizes, axis=0)
        y -= np.repeat(mean_y, sizes)
        self.weight[1:] = sizes
        self.mean_x[1:] = mean_x
        self.pattern[outputs] = np.arange(1, len(blocks) + 1)
        self.mean_y[outputs] = mean_y
        self.yy[outputs] = np.add.reduceat(np.square(y), starts)
        for number, (start, end, output) in enumerate(
            zip(starts.tolist(), ends.tolist(), outputs.tolist(), strict=True), start=1
        ):
            rows = X[start:end]
            # the product of a matrix with its own transpose is symmetric to the last bit
            np.matmul(rows.T, rows, out=self.gram[number])
            np.matmul(y[start:end], rows, out=self.cross[output])
        return True

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
        )._compact()

    # -- algebra ------------------------------------------------------------------------------

    def __add__(self, other: Moments) -> Moments:
        """Return the statistics of both sets of rows together."""
        return self._combine(other, 1.0)

    def __sub__(self, other: Moments) -> Moments:
        """Return the statistics without the rows of ``other``, which must be among the rows of ``self``."""
        return self._combine(other, -1.0)

    def _combine(self, other: Moments, sign: float) -> Moments:
        if self.cross.shape != other.cross.shape:
            raise InputError(
                f"moments of {self.cross.shape} and of {other.cross.shape} (tasks, features) cannot be combined"
            )
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
        )
