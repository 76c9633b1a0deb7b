"""How alike tasks are before they are learned together: the coefficients of ridge models of every task.

    r_st = <w_s, w_t> / (||w_s|| ||w_t||),     w_t = argmin c_t mean_loss_t + ridge / 2 ||w||²

The sign says whether the inputs act alike or in opposite ways; |r_st| near 1 means that the same
inputs matter. Trees join tasks by average linkage of 1 - |r_st|.
"""

from __future__ import annotations

import numpy as np

from polytask.core.task import Floats
from polytask.linear.penalised import correlation_of
from polytask.linear.solvers.losses import TaskLosses
from polytask.linear.solvers.quadratic import solve_quadratic

_TOLERANCE = 1e-8
_STEPS = 100


def ridge_coefficients(losses: TaskLosses, ridge: float) -> Floats:
    """Return the coefficients ``(T, d)`` of a ridge model of strength ``ridge`` for every task alone."""
    features = ridge * np.eye(losses.n_features)
    return solve_quadratic(losses, features=features, tol=_TOLERANCE, max_steps=_STEPS).W


def cosines(W: Floats) -> Floats:
    """Return r ``(T, T)`` of the rows of ``W``: 1 on the diagonal, 0 with a row of zeros."""
    return correlation_of(W @ W.T)


def linkage_of(similarity: Floats) -> Floats:
    """Return the tree that joins tasks by average linkage of 1 - |r|, a SciPy linkage matrix ``(T - 1, 4)``."""
    if len(similarity) == 1:
        return np.zeros((0, 4))
    from scipy.cluster.hierarchy import average
    from scipy.spatial.distance import squareform

    return np.asarray(average(squareform(1.0 - np.abs(similarity), checks=False)), dtype=np.float64)
