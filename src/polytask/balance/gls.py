"""GLS: the geometric mean of the losses.

    (prod_t L_t)^(1/T):      w_t = (prod_s L_s)^(1/T) / (T L_t)

Each task contributes ``w_t L_t`` alike, whatever its units. Computed from logarithms, over the tasks present.
Losses below 1e-8 count as 1e-8, so that a task that is learned perfectly neither stops the others nor blows up.

Chennupati et al., MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy, CVPR Workshops 2019.
"""

from __future__ import annotations

from torch import Tensor

from polytask.balance.base import LossBalancer

FLOOR = 1e-8


class GLS(LossBalancer):
    """Weights whose weighted losses are all the geometric mean divided by T."""

    def weights(self, losses: Tensor, present: Tensor) -> Tensor:
        losses = losses.clamp(min=FLOOR)
        n_present = present.sum().clamp(min=1)
        mean_log = losses.log().masked_fill(~present, 0.0).sum() / n_present
        return mean_log.exp() / (n_present * losses)
