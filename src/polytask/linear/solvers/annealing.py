"""Annealed moves of single tasks between clusters, compiled on first use; the criterion is that of ``partition``."""

from __future__ import annotations

import numpy as np
from numba import njit

from polytask.core.data import Ints
from polytask.core.task import Floats

_LEAST = 1e-12


@njit(cache=True)
def anneal(C: Floats, labels: Ints, k: int, tasks: Ints, clusters: Ints, chances: Floats, temperatures: Floats) -> None:
    """Offer ``tasks`` in turn to ``clusters``, accept gains g of T J and, with probability e^(g / temperature), losses.

    Then move every task to its best cluster as long as that pays. A cluster is never left empty. Changes ``labels``.
    """
    T = len(C)
    links = np.zeros((T, k))  # sum of C_ts + C_st over the tasks s of a cluster
    inner = np.zeros(k)  # sum of C within a cluster
    sizes = np.zeros(k, dtype=np.int64)
    for t in range(T):
        sizes[labels[t]] += 1
        for s in range(T):
            links[t, labels[s]] += C[t, s] + C[s, t]
            if labels[s] == labels[t]:
                inner[labels[t]] += C[t, s]
    for number in range(len(tasks)):
        t, to = tasks[number], clusters[number]
        gain = _gain(C, labels, links, inner, sizes, t, to)
        if gain > 0.0 or (gain > -np.inf and chances[number] < np.exp(gain / temperatures[number])):
            _move(C, labels, links, inner, sizes, t, to)
    improved = True
    while improved:
        improved = False
        for t in range(T):
            best, gain = -1, _LEAST
            for to in range(k):
                offered = _gain(C, labels, links, inner, sizes, t, to)
                if offered > gain:
                    best, gain = to, offered
            if best >= 0:
                _move(C, labels, links, inner, sizes, t, best)
                improved = True


@njit(cache=True)
def _gain(C: Floats, labels: Ints, links: Floats, inner: Floats, sizes: Ints, t: int, to: int) -> float:
    """Return by how much T J changes when task t moves; -inf where that is no move or empties a cluster."""
    own = labels[t]
    if own == to or sizes[own] == 1:
        return -np.inf
    before = inner[own] / sizes[own] + inner[to] / sizes[to]
    left = (inner[own] - links[t, own] + C[t, t]) / (sizes[own] - 1)
    joined = (inner[to] + links[t, to] + C[t, t]) / (sizes[to] + 1)
    return float(left + joined - before)


@njit(cache=True)
def _move(C: Floats, labels: Ints, links: Floats, inner: Floats, sizes: Ints, t: int, to: int) -> None:
    own = labels[t]
    inner[own] -= links[t, own] - C[t, t]
    inner[to] += links[t, to] + C[t, t]
    for s in range(len(C)):
        both = C[t, s] + C[s, t]
        links[s, own] -= both
        links[s, to] += both
    sizes[own] -= 1
    sizes[to] += 1
    labels[t] = to
