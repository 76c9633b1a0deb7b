"""Systems of linear equations whose matrix is a covariance of tasks times a covariance of inputs, plus noise.

    A[i, j] = sum_q B_q[t_i, t_j] K_q[r_i, r_j]  +  noise_i [i = j]

for labelled cells i = (row r_i, task t_i), sorted by task, then row. B_q: (T, T), K_q: (n, n).

Where every task is labelled on every row, there is one kernel, and noise depends on the task only (D), A is
B (x) K + D (x) I. With the whitened D^-1/2 B D^-1/2 = Q Lam Q^T and K = P Sig P^T

    A = (D^1/2 Q (x) P) (Lam (x) Sig + I) (D^1/2 Q (x) P)^T    up to the order of the factors,

so that solutions and determinants cost O(T³ + n³ + n T (n + T)) instead of O(n³ T³).

Bonilla, Chai & Williams, Multi-task Gaussian process prediction, NIPS 2007; Rakitsch, Lippert,
Borgwardt & Stegle, It is all in the noise, NIPS 2013 (whitening).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import lapack, solve_triangular
from scipy.sparse import csr_array

from polytask.core.data import Ints
from polytask.core.errors import InputError
from polytask.core.task import Floats

_JITTERS = (1e-12, 1e-11, 1e-10, 1e-9, 1e-8)  # of the mean variance, added where rounding made it indefinite
_CHUNK = 8_000_000  # numbers in a piece of the cross-covariance


@dataclass(frozen=True)
class Cells:
    """The labelled cells of T tasks over n rows, sorted by task, then row; every row has a label.

    Parameters
    ----------
    rows, tasks
        Which row and task each cell is, ``(N,)``.
    values
        Labels, ``(N,)``.
    weights
        Positive weights, ``(N,)``.
    n_rows, n_tasks
        n and T.
    """

    rows: Ints
    tasks: Ints
    values: Floats
    weights: Floats
    n_rows: int
    n_tasks: int

    @cached_property
    def starts(self) -> Ints:
        """First cell of each task, ``(T,)``."""
        return np.searchsorted(self.tasks, np.arange(self.n_tasks))

    @cached_property
    def own_rows(self) -> bool:
        """Whether the cells are the rows, in order."""
        return len(self.rows) == self.n_rows and bool((self.rows == np.arange(self.n_rows)).all())

    @cached_property
    def full(self) -> bool:
        """Whether every task is labelled on every row, with one weight per task."""
        if len(self.rows) != self.n_rows * self.n_tasks:
            return False
        table = self.weights.reshape(self.n_tasks, self.n_rows)
        return bool((table == table[:, :1]).all())

    def totals(self) -> Floats:
        """Return the sum of the weights of each task, ``(T,)``."""
        return np.asarray(np.bincount(self.tasks, self.weights, self.n_tasks), dtype=np.float64)

    def row_weights(self) -> Floats:
        """Return the sum of the weights of each row, ``(n,)``."""
        return np.asarray(np.bincount(self.rows, self.weights, self.n_rows), dtype=np.float64)

    def spread(self, values: Floats) -> Floats:
        """Return a table ``(T, n)`` of one number per cell, 0 where there is no label."""
        table = np.zeros((self.n_tasks, self.n_rows))
        table[self.tasks, self.rows] = values
        return table

    def per_task(self, values: Floats) -> Floats:
        """Return the sum over the cells of each task; ``values`` is ``(N,)`` or ``(N, k)``."""
        return np.asarray(np.add.reduceat(values, self.starts, axis=0))


class KroneckerSystem:
    """B (x) K + D (x) I for fully labelled cells.

    Parameters
    ----------
    B
        Covariance of the tasks, positive semidefinite.
    K
        Kernel matrix of the rows; or its eigenvalues and eigenvectors, as :meth:`decompose` returns them.
    noise
        Diagonal of D, ``(T,)``, positive.
    """

    def __init__(self, B: Floats, K: Floats | tuple[Floats, Floats], noise: Floats) -> None:
        self.B = B
        self.noise = noise
        self.sigma, self.P = K if isinstance(K, tuple) else self.decompose(K)
        scale = 1.0 / np.sqrt(noise)
        lam, Q = np.linalg.eigh(scale[:, None] * B * scale)
        self.lam = np.maximum(lam, 0.0)
        self._left = scale[:, None] * Q  # D^-1/2 Q
        self._inverse = 1.0 / (1.0 + np.outer(self.lam, self.sigma))

    @staticmethod
    def decompose(K: Floats) -> tuple[Floats, Floats]:
        """Return eigenvalues and eigenvectors of a kernel matrix."""
        sigma, P = np.linalg.eigh(K)
        return np.maximum(sigma, 0.0), P

    @property
    def logdet(self) -> float:
        return float(len(self.sigma) * np.log(self.noise).sum() - np.log(self._inverse).sum())

    def solve(self, values: Floats) -> Floats:
        """Return A^-1 values, ``(N,)``."""
        table = values.reshape(len(self.noise), -1)
        return np.asarray((self._left @ ((self._left.T @ (table @ self.P)) * self._inverse) @ self.P.T).ravel())

    def between_tasks(self) -> Floats:
        """Return E^T A^-1 E ``(T, T)`` for the indicators E of the tasks."""
        weight = self._inverse @ np.square(self.P.sum(axis=0))
        return np.asarray((self._left * weight) @ self._left.T)

    def explained(self, cross: Sequence[Floats], tasks: Ints | None) -> Floats:
        """Return c^T A^-1 c for the covariance c of the cells with f_t at new rows.

        Parameters
        ----------
        cross
            Kernel between the m new rows and the n rows, ``(m, n)``, one per kernel.
        tasks
            Which task is meant in each new row, ``(m,)``; None: all, giving ``(m, T)``.
        """
        inputs = np.square(cross[0] @ self.P) @ self._inverse.T
        found = inputs @ np.square(self._left.T @ self.B)
        return np.asarray(found if tasks is None else found[np.arange(len(found)), tasks])

    def gradient(self, solved: Floats) -> tuple[list[Floats], list[Floats], Floats]:
        """Return the derivatives of -1/2 y^T A^-1 y - 1/2 logdet A for B ``(T, T)``, K ``(n, n)`` and noise ``(N,)``.

        ``solved`` is A^-1 y.
        """
        n = len(self.sigma)
        alpha = solved.reshape(-1, n)
        rotated = alpha @ self.P
        weight = self._inverse @ self.sigma
        for_B = 0.5 * ((rotated * self.sigma) @ rotated.T - (self._left * weight) @ self._left.T)
        shared = self._inverse.T @ self.lam
        for_K = 0.5 * (alpha.T @ (self.B @ alpha) - (self.P * shared) @ self.P.T)
        diagonal = np.square(self._left) @ self._inverse @ np.square(self.P).T
        return [for_B], [for_K], 0.5 * (np.square(alpha) - diagonal).ravel()


class DenseSystem:
    """A for any cells and any number of kernels, by one Cholesky factor of size N.

    Parameters
    ----------
    cells
        The labelled cells.
    Bs, Ks
        Covariances of the tasks ``(T, T)`` and kernel matrices of the rows ``(n, n)``, one pair per kernel.
    noise
        Per cell, ``(N,)``, positive.
    """

    def __init__(self, cells: Cells, Bs: Sequence[Floats], Ks: Sequence[Floats], noise: Floats) -> None:
        self.cells = cells
        self.Bs = list(Bs)
        self._Ks = list(Ks)
        A = cell_covariance(cells, Bs, Ks)
        A[np.diag_indices_from(A)] += noise
        self.L = _factor(A)

    @property
    def logdet(self) -> float:
        return 2.0 * float(np.log(np.diag(self.L)).sum())

    def solve(self, values: Floats) -> Floats:
        """Return A^-1 values; ``values`` is ``(N,)`` or ``(N, k)``."""
        half = solve_triangular(self.L, values, lower=True, check_finite=False)
        return np.asarray(solve_triangular(self.L, half, lower=True, trans=1, check_finite=False))

    def between_tasks(self) -> Floats:
        """Return E^T A^-1 E ``(T, T)`` for the indicators E of the tasks."""
        half = solve_triangular(self.L, self._indicators(), lower=True, check_finite=False)
        return np.asarray(half.T @ half)

    def _indicators(self) -> Floats:
        return np.asarray((self.cells.tasks[:, None] == np.arange(self.cells.n_tasks)).astype(np.float64))

    def explained(self, cross: Sequence[Floats], tasks: Ints | None) -> Floats:
        """Return c^T A^-1 c for the covariance c of the cells with f_t at new rows; arguments as of the other."""
        m, T = len(cross[0]), self.cells.n_tasks
        found = np.empty((m, T) if tasks is None else m)
        step = max(1, _CHUNK // max(1, len(self.cells.rows)))
        for start in range(0, m, step):
            part = slice(start, min(start + step, m))
            base = [K[part].take(self.cells.rows, axis=1) for K in cross]
            if tasks is None:
                for t in range(T):
                    shares = [B[t, self.cells.tasks] for B in self.Bs]
                    found[part, t] = self._norms([K * share for K, share in zip(base, shares, strict=True)])
            else:
                wanted = tasks[part, None]
                found[part] = self._norms([K * B[wanted, self.cells.tasks] for K, B in zip(base, self.Bs, strict=True)])
        return found

    def _norms(self, parts: list[Floats]) -> Floats:
        c = np.sum(parts, axis=0)
        return np.asarray(np.square(solve_triangular(self.L, c.T, lower=True, check_finite=False)).sum(axis=0))

    def gradient(self, solved: Floats) -> tuple[list[Floats], list[Floats], Floats]:
        """Return the derivatives of -1/2 y^T A^-1 y - 1/2 logdet A; see :meth:`KroneckerSystem.gradient`."""
        inverse, _ = lapack.dpotri(self.L, lower=1)
        G = np.tril(inverse)
        G += np.tril(inverse, -1).T
        G *= -0.5
        G += 0.5 * np.outer(solved, solved)
        cells = self.cells
        for_B, for_K = [], []
        for B, K in zip(self.Bs, self._Ks, strict=True):
            weighted = _between_cells(cells, K)
            weighted *= G
            for_B.append(cells.per_task(cells.per_task(weighted).T).T)
            np.copyto(weighted, G)
            for_K.append(_between_rows(cells, _times_tasks(cells, weighted, B)))
        return for_B, for_K, np.diag(G).copy()


def cell_covariance(cells: Cells, Bs: Sequence[Floats], Ks: Sequence[Floats]) -> Floats:
    """Return sum_q B_q[t_i, t_j] K_q[r_i, r_j] between cells, ``(N, N)``."""
    total: Floats | None = None
    for B, K in zip(Bs, Ks, strict=True):
        part = _times_tasks(cells, _between_cells(cells, K), B)
        if total is None:
            total = part
        else:
            total += part
    assert total is not None
    return total


def _between_cells(cells: Cells, K: Floats) -> Floats:
    """Return the kernel between the rows of cells, ``(N, N)``, a new array."""
    if cells.own_rows:
        return K.copy()
    return np.asarray(K.take(cells.rows, axis=0).take(cells.rows, axis=1))


def _between_rows(cells: Cells, values: Floats) -> Floats:
    """Return the sums of ``values`` ``(N, N)`` over the cells of two rows, ``(n, n)``."""
    if cells.own_rows:
        return values
    N = len(cells.rows)
    gather = csr_array((np.ones(N), (cells.rows, np.arange(N))), shape=(cells.n_rows, N))
    return np.asarray(gather @ np.ascontiguousarray((gather @ values).T))


def _times_tasks(cells: Cells, values: Floats, B: Floats) -> Floats:
    """Multiply ``values`` ``(N, N)`` by B between the tasks of cells, in place."""
    ends = [*cells.starts[1:], len(cells.rows)]
    for t, (start, end) in enumerate(zip(cells.starts, ends, strict=True)):
        values[start:end] *= B[t, cells.tasks]
    return values


System = KroneckerSystem | DenseSystem


def _factor(A: Floats) -> Floats:
    """Return the lower Cholesky factor of symmetric A, in its place; what lies above its diagonal means nothing.

    Where rounding has made A indefinite, it gets a little more diagonal.
    """
    diagonal = np.diag(A).copy()
    size = float(diagonal.mean())
    for jitter in _JITTERS:
        L, failed = lapack.dpotrf(A.T, lower=1, clean=0, overwrite_a=1)
        if not failed:
            return np.asarray(L)
        A = np.tril(A, -1)  # A.T was factored, so that below its diagonal A is as it was
        A += A.T
        A[np.diag_indices_from(A)] = diagonal + jitter * size
    raise InputError(
        "the covariance of the labels is not positive definite; give a task covariance and a kernel that are, "
        "or raise alpha or noise"
    )


def task_kernel_system(cells: Cells, Bs: Sequence[Floats], Ks: Sequence[Floats], noise: Floats) -> System:
    """Return the cheaper system: Kronecker where the cells are full and there is one kernel, else dense.

    ``noise`` is per cell ``(N,)``, and constant within tasks where the cells are full.
    """
    if cells.full and len(Ks) == 1:
        return KroneckerSystem(Bs[0], Ks[0], noise[cells.starts])
    return DenseSystem(cells, Bs, Ks, noise)


def solve_with_intercepts(system: System, cells: Cells, intercepts: str) -> tuple[Floats, Floats]:
    """Solve A a + E b = y, E^T a = 0; return a ``(N,)`` and the intercepts ``(T,)``.

    ``intercepts``: ``"own"`` (E: indicators of the tasks), ``"none"`` (b = 0), else one for all (E: ones).
    """
    T, y = cells.n_tasks, cells.values
    if intercepts == "none":
        return system.solve(y), np.zeros(T)
    base = system.solve(y)
    if intercepts == "own":
        b = np.linalg.solve(system.between_tasks(), cells.per_task(base))
    else:
        b = np.full(T, base.sum() / system.solve(np.ones(len(y))).sum())
    return system.solve(y - b[cells.tasks]), np.asarray(b, dtype=np.float64)
