"""Which tasks should part, and when: the decisions of fully-adaptive feature sharing as pure functions.

    m_tn    how far the score of task t is from the label of row n (for a binary task |y - sigmoid(s)|)
    e_tn    1 where m_tn ≥ mean_n m_tn: row n is difficult for task t
    A_ij    share of rows that are difficult for both tasks or for neither                      (T, T)
    B_kl    = (C_kl + C_lk) / 2,   C_kl = mean_{i in k} min_{j in l} A_ij       of branches k, l: (c, c)

Dividing c branches into d groups costs

    (d - 1) · cost + alpha · (1/d) sum_g [ 1 - mean_{k in g} min_{l in g} B_kl ]

and the division is taken from spectral clustering of B. All arrays are NumPy, float64.

Lu, Kumar, Zhai, Cheng, Javidi, Feris, Fully-adaptive Feature Sharing in Multi-Task Networks with Applications
in Person Attribute Classification, CVPR 2017. Spectral clustering: Ng, Jordan, Weiss, NIPS 2001.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from polytask.core.errors import InputError
from polytask.core.task import Floats, Ordinal, Task

Labels = NDArray[np.int64]
"""Group of each item, numbered from 0 in the order of their first items."""

_RESTARTS = 10
_ROUNDS = 100


def margins(tasks: Sequence[Task], scores: Floats, targets: Floats, present: NDArray[np.bool_]) -> Floats:
    """Return how far each score is from its label, ``(T, N)``; 0 where the label is missing.

    |y - s| for regression, |y - P(second class)| for binary, 1 - P(y) for multiclass tasks, and the mean over
    thresholds k of |[y > k] - P(y > k)| for ordinal ones.

    Parameters
    ----------
    tasks
        The tasks.
    scores
        Shape ``(T, N, K)``.
    targets, present
        Values or class codes, and which rows carry the label, ``(T, N)``.
    """
    found = np.zeros(targets.shape)
    for number, task in enumerate(tasks):
        rows = present[number]
        own, labels = scores[number, rows, : task.n_outputs].astype(np.float64), targets[number, rows]
        if isinstance(task, Ordinal):
            above = 1.0 - np.cumsum(task.probabilities(own), axis=1)[:, :-1]
            found[number, rows] = np.abs(task.thresholds(labels) - above).mean(axis=1)
        elif task.labels:
            likely = task.probabilities(own)[np.arange(len(own)), labels.astype(np.int64)]
            found[number, rows] = 1.0 - likely
        else:
            found[number, rows] = np.abs(labels - own[:, 0])
    return found


def task_affinity(distances: Floats, present: NDArray[np.bool_]) -> Floats:
    """Return in which share of their common rows two tasks find the same difficult, ``(T, T)`` in [0, 1].

    Tasks without a common row get the value of independence, ``p q + (1 - p)(1 - q)`` with p and q their shares
    of difficult rows (1/2 where a task has no row). The diagonal is 1.

    Parameters
    ----------
    distances, present
        Margins and which rows carry the label, ``(T, N)``.
    """
    counts = present.sum(axis=1)
    means = (distances * present).sum(axis=1) / np.maximum(counts, 1)
    hard = (distances >= means[:, None]) & present
    easy = present & ~hard
    here, hard_, easy_ = present.astype(np.float64), hard.astype(np.float64), easy.astype(np.float64)
    common = here @ here.T
    share = np.where(counts > 0, hard.sum(axis=1) / np.maximum(counts, 1), 0.5)
    chance = np.outer(share, share) + np.outer(1 - share, 1 - share)
    found = np.where(common > 0, (hard_ @ hard_.T + easy_ @ easy_.T) / np.maximum(common, 1), chance)
    np.fill_diagonal(found, 1.0)
    return np.asarray(found)


def branch_affinity(affinity: Floats, branches: Labels) -> Floats:
    """Return the affinity of branches ``(c, c)`` from that of tasks ``(T, T)`` and the branch of each task ``(T,)``."""
    groups = [np.flatnonzero(branches == branch) for branch in range(int(branches.max()) + 1)]
    nearest = np.stack([affinity[:, group].min(axis=1) for group in groups], axis=1)  # (T, c)
    one_sided = np.stack([nearest[group].mean(axis=0) for group in groups])
    return (one_sided + one_sided.T) / 2


def separation(affinity: Floats, groups: Labels) -> float:
    """Return the mean over groups of 1 - mean over members of the least affinity to a member; in [0, 1]."""
    losses = []
    for group in range(int(groups.max()) + 1):
        members = np.flatnonzero(groups == group)
        losses.append(1.0 - affinity[np.ix_(members, members)].min(axis=1).mean())
    return float(np.mean(losses))


def grouping_loss(affinity: Floats, groups: Labels, *, alpha: float, cost: float) -> float:
    """Return ``(d - 1) · cost + alpha · separation`` of a division into d groups."""
    return int(groups.max()) * cost + alpha * separation(affinity, groups)


def best_grouping(affinity: Floats, *, alpha: float, cost: float, seed: int = 0) -> Labels:
    """Return the group of each branch ``(c,)`` in the division with the least loss; the fewest groups among equals.

    Numbers of groups whose cost alone exceeds the best loss found are not tried.

    Parameters
    ----------
    affinity
        Affinity of the branches, symmetric ``(c, c)``.
    alpha
        Weight of the separation, at least 0.
    cost
        Cost of one more branch, at least 0.
    seed
        Seed of the k-means starts.
    """
    best, least = np.zeros(len(affinity), dtype=np.int64), np.inf
    for d in range(1, len(affinity) + 1):
        if (d - 1) * cost >= least:
            break
        groups = spectral_clusters(affinity, d, seed=seed)
        loss = grouping_loss(affinity, groups, alpha=alpha, cost=cost)
        if loss < least - 1e-12:
            best, least = groups, loss
    return best


def spectral_clusters(affinity: Floats, d: int, *, seed: int = 0) -> Labels:
    """Return d groups of the items of a non-negative affinity ``(c, c)``, no group empty.

    The d smallest eigenvectors of the normalised Laplacian ``I - D^-1/2 A D^-1/2``, rows scaled to length 1,
    are divided by k-means (10 starts, the best is kept).
    """
    c = len(affinity)
    if not 1 <= d <= c:
        raise InputError(f"d is {d}; {c} items can form 1 to {c} groups")
    if d == 1:
        return np.zeros(c, dtype=np.int64)
    if d == c:
        return np.arange(c)
    scale = 1.0 / np.sqrt(np.maximum(affinity.sum(axis=1), 1e-12))
    _, vectors = np.linalg.eigh(np.eye(c) - scale[:, None] * affinity * scale)
    rows = vectors[:, :d]
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    rng = np.random.default_rng(seed)
    tries = [_k_means(rows, d, rng) for _ in range(_RESTARTS)]
    return numbered(min(tries, key=lambda one: one[1])[0])


def numbered(groups: NDArray[np.int64]) -> Labels:
    """Return the same division with groups numbered in the order of their first items."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def _k_means(rows: Floats, d: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], float]:
    """Lloyd's algorithm from a k-means++ start; returns groups, none empty, and the squared distance to the centres."""
    centres = rows[[int(rng.integers(len(rows)))]]
    while len(centres) < d:
        gaps = _squares(rows, centres).min(axis=1)
        total = gaps.sum()
        odds = gaps / total if total > 0 else None
        centres = np.concatenate([centres, rows[[int(rng.choice(len(rows), p=odds))]]])
    groups = np.full(len(rows), -1, dtype=np.int64)
    for _ in range(_ROUNDS):
        gaps = _squares(rows, centres)
        nearest = _filled(gaps.argmin(axis=1), gaps, d)
        if (nearest == groups).all():
            break
        groups = nearest
        centres = np.stack([rows[groups == group].mean(axis=0) for group in range(d)])
    return groups, float(_squares(rows, centres)[np.arange(len(rows)), groups].sum())


def _filled(groups: NDArray[np.int64], gaps: Floats, d: int) -> NDArray[np.int64]:
    """Give every empty group the item that lies farthest from its centre among groups of two or more."""
    for group in range(d):
        if not (groups == group).any():
            crowded = np.bincount(groups, minlength=d)[groups] > 1
            own = np.where(crowded, gaps[np.arange(len(groups)), groups], -1.0)
            groups[int(own.argmax())] = group
    return groups


def _squares(rows: Floats, centres: Floats) -> Floats:
    return np.square(rows[:, None, :] - centres[None]).sum(axis=-1)
