"""DB-MTL: both sides balanced: log losses for their scale, equally long gradients for their size.

    w_t = (max_s ‖g_s‖ / L_s) / ‖g_t‖

the gradient of ``log L_t`` is ``g_t / L_t``, and all are stretched to the longest of them. Heads minimise ``log L_t``.
Of the paper's method this is the form without a moving average over the steps of the gradients themselves, which
would need one copy of the shared parameters per task. Losses must be positive; a task whose gradient is 0
gets weight 0. The direction does not depend on the losses' units.

Lin et al., Dual-Balancing for Multi-Task Learning, 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytask.balance.base import GramBalancer

_FLOOR = 1e-8


class DBMTL(GramBalancer):
    """Log losses and gradients of one length.

    Parameters
    ----------
    n_tasks, level, every
        See :class:`~polytask.balance.base.GramBalancer`.
    """

    def head_weights(self, losses: Tensor, present: Tensor) -> Tensor:  # noqa: ARG002  # of the contract
        return 1 / losses.clamp(min=_FLOOR)

    def gram_weights(self, gram: Tensor, losses: Tensor) -> Tensor:
        length = gram.diagonal().sqrt()
        longest = (length / losses.clamp(min=_FLOOR)).max()
        return torch.where(length > 1e-15 * length.max(), longest / length.clamp(min=1e-300), 0.0)
