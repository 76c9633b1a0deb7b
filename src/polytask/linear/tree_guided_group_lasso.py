"""Tree-guided group lasso: features are selected together for tasks that a tree joins early.

    min_{W, b}  sum_t c_t mean_loss_t  +  alpha sum_j sum_v weight_v ||W[G_v, j]||_2

W: (T tasks, d features); v runs over the nodes of a tree over the tasks, G_v are the tasks below v
(one task for a leaf). With heights h_v of the nodes, 1 at the root as in the paper,

    weight_v = (1 - h_v) prod_{ancestors a of v} h_a,     weight_leaf = prod_{ancestors a} h_a,

which add up to 1 over the groups of every task, so no task is penalised more than another. Two tasks
that are joined low select features together, two that are joined near the top nearly alone. With the
root at height 0 it is the row-sparse model (one group of all tasks), with all joins at height 1 the
lasso of every task.

The tree is given, or found by average linkage of 1 - |r_st|, r the cosine of the coefficients of
single-task ridge models. The proximal map is exact and the optimum certified by a duality gap.

Kim & Xing, Tree-guided group lasso for multi-task regression with structured sparsity, ICML 2010.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.core.task import Floats
from polytask.linear.layout import Layout
from polytask.linear.penalised import (
    PenalisedEstimator,
    gradient_at_zero,
    names_of,
    not_negative,
    positive,
    root_covariance,
    task_relations,
)
from polytask.linear.penalties.spectral import Penalty
from polytask.linear.penalties.tree import TaskTree, TreeNorm
from polytask.linear.similarity import cosines, linkage_of, ridge_coefficients
from polytask.linear.solvers.losses import TaskLosses


class TreeGuidedGroupLasso(PenalisedEstimator):
    """Linear models of several tasks whose features are selected by groups of a tree (see the module).

    Parameters
    ----------
    alpha
        Strength of the penalty, positive; from :meth:`alpha_max` on, all coefficients are 0.
    tree
        A SciPy linkage matrix ``(n_tasks - 1, 4)`` over the tasks in the order of ``tasks_``, whose
        heights never fall towards the root; or None, the tree of the tasks' ridge coefficients.
    root_height
        Height of the root, 0 … 1, to which the others are scaled: below 1 there is a group of all tasks.
    start_ridge
        Strength of the ridge models behind the tree that is found, not negative.
    loss, epsilon, task_weighting, fit_intercept, tol, max_iter, warm_start
        As of :class:`~polytask.linear.trace_norm.TraceNorm`.

    Attributes
    ----------
    coef_, intercept_, dual_gap_, n_iter_, tasks_, logistic_
        As of :class:`~polytask.linear.trace_norm.TraceNorm`.
    tree_ : ndarray of shape (n_tasks - 1, 4)
        The tree, a SciPy linkage matrix.
    group_weights_ : ndarray of shape (n_groups, n_tasks)
        Weight of every group of several tasks where a task belongs to it, else 0; then those of the single tasks.
    relations_ : dict of Relation
        ``"task groups"`` (``group_weights_``), ``"guiding tree"`` with two tasks or more, and covariance,
        correlation and tree of the tasks' coefficients.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(100, 4))
    >>> Y = X @ np.array([[2.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 3.0], [0.0] * 4])
    >>> tree = [[0, 1, 0.1, 2], [2, 3, 0.1, 2], [4, 5, 1.0, 4]]
    >>> TreeGuidedGroupLasso(alpha=0.2, tree=tree).fit(X, Y).coef_.round(1)
    array([[ 1.8,  0. ,  0. ,  0. ],
           [-0.9,  0. ,  0. ,  0. ],
           [ 0. ,  0. ,  0.9,  0. ],
           [ 0. ,  0. ,  2.8,  0. ]])
    """

    takes_multinomial = False

    def __init__(
        self,
        alpha: float = 0.1,
        *,
        tree: Any = None,
        root_height: float = 1.0,
        start_ridge: float = 0.1,
        loss: Any = "squared",
        epsilon: float = 1.35,
        task_weighting: Any = "equal",
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        warm_start: bool = False,
    ) -> None:
        self.alpha = alpha
        self.tree = tree
        self.root_height = root_height
        self.start_ridge = start_ridge
        self.loss = loss
        self.epsilon = epsilon
        self.task_weighting = task_weighting
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start

    def _fit(self, X: Floats, layout: Layout) -> None:
        self._check(len(layout.names))
        self.solve(self._losses(layout.blocks, len(layout.names), X.shape[1], fit_intercept=self.fit_intercept))

    def _check(self, T: int) -> tuple[float, float, float, Floats | None]:
        """Return the strengths, the height of the root and the given tree."""
        alpha = positive("alpha", self.alpha, "the strength of the penalty")
        ridge = not_negative("start_ridge", self.start_ridge, "the strength of the ridge models behind the tree")
        top = self.root_height
        if not isinstance(top, Real) or isinstance(top, bool) or not 0 <= float(top) <= 1:
            raise InputError(
                f"root_height must be from 0 to 1, got {top!r}; at 1 no group has all tasks, at 0 only one"
            )
        return alpha, ridge, float(top), None if self.tree is None else _linkage(self.tree, T)

    def solve(self, losses: TaskLosses) -> None:
        """Fit given losses of the tasks ``tasks_``, which is what :meth:`fit` does with those of its data."""
        self._plant(losses)
        super().solve(losses)

    def _plant(self, losses: TaskLosses) -> None:
        _, ridge, top, given = self._check(losses.n_tasks)
        self.tree_ = linkage_of(cosines(ridge_coefficients(losses, ridge))) if given is None else given
        self._tree = TaskTree.of_linkage(self.tree_, top)

    def _penalties(self, n_tasks: int, n_features: int) -> list[Penalty]:  # noqa: ARG002 - d does not matter
        return [TreeNorm(self._check(n_tasks)[0], self._tree)]

    def _describe(self) -> None:
        groups, T = self._tree.groups, len(self.coef_)
        self.group_weights_ = np.concatenate([groups[T:], groups[:T]])

    def _relate(self) -> dict[str, Relation]:
        tasks = names_of(self.tasks_)
        groups = tuple(f"group {number + 1}" for number in range(len(self._tree.weights) - len(tasks)))
        found = {
            "task groups": Relation(
                "loadings",
                self.group_weights_,
                groups + tuple(f"{task} alone" for task in tasks),
                tasks,
                "Share of the penalty by which a task's features are selected together with those of the group.",
            ),
            **task_relations(root_covariance(self.coef_), self.tasks_, "(W W^T)^(1/2) / trace of the coefficients."),
        }
        if len(tasks) > 1:
            about = "The tree that guides the penalty; tasks that are joined lower share more features."
            found["guiding tree"] = Relation("tree", self.tree_, tasks, (), about)
        return found

    def alpha_max(self, X: Any, y: Any, tasks: Any = None, sample_weight: Any = None) -> float:
        """Return the smallest ``alpha`` at which all coefficients are 0; arguments as of :meth:`fit`."""
        return self._alpha_max(X, y, tasks, sample_weight)

    def strongest(self, losses: TaskLosses) -> float:
        """Return the smallest ``alpha`` at which all coefficients are 0, given the losses."""
        self._plant(losses)
        return TreeNorm(1.0, self._tree).dual_norm(gradient_at_zero(losses))


def _linkage(tree: Any, T: int) -> Floats:
    """Return a linkage matrix over ``T`` tasks; refuse anything else."""
    from scipy.cluster.hierarchy import is_valid_linkage

    try:
        linkage = np.array(tree, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"tree must be a SciPy linkage matrix or None, got {type(tree).__name__}") from error
    if T == 1 and linkage.size == 0:
        return np.zeros((0, 4))
    if linkage.shape != (T - 1, 4):
        raise InputError(f"tree has shape {linkage.shape}; a linkage matrix of {T} tasks has shape ({T - 1}, 4)")
    if not np.isfinite(linkage).all() or not is_valid_linkage(linkage):
        raise InputError("tree is not a valid SciPy linkage matrix; scipy.cluster.hierarchy.linkage makes one")
    heights = np.concatenate([np.zeros(T), linkage[:, 2]])
    if (heights[linkage[:, :2].astype(np.int64)] > linkage[:, 2:3] * (1 + 1e-12)).any():
        raise InputError("tree has a join below one of its parts; use a linkage without inversions, such as average")
    return linkage
