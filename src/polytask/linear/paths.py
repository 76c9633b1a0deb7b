"""Solutions along a path of strengths, from the largest to the smallest, each from the ones before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.base import clone

from polytask.core.errors import InputError
from polytask.core.task import Floats
from polytask.linear.estimator import TaskEstimator
from polytask.linear.layout import Layout
from polytask.linear.moments import Moments, MomentsOnly
from polytask.linear.parameters import count, positive

LARGEST_GRAMS = 20_000_000  # numbers; 160 MB


@dataclass(frozen=True)
class Path:
    """Solutions of a path: alphas ``(m,)``, coefficients, intercepts, and gaps (NaN where a method has none)."""

    alphas: Floats
    coefs: Floats
    intercepts: Floats
    gaps: Floats


class PathEstimator(TaskEstimator):
    """An estimator with one strength ``alpha`` that can be solved for many of them in turn (abstract)."""

    alpha: float
    warm_start: bool

    def path(
        self,
        X: Any,
        y: Any,
        tasks: Any = None,
        sample_weight: Any = None,
        *,
        alphas: Any = None,
        n_alphas: int = 100,
        eps: float = 0.01,
    ) -> tuple[Floats, Floats, Floats, Floats]:
        """Solve for many strengths, from the largest to the smallest, each from the solutions before.

        The model itself is not fitted. Data are read, centred and summed up once.

        Parameters
        ----------
        X, y, tasks, sample_weight
            As of :meth:`fit`.
        alphas
            Strengths, positive; None: ``n_alphas`` of them at equal ratios, from the smallest at which all
            coefficients are 0 to ``eps`` times that. A method without such a strength needs ``alphas``.

        Returns
        -------
        alphas : ndarray of shape (n_alphas,)
            In descending order.
        coefs : ndarray of shape (n_alphas, n_tasks, n_features)
        intercepts : ndarray of shape (n_alphas, n_tasks)
        gaps : ndarray of shape (n_alphas,)
            Certified duality gaps; NaN where the method stops on something else.

        Examples
        --------
        >>> import numpy as np
        >>> from polytask.linear import BlockSparse
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(60, 5))
        >>> y = X[:, :2] @ [[1.0, -2.0], [0.3, 0.0]] + 0.1 * rng.normal(size=(60, 2))
        >>> alphas, coefs, intercepts, gaps = BlockSparse().path(X, y, n_alphas=4, eps=0.1)
        >>> (coefs != 0).any(axis=1).sum(axis=1).tolist()        # features in use
        [0, 1, 1, 2]
        """
        model = clone(self)
        X, layout = model._begin(X, y, tasks, sample_weight)
        model._warn_of_idle_tasks()
        found = model._path(X, layout, alphas, n_alphas, eps)
        return found.alphas, found.coefs, found.intercepts, found.gaps

    def _path(self, X: Any, layout: Layout, alphas: Any, n_alphas: int = 0, eps: float = 0.0) -> Path:
        """Solve along a path for the tasks that :meth:`_begin` has read; spoils the parameters of the model."""
        T, d = len(self.outputs_), X.shape[1]
        if self._squared() and worth_moments(layout, X.shape):
            layout = replace(layout, blocks=MomentsOnly(Moments.of_blocks(layout.blocks, T, d)))
        levels = given_levels(alphas) if alphas is not None else level_grid(self._top(X, layout), n_alphas, eps)
        m = len(levels)
        found = Path(levels, np.zeros((m, T, d)), np.zeros((m, T)), np.full(m, np.nan))
        self.warm_start = True
        for number, alpha in enumerate(levels.tolist()):
            self.alpha = alpha
            self._fit(X, layout)
            self._set_idle_tasks()
            found.coefs[number], found.intercepts[number] = self.coef_, self.intercept_
            found.gaps[number] = getattr(self, "dual_gap_", np.nan)
        return found

    def _top(self, X: Any, layout: Layout) -> float:  # noqa: ARG002 - what methods with such a strength need
        """Return the strength at which a path begins, for the tasks that :meth:`_begin` has read."""
        raise InputError(
            f"{type(self).__name__} has no strength at which all coefficients become 0, where a path could begin; "
            "give the strengths as alphas"
        )

    def _squared(self) -> bool:
        """Return whether all losses are squared."""
        return not self.logistic_.any() and self._outputs is None and self._thresholds is None


def worth_moments(layout: Layout, shape: tuple[int, ...], copies: int = 1) -> bool:
    """Return whether moments of these blocks are not large, nor larger than the rows ``shape`` by much."""
    if isinstance(layout.blocks, MomentsOnly):
        return False
    n, d = shape
    return d <= n and copies * len(layout.blocks) * d * d <= LARGEST_GRAMS


def given_levels(alphas: Any) -> Floats:
    """Return given strengths in descending order; refuse wrong ones."""
    levels = np.sort(np.asarray(alphas, dtype=np.float64).ravel())[::-1]
    if len(levels) == 0 or not np.isfinite(levels).all() or levels[-1] <= 0.0:
        raise InputError(f"alphas must be positive numbers, got {alphas!r}; they are the strengths of the penalty")
    return levels


def level_grid(top: float, n_alphas: Any, eps: Any) -> Floats:
    """Return ``n_alphas`` strengths at equal ratios from ``top`` to ``eps`` times that."""
    count("n_alphas", n_alphas, "the number of strengths on the path")
    if not positive("eps", eps, "the smallest strength as a share of the largest") < 1.0:
        raise InputError(f"eps must be below 1, got {eps!r}; it is the smallest strength as a share of the largest")
    return np.asarray((top if top > 0.0 else 1.0) * np.geomspace(1.0, eps, int(n_alphas)))
