"""The tensor-normal distribution of stacked weights, without ever forming a Kronecker product.

    vec(W) ~ N(0, S_0 ⊗ S_1 ⊗ … ⊗ S_{N-1}),        W: (D_0, …, D_{N-1}),  D = prod D_k,  S_k: (D_k, D_k)

    -log p(W) = 0.5 <W, W ×_0 S_0^-1 … ×_{N-1} S_{N-1}^-1> + 0.5 sum_k (D / D_k) log|S_k| + constant

vec is row-major, so mode 0 belongs to the left-most factor. In stacked weights mode 0 is the task. The
covariances of a distribution are a sequence with one entry per mode: a matrix ``(D_k, D_k)``, a vector
``(D_k,)`` for a diagonal matrix, or None for the identity.

With one observation W alone, the maximum-likelihood S_k is singular as soon as D_k > D / D_k. The updates of
:func:`flip_flop` therefore add eps I, which makes each the exact minimiser, given the others, of

    J_eps = 0.5 quad + 0.5 sum_k (D / D_k) (log|S_k| + eps tr S_k^-1)        (:func:`smoothed_objective`)

Dutilleul, The MLE algorithm for the matrix normal distribution, Journal of Statistical Computation and
Simulation 64, 1999; Ohlson, Ahmad, von Rosen, The multilinear normal distribution, Journal of Multivariate
Analysis 113, 2013.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Covariances = Sequence[Tensor | None]


def unfold(W: Tensor, mode: int) -> Tensor:
    """Return W as a matrix ``(D_mode, D / D_mode)``; the other modes keep their order."""
    return W.movedim(mode, 0).reshape(W.shape[mode], -1)


def mode_product(W: Tensor, matrix: Tensor | None, mode: int) -> Tensor:
    """Return ``W ×_mode matrix``: every fibre of W along ``mode`` is multiplied by the matrix.

    Parameters
    ----------
    W
        Tensor ``(D_0, …, D_{N-1})``.
    matrix
        Matrix ``(m, D_mode)``, vector ``(D_mode,)`` for a diagonal matrix, or None for the identity.
    mode
        Axis of W.
    """
    if matrix is None:
        return W
    if matrix.dim() == 1:
        return W * matrix.view(-1, *(1,) * (W.dim() - mode - 1))
    before, after = W.shape[:mode], W.shape[mode + 1 :]
    if not after:
        product = W.reshape(-1, W.shape[mode]) @ matrix.T
    elif not before:
        product = matrix @ W.reshape(W.shape[0], -1)
    else:
        product = matrix @ W.reshape(math.prod(before), W.shape[mode], math.prod(after))
    return product.view(*before, len(matrix), *after)


def inverse(covariance: Tensor | None) -> Tensor | None:
    """Return the inverse of one covariance in its own form (matrix, vector or None)."""
    if covariance is None:
        return None
    if covariance.dim() == 1:
        return 1 / covariance
    return torch.cholesky_inverse(torch.linalg.cholesky(covariance))


def quadratic_form(W: Tensor, covariances: Covariances) -> Tensor:
    """Return ``vec(W)' (S_0 ⊗ … ⊗ S_{N-1})^-1 vec(W)``: the squares of W after one triangular solve per mode."""
    for mode, covariance in enumerate(covariances):
        if covariance is None:
            continue
        if covariance.dim() == 1:
            W = mode_product(W, covariance.rsqrt(), mode)
        else:
            rows = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), unfold(W, mode), upper=False)
            W = rows.view(len(rows), *W.shape[:mode], *W.shape[mode + 1 :]).movedim(0, mode)
    return W.square().sum()


def prior_gradient(W: Tensor, precisions: Covariances) -> Tensor:
    """Return ``W ×_0 P_0 … ×_{N-1} P_{N-1}``, the gradient of half the quadratic form, ``P_k = S_k^-1``."""
    for mode, precision in enumerate(precisions):
        W = mode_product(W, precision, mode)
    return W


def negative_log_prior(W: Tensor, covariances: Covariances) -> Tensor:
    """Return -log p(W) without its constant ``0.5 D log 2 pi``."""
    return smoothed_objective(W, covariances, eps=0.0)


def smoothed_objective(W: Tensor, covariances: Covariances, *, eps: float) -> Tensor:
    """Return J_eps (see the module), which no update of :func:`flip_flop` raises.

    It is bounded below by ``0.5 D N (1 + log eps)`` over all covariances.
    """
    total = quadratic_form(W, covariances)
    for mode, covariance in enumerate(covariances):
        if covariance is not None:
            weight = W.numel() / W.shape[mode]
            total = total + weight * (_log_determinant(covariance) + eps * _trace(inverse(covariance)))
        elif eps:
            total = total + W.numel() * eps
    return 0.5 * total


def scatter(W: Tensor, covariances: Covariances, mode: int, *, diagonal: bool = False) -> Tensor:
    """Return the maximum-likelihood covariance of one mode given the others.

        M_k = (D_k / D) unfold(W, k) unfold(Z, k)',        Z = W ×_j S_j^-1 for all j ≠ k

    Parameters
    ----------
    W
        The observation.
    covariances
        One per mode; that of ``mode`` is not read.
    mode
        k.
    diagonal
        Whether to return only the diagonal, ``(D_k,)``.
    """
    others = [None if place == mode else inverse(covariance) for place, covariance in enumerate(covariances)]
    rows, whitened = unfold(W, mode), unfold(prior_gradient(W, others), mode)
    share = W.shape[mode] / W.numel()
    if diagonal:
        return share * (rows * whitened).sum(1)
    found = share * (rows @ whitened.T)
    return 0.5 * (found + found.T)


def flip_flop(
    W: Tensor,
    covariances: Covariances,
    *,
    eps: float,
    relative: bool = False,
    roots: bool = False,
    order: Sequence[int] | None = None,
) -> list[Tensor | None]:
    """Return the covariances after one sweep: each mode's in turn, given the newest of the others.

        S_k ← M_k + eps I                                          roots: S_k ← (M_k + eps I)^½ / tr (M_k + eps I)^½

    Parameters
    ----------
    W
        The observation ``(D_0, …, D_{N-1})``.
    covariances
        One per mode; None stays the identity and a vector stays diagonal.
    eps
        What is added to every eigenvalue.
    relative
        Measure eps in mean eigenvalues of M_k, so that the scale of W does not matter.
    roots
        Take the square root of trace 1, which minimises the quadratic form over covariances of trace 1 (MTRL),
        in place of the maximum of the likelihood.
    order
        Order of the modes; None: 1, …, N-1, 0, the task last.
    """
    found = list(covariances)
    for mode in order if order is not None else [*range(1, W.dim()), 0]:
        old = found[mode]
        if old is None:
            continue
        new = scatter(W, found, mode, diagonal=old.dim() == 1)
        smoothing = eps * _trace(new) / len(new) if relative else torch.as_tensor(eps).to(new)
        new = new + smoothing if new.dim() == 1 else new + smoothing * torch.eye(len(new)).to(new)
        found[mode] = root_covariance(new) if roots else new
    return found


def root_covariance(scattered: Tensor) -> Tensor:
    """Return ``M^½ / tr M^½``, of all S of trace 1 that with the smallest ``tr(M S^-1)``; eigenvalues are ≥ 1e-12."""
    if scattered.dim() == 1:
        roots = scattered.clamp(min=1e-12).sqrt()
        return roots / roots.sum()
    values, vectors = torch.linalg.eigh(scattered)
    roots = values.clamp(min=1e-12).sqrt()
    return (vectors * (roots / roots.sum())) @ vectors.T


def mean_one(covariances: Covariances) -> list[Tensor | None]:
    """Return the covariances scaled to ``tr S_k = D_k``: they say how weights relate, not how large they are."""
    return [None if one is None else one * (len(one) / _trace(one)) for one in covariances]


def fix_gauge(covariances: Covariances) -> list[Tensor | None]:
    """Return equivalent covariances with ``tr S_k = D_k`` for k ≥ 1; mode 0 takes up the scale.

    ``(c S_i, S_j / c)`` is the same distribution for every c > 0. Mode 0 must not be None.
    """
    first = covariances[0]
    assert first is not None
    scale = torch.ones((), dtype=first.dtype, device=first.device)
    for one in covariances[1:]:
        if one is not None:
            scale = scale * _trace(one) / len(one)
    return [first * scale, *mean_one(covariances[1:])]


def correlation(covariance: Tensor) -> Tensor:
    """Return the correlation matrix of a covariance ``(D, D)``; a mode without variance is unrelated to the others."""
    deviations = covariance.diagonal().clamp(min=0).sqrt()
    scale = torch.where(deviations > 0, 1 / deviations, 0)
    return (covariance * scale * scale.unsqueeze(1)).clamp(-1, 1).fill_diagonal_(1)


def _trace(covariance: Tensor | None) -> Tensor:
    assert covariance is not None
    return covariance.sum() if covariance.dim() == 1 else covariance.trace()


def _log_determinant(covariance: Tensor) -> Tensor:
    if covariance.dim() == 1:
        return covariance.log().sum()
    return 2 * torch.linalg.cholesky(covariance).diagonal().log().sum()
