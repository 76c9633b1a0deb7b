"""Multi-task Gaussian process: functions with a covariance of tasks times a covariance of inputs (ICM, LMC).

    y_it = m_t + s_t (f_t(x_i) + noise_it),      noise_it ~ N(0, sigma_t²),
    cov[f_s(x), f_t(z)] = sum_q B_q[s, t] k_q(x, z),      B_q = L_q L_q^T + diag(v_q),  L_q: (T, rank), v_q > 0

One kernel: intrinsic coregionalisation (ICM, "multi-task GP"); several: the linear model of
coregionalisation (LMC). rank = 0: independent tasks that share the kernel's length scales (Lawrence &
Platt). m_t and s_t are mean and standard deviation of the labels. L_q, v_q, length scales and sigma_t²
maximise

    log p(y) = -1/2 y^T A^-1 y - 1/2 logdet A - N/2 log 2 pi,
    A[i, j]  = sum_q B_q[t_i, t_j] k_q(x_i, x_j) + sigma²_{t_i} [i = j]

by L-BFGS with exact gradients from several starts. Where every row has every label and there is one
kernel, A is a Kronecker product plus noise and costs O(n³ + T³) instead of O(n³ T³). On such data and
with little noise nothing is gained from other tasks (autokrigeability): with noise -> 0 the mean is
that of every task alone, whatever B.

Bonilla, Chai & Williams, Multi-task Gaussian process prediction, NIPS 2007; Álvarez, Rosasco & Lawrence,
Kernels for vector-valued functions: a review, 2012; Lawrence & Platt, Learning to learn with the
informative vector machine, ICML 2004.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.utils.validation import check_is_fitted

from polytask.core.errors import InputError, unknown
from polytask.core.relation import Relation
from polytask.core.task import Floats
from polytask.linear.estimator import warn_unconverged
from polytask.linear.kernel_machine import KernelMachine, task_covariance_matrix
from polytask.linear.kernels import KERNELS, check_length_scale, default_length_scale, kernel_diagonal
from polytask.linear.parameters import count, yes_or_no
from polytask.linear.penalised import task_relations
from polytask.linear.solvers.marginal_likelihood import Hyperparameters, MarginalLikelihood
from polytask.linear.solvers.task_kernel import Cells

_NOISE = 0.1  # at the start, of the variance of the labels
_LOADINGS = 0.1  # size of L at the first start, of their standard deviation
_SPREAD = 0.5  # at the other starts
_FLAT = 1e-11  # relative change of the objective per step below which L-BFGS stops


class MultiTaskGaussianProcess(KernelMachine):
    """Gaussian process regression of several tasks with a learned task covariance (see the module).

    Hyper-parameters that are given are kept, those that are None are learned. All are in units of the
    standardised targets where ``normalize_y`` is true.

    Parameters
    ----------
    kernel
        ``"rbf"``, ``"matern32"``, ``"matern52"``, ``"linear"``, or one of them per kernel.
    n_kernels
        Number of kernels, each with a task covariance of its own (more than one: LMC).
    rank
        Rank of L; 0: independent tasks.
    ard
        Whether every input has a length scale of its own.
    shared_noise
        Whether all tasks have the same noise variance.
    task_covariance
        B, ``(T, T)`` in the order of ``tasks_`` (with several kernels ``(n_kernels, T, T)``), or ``"identity"``;
        None: learned.
    length_scale
        Length scale of the inputs, or one per input (with several kernels: a sequence of these); None: learned
        (1 for the linear kernel, whose size B carries, unless ``ard``).
    noise
        sigma_t², one number or one per task; None: learned.
    normalize_y
        Whether m_t and s_t are mean and standard deviation of the labels; otherwise 0 and 1.
    solver
        ``"auto"``: the Kronecker form where the data allow it; ``"dense"``: always a Cholesky factor.
    n_restarts
        Number of starts of L-BFGS; the best end is kept.
    tol
        L-BFGS stops when the largest entry of the gradient of log p(y) per label is at most ``tol``.
    max_iter
        Largest number of its steps per start.
    random_state
        Seed of the starts.

    Attributes
    ----------
    log_marginal_likelihood_ : float
        log p of the (standardised) labels.
    task_covariance_ : ndarray of shape (n_tasks, n_tasks)
        B, summed over kernels; 0 for tasks whose labels are all the same, which get these as prediction.
    task_covariances_ : ndarray of shape (n_kernels, n_tasks, n_tasks)
        B_q.
    length_scales_ : list of ndarray
        Of every kernel, ``(1,)`` or ``(n_features,)``.
    noise_ : ndarray of shape (n_tasks,)
        sigma_t².
    relations_ : dict of Relation
        B as covariance of the tasks, its correlation and tree.
    X_fit_ : ndarray of shape (n_rows, n_features)
        The rows with a label.
    dual_coef_ : ndarray of shape (n_tasks, n_rows)
        A^-1 y.
    intercept_ : ndarray of shape (n_tasks,)
        m_t.
    n_iter_ : int
        Steps of the best start.
    tasks_
        As of :class:`~polytask.linear.block_sparse.BlockSparse`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = np.linspace(0, 6, 60)[:, None]
    >>> Y = np.column_stack([np.sin(X[:, 0]), -np.sin(X[:, 0])]) + 0.1 * rng.normal(size=(60, 2))
    >>> Y[30:, 1] = np.nan                       # the second task is known on one side only
    >>> model = MultiTaskGaussianProcess(rank=1).fit(X, Y)
    >>> mean, std = model.predict([[4.7]], return_std=True)
    >>> mean.round(1)                            # sin(4.7) = -1.0
    array([[-1. ,  0.9]])
    >>> model.relations_["task correlation"].values.round(1)
    array([[ 1., -1.],
           [-1.,  1.]])
    """

    def __init__(
        self,
        *,
        kernel: str | Sequence[str] = "rbf",
        n_kernels: int = 1,
        rank: int = 2,
        ard: bool = False,
        shared_noise: bool = False,
        task_covariance: Any = None,
        length_scale: Any = None,
        noise: Any = None,
        normalize_y: bool = True,
        solver: str = "auto",
        n_restarts: int = 3,
        tol: float = 1e-5,
        max_iter: int = 1000,
        random_state: int = 0,
    ) -> None:
        self.kernel = kernel
        self.n_kernels = n_kernels
        self.rank = rank
        self.ard = ard
        self.shared_noise = shared_noise
        self.task_covariance = task_covariance
        self.length_scale = length_scale
        self.noise = noise
        self.normalize_y = normalize_y
        self.solver = solver
        self.n_restarts = n_restarts
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def _lends(self) -> bool:
        return not self.normalize_y

    def _fit_cells(self, cells: Cells) -> None:
        kernels = self._read_parameters()
        T, A = len(self.tasks_), cells.n_tasks
        mean, scale = np.zeros(A), np.ones(A)
        if self.normalize_y and A:
            totals = cells.totals()
            mean = cells.per_task(cells.weights * cells.values) / totals
            scale = np.sqrt(cells.per_task(cells.weights * np.square(cells.values - mean[cells.tasks])) / totals)
        self._scale_of_task = np.full(T, np.nan)
        self._scale_of_task[self._active] = scale
        self._relations: dict[str, Relation] | None = None
        if A == 0:
            self._nothing_to_learn(len(kernels))
            return
        standard = replace(cells, values=(cells.values - mean[cells.tasks]) / scale[cells.tasks])
        problem = MarginalLikelihood(
            standard, self.X_fit_, kernels, self._start(kernels, standard), dense=self.solver == "dense"
        )
        best, self.n_iter_ = self._maximise(problem)
        self._system, solved = problem.solve(best)
        self.log_marginal_likelihood_ = problem.value(best, self._system, solved)
        Bs = best.covariances()
        self.task_covariances_ = np.stack([self._among_all(B) for B in Bs])
        self.task_covariance_ = self.task_covariances_.sum(axis=0)
        self.length_scales_ = best.length_scales
        self.noise_ = np.zeros(T)
        self.noise_[self._active] = best.noise
        dual = cells.spread(solved)
        self._remember(kernels, best.length_scales, [scale[:, None] * B for B in Bs], dual, mean)

    def _nothing_to_learn(self, n_kernels: int) -> None:
        T = len(self.tasks_)
        self.task_covariances_ = np.zeros((n_kernels, T, T))
        self.task_covariance_ = np.zeros((T, T))
        self.length_scales_ = [np.ones(1)] * n_kernels
        self.noise_ = np.zeros(T)
        self.n_iter_, self.log_marginal_likelihood_ = 1, 0.0
        self._remember([], [], [], np.zeros((0, 0)), np.zeros(0))

    def _read_parameters(self) -> list[str]:
        """Check the parameters; return the name of every kernel."""
        n_kernels = count("n_kernels", self.n_kernels, "the number of kernels")
        count("rank", self.rank, "the rank of L", least=0)
        count("n_restarts", self.n_restarts, "the number of starts")
        for name in ("ard", "shared_noise", "normalize_y"):
            yes_or_no(name, getattr(self, name))
        if self.solver not in ("auto", "dense"):
            raise InputError(f'solver must be "auto" or "dense", got {self.solver!r}')
        kernels = [self.kernel] * n_kernels if isinstance(self.kernel, str) else list(self.kernel)
        if len(kernels) != n_kernels:
            raise InputError(f"kernel has {len(kernels)} names but n_kernels is {n_kernels}; give one name per kernel")
        for name in kernels:
            if name not in KERNELS:
                raise InputError(unknown("kernel", str(name), KERNELS))
        return kernels

    def _start(self, kernels: list[str], cells: Cells) -> Hyperparameters:
        """Return the hyper-parameters of the first start, with those that are given in their places."""
        Q, A = len(kernels), cells.n_tasks
        rows = cells.row_weights()
        size = float(cells.weights @ np.square(cells.values)) / float(cells.weights.sum())
        size = size if size > 0 else 1.0
        scales = self._given_length_scales(Q)
        learned = [
            given is None and (self.ard or name != "linear") for given, name in zip(scales, kernels, strict=True)
        ]
        found = []
        for q, (given, name) in enumerate(zip(scales, kernels, strict=True)):
            if given is not None:
                found.append(given)
            elif self.ard:
                found.append(_spreads(self.X_fit_, rows))
            elif name == "linear":
                found.append(np.ones(1))
            else:
                found.append(np.array([default_length_scale(self.X_fit_, rows)]))
            if learned[q] and name != "linear":
                found[q] = found[q] * 3.0 ** (0.5 * (Q - 1) - q)  # several kernels start at different scales
        diagonals = [
            float(rows @ kernel_diagonal(name, self.X_fit_, scale)) / float(rows.sum())
            for name, scale in zip(kernels, found, strict=True)
        ]
        sizes = np.array([size / diagonal if diagonal > 0 else size for diagonal in diagonals])
        rng = np.random.default_rng(self.random_state)
        rank = min(int(self.rank), A)
        loadings = [_LOADINGS * np.sqrt(part) * rng.normal(size=(A, rank)) for part in sizes]
        return Hyperparameters(
            loadings=loadings,
            variances=[np.full(A, part / Q) for part in sizes],
            length_scales=found,
            noise=self._given_noise() if self.noise is not None else np.full(A, _NOISE * size),
            fixed_covariances=self._given_covariances(Q),
            learned_scales=learned,
            learned_noise=self.noise is None,
            shared_noise=bool(self.shared_noise),
            sizes=sizes,
            noise_size=size,
        )

    def _given_length_scales(self, Q: int) -> list[Floats | None]:
        if self.length_scale is None:
            return [None] * Q
        given = [self.length_scale] if Q == 1 else list(self.length_scale)
        if len(given) != Q:
            raise InputError(f"length_scale has {len(given)} entries for {Q} kernels; give one per kernel")
        return [check_length_scale(one, self.X_fit_.shape[1]) for one in given]

    def _given_noise(self) -> Floats:
        T = len(self.tasks_)
        noise = np.asarray(self.noise, dtype=np.float64)
        if noise.shape not in ((), (T,)) or not np.isfinite(noise).all() or (noise <= 0).any():
            raise InputError(f"noise must be a positive number or {T} of them, one per task, got {self.noise!r}")
        return np.array(np.broadcast_to(noise, T)[self._active])

    def _given_covariances(self, Q: int) -> list[Floats] | None:
        T = len(self.tasks_)
        if self.task_covariance is None:
            return None
        if isinstance(self.task_covariance, str):
            if self.task_covariance != "identity":
                raise InputError(f'task_covariance must be "identity" or a matrix, got "{self.task_covariance}"')
            return [np.eye(len(self._active))] * Q
        given = [self.task_covariance] if Q == 1 else list(self.task_covariance)
        if len(given) != Q:
            raise InputError(f"task_covariance has {len(given)} entries for {Q} kernels; give one matrix per kernel")
        return [self._among_active(task_covariance_matrix("task_covariance", B, T)) for B in given]

    def _maximise(self, problem: MarginalLikelihood) -> tuple[Hyperparameters, int]:
        first = problem.start
        theta = first.pack()
        if len(theta) == 0:
            return first, 0
        rng = np.random.default_rng([int(self.random_state), 1])
        low, high = first.bounds()
        ends = []
        for number in range(int(self.n_restarts)):
            begin = theta if number == 0 else first.scattered(rng, _SPREAD).pack()
            end = minimize(
                problem.objective,
                np.clip(begin, low, high),
                jac=True,
                method="L-BFGS-B",
                bounds=list(zip(low, high, strict=True)),
                options={"maxiter": int(self.max_iter), "gtol": float(self.tol), "ftol": _FLAT, "maxcor": 20},
            )
            ends.append(end)
        best = min(ends, key=lambda end: float(end.fun))
        if best.nit >= int(self.max_iter):
            steepest = float(np.abs(best.jac).max(initial=0.0))
            limit = int(self.max_iter)
            warn_unconverged(type(self).__name__, steepest, float(self.tol), "a gradient of", limit)
        return first.unpack(best.x), max(int(best.nit), 1)

    @overload
    def predict(
        self, X: Any, tasks: Any = None, return_std: Literal[False] = False, include_noise: bool = True
    ) -> Floats: ...

    @overload
    def predict(
        self, X: Any, tasks: Any = None, *, return_std: Literal[True], include_noise: bool = True
    ) -> tuple[Floats, Floats]: ...

    def predict(
        self, X: Any, tasks: Any = None, return_std: bool = False, include_noise: bool = True
    ) -> Floats | tuple[Floats, Floats]:
        """Return the predictive mean, and with ``return_std`` the standard deviation in the same shape.

        Parameters
        ----------
        X
            Inputs, ``(n_samples, n_features)``.
        tasks
            Task label of each row; None: all tasks, ``(n_samples, n_tasks)``, or the only one ``(n_samples,)``.
        return_std
            Whether to return the standard deviation too.
        include_noise
            Whether it is that of a new label; otherwise that of m_t + s_t f_t(x). NaN for tasks with their
            intercept only.
        """
        mean = self.task_scores(X, tasks)
        if not return_std:
            return mean
        rows, number = self._asked(X, tasks)
        std = self._deviations(rows, number, include_noise=include_noise)
        return mean, np.asarray(std[:, 0] if number is None and self._form == "single" else std)

    def _deviations(self, X: Floats, number: NDArray[np.int64] | None, *, include_noise: bool) -> Floats:
        T = len(self.tasks_)
        variance = np.full((len(X), T) if number is None else len(X), np.nan)
        place = np.full(T, -1)
        place[self._active] = np.arange(len(self._active))
        kept = np.arange(len(X)) if number is None else np.flatnonzero(place[number] >= 0)
        if len(self._active) and len(kept):
            rows = X[kept]
            cross = self._cross(rows)
            diagonals = [kernel_diagonal(k, rows, scale) for k, scale in zip(self._kernels, self._scales, strict=True)]
            if number is None:
                prior = sum(
                    np.outer(k, np.diag(B)[self._active])
                    for k, B in zip(diagonals, self.task_covariances_, strict=True)
                )
                left = np.maximum(prior - self._system.explained(cross, None), 0.0)
                variance[:, self._active] = left + include_noise * self.noise_[self._active]
            else:
                own = number[kept]
                prior = sum(k * B[own, own] for k, B in zip(diagonals, self.task_covariances_, strict=True))
                left = np.maximum(prior - self._system.explained(cross, place[own]), 0.0)
                variance[kept] = left + include_noise * self.noise_[own]
        scale = self._scale_of_task if number is None else self._scale_of_task[number]
        return np.asarray(np.sqrt(variance) * scale)

    @property
    def relations_(self) -> dict[str, Relation]:
        """Covariance, correlation and tree of the tasks; worked out when it is asked for."""
        check_is_fitted(self)
        if self._relations is None:
            about = "Covariance of the tasks' functions, in units of the standardised targets."
            self._relations = task_relations(self.task_covariance_, self.tasks_, about)
        return self._relations


def _spreads(X: Floats, weights: Floats) -> Floats:
    """Return one length scale per input: its standard deviation times sqrt(d / 2)."""
    mean = weights @ X / weights.sum()
    spread = np.sqrt(weights @ np.square(X - mean) / weights.sum())
    return np.asarray(np.where(spread > 0, spread, 1.0) * np.sqrt(0.5 * X.shape[1]))
