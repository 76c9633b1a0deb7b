"""Small convex problems over T tasks, solved exactly and, where there are many, together.

They end at the solution and not near it. All work in float64 on the CPU: a matrix of T × T is small, and what costs is
the number of operations, so they go to LAPACK through NumPy arrays that share the tensors' memory.

    non-negative quadratic programs     min_x  ½ xᵀ Q x - bᵀ x    s.t. x >= 0      (many b, one Q)
    minimum norm                        min_w  wᵀ A w             s.t. w >= 0, Σ w = 1
    proportional fairness               A w = w^(-1/α),  w > 0

Block principal pivoting: Portugal, Júdice, Vicente, A comparison of block pivoting and interior-point
algorithms for linear least squares problems with nonnegative variables, Math. Comp. 63, 1994; Kim and
Park, Fast nonnegative matrix factorization, SIAM J. Sci. Comput. 33, 2011.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import lapack
from torch import Tensor

Floats = NDArray[np.float64]

_EPS = float(np.finfo(np.float64).eps)
_ROUNDS = 15
RIDGE = 1e-8
"""What is added to a Gram matrix, relative to its largest diagonal entry, to make a solution unique."""


def ridged(gram: Tensor) -> Tensor:
    """Return ``A + ρ I``, ρ tiny next to the largest gradient."""
    ridged = gram.clone()
    largest = float(gram.diagonal().max())
    ridged.diagonal().add_(RIDGE * (largest if largest > 0 else 1.0))
    return ridged


def where_moving(gram: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the weights that ``solve`` gives for the tasks whose gradient is not 0; the others get 0."""
    squared = gram.diagonal().numpy()
    still = squared <= 1e-30 * squared.max()
    if not still.any():
        return solve(gram)
    weights = torch.zeros_like(gram[0])
    if not still.all():
        some = torch.from_numpy(~still)
        weights[some] = solve(gram[some][:, some])
    return weights


def nonnegative_quadratic(Q: Floats, B: Floats, free: NDArray[np.bool_] | None = None) -> Floats:
    """Solve ``min_x ½ xᵀ Q x - b_iᵀ x, x >= 0`` for every row b_i of B.

    The free variables of all problems are exchanged in blocks. A problem that this does not settle (it may
    cycle, in practice where there are more tasks than dimensions) goes to Lawson and Hanson's method.

    Parameters
    ----------
    Q
        Positive definite, ``(T, T)``.
    B
        Shape ``(m, T)``.
    free
        Which variables to let be free at first, boolean ``(m, T)``; default: a guess. Left as it is at the end.

    Returns
    -------
    X
        Shape ``(m, T)``.
    """
    X = np.zeros_like(B)
    free = _guess(Q, B) if free is None else free
    unsolved = np.flatnonzero(free.any(1) | (B > 0).any(1))  # elsewhere x = 0 is the solution
    length = np.sqrt(Q.diagonal())
    for _ in range(_ROUNDS):
        part, right = free[unsolved], B[unsolved]
        x = np.zeros_like(right)
        for row, some, b in zip(x, part, right, strict=True):
            places = some.nonzero()[0]
            row[places] = _solve(Q.take(places, 0).take(places, 1), b[places])
        rounding = 64 * _EPS * ((np.abs(x) @ length)[:, None] * length + np.abs(right))
        wrong = np.where(part, x < 0, x @ Q - right < -rounding)
        X[unsolved] = x
        left = wrong.any(1)
        unsolved = unsolved[left]
        if len(unsolved) == 0:
            return X
        free[unsolved] ^= wrong[left]
    for problem in unsolved:
        X[problem] = _lawson_hanson(Q, B[problem])
        free[problem] = X[problem] > 0
    return X


def _guess(Q: Floats, B: Floats) -> NDArray[np.bool_]:
    """Return where two steps of projected gradient descent from ``max(0, b / diag Q)`` end above 0.

    That is nearly where the solutions do, and saves half of the systems that the start b > 0 has solved.
    """
    inverse = 1 / Q.diagonal()
    rate = 2 * inverse / (np.abs(Q) @ inverse).max()
    X = np.maximum(B * inverse, 0)
    for _ in range(2):
        X = np.maximum(X - rate * (X @ Q - B), 0)
    return X > 0


def _solve(A: Floats, b: Floats) -> Floats:
    """Return ``A⁻¹ b``, A positive definite; both may be overwritten."""
    if len(b) == 0:
        return b
    solution: Floats = lapack.dposv(A.T, b, overwrite_a=1, overwrite_b=1)[1]  # transposed: in LAPACK's order as it is
    return solution


def _lawson_hanson(Q: Floats, b: Floats) -> Floats:
    from scipy.optimize import nnls  # its import is slow and it is rarely needed

    factor = np.linalg.cholesky(Q)  # Q = L Lᵀ: the problem is min ‖Lᵀ x - L⁻¹ b‖, x >= 0
    solution: Floats = nnls(factor.T, np.linalg.solve(factor, b), maxiter=100 * len(b))[0]
    return solution


def minimum_norm(gram: Tensor) -> Tensor:
    """Return the weights of the shortest vector in the convex hull of the gradients, ``(T,)``.

    With ``u = w / (c + wᵀ A w)`` the conditions of optimality become those of
    ``min_u ½ uᵀ (A + c 1 1ᵀ) u - Σ u, u >= 0``; c sets the scale only. Proximal rounds take away
    what the ridge adds.
    """
    G = gram.numpy()
    squared = G.diagonal()
    if (squared <= 0).any():
        nothing = (squared <= 0).astype(np.float64)
        return torch.from_numpy(nothing / nothing.sum())
    if len(G) == 2:
        span = squared.sum() - 2 * G[0, 1]
        first = min(max((squared[1] - G[0, 1]) / span, 0.0), 1.0) if span > 0 else 0.5
        return torch.tensor([first, 1 - first], dtype=gram.dtype)
    A = G / squared.min()  # the solution is no longer than the shortest gradient
    ridge = RIDGE * A.diagonal()
    Q = A + 1
    Q.ravel()[:: len(Q) + 1] += ridge
    u, free = np.zeros(len(A)), np.ones((1, len(A)), dtype=np.bool_)
    for _ in range(5):
        u = nonnegative_quadratic(Q, (1 + ridge * u)[None], free)[0]
        w = u / u.sum()
        inner = A @ w
        if w @ inner - inner.min() <= 1e-9 * (w @ inner):
            break
    return torch.from_numpy(w)


def fair(gram: Tensor, alpha: float = 1.0) -> Tensor:
    """Return w > 0 with ``A w = w^(-1/α)``, ``(T,)``, for gradients that are not 0; α = 1 is Nash's solution.

    Newton's method with a line search on the convex ``½ wᵀ A w - Σ ∫ w^(-1/α)``. Where gradients can be
    combined to nothing there is no solution; a ridge of 1e-8 then keeps the answer finite.
    """
    p = 1 / alpha
    G = gram.numpy()
    scale = G.diagonal() ** (-1 / (1 + p))  # w = scale · y, after which A y = c y^-p with y of the order of 1
    A = scale[:, None] * G * scale
    diagonal = A.ravel()[:: len(A) + 1]
    diagonal *= 1 + RIDGE
    c = scale ** (1 - p)
    y = np.full_like(c, (c.sum() / max(A.sum(), 1e-2 * diagonal.sum())) ** (1 / (1 + p)))
    slope, pull = _slope(A, c, p, y)
    for _ in range(100):
        curved = A.copy()
        curved.ravel()[:: len(A) + 1] += p * pull / y
        step = -_solve(curved, slope.copy())
        along = slope @ step
        if along >= -1e-25 * (pull @ y):
            break
        shrink = (-step / y).max()
        length = 1.0 if shrink < 0.9 else 0.9 / shrink
        for _ in range(30):  # the slope along the step must not have turned far
            after = y + length * step
            slope, pull = _slope(A, c, p, after)
            if slope @ step <= -0.3 * along:
                break
            length /= 2
        y = after
    return torch.from_numpy(scale * y)


def _slope(A: Floats, c: Floats, p: float, y: Floats) -> tuple[Floats, Floats]:
    pull = c / y if p == 1 else c * y**-p
    return A @ y - pull, pull
