"""The best partition of T tasks into k clusters by how well tasks serve each other.

    J = 1/T sum_b 1/|A_b| sum_{s, t in A_b} C_ts        C: (T, T) transfer

Exhaustive for few tasks; else greedy merging, then annealed moves of one task from several starts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from polytask.core.data import Ints
from polytask.core.task import Floats

_EXHAUSTIVE = 8  # tasks
_MOVES = 300  # per task and start
_COLDEST = 1e-3  # temperature at the end, relative to that at the beginning


def criterion(C: Floats, labels: Ints) -> float:
    """Return J."""
    total = 0.0
    for cluster in np.unique(labels):
        members = labels == cluster
        total += float(C[np.ix_(members, members)].sum() / members.sum())
    return total / len(labels)


def best_partition(C: Floats, k: int, *, n_starts: int, seed: int) -> Ints:
    """Return cluster numbers ``(T,)`` in the order of first appearance; all of the k <= T clusters are used."""
    T = len(C)
    if T <= _EXHAUSTIVE:
        return max(partitions(T, k), key=lambda labels: criterion(C, labels))
    best = greedy(C, k)
    rng = np.random.default_rng(seed)
    top = criterion(C, best)
    for start in range(n_starts if 1 < k < T else 0):
        first = best if start == 0 else rng.permutation(np.arange(T) % k)
        found = anneal(C, first, k, rng)
        value = criterion(C, found)
        if value > top + 1e-12:
            best, top = found, value
    return in_order(best)


def in_order(labels: Ints) -> Ints:
    """Return the clusters numbered in the order of first appearance."""
    _, first, number = np.unique(labels, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[number], dtype=np.int64)


def partitions(T: int, k: int) -> Iterator[Ints]:
    """Yield every partition of T tasks into k clusters once, clusters in the order of first appearance."""

    def extend(labels: list[int], used: int) -> Iterator[Ints]:
        left = T - len(labels)
        if left == 0:
            if used == k:
                yield np.array(labels, dtype=np.int64)
            return
        if used + left < k:
            return
        for label in range(min(used + 1, k)):
            yield from extend([*labels, label], max(used, label + 1))

    return extend([], 0)


def greedy(C: Floats, k: int) -> Ints:
    """Return clusters by merging, from single tasks, the two whose union costs J least."""
    clusters = [[t] for t in range(len(C))]
    sums = C.astype(np.float64).copy()
    while len(clusters) > k:
        sizes = np.array([len(cluster) for cluster in clusters])
        own = np.diag(sums)
        joined = (
            (own[:, None] + own + sums + sums.T) / (sizes[:, None] + sizes)
            - own[:, None] / sizes[:, None]
            - own / sizes
        )
        joined[np.tril_indices(len(clusters))] = -np.inf
        a, b = divmod(int(np.argmax(joined)), len(clusters))
        sums[a] += sums[b]
        sums[:, a] += sums[:, b]
        sums = np.delete(np.delete(sums, b, axis=0), b, axis=1)
        clusters[a] += clusters.pop(b)
    labels = np.empty(len(C), dtype=np.int64)
    for number, cluster in enumerate(clusters):
        labels[cluster] = number
    return labels


def anneal(C: Floats, labels: Ints, k: int, rng: np.random.Generator) -> Ints:
    """Return clusters after moves of one task at falling temperature, ending with those that pay."""
    from polytask.linear.solvers.annealing import anneal as run  # numba: loaded when a fit needs it

    T = len(C)
    hot = max(float(np.std(C)), 1e-12)
    n_moves = _MOVES * T
    found = labels.copy()
    run(
        np.ascontiguousarray(C),
        found,
        k,
        rng.integers(0, T, n_moves),
        rng.integers(0, k, n_moves),
        rng.random(n_moves),
        np.geomspace(hot, hot * _COLDEST, n_moves),
    )
    return found
