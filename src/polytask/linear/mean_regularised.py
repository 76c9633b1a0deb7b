"""Mean-regularised multi-task learning: every task's coefficients are a common vector plus its own deviation.

    w_t = w_0 + v_t

    min  sum_t c_t / n_t sum_{i in t} loss_t(y_it, x_i^T w_t + b_t)
         + alpha (1 + mu) / 2 ( ||w_0||² + (1 / mu) sum_t ||v_t||² )

Equivalently the coefficients have a Gaussian prior whose correlation between any two tasks is
rho = 1 / (1 + mu), and the model is the ridge machine of strength alpha with the kernel

    K((x, s), (z, t)) = (1 + mu [s = t]) / (1 + mu) x^T z,

which is mu / (1 + mu) times Evgeniou & Pontil's (1 / mu + [s = t]) x^T z; the feature map
x -> (x sqrt(rho); 0 … x sqrt(1 - rho) … 0) gives the same model (Daumé 2007). Limits at fixed alpha:
mu -> inf: every task alone, ridge of strength alpha; mu -> 0: one coefficient vector for all.
In Evgeniou & Pontil's form (lambda_1 / T) sum ||v_t||² + lambda_2 ||w_0||²:
lambda_2 = alpha (1 + mu) / 2 and lambda_1 / T = alpha (1 + mu) / (2 mu), so mu = T lambda_2 / lambda_1.

Evgeniou & Pontil, Regularized multi-task learning, KDD 2004.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from scipy.sparse import csr_array, hstack
from sklearn.utils.validation import check_is_fitted

from polytask.core.errors import InputError
from polytask.core.relation import Relation
from polytask.core.task import Floats
from polytask.linear.estimator import warn_unconverged
from polytask.linear.layout import Layout
from polytask.linear.moments import Block, MomentsOnly, Stack, is_sparse
from polytask.linear.paths import PathEstimator
from polytask.linear.penalised import root_covariance, task_relations
from polytask.linear.solvers.coupled import CoupledSolution, solve_coupled
from polytask.linear.solvers.losses import TaskLosses

INTERCEPTS = ("own", "coupled", "common")
UNSEEN = ("error", "mean")


class MeanRegularised(PathEstimator):
    """Ridge models of several tasks drawn towards their common mean (see the module for the formula).

    Squared losses are solved exactly by block elimination from per-task moments; logistic ones by
    Newton steps that use the same elimination.

    Parameters
    ----------
    alpha
        Strength of the penalty, positive.
    mu
        How independent the tasks are, 0 … inf: the prior correlation of their coefficients is
        1 / (1 + mu). 0: one coefficient vector for all; inf: every task alone.
    loss, epsilon, task_weighting
        As of :class:`~polytask.linear.block_sparse.BlockSparse`.
    fit_intercept
        Whether there are intercepts.
    intercepts
        ``"own"``: each task has its own, not penalised. ``"coupled"``: b_t = b_0 + e_t with b_0 not
        penalised and e_t penalised like a coefficient of v_t, for tasks that measure the same thing
        in different places. ``"common"``: one b_0 for all. With one of the last two, a task whose labels
        are all the same (or that has one) gets what the others know, not just an intercept.
    unseen
        What to predict for a task that was not in the fit: ``"error"``: refuse. ``"mean"``: the common
        model, coefficients w_0 with b_0 (the mean of the intercepts where each task has its own).
    tol
        Newton steps stop when the largest entry of the gradient is at most ``tol`` times that at 0
        (squared losses need one exact step and do not use it).
    max_iter
        Largest number of Newton steps.
    warm_start
        Start from the previous fit.

    Attributes
    ----------
    coef_ : ndarray of shape (n_tasks, n_features)
        w_t = w_0 + v_t.
    common_ : ndarray of shape (n_features,)
        w_0.
    intercept_ : ndarray of shape (n_tasks,)
    n_iter_ : int
        Newton steps.
    tasks_, logistic_
        As of :class:`~polytask.linear.block_sparse.BlockSparse`.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[0.0], [1.0], [0.0], [1.0]])
    >>> model = MeanRegularised(alpha=1e-9, mu=0.0).fit(X, [0.0, 1.0, 5.0, 8.0], tasks=["a", "a", "b", "b"])
    >>> model.coef_.round(6)
    array([[2.],
           [2.]])
    """

    takes_sparse = True
    coef_: Floats
    common_: Floats
    intercept_: Floats
    _common_intercept: float | None

    def __init__(
        self,
        alpha: float = 0.01,
        mu: float = 0.1,
        *,
        loss: Any = "squared",
        epsilon: float = 1.35,
        task_weighting: Any = "equal",
        fit_intercept: bool = True,
        intercepts: str = "own",
        unseen: str = "error",
        tol: float = 1e-8,
        max_iter: int = 100,
        warm_start: bool = False,
    ) -> None:
        self.alpha = alpha
        self.mu = mu
        self.loss = loss
        self.epsilon = epsilon
        self.task_weighting = task_weighting
        self.fit_intercept = fit_intercept
        self.intercepts = intercepts
        self.unseen = unseen
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start

    def _fit(self, X: Floats, layout: Layout) -> None:
        if not isinstance(self.alpha, Real) or not 0 < float(self.alpha) < np.inf:
            raise InputError(f"alpha must be a positive number, got {self.alpha!r}; it is the strength of the penalty")
        if not isinstance(self.mu, Real) or not float(self.mu) >= 0:
            raise InputError(f"mu must be a number from 0 (all tasks alike) to inf (every task alone), got {self.mu!r}")
        if self.intercepts not in INTERCEPTS:
            raise InputError(f"intercepts must be one of {', '.join(INTERCEPTS)}, got {self.intercepts!r}")
        if self.unseen not in UNSEEN:
            raise InputError(f"unseen must be one of {', '.join(UNSEEN)}, got {self.unseen!r}")
        T, d = len(layout.names), X.shape[1]
        augmented = bool(self.fit_intercept) and self.intercepts != "own"
        blocks = _with_constants(layout.blocks) if augmented else layout.blocks
        losses = self._losses(
            blocks, T, d + augmented, fit_intercept=bool(self.fit_intercept) and self.intercepts == "own"
        )
        start = self._start(T, d + augmented) if self.warm_start else None
        found = couple(
            losses,
            float(self.alpha),
            1.0 / (1.0 + float(self.mu)),
            intercepts=self.intercepts if augmented else "own",
            tol=float(self.tol),
            max_steps=int(self.max_iter),
            start=start,
        )
        self.coef_ = np.ascontiguousarray(found.W[:, :d])
        self.common_ = found.common[:d].copy()
        self.intercept_ = found.W[:, d].copy() if augmented else found.intercept
        self._common_intercept = float(found.common[d]) if augmented else None
        self._parts = np.concatenate([found.common[None], found.W - found.common])
        self.n_iter_ = found.steps
        if not losses.all_quadratic and found.optimality > found.bound:
            warn_unconverged("MeanRegularised", found.optimality, found.bound, "a gradient of", int(self.max_iter))

    def _top(self, X: Any, layout: Layout) -> float:
        """Return ten times the curvature of the losses along their gradient at 0, where little is left of W."""
        T, d = len(layout.names), X.shape[1]
        losses = self._losses(layout.blocks, T, d, fit_intercept=self.fit_intercept)
        zero = losses.at(np.zeros((T, d)))
        size = float(np.vdot(zero.gradient, zero.gradient))
        along = float(np.vdot(zero.gradient, losses.hessian(zero).times(zero.gradient)))
        return 10.0 * along / size if size > 0.0 else 1.0

    @property
    def relations_(self) -> dict[str, Relation]:
        """How the coefficients of the tasks go together: covariance, correlation and tree."""
        check_is_fitted(self)
        about = "(W W^T)^(1/2) / trace of the coefficients."
        return task_relations(root_covariance(self.coef_), self.tasks_, about)

    def _lends(self) -> bool:
        return bool(self.intercepts != "own")

    def _unseen(self) -> tuple[Floats, float, bool] | None:
        if self.unseen == "error":
            return None
        logistic = bool(self.logistic_[0])
        if (self.logistic_ != logistic).any():
            raise InputError(
                'unseen="mean" needs one loss for all tasks: it is not known whether a new task has classes or numbers'
            )
        intercept = self._common_intercept
        if intercept is None or (self._idle is not None and self._idle.rows.all()):
            idle = None if self._idle is None or self._idle.rows.all() else self._idle.rows
            intercept = float((self.intercept_ if idle is None else self.intercept_[~idle]).mean())
        return self.common_, intercept, logistic

    def _start(self, T: int, width: int) -> Floats | None:
        parts: Floats | None = getattr(self, "_parts", None)
        return parts if parts is not None and parts.shape == (T + 1, width) else None


def _with_constants(blocks: Sequence[Block]) -> Sequence[Block]:
    """Return the blocks with a column of ones after their inputs."""
    if isinstance(blocks, MomentsOnly):
        return MomentsOnly(blocks.moments.with_constant())
    if isinstance(blocks, Stack) and not is_sparse(blocks.X):
        X = np.column_stack([blocks.X, np.ones(len(blocks.X))])
        return Stack(X, blocks.y, blocks.bounds, blocks.weights, blocks.outputs)
    return [with_constant(block) for block in blocks]


def with_constant(block: Block) -> Block:
    """Return the block with a column of ones after its inputs."""
    ones = np.ones((block.X.shape[0], 1))
    X = hstack([block.X, csr_array(ones)], format="csr") if is_sparse(block.X) else np.hstack([block.X, ones])
    return Block(X, block.weights, block.Y, block.outputs)


def couple(
    losses: TaskLosses,
    alpha: float,
    correlation: float,
    *,
    intercepts: str = "own",
    tol: float = 1e-8,
    max_steps: int = 100,
    start: Floats | None = None,
) -> CoupledSolution:
    """Fit with prior precision alpha / correlation for w_0 and prior variance (1 - correlation) / alpha for v.

    With intercepts other than "own" the last column of the inputs is the constant.
    """
    d = losses.n_features
    precision = np.full(d, alpha / correlation if correlation > 0 else np.inf)
    variance = np.full(d, (1.0 - correlation) / alpha)
    if intercepts != "own":
        precision[-1] = 0.0
        if intercepts == "common":
            variance[-1] = 0.0
    return solve_coupled(losses, precision, variance, tol=tol, max_steps=max_steps, start=start)
