"""Log marginal likelihood of a multi-task Gaussian process and its exact gradient.

    log p(y) = -1/2 y^T A^-1 y - 1/2 logdet A - N/2 log 2 pi
    A[i, j]  = sum_q B_q[t_i, t_j] k_q(x_i, x_j) + sigma²_{t_i} / w_i [i = j],     B_q = L_q L_q^T + diag(v_q)

A label of weight w counts as w equal labels: their likelihood is that of one with noise sigma² / w
times (2 pi sigma²)^{-(w - 1) / 2} w^{-1/2}, which is included.

Parameters are optimised as (L, log v, log l, log sigma²). With G = 1/2 (A^-1 y y^T A^-1 - A^-1) the
derivative in the direction dA is <G, dA>; the systems in task_kernel return it for B, K and noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from polytask.core.task import Floats
from polytask.linear.kernels import kernel_matrix, length_scale_gradient
from polytask.linear.solvers.task_kernel import Cells, DenseSystem, KroneckerSystem, System

_LOADING = (-1e2, 1e2)  # bounds, in units of the size of the labels or of the start
_VARIANCE = (1e-8, 1e4)
_LENGTH = (1e-2, 1e3)
_NOISE = (1e-6, 1e2)


@dataclass(frozen=True)
class Hyperparameters:
    """Hyper-parameters of Q kernels and A tasks, and which of them are learned.

    Parameters
    ----------
    loadings, variances
        Per kernel: L ``(A, rank)`` and v ``(A,)``; not used with ``fixed_covariances``.
    length_scales
        Per kernel: ``(1,)`` or ``(d,)``.
    noise
        sigma² ``(A,)``.
    fixed_covariances
        B per kernel, when these are not learned.
    learned_scales
        Per kernel.
    learned_noise, shared_noise
        Whether noise is learned, and as one number.
    sizes, noise_size
        Size of v per kernel, and of the labels, for the bounds.
    """

    loadings: list[Floats]
    variances: list[Floats]
    length_scales: list[Floats]
    noise: Floats
    fixed_covariances: list[Floats] | None
    learned_scales: list[bool]
    learned_noise: bool
    shared_noise: bool
    sizes: Floats
    noise_size: float

    def covariances(self) -> list[Floats]:
        """Return B of every kernel."""
        if self.fixed_covariances is not None:
            return self.fixed_covariances
        return [L @ L.T + np.diag(v) for L, v in zip(self.loadings, self.variances, strict=True)]

    def pack(self) -> Floats:
        """Return the learned parameters as one vector."""
        parts: list[Floats] = []
        for q, scale in enumerate(self.length_scales):
            if self.fixed_covariances is None:
                parts += [self.loadings[q].ravel(), np.log(self.variances[q])]
            if self.learned_scales[q]:
                parts.append(np.log(scale))
        if self.learned_noise:
            parts.append(np.log(self.noise[:1] if self.shared_noise else self.noise))
        return np.concatenate([np.zeros(0), *parts])

    def unpack(self, theta: Floats) -> Hyperparameters:
        """Return the hyper-parameters of a vector."""
        place = 0

        def take(size: int) -> Floats:
            nonlocal place
            place += size
            return theta[place - size : place]

        loadings, variances, scales = list(self.loadings), list(self.variances), list(self.length_scales)
        for q in range(len(scales)):
            if self.fixed_covariances is None:
                loadings[q] = take(loadings[q].size).reshape(loadings[q].shape)
                variances[q] = np.exp(take(len(variances[q])))
            if self.learned_scales[q]:
                scales[q] = np.exp(take(len(scales[q])))
        noise = self.noise
        if self.learned_noise:
            noise = np.exp(np.broadcast_to(take(1), len(noise)) if self.shared_noise else take(len(noise)))
        return replace(self, loadings=loadings, variances=variances, length_scales=scales, noise=np.array(noise))

    def bounds(self) -> tuple[Floats, Floats]:
        """Return the least and largest value of every entry of the vector, around this start."""
        return self._edge(0), self._edge(1)

    def _edge(self, side: int) -> Floats:
        edge = replace(
            self,
            loadings=[
                np.full(loadings.shape, _LOADING[side] * np.sqrt(size))
                for loadings, size in zip(self.loadings, self.sizes, strict=True)
            ],
            variances=[
                np.full(variances.shape, _VARIANCE[side] * size)
                for variances, size in zip(self.variances, self.sizes, strict=True)
            ],
            length_scales=[_LENGTH[side] * scale for scale in self.length_scales],
            noise=np.full(self.noise.shape, _NOISE[side] * self.noise_size),
        )
        return edge.pack()

    def scattered(self, rng: np.random.Generator, loading: float) -> Hyperparameters:
        """Return another start: random L of size ``loading``, the rest times random factors."""
        return replace(
            self,
            loadings=[
                loading * np.sqrt(size) * rng.normal(size=L.shape)
                for L, size in zip(self.loadings, self.sizes, strict=True)
            ],
            variances=[v * np.exp(rng.normal(size=v.shape)) for v in self.variances],
            length_scales=[
                scale * np.exp(rng.normal()) if learned else scale
                for scale, learned in zip(self.length_scales, self.learned_scales, strict=True)
            ],
            noise=self.noise * np.exp(rng.normal()) if self.learned_noise else self.noise,
        )


class MarginalLikelihood:
    """log p(y) of given labels as a function of the hyper-parameters.

    Parameters
    ----------
    cells
        The labels.
    X
        Rows, ``(n, d)``.
    kernels
        Name of every kernel.
    start
        Hyper-parameters of the first start; those that are not learned keep these values.
    dense
        Whether to use the dense system even where the Kronecker form would do.
    """

    def __init__(
        self, cells: Cells, X: Floats, kernels: Sequence[str], start: Hyperparameters, *, dense: bool = False
    ) -> None:
        self.cells = cells
        self.X = X
        self.kernels = list(kernels)
        self.start = start
        self._kronecker = cells.full and len(self.kernels) == 1 and not dense
        self._total = float(cells.weights.sum())
        self._repeats = cells.totals() - np.bincount(cells.tasks, minlength=cells.n_tasks)
        self._log_weights = float(np.log(cells.weights).sum())
        self._kept: list[Floats] | None = None
        self._decomposed: tuple[Floats, Floats] | None = None
        if not any(start.learned_scales):
            self._kept = self._matrices(start)
            self._decomposed = KroneckerSystem.decompose(self._kept[0]) if self._kronecker else None

    def _matrices(self, at: Hyperparameters) -> list[Floats]:
        return [
            kernel_matrix(k, self.X, self.X, scale) for k, scale in zip(self.kernels, at.length_scales, strict=True)
        ]

    def system(self, at: Hyperparameters) -> System:
        """Return A, factored."""
        Ks = self._kept or self._matrices(at)
        noise = at.noise[self.cells.tasks] / self.cells.weights
        if self._kronecker:
            return KroneckerSystem(at.covariances()[0], self._decomposed or Ks[0], noise[self.cells.starts])
        return DenseSystem(self.cells, at.covariances(), Ks, noise)

    def solve(self, at: Hyperparameters) -> tuple[System, Floats]:
        """Return A, factored, and A^-1 y."""
        system = self.system(at)
        return system, system.solve(self.cells.values)

    def value(self, at: Hyperparameters, system: System, solved: Floats) -> float:
        """Return log p(y) from what :meth:`solve` returns for the same hyper-parameters."""
        normal = len(solved) * np.log(2.0 * np.pi) + float(self.cells.values @ solved) + system.logdet
        repeated = float(self._repeats @ np.log(2.0 * np.pi * at.noise)) + self._log_weights
        return -0.5 * (normal + repeated)

    def objective(self, theta: Floats) -> tuple[float, Floats]:
        """Return -log p(y) per label and its gradient for the vector of learned parameters."""
        at = self.start.unpack(theta)
        system, solved = self.solve(at)
        for_B, for_K, for_noise = system.gradient(solved)
        parts: list[Floats] = []
        for q, kernel in enumerate(self.kernels):
            if at.fixed_covariances is None:
                parts.append(((for_B[q] + for_B[q].T) @ at.loadings[q]).ravel())
                parts.append(np.diag(for_B[q]) * at.variances[q])
            if at.learned_scales[q]:
                parts.append(length_scale_gradient(kernel, self.X, at.length_scales[q], for_K[q]))
        if at.learned_noise:
            slope = at.noise * self.cells.per_task(for_noise / self.cells.weights) - 0.5 * self._repeats
            parts.append(np.array([slope.sum()]) if at.shared_noise else slope)
        gradient = np.concatenate(parts)
        return -self.value(at, system, solved) / self._total, -gradient / self._total
