"""What the sparse estimators share: one norm of every feature's coefficients, an optional ridge, one solver."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from polytask.core.relation import Relation
from polytask.core.task import Floats
from polytask.linear.estimator import warn_unconverged
from polytask.linear.parameters import not_negative
from polytask.linear.penalised import PenalisedEstimator, features_in_use, gradient_at_zero
from polytask.linear.penalties.block import FeatureNorm
from polytask.linear.penalties.elastic import Elastic
from polytask.linear.penalties.spectral import Penalty
from polytask.linear.solvers.feature_norms import solve_feature_norms
from polytask.linear.solvers.losses import TaskLosses


class FeatureNormEstimator(PenalisedEstimator):
    """Minimises mean losses + sum_j norm(w^j) + ridge / 2 ||W||² (abstract)."""

    alpha: float
    ridge: float

    @abstractmethod
    def _norm(self) -> FeatureNorm:
        """Check the parameters and return the norm, which grows in proportion to ``alpha``."""

    def _penalties(self, n_tasks: int, n_features: int) -> list[Penalty]:  # noqa: ARG002 - same for all shapes
        norm = self._norm()
        ridge = not_negative("ridge", self.ridge, "the strength of the squared penalty")
        return [norm if ridge == 0.0 else Elastic(norm, ridge)]

    def solve(self, losses: TaskLosses) -> None:
        if not losses.separable:
            super().solve(losses)
            return
        self._penalties(losses.n_tasks, losses.n_features)
        start = getattr(self, "_parts", None) if self.warm_start else None
        if start is not None and start.shape != (1, losses.n_tasks, losses.n_features):
            start = None
        found = solve_feature_norms(
            losses,
            self._norm(),
            ridge=float(self.ridge),
            tol=float(self.tol),
            max_passes=int(self.max_iter),
            start=None if start is None else start[0],
        )
        self._parts = found.W[None]
        self.coef_ = found.W
        self.intercept_ = found.intercept
        self.dual_gap_ = found.gap
        self.n_iter_ = found.passes
        self._relations = None
        self._describe()
        if found.gap > found.bound:
            warn_unconverged(type(self).__name__, found.gap, found.bound, "a duality gap of", int(self.max_iter))

    def _relate(self) -> dict[str, Relation]:
        return {"features in use": self._used(self.coef_, "Coefficients of the features that some task uses.")}

    def _used(self, W: Floats, about: str) -> Relation:
        """Return the coefficients ``W`` of the features in use."""
        return features_in_use(self, W, about)

    def alpha_max(self, X: Any, y: Any, tasks: Any = None, sample_weight: Any = None) -> float:
        """Return the smallest ``alpha`` at which all coefficients are 0; arguments as of :meth:`fit`."""
        return self._alpha_max(X, y, tasks, sample_weight)

    def strongest(self, losses: TaskLosses) -> float:
        return float(self.alpha * self._norm().gauges(gradient_at_zero(losses)).max(initial=0.0))
