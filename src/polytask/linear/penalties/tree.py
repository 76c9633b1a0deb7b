"""Tree-structured group penalty: groups of tasks are the nodes of a tree over the tasks.

    Omega(W) = alpha sum_j sum_v weight_v ||W[G_v, j]||_2        W: (T tasks, d features), G_v: tasks below v

Any two groups are nested or disjoint, so one pass from the leaves to the root that shrinks every
group in turn is the proximal map. Since a node is shrunk as a whole, norms are enough on the way up:

    r_v² = sum_{children c} a_c²,   a_v = max(0, r_v - step alpha weight_v),   r_leaf = |V[leaf, j]|

and an entry of W is that of V times the product of a_v / r_v over its ancestors: O(T d) in all.

The dual norm of G is the smallest t at which the proximal map with alpha step = t is zero, that is
r_v(t) <= t weight_v at every root. The difference is convex and falls in t, so Newton steps from the
left approach its root from the left.

With heights h_v in 0 … 1 of the nodes the weights are (1 - h_v) times the product of h over the
ancestors, and the product alone for a leaf: they add up to 1 over the groups of every task.

Kim & Xing, Tree-guided group lasso for multi-task regression with structured sparsity, ICML 2010;
Jenatton, Mairal, Obozinski & Bach, Proximal methods for hierarchical sparse coding, JMLR 2011.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polytask.core.data import Ints
from polytask.core.task import Floats

_EQUAL = 1e-12  # heights that differ by less, relative to the top, are one node
_STEPS = 100
_ROUNDING = 1e-13


@dataclass(frozen=True)
class TaskTree:
    """A forest over T tasks: nodes 0 … T - 1 are the tasks, further ones come after all nodes below them.

    Parameters
    ----------
    weights
        Weight of every node, ``(N,)``; positive for nodes that are no tasks.
    parents
        Node above every node, ``(N,)``; -1 for a root.
    n_tasks
        T.
    """

    weights: Floats
    parents: Ints
    n_tasks: int

    @property
    def groups(self) -> Floats:
        """Weight of every node for the tasks below it, else 0, ``(N, T)``."""
        members = np.zeros((len(self.weights), self.n_tasks))
        members[: self.n_tasks] = np.eye(self.n_tasks)
        for node, up in enumerate(self.parents.tolist()):
            if up >= 0:
                members[up] += members[node]
        return np.asarray(members * self.weights[:, None])

    @classmethod
    def of_linkage(cls, linkage: Floats, root_height: float = 1.0) -> TaskTree:
        """Return the tree of a SciPy linkage matrix ``(T - 1, 4)``, heights scaled to ``root_height`` at the root.

        A join at the height of the next one is part of it; nodes of weight 0 are left out.
        """
        T = len(linkage) + 1
        top = float(linkage[-1, 2]) if T > 1 else 0.0
        heights = np.zeros(2 * T - 1)
        if top > 0:
            heights[T:] = root_height * linkage[:, 2] / top
        kept = np.ones(2 * T - 1)  # product of the heights of the nodes above
        weights = np.zeros(2 * T - 1)
        parents = np.full(2 * T - 1, -1)
        for node in range(2 * T - 2, T - 1, -1):
            above = parents[node]
            joined = above >= 0 and heights[above] - heights[node] <= _EQUAL * root_height
            weights[node] = 0.0 if joined else (1.0 - heights[node]) * kept[node]
            below = linkage[node - T, :2].astype(np.int64)
            parents[below] = node
            kept[below] = kept[node] * (1.0 if joined else heights[node])
        weights[:T] = kept[:T]
        used = weights > 0
        used[:T] = True
        for node in range(2 * T - 2, -1, -1):  # from the roots: a parent that is left out hands on its own
            if parents[node] >= 0 and not used[parents[node]]:
                parents[node] = parents[parents[node]]
        place = np.where(used, np.cumsum(used) - 1, -1)
        parents = np.where(parents >= 0, place[parents], -1)
        return cls(weights[used], parents[used], T)


@dataclass(frozen=True)
class TreeNorm:
    """alpha times the sum over features and nodes of weight times the norm of the tasks below.

    Parameters
    ----------
    alpha
        Strength, positive.
    tree
        Groups and their weights.
    """

    alpha: float
    tree: TaskTree

    def value(self, W: Floats) -> float:
        norms, _ = self._upward(W, 0.0)
        return float(self.alpha * (self.tree.weights @ norms.sum(axis=1)))

    def prox(self, V: Floats, step: float) -> Floats:
        from polytask.linear.solvers.tree_passes import downward

        norms, left = self._upward(V, step * self.alpha)
        W = np.empty_like(V)
        downward(V, self.tree.parents, norms, left, W)
        return W

    def shrinkage(self, G: Floats) -> float:
        top = self._dual_norm(G, self.alpha)
        return 1.0 if top <= self.alpha else self.alpha / top

    def conjugate(self, G: Floats) -> float:  # noqa: ARG002 - zero wherever it is finite
        return 0.0

    def dual_norm(self, G: Floats) -> float:
        """Return the dual norm for alpha = 1, which is the smallest alpha whose proximal map takes ``G`` to 0."""
        return self._dual_norm(G, 0.0)

    def _dual_norm(self, G: Floats, low: float) -> float:
        """Return the dual norm for alpha = 1 if it is above ``low``, else ``low``."""
        from polytask.linear.solvers.tree_passes import newton_step

        t = low
        limit = _ROUNDING * float(np.abs(G).max(initial=0.0))
        for _ in range(_STEPS):
            norms, left = self._upward(G, t)
            step = newton_step(t, self.tree.weights, self.tree.parents, norms, left, limit)
            if step == 0.0:
                break
            t += step
        return t if t == low else t * (1.0 + _ROUNDING)

    def _upward(self, V: Floats, t: float) -> tuple[Floats, Floats]:
        """Return r and a of the module for all nodes, ``(N, d)``, where step alpha = ``t``."""
        from polytask.linear.solvers.tree_passes import upward  # numba: loaded when a fit needs it

        norms = np.empty((len(self.tree.weights), V.shape[1]))
        left = np.empty_like(norms)
        upward(np.ascontiguousarray(V), t, self.tree.weights, self.tree.parents, norms, left)
        return norms, left
