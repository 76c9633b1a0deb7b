"""Latent task hierarchy: tasks are the leaves of a tree down which coefficients diffuse; the tree is learned.

    y_t | w_t: linear or logistic,    Cov(w_s, w_t) = C_st Lam,    Lam = diag(l_1 … l_d)

W: (T tasks, d features); C_st is the length of the path from the origin that s and t share: closely
related tasks part late. Kingman's coalescent is the prior of the tree.

    beliefs    mean and covariance of all w_t under (C, Lam), exact by message passing on the tree; the mean
               minimises sum_t loss_t + 1/2 tr(W^T C^-1 W Lam^-1)
    scales     heights of the joins, Lam, the branch above the root and the noise variance maximise the marginal
               likelihood (logistic loss: its lower bound, in turn with the bound) times the prior of the tree
    shape      the pair of groups joins next that gains the most marginal likelihood from being one, given
               the scales; then the scales follow, as long as the objective rises

see :mod:`~polytask.linear.solvers.coalescent`. Joining the tasks' estimated coefficients instead, as in
the paper, feeds on itself where rows are few: tasks joined once are drawn together and look alike ever after. The tree
competes with the star, in which all tasks join at one height, C = height I + root 11^T (mean
regularisation), and which is kept where the tree does not repay its prior: so unrelated tasks stay apart.

Daumé, Bayesian multitask learning with latent hierarchies, UAI 2009.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.core.task import Floats
from polytask.linear.bayesian import BayesianEstimator
from polytask.linear.estimator import warn_unconverged
from polytask.linear.penalised import correlation_of, names_of
from polytask.linear.solvers.coalescent import (
    Diffusion,
    Scales,
    covariance_of,
    lengths_of,
    linkage_of,
    star,
    typical_heights,
)
from polytask.linear.solvers.task_evidence import TaskEvidence, agglomerate, fit_alone

_MOST_TREES = 3
_STEPS = 500  # of L-BFGS
_STEPS_OF_BOUND = 20  # the same where the bound of the logistic function changes between rounds
_OWN_SHARE = 0.1  # of the path from the origin that tasks go alone, before a tree is known


class TaskHierarchy(BayesianEstimator):
    """Linear or logistic models of tasks with a learned tree of tasks (see the module).

    Parameters
    ----------
    tree
        Linkage matrix ``(n_tasks - 1, 4)`` of a tree that is known, as of ``scipy.cluster.hierarchy``; None:
        learned.
    loss
        ``"squared"`` or ``"logistic"``; one name, one per task, or a mapping from task label to name.
    fit_intercept
        Whether there are intercepts.
    intercepts
        ``"own"`` or ``"coupled"``; see :mod:`~polytask.linear.bayesian`.
    tol
        Stop when a round, or another tree, raises the objective by less than ``tol`` per task.
    max_iter
        Largest number of rounds with logistic loss; squared loss needs one.

    Attributes
    ----------
    coef_ : ndarray of shape (n_tasks, n_features)
        Posterior means.
    intercept_ : ndarray of shape (n_tasks,)
    tree_ : ndarray of shape (n_tasks - 1, 4)
        The tree as a linkage matrix.
    root_ : float
        Length of the branch above the root.
    covariance_ : ndarray of shape (n_tasks, n_tasks)
        C.
    feature_variance_ : ndarray of shape (n_features,)
        Lam; with coupled intercepts the last entry is theirs.
    noise_variance_ : float
        NaN if no task has squared loss.
    evidence_ : ndarray of shape (n_iter_ + 1,)
        Objective for the tree that was chosen, at the start and after every round.
    star_evidence_ : float
        Objective of the star (NaN if the tree is given).
    tree_evidence_ : ndarray
        Objective of every tree that was taken in turn, at the end of its rounds.
    relations_ : dict of Relation
        ``"task covariance"``, ``"task correlation"`` and, with two tasks or more, ``"task tree"``.
    n_iter_, tasks_, logistic_

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(50, 3))
    >>> W = np.array([[2.0, 0.0, 1.0], [2.0, 0.1, 1.0], [-1.0, 1.0, 0.0], [-1.0, 1.0, 0.1]])
    >>> model = TaskHierarchy().fit(X, X @ W.T + 0.5 * rng.normal(size=(50, 4)))
    >>> model.tree_[:, :2].astype(int)
    array([[0, 1],
           [2, 3],
           [4, 5]])
    """

    def __init__(
        self,
        *,
        tree: Any = None,
        loss: Any = "squared",
        fit_intercept: bool = True,
        intercepts: str = "own",
        tol: float = 1e-4,
        max_iter: int = 200,
    ) -> None:
        self.tree = tree
        self.loss = loss
        self.fit_intercept = fit_intercept
        self.intercepts = intercepts
        self.tol = tol
        self.max_iter = max_iter

    def _learn(self, evidence: TaskEvidence) -> tuple[Floats, Floats]:
        T = len(self.tasks_)
        given = self._given(T)
        W = fit_alone(evidence)
        features = np.maximum(np.square(W).mean(axis=0), 1e-6 * np.square(W).mean() + 1e-300)
        least, limit = float(self.tol) * T, int(self.max_iter)
        start = Scales(star(T, 1.0) if given is None else given, 0.5 * features, 1.0, evidence.noise)
        expected = float(features.mean())
        best = _run(Diffusion(evidence, "star" if given is None else "fixed", expected), start, least, limit)
        self.star_evidence_ = best.values[-1] if given is None else float("nan")
        trees: list[_Fitted] = []
        while given is None and T > 2 and len(trees) < _MOST_TREES:
            scales, ties = _joined(evidence, trees[-1].scales if trees else best.scales)
            found = _run(Diffusion(evidence, "learned", expected, ties), scales, least, limit)
            if trees and found.values[-1] <= trees[-1].values[-1] + least:
                break
            trees.append(found)
        self.tree_evidence_ = np.array([tree.values[-1] for tree in trees])
        if trees and trees[-1].values[-1] > best.values[-1]:
            best = trees[-1]
        if self.logistic_.any() and best.gain > least:
            warn_unconverged(type(self).__name__, best.gain, least, "a gain of evidence of", limit)
        best = best.sharpened()
        scales = best.scales
        self.tree_, self.root_ = scales.linkage, scales.root
        self.covariance_ = covariance_of(scales.linkage, T, scales.root)
        self.feature_variance_ = scales.features
        self.noise_variance_ = float("nan") if self.logistic_.all() else scales.noise
        self.evidence_ = np.array(best.values)
        self.n_iter_ = len(best.values) - 1
        W = best.means()
        return W, evidence.intercepts(W)

    def _given(self, T: int) -> Floats | None:
        """Return the tree that is known, checked."""
        if self.tree is None:
            return np.zeros((0, 4)) if T == 1 else None
        from scipy.cluster.hierarchy import is_monotonic, is_valid_linkage

        tree = np.asarray(self.tree, dtype=np.float64)
        if tree.shape != (T - 1, 4) or (T > 1 and not (is_valid_linkage(tree) and is_monotonic(tree))):
            raise InputError(
                f"tree has shape {tree.shape}; give a linkage matrix ({T - 1}, 4) of the {T} tasks with rising heights"
            )
        if not np.isfinite(tree).all() or (tree[:, 2] < 0).any():
            raise InputError("tree must have finite heights that are not negative")
        return tree

    def _relate(self) -> dict[str, Relation]:
        names = names_of(self.tasks_)
        found = {
            "task covariance": Relation(
                "covariance", self.covariance_, names, names, "Length of the path from the origin that tasks share."
            ),
            "task correlation": Relation(
                "correlation", correlation_of(self.covariance_), names, names, "Correlation of the tasks' coefficients."
            ),
        }
        if len(names) > 1:
            found["task tree"] = Relation(
                "tree", self.tree_, names, (), "The learned hierarchy of tasks; lower joins are closer."
            )
        return found


@dataclass(frozen=True)
class _Fitted:
    """What one kind of tree gave: its objective at the start and after every round, and the state of the bound."""

    diffusion: Diffusion
    scales: Scales
    values: list[float]
    state: Any

    @property
    def gain(self) -> float:
        """What the last round gained."""
        return self.values[-1] - self.values[-2]

    def means(self) -> Floats:
        """Return E w_t, ``(T, d)``."""
        return self.diffusion.beliefs(self.scales).mean * np.sqrt(self.scales.features)

    def sharpened(self) -> _Fitted:
        """Return the same with scales solved for to rounding."""
        self.diffusion.evidence.restore(self.state)
        scales = self.diffusion.improve(self.scales, _STEPS, exact=True)
        value = self.diffusion.value(scales)
        return replace(self, scales=scales, values=[*self.values, max(value, self.values[-1])])


def _run(diffusion: Diffusion, scales: Scales, least: float, limit: int) -> _Fitted:
    """Improve the scales, and the bound of the logistic function, in turn until a round gains at most ``least``."""
    evidence = diffusion.evidence
    values = [diffusion.value(scales)]
    while True:
        scales = diffusion.improve(scales, _STEPS_OF_BOUND if evidence.logistic.any() else _STEPS)
        if evidence.logistic.any():
            beliefs, half = diffusion.beliefs(scales), np.sqrt(scales.features)
            evidence.refit(beliefs.mean * half, beliefs.covariance * half[:, None] * half)
            scales = replace(scales, noise=evidence.noise)
        values.append(diffusion.value(scales))
        if not evidence.logistic.any() or values[-1] - values[-2] <= least or len(values) > limit:
            return _Fitted(diffusion, scales, values, evidence.snapshot())


def _joined(evidence: TaskEvidence, scales: Scales) -> tuple[Scales, float]:
    """Return the scales with the tree that joins, next, the tasks whose evidence gains most from being one, and ties.

    Tasks of a group may differ by what they do on their own branches so far.
    """
    T, d = evidence.n_tasks, evidence.n_features
    linkage = scales.linkage
    level = linkage[0, 2] == linkage[-1, 2]  # a star
    own = _OWN_SHARE * linkage[-1, 2] if level else float(np.median(lengths_of(linkage, T)[:T]))
    half = np.sqrt(scales.features)
    gram = evidence.precision * half[:, None] * half
    shrink = np.linalg.inv(np.eye(d) + own * gram)
    precision = gram @ shrink
    linear = np.matmul(shrink, (evidence.linear * half)[:, :, None])[:, :, 0]
    prior = np.eye(d) / (linkage[-1, 2] + scales.root - own)
    levels = agglomerate(0.5 * (precision + precision.transpose(0, 2, 1)), linear, prior, np.arange(T))
    heights = linkage[:, 2]
    if level:
        heights = linkage[-1, 2] * typical_heights(T) / typical_heights(T)[-1]
    linkage = linkage_of([level.labels for level in levels], heights)
    return replace(scales, linkage=linkage), sum(level.ties for level in levels)
