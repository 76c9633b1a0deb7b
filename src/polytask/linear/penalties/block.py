"""Row-sparse penalty: a feature is used by all tasks or by none.

    Omega(W) = alpha sum_j ||w^j||_2          W: (T tasks, d features), w^j = W[:, j]

    prox_{step Omega}(V)^j = v^j max(0, 1 - step alpha / ||v^j||_2)
    dual norm              = max_j ||v^j||_2

Yuan & Lin, Model selection and estimation in regression with grouped variables, JRSS-B 2006;
Obozinski, Taskar & Jordan, Joint covariate selection and joint subspace selection, 2010.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polytask.core.task import Floats


@dataclass(frozen=True)
class RowNorm:
    """alpha times the sum over features of the Euclidean norm of that feature's coefficients.

    Parameters
    ----------
    alpha
        Strength, not negative.
    """

    alpha: float

    def value(self, W: Floats) -> float:
        """Return the penalty of ``W`` ``(T, d)``."""
        return float(self.alpha * np.linalg.norm(W, axis=0).sum())

    def prox(self, V: Floats, step: float) -> Floats:
        """Return argmin_W 1/2 ||W - V||² + step * value(W)."""
        norms = np.linalg.norm(V, axis=0)
        shrink = np.zeros_like(norms)
        kept = norms > step * self.alpha
        shrink[kept] = 1.0 - step * self.alpha / norms[kept]
        return np.asarray(V * shrink)

    def project_dual(self, V: Floats, step: float) -> Floats:
        """Return the nearest point whose every feature has norm at most step * alpha (Moreau: V - prox)."""
        norms = np.linalg.norm(V, axis=0)
        bound = step * self.alpha
        shrink = np.ones_like(norms)
        outside = norms > bound
        shrink[outside] = bound / norms[outside]
        return np.asarray(V * shrink)

    @staticmethod
    def dual_norm(V: Floats) -> float:
        """Return max_j ||v^j||_2; at the gradient of the loss at W = 0 this is the smallest alpha that gives W = 0."""
        return float(np.linalg.norm(V, axis=0).max(initial=0.0))
