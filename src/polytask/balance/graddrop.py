"""GradDrop: where the tasks disagree on the sign of a feature's gradient, one sign is drawn and the other dropped.

    S_t = sum_b sign(z_b) ∘ D_tb   (h,)       D_t = ∂L_t / ∂z: (B, h)
    P = ½ (1 + sum_t S_t / sum_t |S_t|)       share of the positive sign, per feature
    keep S_t > 0 where P > u,  S_t < 0 where P < u,   u ~ U(0, 1) per feature;      d = sum_t keep_t ∘ D_t

``leak`` of every gradient passes undropped. It needs the shared representation; trunk parameters get the gradient that
d sends back, and private ones their own. Gradients of one sign are not changed.

Chen et al., Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout, NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.balance.base import GradientBalancer
from polytask.balance.draws import generator
from polytask.balance.exchange import Exchange
from polytask.balance.features import Features, Losses, TaskGradients, representation, send, through_heads
from polytask.core.errors import InputError


def drop_signs(
    found: TaskGradients,
    features: Tensor,
    thresholds: Tensor,
    leak: float = 0.0,
    exchange: Exchange | None = None,
) -> Tensor:
    """Return d ``(B, …)`` from the gradients D of P tasks, z ``(B, …)`` and u ``(…)``."""
    signed = found.over_rows(torch.sign(features))
    if exchange is not None:
        signed = exchange.sum(signed)
    size = signed.abs().sum(0)
    purity = 0.5 * (1 + signed.sum(0) / torch.where(size > 0, size, 1.0))
    kept = ((purity > thresholds) & (signed > 0)) | ((purity < thresholds) & (signed < 0))
    return found.over_tasks((leak + (1 - leak) * kept).to(features))


class GradDrop(GradientBalancer):
    """Sum of gradients at the representation, with one sign per feature.

    Parameters
    ----------
    n_tasks
        Number of tasks, T.
    leak
        Share of every gradient that is never dropped, in [0, 1].
    seed
        Seed of the draws.
    """

    drawn: Tensor

    def __init__(self, n_tasks: int, *, leak: float = 0.0, seed: int = 0) -> None:
        super().__init__(n_tasks)
        if not 0 <= leak <= 1:
            raise InputError(f"leak is {leak}; give a number in [0, 1]")
        self.leak, self.seed = leak, seed
        self.needs_features = True
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))

    def backward(
        self,
        losses: Losses,
        shared: Sequence[nn.Parameter],
        private: Sequence[nn.Parameter],
        *,
        present: Tensor | None = None,
        features: Features | None = None,
        exchange: Exchange | None = None,
    ) -> Tensor:
        """Add the gradients; the weights returned are 1 for every task present, since no weights describe d."""
        values, tasks = self._look(losses, shared, present, features, exchange)
        result = torch.zeros_like(values)
        if features is None or not tasks:
            return result
        z = representation(features)
        private = [parameter for parameter in private if parameter.requires_grad]
        found, own = through_heads(losses, tasks, features, private, None)
        draws = generator(self.seed, int(self.drawn))
        self.drawn += 1
        thresholds = torch.rand(z.shape[1:], generator=draws).to(z)
        send([z, *private], [drop_signs(found, z.detach(), thresholds, self.leak, exchange), *own])
        result[torch.as_tensor(tasks, device=result.device)] = 1
        return result
