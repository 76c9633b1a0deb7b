"""Moments of data of any size, gathered in one pass: arrays in batches, tables larger than memory, clusters.

Every batch of rows becomes per-task sums about the batch's own means (:mod:`polytask.linear.moments`), and
the sums of a task are merged about the common mean,

    G = G_a + G_b + n_a n_b / (n_a + n_b) (mean_b - mean_a)(mean_b - mean_a)^T,

so that no digits are lost whatever the means are, and memory is that of one batch and of the sums,
T (d + 1)². Inputs may be of float32; sums are of float64. On a cluster each partition is read where it
lies, and the sums travel up a tree.

Chan, Golub & LeVeque, Algorithms for computing the sample variance, 1983.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytask.core.data import Ints
from polytask.core.errors import InputError
from polytask.core.task import Floats
from polytask.linear.moments import Moments

BATCH_ROWS = 1 << 16
_AT_ONCE = 1 << 21  # numbers in the Gram matrices that are merged at a time


def gather_arrays(
    X: Any, y: Any, tasks: Any = None, sample_weight: Any = None, *, batch_rows: int = BATCH_ROWS
) -> Moments:
    """Gather moments of arrays, which may be memory-mapped, a batch of rows at a time.

    Parameters
    ----------
    X
        Inputs, ``(n, d)``.
    y
        Targets: ``(n,)``, or ``(n, T)`` with NaN where a label is missing.
    tasks
        Task label of each row, ``(n,)``; None: the columns of ``y`` are the tasks.
    sample_weight
        None, or the weight of each row, ``(n,)``.
    batch_rows
        Rows that are read at a time.

    Examples
    --------
    >>> import numpy as np
    >>> from polytask.linear import MeanRegularised
    >>> rng = np.random.default_rng(0)
    >>> X, tasks = rng.normal(size=(1000, 3)).astype(np.float32), np.arange(1000) % 4
    >>> moments = gather_arrays(X, X @ [1.0, 2.0, 3.0] + tasks, tasks, batch_rows=100)
    >>> MeanRegularised(alpha=1e-6).fit_moments(moments).intercept_.round(3) + 0.0
    array([0., 1., 2., 3.])
    """
    n = len(X)
    for name, array in (("y", y), ("tasks", tasks), ("sample_weight", sample_weight)):
        if array is not None and len(array) != n:
            raise InputError(f"X has {n} rows but {name} has {len(array)}; give one entry per row")
    columns = (X, y, tasks, sample_weight)
    starts = range(0, n, _checked_rows(batch_rows))
    return gather_batches(
        tuple(None if column is None else column[start : start + batch_rows] for column in columns) for start in starts
    )


def gather_batches(batches: Iterable[Sequence[Any]]) -> Moments:
    """Gather moments of batches of rows as they come.

    Parameters
    ----------
    batches
        Tuples ``(X, y)``, ``(X, y, tasks)`` or ``(X, y, tasks, sample_weight)``, all of the same length and
        with arrays as of :func:`gather_arrays`. A batch need not have rows of all tasks.
    """
    running: _Running | None = None
    for batch in batches:
        X, y, tasks, weight = [*batch, None, None][:4]
        part = _of_batch(X, y, tasks, weight)
        if part is None:
            continue
        if running is None:
            running = _Running(part)
        else:
            running.add(part)
    if running is None:
        raise InputError("batches have no row with a target and a weight above zero; give at least one")
    return running.moments()


def gather_table(
    source: Any,
    y: str | Sequence[str],
    tasks: str | None = None,
    sample_weight: str | None = None,
    *,
    features: Sequence[str] | None = None,
    batch_rows: int = BATCH_ROWS,
) -> Moments:
    """Gather moments of a table larger than memory: Parquet files, or whatever gives Arrow batches.

    Parameters
    ----------
    source
        A Parquet file, a list of such files or a folder of them (with hive partitions as columns); or an
        object with an Arrow stream: a Polars frame, a DuckDB relation, a PyArrow table or reader.
    y
        The column with the targets; with ``tasks=None`` one column per task.
    tasks
        The column with the task of each row; text, whole numbers or a dictionary.
    sample_weight
        None, or the column with the weight of each row.
    features
        Columns of the inputs, in this order; None: all that have no other role. A row without a target
        is left out; a missing or infinite input is refused.
    batch_rows
        Rows that are read at a time.
    """
    targets = [y] if isinstance(y, str) else list(y)
    if (tasks is None) != (not isinstance(y, str)):
        raise InputError("give one column y with a column of tasks, or a list of columns y and tasks=None")
    roles = [*targets, *([tasks] if tasks else []), *([sample_weight] if sample_weight else [])]
    known, batches = _arrow_batches(source, _checked_rows(batch_rows))
    names = [name for name in known if name not in roles] if features is None else list(features)
    missing = [name for name in [*names, *roles] if name not in known]
    if missing:
        raise InputError(f"the table has no column {missing[0]!r}; it has {', '.join(map(repr, known[:20]))}")
    if not names:
        raise InputError("the table has no columns left for the inputs; name them with features")
    wanted = list(dict.fromkeys([*names, *roles]))
    return gather_batches(_read_batch(batch, names, y, tasks, sample_weight) for batch in batches(wanted))


def gather_dask(
    X: Any, y: Any, tasks: Any = None, sample_weight: Any = None, *, features: Sequence[str] | None = None
) -> Moments:
    """Gather moments of a Dask frame or of Dask arrays: one task per partition, then sums of pairs.

    Parameters
    ----------
    X
        A Dask array ``(n, d)``, or a Dask frame.
    y, tasks, sample_weight
        Dask arrays as those of :func:`gather_arrays`; of a frame the names of columns, as of :func:`gather_table`.
    features
        Columns of a frame that are inputs; None: all that have no other role.
    """
    dask = _library("dask", "dask")
    read = dask.delayed(_of_partition)
    if hasattr(X, "to_delayed") and hasattr(X, "columns"):
        targets = [y] if isinstance(y, str) else list(y)
        roles = [*targets, *(name for name in (tasks, sample_weight) if name is not None)]
        names = [str(name) for name in X.columns if name not in roles] if features is None else list(features)
        parts = [read(part, names, y, tasks, sample_weight) for part in X[[*names, *roles]].to_delayed()]
    else:
        rows = X.rechunk({1: -1})
        others = [None if array is None else _like_rows(array, rows.chunks[0]) for array in (y, tasks, sample_weight)]
        pieces = [[None] * rows.numblocks[0] if other is None else other for other in others]
        pack = dask.delayed(_of_batch)
        parts = [pack(block, *rest) for block, *rest in zip(rows.to_delayed().ravel(), *pieces, strict=True)]
    merge = dask.delayed(_merged)
    while len(parts) > 1:
        parts = [merge(*parts[start : start + 2]) for start in range(0, len(parts), 2)]
    found: Moments | None = parts[0].compute() if parts else None
    if found is None:
        raise InputError("the partitions have no row with a target and a weight above zero; give at least one")
    return found


def _like_rows(array: Any, chunks: tuple[int, ...]) -> list[Any]:
    """Return the blocks of a Dask array cut like the rows of X."""
    cut = array.rechunk({0: chunks}) if array.ndim == 1 else array.rechunk({0: chunks, 1: -1})
    return list(cut.to_delayed().ravel())


def _of_partition(frame: Any, names: list[str], y: Any, tasks: str | None, weight: str | None) -> Moments | None:
    """Return the moments of a pandas frame."""
    X = frame[names].to_numpy()
    target = frame[y if isinstance(y, str) else list(y)].to_numpy(dtype=np.float64, na_value=np.nan)
    labels = None
    if tasks is not None:
        if bool(frame[tasks].isna().any()):
            raise InputError(f"column {tasks!r} has rows without a task; name the task of every row")
        labels = frame[tasks].to_numpy()
    return _of_batch(X, target, labels, None if weight is None else frame[weight].to_numpy(dtype=np.float64))


def _merged(first: Moments | None, second: Moments | None = None) -> Moments | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def _of_batch(X: Any, y: Any, tasks: Any = None, weight: Any = None) -> Moments | None:
    """Return the moments of one batch; None: it has no labelled row."""
    inputs, targets = np.asarray(X), np.asarray(y, dtype=np.float64)
    if inputs.dtype not in (np.float32, np.float64):
        inputs = inputs.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # answered below
        if tasks is None:
            targets = targets[:, None] if targets.ndim == 1 else targets
            found = Moments.of(inputs, targets, weight)
        else:
            labels = np.asarray(tasks)
            labels = labels.astype(str) if labels.dtype == object else labels
            if labels.dtype.kind == "f" and np.isnan(labels).any():
                raise InputError("tasks has rows without a label; name the task of every row")
            if not _any_row(targets, weight):
                return None
            found = Moments.stacked(inputs, targets, labels, weight)
    if not (np.isfinite(found.mean_x).all() and np.isfinite(found.gram).all()):
        bad = int(np.argmax(~np.isfinite(inputs).all(axis=0)))
        raise InputError(
            f"column {bad} of the inputs has a missing, infinite or too large value; fill it in or scale it"
        )
    if not np.isfinite(found.yy).all():
        raise InputError("y has an infinite or too large value; leave the row out or scale y")
    return found


def _any_row(targets: Floats, weight: Any) -> bool:
    """Return whether any row has a target and a weight above 0; arrays of unequal lengths are refused later."""
    kept = ~np.isnan(targets)
    if weight is not None and np.shape(weight) == kept.shape:
        kept &= np.asarray(weight) != 0
    return bool(kept.any())


class _Running:
    """Sums over the batches so far."""

    def __init__(self, first: Moments) -> None:
        self.sums = first
        self.fresh = False  # whether the arrays of the sums are its own

    def add(self, part: Moments) -> None:
        """Add the sums of further rows."""
        sums = self.sums
        if part.n_features != sums.n_features:
            raise InputError(f"a batch has {part.n_features} inputs, those before it {sums.n_features}")
        alone = sums.form == part.form == "stacked" and sums.names.dtype.kind == part.names.dtype.kind
        places = np.searchsorted(sums.names, part.names) if alone else np.zeros(0, dtype=np.int64)
        inside = alone and bool((places < sums.n_tasks).all()) and bool((sums.names[places] == part.names).all())
        if not inside or not self.fresh:
            self.sums, self.fresh = _own(sums + part), True
            return
        step = max(_AT_ONCE // max(sums.n_features**2, 1), 1)
        for start in range(0, len(places), step):
            _merge(sums, part, places[start : start + step], slice(start, start + step))

    def moments(self) -> Moments:
        """Return the sums."""
        return self.sums


def _own(sums: Moments) -> Moments:
    """Return stacked sums whose k-th task has the k-th pattern, with arrays that may be written to."""
    if sums.form != "stacked":
        return sums
    order = sums.pattern
    return replace(
        sums,
        weight=sums.weight[order],
        mean_x=sums.mean_x[order],
        gram=sums.gram if (order == np.arange(len(sums.gram))).all() else sums.gram[order],
        pattern=np.arange(len(order)),
    )


def _merge(sums: Moments, part: Moments, at: Ints, new: slice) -> None:
    """Add the tasks ``new`` of ``part`` to the tasks ``at`` of ``sums``, in place."""
    places: Any = slice(int(at[0]), int(at[-1]) + 1) if len(at) == at[-1] - at[0] + 1 else at
    patterns = part.pattern[new]
    n_a, n_b = sums.weight[places], part.weight[patterns]
    total = n_a + n_b
    step_x, step_y = part.mean_x[patterns] - sums.mean_x[places], part.mean_y[new] - sums.mean_y[places]
    between = n_a * n_b / total
    root = np.sqrt(between)[:, None] * step_x
    change = root[:, :, None] * root[:, None, :]
    change += part.gram[patterns]
    sums.gram[places] += change
    sums.cross[places] += part.cross[new] + (between * step_y)[:, None] * step_x
    sums.yy[places] += part.yy[new] + between * np.square(step_y)
    sums.mean_x[places] += (n_b / total)[:, None] * step_x
    sums.mean_y[places] += n_b / total * step_y
    sums.weight[places] = total


def _arrow_batches(source: Any, batch_rows: int) -> tuple[list[str], Callable[[list[str]], Iterator[Any]]]:
    """Return the columns of a table and a function that reads some of them in batches."""
    arrow = _library("pyarrow", "parquet")
    if hasattr(source, "__arrow_c_stream__"):
        reader = arrow.RecordBatchReader.from_stream(source)

        def from_stream(columns: list[str]) -> Iterator[Any]:
            for batch in reader:
                for start in range(0, batch.num_rows, batch_rows):
                    yield batch.select(columns).slice(start, batch_rows)

        return list(reader.schema.names), from_stream
    from pyarrow import dataset

    paths = [str(path) for path in source] if isinstance(source, list | tuple) else str(source)
    if isinstance(source, str | Path) and not Path(source).exists():
        raise InputError(f"{source} does not exist; give a Parquet file, a list of them or a folder")
    try:
        table = dataset.dataset(paths, format="parquet", partitioning="hive")
    except arrow.ArrowTypeError:  # the files have the columns of the folders' names too, of another type
        table = dataset.dataset(paths, format="parquet")

    def from_files(columns: list[str]) -> Iterator[Any]:
        return iter(
            table.to_batches(
                columns=columns, batch_size=batch_rows, batch_readahead=1, fragment_readahead=1, use_threads=False
            )
        )

    return list(table.schema.names), from_files


def _read_batch(batch: Any, names: list[str], y: Any, tasks: str | None, weight: str | None) -> tuple[Any, ...]:
    """Return X, y, task labels and weights of an Arrow batch."""
    columns = [batch.column(name) for name in names]
    single = all(str(column.type) == "float" for column in columns)
    X = np.empty((batch.num_rows, len(names)), dtype=np.float32 if single else np.float64)
    for number, column in enumerate(columns):
        if column.null_count:
            raise InputError(f"column {names[number]!r} has a missing value; fill it in, or leave the column out")
        try:
            X[:, number] = column.to_numpy(zero_copy_only=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"column {names[number]!r} is of type {column.type}; encode it as numbers") from error
    weights = None if weight is None else _numbers(batch.column(weight), weight)
    if tasks is None:
        return X, np.column_stack([_numbers(batch.column(name), name) for name in y]), None, weights
    return X, _numbers(batch.column(y), y), _labels(batch.column(tasks), tasks), weights


def _numbers(column: Any, name: str) -> Floats:
    """Return a column as numbers, NaN where a value is missing."""
    try:
        return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"column {name!r} is of type {column.type}; give numbers") from error


def _labels(column: Any, name: str) -> NDArray[Any]:
    if column.null_count:
        raise InputError(f"column {name!r} has rows without a task; name the task of every row")
    if hasattr(column, "dictionary"):
        labels = np.asarray(column.dictionary.to_numpy(zero_copy_only=False))[column.indices.to_numpy()]
    else:
        labels = np.asarray(column.to_numpy(zero_copy_only=False))
    return labels.astype(str) if labels.dtype == object else labels


def _checked_rows(batch_rows: int) -> int:
    if isinstance(batch_rows, bool) or not isinstance(batch_rows, int | np.integer) or batch_rows < 1:
        raise InputError(f"batch_rows must be a whole number of at least 1, got {batch_rows!r}")
    return int(batch_rows)


def _library(name: str, extra: str) -> Any:
    """Return an optional library."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(f'this needs {name}, which is not installed; run pip install "polytask[{extra}]"') from error
