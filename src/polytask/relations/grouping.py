"""Grouping of tasks from an affinity: average linkage on the distance 1 - affinity.

    d(A, B) = mean over s in A, t in B of (1 - affinity[s, t])

Sokal & Michener, A statistical method for evaluating systematic relationships, 1958.
"""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import average, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from polytask.core.errors import InputError
from polytask.core.relation import Relation

_EXACT_LEAF_ORDER = 400  # tasks; ordering leaves costs up to T⁴


def cluster_tree(affinity: Relation) -> Relation:
    """Return the tree of average linkage on 1 - affinity.

    Parameters
    ----------
    affinity
        Relation of kind ``correlation``: symmetric, 1 on the diagonal, at least two tasks.

    Returns
    -------
    Relation
        Kind ``tree``: the SciPy linkage matrix ``(T - 1, 4)``; leaf i is ``rows[i]``. Neighbouring
        leaves are as alike as the tree allows.

    Raises
    ------
    InputError
        When the relation is no such matrix.
    """
    values = affinity.values
    if affinity.kind != "correlation" or affinity.rows != affinity.columns:
        raise InputError(f'cluster_tree needs a tasks × tasks relation of kind "correlation", got "{affinity.kind}"')
    if len(values) < 2:
        raise InputError(f"a tree needs at least 2 tasks, got {len(values)}")
    if not np.allclose(values, values.T, rtol=0.0, atol=1e-8) or not np.allclose(np.diag(values), 1.0, atol=1e-8):
        raise InputError("affinity must be symmetric with 1 on the diagonal")
    distances = squareform(np.clip(1.0 - 0.5 * (values + values.T), 0.0, None) * (1.0 - np.eye(len(values))))
    tree = average(distances)
    if len(values) <= _EXACT_LEAF_ORDER:
        tree = optimal_leaf_ordering(tree, distances)
    return Relation(
        "tree",
        tree,
        affinity.rows,
        ("first", "second", "distance", "size"),
        "Tasks that join early (small distance) are alike; distance = 1 - mean affinity of the two groups.",
    )


def groups(tree: Relation, k: int) -> tuple[tuple[str, ...], ...]:
    """Cut a tree into ``k`` groups of task names.

    Returns
    -------
    tuple of tuples
        A partition of the tasks: names in the order of the tree's rows, groups in the order of their
        first task. Exactly ``k`` groups, also where distances tie.

    Raises
    ------
    InputError
        When ``tree`` is no tree or ``k`` does not lie in 1 … number of tasks.
    """
    if tree.kind != "tree":
        raise InputError(f'groups needs a relation of kind "tree", got "{tree.kind}"; make one with cluster_tree')
    n = len(tree.rows)
    if not 1 <= k <= n:
        raise InputError(f"k must lie in 1 … {n} (the number of tasks), got {k}")
    # undo the last k - 1 joins; joins are sorted by distance
    parent = np.arange(2 * n - 1)
    for join in range(n - k):
        first, second = int(tree.values[join, 0]), int(tree.values[join, 1])
        parent[[first, second]] = n + join
    found: dict[int, list[str]] = {}
    for leaf, name in enumerate(tree.rows):
        node = leaf
        while parent[node] != node:
            node = int(parent[node])
        found.setdefault(node, []).append(name)
    return tuple(tuple(names) for names in found.values())
