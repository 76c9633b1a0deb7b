"""Aligned-MTL: the gradients are replaced by the nearest ones that are orthogonal and equally long.

    A = V diag(λ) Vᵀ,   B = √λ_min V diag(λ^(-1/2)) Vᵀ over the positive spectrum,    d = 1ᵀ B G

All singular values of ``B G`` equal √λ_min: the system of gradients has condition number 1. Where the
gradients are orthonormal already, d is their sum. B is symmetric, and the weights may be negative.

Senushkin et al., Independent Component Alignment for Multi-Task Learning, CVPR 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.balance.base import GramBalancer


class AlignedMTL(GramBalancer):
    """Sum of the aligned gradients.

    Parameters
    ----------
    n_tasks, level, every
        See :class:`~polytask.balance.base.GramBalancer`.
    """

    def gram_weights(self, gram: Tensor, losses: Tensor) -> Tensor:  # noqa: ARG002  # of the contract
        values, vectors = torch.linalg.eigh(gram)
        real = values > values.max() * len(gram) * 1e-10
        if not bool(real.any()) or float(values.max()) <= 0:
            return torch.ones_like(values)
        values, vectors = values[real], vectors[:, real]
        return vectors @ ((values[0] / values).sqrt() * vectors.sum(0))
