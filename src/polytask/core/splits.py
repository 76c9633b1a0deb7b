"""Row splits: by row, by group and by time. All give arrays of row numbers in increasing order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from polytask.core.data import Ints, TaskData
from polytask.core.errors import InputError, unknown


def split_rows(
    data: TaskData, shares: Sequence[float], *, seed: int, group: str | None = None, time: str | None = None
) -> tuple[Ints, ...]:
    """Split the rows of ``data`` into parts of the given shares.

    By row at random; where each row carries the label of one task only (the long form), within
    every task, so that each task keeps its share. With ``group`` (a name in ``data.keys``) rows of
    one group stay together. With ``time`` (a name in ``data.keys``) earlier rows fill earlier parts;
    rows of equal time stay together.

    Parameters
    ----------
    shares
        Positive shares that add up to 1, such as ``(0.6, 0.2, 0.2)``.
    seed
        Same seed, same parts (unused with ``time``).

    Returns
    -------
    tuple of arrays
        Row numbers of each part. Every row is in exactly one part.
    """
    portions = np.asarray(shares, dtype=np.float64)
    if len(portions) < 2 or (portions <= 0).any() or abs(portions.sum() - 1.0) > 1e-9:
        raise InputError(f"shares must be at least two positive numbers that add up to 1, got {list(shares)}")
    if group is not None and time is not None:
        raise InputError(f'give group="{group}" or time="{time}", not both')
    if time is not None:
        return _by_time(_key(data, time), portions)
    rng = np.random.default_rng(seed)
    if group is not None:
        return _by_group(_key(data, group), portions, rng)
    if data.one_task_per_row:
        return _within_tasks(data, portions, rng)
    return _cut(rng.permutation(data.n_rows), portions)


def fold_rows(data: TaskData, n_folds: int, *, seed: int, group: str | None = None) -> tuple[Ints, ...]:
    """Cut the rows into ``n_folds`` test parts of equal size, by the same rules as :func:`split_rows`."""
    if n_folds < 2 or n_folds > data.n_rows:
        raise InputError(f"n_folds must lie in 2 … {data.n_rows} (the number of rows), got {n_folds}")
    return split_rows(data, [1.0 / n_folds] * n_folds, seed=seed, group=group)


def _key(data: TaskData, name: str) -> NDArray[np.generic]:
    if name not in data.keys:
        raise InputError(unknown("key column", name, data.keys))
    return data.keys[name]


def _bounds(n: int, portions: NDArray[np.float64]) -> Ints:
    inner = np.rint(np.cumsum(portions)[:-1] * n).astype(np.int64)
    return np.concatenate([[0], inner, [n]])


def _cut(order: Ints, portions: NDArray[np.float64]) -> tuple[Ints, ...]:
    bounds = _bounds(len(order), portions)
    return tuple(np.sort(order[a:b]) for a, b in pairwise(bounds.tolist()))


def _within_tasks(data: TaskData, portions: NDArray[np.float64], rng: np.random.Generator) -> tuple[Ints, ...]:
    """Cut the rows of every task; rotate which part gets the odd row, and keep one row for the first part."""
    strata = [labels.rows for labels in data.labels.values() if len(labels)]
    unlabelled = np.setdiff1d(np.arange(data.n_rows), np.concatenate(strata) if strata else [])
    cells: list[list[Ints]] = [[] for _ in portions]
    for rows in [*strata, unlabelled]:
        order = rng.permutation(rows)
        offset = rng.uniform(0.0, 1.0)
        inner = np.floor(np.cumsum(portions)[:-1] * len(order) + offset).astype(np.int64)
        inner = np.clip(inner, min(1, len(order)), len(order))
        for part, piece in zip(cells, np.split(order, inner), strict=True):
            part.append(piece)
    return tuple(np.sort(np.concatenate(part)).astype(np.int64) for part in cells)


def _by_group(groups: NDArray[np.generic], portions: NDArray[np.float64], rng: np.random.Generator) -> tuple[Ints, ...]:
    _, code, counts = np.unique(groups.astype(str), return_inverse=True, return_counts=True)
    if len(counts) < len(portions):
        raise InputError(f"the group column has {len(counts)} groups; {len(portions)} parts need at least as many")
    order = rng.permutation(len(counts))
    rows_before = np.concatenate([[0], np.cumsum(counts[order])])[:-1] + counts[order] / 2
    part_of_group = np.searchsorted(np.cumsum(portions)[:-1] * counts.sum(), rows_before, side="right")
    # with few or very uneven groups a part may stay empty: then every part gets equally many groups
    if len(np.unique(part_of_group)) < len(portions):
        part_of_group = np.arange(len(counts)) * len(portions) // len(counts)
    part = np.empty(len(counts), dtype=np.int64)
    part[order] = part_of_group
    return tuple(np.flatnonzero(part[code] == k) for k in range(len(portions)))


def _by_time(times: NDArray[np.generic], portions: NDArray[np.float64]) -> tuple[Ints, ...]:
    if times.dtype.kind == "f" and np.isnan(times.astype(np.float64)).any():
        raise InputError("the time column has missing values; fill them or split by row")
    moments, code = np.unique(times, return_inverse=True)
    if len(moments) < len(portions):
        raise InputError(f"the time column has {len(moments)} moments; {len(portions)} parts need at least as many")
    upto = np.cumsum(np.bincount(code))
    cuts = np.searchsorted(upto, np.cumsum(portions)[:-1] * len(times)) + 1
    part = np.searchsorted(np.minimum(cuts, len(moments) - 1), np.arange(len(moments)), side="right")
    return tuple(np.flatnonzero(part[code] == k) for k in range(len(portions)))
