"""Learned task groups: which tasks share features is learned with the features.

    min_{groups, W, b}  sum_t c_t mean_loss_t  +  alpha sum_g ||W_g||_*²

W: (T tasks, d features), W_g: the rows of the tasks of group g, every task in one of k groups. Tasks of
a group use few common directions; tasks of different groups have nothing to do with each other.
Given the groups the problem is convex and solved to a certified gap: one group is multi-task feature
learning, T groups are ridge models of every task. (The paper relaxes the assignment to shares and
descends along its gradient; here it stays whole.)

Rounds: every task is offered to every group, with coefficients that fit the group's directions,

    argmin_w  loss_t(w) + alpha w^T D_g^-1 w,     D_g = (W_g^T W_g + small I)^(1/2), trace 1,

and moves where that lowers the objective most; then W given the groups. The
objective never rises. It is not convex: the best of several starts counts, the first from the tree of the
tasks' ridge coefficients, the others at random. From the best one on, the moves that come nearest to
paying are also tried with W solved for afresh.

Kang, Grauman & Sha, Learning with whom to share in multi-task feature learning, ICML 2011.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from polytask.core.data import Ints
from polytask.core.relation import Relation
from polytask.core.task import Floats
from polytask.linear.alternating import alternate
from polytask.linear.estimator import TaskEstimator, warn_unconverged
from polytask.linear.layout import Layout
from polytask.linear.penalised import count, names_of, positive, root_covariance, task_relations
from polytask.linear.penalties.grouped import GroupedSquaredTraceNorm
from polytask.linear.penalties.spectral import singular_values
from polytask.linear.similarity import cosines, linkage_of, ridge_coefficients
from polytask.linear.solvers.losses import Point, TaskLosses
from polytask.linear.solvers.proximal import Solution, solve_proximal
from polytask.linear.solvers.quadratic import solve_quadratic

_GAP = 1e-7  # of the objective at W = 0, for W given the groups
_STEPS = 20_000
_OPEN = 0.05  # directions a group does not use yet, relative to its largest, when a task is offered to it
_TRIALS = 10  # moves of one task that are tried with W solved for afresh
_ROUNDING = 1e-10


class LearnedTaskGroups(TaskEstimator):
    """Linear models of several tasks and the groups in which they share features (see the module).

    Parameters
    ----------
    n_groups
        k; no more than there are tasks are used.
    alpha
        Strength of the penalty, positive.
    n_starts
        Number of starts, of which the best counts.
    start_ridge
        Strength of the ridge models behind the first start, positive.
    loss, epsilon, task_weighting, fit_intercept
        As of :class:`~polytask.linear.block_sparse.BlockSparse`.
    tol
        Stop when a round lowers the objective by at most ``tol`` of itself.
    max_iter
        Largest number of rounds of a start.
    random_state
        Seed of the further starts.

    Attributes
    ----------
    coef_ : ndarray of shape (n_tasks, n_features)
    intercept_ : ndarray of shape (n_tasks,)
    labels_ : ndarray of shape (n_tasks,)
        Group of each task, 0 for that of the first task, and so on.
    objectives_ : ndarray of shape (n_iter_ + 1,)
        Objective before the first and after every round of the best start.
    start_objectives_ : ndarray of shape (n_starts,)
        Objective that every start has reached.
    dual_gap_ : float
        Objective minus a lower bound of its minimum with these groups.
    relations_ : dict of Relation
        ``"task groups"`` (1 where a task belongs to a group), and covariance, correlation and tree of the
        tasks, 0 between groups.
    n_iter_ : int
    tasks_, logistic_
        As of :class:`~polytask.linear.block_sparse.BlockSparse`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(60, 4))
    >>> W = np.array([[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 1.0], [-2.0, -4.0, 0.0, 0.0], [0.0, 0.0, 1.5, 0.5]])
    >>> LearnedTaskGroups(2, alpha=0.01).fit(X, X @ W.T).labels_
    array([0, 1, 0, 1])
    """

    takes_sparse = True

    def __init__(
        self,
        n_groups: int = 3,
        alpha: float = 0.01,
        *,
        n_starts: int = 10,
        start_ridge: float = 0.1,
        loss: Any = "squared",
        epsilon: float = 1.35,
        task_weighting: Any = "equal",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 200,
        random_state: int = 0,
    ) -> None:
        self.n_groups = n_groups
        self.alpha = alpha
        self.n_starts = n_starts
        self.start_ridge = start_ridge
        self.loss = loss
        self.epsilon = epsilon
        self.task_weighting = task_weighting
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def _fit(self, X: Floats, layout: Layout) -> None:
        self._check()
        self.solve(self._losses(layout.blocks, len(layout.names), X.shape[1], fit_intercept=self.fit_intercept))

    def _check(self) -> tuple[int, float, int, float]:
        return (
            count("n_groups", self.n_groups, "the number of groups"),
            positive("alpha", self.alpha, "the strength of the penalty"),
            count("n_starts", self.n_starts, "the number of starts"),
            positive("start_ridge", self.start_ridge, "the strength of the ridge models of the first start"),
        )

    def solve(self, losses: TaskLosses) -> None:
        """Fit given losses of the tasks ``tasks_``, which is what :meth:`fit` does with those of its data."""
        wanted, alpha, n_starts, ridge = self._check()
        T = losses.n_tasks
        k = min(wanted, T)
        W = ridge_coefficients(losses, ridge)
        rng = np.random.default_rng(self.random_state)
        starts = [_cut(W, k)] + [rng.permutation(np.arange(T) % k) for _ in range(n_starts - 1 if 1 < k < T else 0)]
        best: _Groups | None = None
        reached = []
        for labels in starts:
            groups = _Groups(losses, alpha, k, labels, W)
            objectives = self._improve(groups)
            reached.append(groups.objective)
            if best is None or groups.objective < best.objective - _ROUNDING * abs(best.objective):
                best = groups
                self.objectives_ = objectives
        assert best is not None
        best.thorough = True
        self.objectives_ = np.concatenate([self.objectives_, self._improve(best)[1:]])
        _, first, number = np.unique(best.labels, return_index=True, return_inverse=True)
        self.labels_ = np.asarray(np.argsort(np.argsort(first))[number], dtype=np.int64)
        self.start_objectives_ = np.array(reached)
        self.coef_, self.intercept_ = best.point.W, best.point.intercept
        self.dual_gap_ = best.solution.gap
        self.n_iter_ = len(self.objectives_) - 1
        self._describe()
        if best.solution.gap > best.solution.bound:
            warn_unconverged(
                "LearnedTaskGroups", best.solution.gap, best.solution.bound, "a duality gap given the groups of", _STEPS
            )

    def _improve(self, groups: _Groups) -> Floats:
        return alternate(
            groups.objective,
            groups.advance,
            tol=float(self.tol),
            max_iter=int(self.max_iter),
            method="LearnedTaskGroups",
        )

    def _describe(self) -> None:
        tasks = names_of(self.tasks_)
        names = tuple(f"group {number + 1}" for number in range(int(self.labels_.max()) + 1))
        members = self.labels_ == np.arange(len(names))[:, None]
        covariance = np.zeros((len(tasks), len(tasks)))
        for group in members:
            covariance[np.ix_(group, group)] = root_covariance(self.coef_[group]) * group.mean()
        about = (
            "(W_g W_g^T)^(1/2) of the coefficients of every group, of trace its share of the tasks; 0 between groups."
        )
        self.relations_ = {
            "task groups": Relation(
                "loadings", members.astype(np.float64), names, tasks, "1 where a task belongs to a group."
            ),
            **task_relations(covariance, self.tasks_, about),
        }


def _cut(W: Floats, k: int) -> Ints:
    """Return ``k`` groups of the rows of ``W`` along the tree of their cosines."""
    if k == 1:
        return np.zeros(len(W), dtype=np.int64)
    from scipy.cluster.hierarchy import cut_tree

    return np.asarray(cut_tree(linkage_of(cosines(W)), n_clusters=[k])[:, 0], dtype=np.int64)


class _Groups:
    """Groups, the losses at W, and the objective, improved in turn."""

    def __init__(self, losses: TaskLosses, alpha: float, k: int, labels: Ints, W: Floats) -> None:
        self.losses, self.alpha, self.k, self.labels = losses, alpha, k, labels.copy()
        self.thorough = False
        self.point: Point = losses.at(W)
        self.point, self.solution, self.objective = self._best_for(self.labels)

    def advance(self) -> float:
        costs = self._reassign()
        point, solution, objective = self._best_for(self.labels)
        if objective <= self._objective_at(self.point):
            self.point, self.solution, self.objective = point, solution, objective
        else:
            self.objective = self._objective_at(self.point)
        if self.thorough and costs is not None:
            self._try(costs)
        return self.objective

    def _objective_at(self, point: Point) -> float:
        return point.value + GroupedSquaredTraceNorm(self.alpha, self.labels).value(point.W)

    def _best_for(self, labels: Ints) -> tuple[Point, Solution, float]:
        """Return W given the groups, its certificate, and the objective."""
        penalty = GroupedSquaredTraceNorm(self.alpha, labels)
        found = solve_proximal(self.losses, [penalty], tol=_GAP, max_steps=_STEPS, start=self.point.W[None])
        point = self.losses.at(found.W, self.point)
        return point, found, point.value + penalty.value(found.W)

    def _try(self, costs: Floats) -> None:
        """Make the first of the cheapest moves of one task that lowers the objective after all."""
        for place in np.argsort(costs, axis=None, kind="stable")[:_TRIALS].tolist():
            task, group = divmod(place, self.k)
            if not np.isfinite(costs[task, group]):
                return
            labels = self.labels.copy()
            labels[task] = group
            point, solution, objective = self._best_for(labels)
            if objective < self.objective - _ROUNDING * abs(self.objective):
                self.labels, self.point, self.solution, self.objective = labels, point, solution, objective
                return

    def _reassign(self) -> Floats | None:
        """Move every task, one after the other, to the group where the objective is lowest, if that is lower.

        Where none moves, return by how much every move would raise the objective, ``(T, k)``.
        """
        costs = np.full((self.losses.n_tasks, self.k), np.inf)
        W, loss = self.point.W.copy(), self.point.losses.copy()
        offers = [self._offer(group) for group in range(self.k)]
        sizes = [_size(W[self.labels == group]) for group in range(self.k)]
        moved = False
        for t, own in enumerate(self.labels.tolist()):
            rest = self.labels == own
            rest[t] = False
            without = _size(W[rest])
            fall, chosen = -_ROUNDING * abs(self.objective), None
            for group in range(self.k):
                if group == own:
                    continue
                w, new = offers[group].W[t], float(offers[group].losses[t])
                change = new - loss[t] + self.alpha * (without**2 - sizes[own] ** 2)
                if change >= fall and not self.thorough:
                    continue  # a further row does not make a trace norm smaller
                size = _size(np.concatenate([W[self.labels == group], w[None]]))
                change += self.alpha * (size**2 - sizes[group] ** 2)
                costs[t, group] = change
                if change < fall:
                    fall, chosen = change, (group, w, new, size)
            if chosen is not None:
                group, W[t], loss[t], sizes[group] = chosen
                sizes[own] = without
                self.labels[t] = group
                moved = True
        if not moved:
            return costs
        self.point = self.losses.at(W, self.point)
        return None

    def _offer(self, group: int) -> Point:
        """Return the tasks' coefficients and losses that fit the directions of a group."""
        W = self.point.W[self.labels == group]
        d = self.losses.n_features
        cost = np.eye(d)
        if W.any():
            _, s, Vt = np.linalg.svd(W, full_matrices=True)
            spread = np.zeros(d)
            spread[: len(s)] = s
            spread = np.sqrt(np.square(spread) + (_OPEN * s[0]) ** 2)
            cost = (Vt.T / spread) @ Vt * spread.sum()
        found = solve_quadratic(self.losses, features=2.0 * self.alpha * cost, tol=1e-6, max_steps=50)
        return self.losses.at(found.W, self.point)


def _size(W: Floats) -> float:
    """Return the trace norm, 0 for no rows."""
    return float(singular_values(W).sum()) if len(W) else 0.0
