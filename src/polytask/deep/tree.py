"""Trees of branches: which branch of each stage serves which task.

A tree is an integer array ``(L, T)``: entry (l, t) is the number of the branch of stage l that task t runs
through. Tasks that share a branch share all stages below it; branches are numbered in the order of their
first tasks, so that a stage with a branch for every task has them in the order of the tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.core.task import Task
from polytask.deep.branching import Labels, numbered

Tree = NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """What one stage computes for some tasks.

    Attributes
    ----------
    branches
        Numbers of the branches that run, in order.
    parents
        For each of them, the place of its input among the branches that ran in the stage before.
    place
        For each task, the place of its branch among those that run.
    """

    branches: tuple[int, ...]
    parents: tuple[int, ...]
    place: tuple[int, ...]


def check_tree(tree: ArrayLike, n_stages: int, n_tasks: int) -> Tree:
    """Return the tree as an array, branches renumbered, or refuse what is no tree of this network."""
    found = np.asarray(tree)
    if found.shape != (n_stages, n_tasks) or not np.issubdtype(found.dtype, np.integer):
        raise InputError(
            f"tree has shape {found.shape}; give whole numbers of shape (stages, tasks) = ({n_stages}, {n_tasks})"
        )
    found = np.stack([numbered(row.astype(np.int64)) for row in found])
    for level in range(1, n_stages):
        if not refines(found[level], found[level - 1]):
            raise InputError(
                f"tree joins in stage {level} tasks that stage {level - 1} separates; branches may part but never meet"
            )
    return found


def refines(fine: Labels, coarse: Labels) -> bool:
    """Say whether tasks with one label in ``fine`` have one label in ``coarse``."""
    return len(np.unique(np.stack([fine, coarse]), axis=1).T) == int(fine.max()) + 1


def plan(tree: Tree, tasks: Sequence[int]) -> list[Step]:
    """Return what each stage computes for the tasks with these numbers."""
    steps: list[Step] = []
    before = np.zeros(len(tasks), dtype=np.int64)
    for row in tree[:, list(tasks)]:
        branches, first, place = np.unique(row, return_index=True, return_inverse=True)
        steps.append(Step(tuple(branches.tolist()), tuple(before[first].tolist()), tuple(place.tolist())))
        before = place
    return steps


def tree_relation(tree: Tree, tasks: Sequence[Task]) -> Relation:
    """Return the tree as linkage: tasks that share a branch of the last stage meet at height 1, and so on down."""
    n_tasks = len(tasks)
    cluster = np.arange(n_tasks)  # of each task
    sizes = [1] * n_tasks
    merges: list[list[float]] = []
    rows = [*tree[::-1], np.zeros(n_tasks, dtype=np.int64)]
    for height, row in enumerate(rows, start=1):
        for branch in range(int(row.max()) + 1):
            members = row == branch
            while len(pair := np.unique(cluster[members])) > 1:
                size = sizes[pair[0]] + sizes[pair[1]]
                merges.append([float(pair[0]), float(pair[1]), float(height), float(size)])
                cluster[np.isin(cluster, pair[:2])] = len(sizes)
                sizes.append(size)
    names = tuple(task.name for task in tasks)
    about = (
        f"branches of {len(tree)} stages: tasks that meet at height 1 share all stages, at height 2 all but the last, "
        "and so on"
    )
    return Relation("tree", np.array(merges).reshape(-1, 4), names, (), about)
