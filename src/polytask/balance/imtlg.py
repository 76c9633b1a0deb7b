"""IMTL-G: the direction whose projections on all tasks' unit gradients are equal.

    d · g_t / ‖g_t‖ equal for all t,  sum_t w_t = 1:       w ∝ A⁺ ‖g‖

For two tasks ``w_1 = ‖g_2‖ / (‖g_1‖ + ‖g_2‖)``. Weights may be negative. Collinear gradients are met by the
pseudo-inverse; tasks whose gradient is 0 get weight 0; where the weights would sum to 0 all are 0.

Liu et al., Towards Impartial Multi-task Learning, ICLR 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.balance.base import GramBalancer
from polytask.balance.solvers import where_moving


def inverse_times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return ``M⁺ v`` of a symmetric positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    real = values > values.max() * len(matrix) * 1e-10
    inverted = torch.where(real, 1 / torch.where(real, values, 1.0), 0.0)
    return vectors @ (inverted * (vectors.T @ vector))


class IMTLG(GramBalancer):
    """Weights, summing to 1, that give equal projections.

    Parameters
    ----------
    n_tasks, level, every
        See :class:`~polytask.balance.base.GramBalancer`.
    """

    def gram_weights(self, gram: Tensor, losses: Tensor) -> Tensor:  # noqa: ARG002  # of the contract
        return where_moving(gram, _impartial)


def _impartial(gram: Tensor) -> Tensor:
    length = gram.diagonal().sqrt()
    share = inverse_times(gram / length[:, None] / length, torch.ones_like(length)) / length
    total = share.sum()
    return share / total if bool(total.abs() > 1e-12 * share.abs().sum()) else torch.zeros_like(share)
