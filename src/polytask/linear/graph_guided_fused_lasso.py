"""Graph-guided fused lasso: sparse models whose coefficients tasks joined in a graph share, or oppose.

    min_{W, b}  sum_t c_t mean_loss_t  +  alpha sum_tj |W_tj|
                +  gamma sum_{edges s t} tau(r_st) sum_j |W_sj - sign(r_st) W_tj|

W: (T tasks, d features), r: signed weights of the edges, tau(r) = |r|, r² or 1. Differences are exactly
0 along many edges: tasks then have the same coefficient of a feature (opposite ones where r_st < 0).
gamma = 0 is the lasso of every task; with gamma to infinity every connected part has one model.

The graph is given, or has an edge where the cosine of the coefficients of two single-task ridge
models is at least a threshold in size. Correlations of the targets, as in the paper, are given as
``graph`` where all tasks have the same rows. Proximal maps are solved through their duals, and the dual
points certify the optimum; nothing is smoothed. A step costs passes over the edges: a threshold that
leaves thousands of them makes it slow.

Chen, Kim, Lin, Carbonell & Xing, Graph-structured multi-task regression and an efficient optimization
method for general fused lasso, 2010; Kim & Xing, Statistical estimation of correlated genome
associations to a quantitative trait network, PLoS Genetics 2009.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.core.task import Floats
from polytask.linear.layout import Layout, task_numbers
from polytask.linear.penalised import (
    PenalisedEstimator,
    gradient_at_zero,
    names_of,
    not_negative,
    positive,
    root_covariance,
    task_relations,
)
from polytask.linear.penalties.fused import FusedNorm, SignedGraph
from polytask.linear.penalties.spectral import Penalty
from polytask.linear.similarity import cosines, ridge_coefficients
from polytask.linear.solvers.losses import TaskLosses

_SHARE = 0.3  # of its gap that a proximal map leaves open; the next one starts there
_EDGE_WEIGHTS = ("absolute", "squared", "equal")


class GraphGuidedFusedLasso(PenalisedEstimator):
    """Sparse linear models whose coefficients are fused along the edges of a signed graph (see the module).

    Parameters
    ----------
    alpha
        Strength on the coefficients, positive.
    gamma
        Strength on differences along edges, not negative.
    graph
        Signed weights r of the edges: an array ``(n_tasks, n_tasks)`` in the order of ``tasks_``,
        symmetric, 0 where there is no edge (its diagonal does not count); a mapping from pairs of task
        labels to weights; or None, the cosines of the tasks' ridge coefficients.
    threshold
        Edges with ``|r|`` below it are left out, not negative.
    edge_weights
        tau: ``"absolute"`` (``|r|``), ``"squared"`` (r²) or ``"equal"`` (1 for every edge).
    start_ridge
        Strength of the ridge models behind the graph that is found, not negative.
    loss, epsilon, task_weighting, fit_intercept, tol, max_iter, warm_start
        As of :class:`~polytask.linear.trace_norm.TraceNorm`.

    Attributes
    ----------
    coef_, intercept_, dual_gap_, n_iter_, tasks_, logistic_
        As of :class:`~polytask.linear.trace_norm.TraceNorm`.
    graph_ : ndarray of shape (n_tasks, n_tasks)
        sign(r) tau(r) of the edges, 0 where there is none.
    relations_ : dict of Relation
        ``"task graph"`` (``graph_``), and covariance, correlation and tree of the tasks' coefficients.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(50, 3))
    >>> Y = X @ np.array([[2.0, 2.1, -2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    >>> GraphGuidedFusedLasso(0.01, 0.2, graph={(0, 1): 1.0, (0, 2): -1.0}).fit(X, Y).coef_.round(2)
    array([[ 2.02,  0.  , -0.12],
           [ 2.02,  0.  , -0.12],
           [-2.02,  0.  ,  0.71]])
    """

    takes_multinomial = False

    def __init__(
        self,
        alpha: float = 0.1,
        gamma: float = 0.1,
        *,
        graph: Any = None,
        threshold: float = 0.5,
        edge_weights: str = "absolute",
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
        self.gamma = gamma
        self.graph = graph
        self.threshold = threshold
        self.edge_weights = edge_weights
        self.start_ridge = start_ridge
        self.loss = loss
        self.epsilon = epsilon
        self.task_weighting = task_weighting
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start

    def _fit(self, X: Floats, layout: Layout) -> None:
        self._check()
        self._given(len(layout.names))
        self.solve(self._losses(layout.blocks, len(layout.names), X.shape[1], fit_intercept=self.fit_intercept))

    def _check(self) -> tuple[float, float]:
        if self.edge_weights not in _EDGE_WEIGHTS:
            listed = ", ".join(f'"{name}"' for name in _EDGE_WEIGHTS)
            raise InputError(f"edge_weights must be one of {listed}, got {self.edge_weights!r}")
        not_negative("threshold", self.threshold, "the size below which an edge is left out")
        not_negative("start_ridge", self.start_ridge, "the strength of the ridge models behind the graph")
        return (
            positive("alpha", self.alpha, "the strength on the coefficients"),
            not_negative("gamma", self.gamma, "the strength on differences along edges"),
        )

    def solve(self, losses: TaskLosses) -> None:
        """Fit given losses of the tasks ``tasks_``, which is what :meth:`fit` does with those of its data."""
        self._check()
        self.graph_ = self._edges(losses)
        super().solve(losses)

    def _edges(self, losses: TaskLosses) -> Floats:
        """Return sign(r) tau(r) ``(T, T)``."""
        given = self._given(losses.n_tasks)
        r = cosines(ridge_coefficients(losses, float(self.start_ridge))) if given is None else given
        r = np.where(np.abs(r) >= float(self.threshold), r, 0.0)
        np.fill_diagonal(r, 0.0)
        if self.edge_weights == "absolute":
            return r
        return np.asarray(np.sign(r) * np.square(r) if self.edge_weights == "squared" else np.sign(r))

    def _given(self, T: int) -> Floats | None:
        """Return the given weights r ``(T, T)``; refuse wrong ones."""
        if self.graph is None:
            return None
        if isinstance(self.graph, Mapping):
            r = np.zeros((T, T))
            for pair, weight in self.graph.items():
                if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(weight, Real):
                    raise InputError(f"graph has the entry {pair!r}: {weight!r}; give pairs of task labels: a number")
                first, second = (int(task_numbers(np.array([label]), self.tasks_, 1)[0]) for label in pair)
                r[first, second] = r[second, first] = float(weight)
        else:
            r = np.array(self.graph, dtype=np.float64)
            if r.shape != (T, T):
                raise InputError(f"graph has shape {r.shape}; give signed weights ({T}, {T}), one row per task")
            if np.isfinite(r).all() and np.abs(r - r.T).max(initial=0.0) > 1e-10 * np.abs(r).max(initial=0.0):
                raise InputError("graph is not symmetric; give the average of the weights in both directions")
        if not np.isfinite(r).all():
            raise InputError("graph must have finite weights; 0 is no edge")
        return r

    def _penalties(self, n_tasks: int, n_features: int) -> list[Penalty]:  # noqa: ARG002 - same for all shapes
        alpha, gamma = self._check()
        return [FusedNorm(alpha, gamma, SignedGraph.of_matrix(self.graph_), _SHARE)]

    def _relate(self) -> dict[str, Relation]:
        tasks = names_of(self.tasks_)
        about = "Signed weights of the edges along which coefficients are fused; 0: no edge."
        return {
            "task graph": Relation("weights", self.graph_, tasks, tasks, about),
            **task_relations(root_covariance(self.coef_), self.tasks_, "(W W^T)^(1/2) / trace of the coefficients."),
        }

    def alpha_max(self, X: Any, y: Any, tasks: Any = None, sample_weight: Any = None) -> float:
        """Return an ``alpha`` at which all coefficients are 0, the smallest one for ``gamma`` = 0.

        Arguments as of :meth:`fit`.
        """
        return self._alpha_max(X, y, tasks, sample_weight)

    def strongest(self, losses: TaskLosses) -> float:
        return float(np.abs(gradient_at_zero(losses)).max(initial=0.0))
