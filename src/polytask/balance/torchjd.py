"""Any TorchJD object as a balancer.

    weighting:     A (T, T) -> w (T,)         :class:`TorchJDWeighting`
    scalarizer:    L (T,) -> one number       :class:`TorchJDScalarizer`

The object is handed over, so TorchJD is needed only by who uses it. Its state is saved as far as it
keeps it in parameters and buffers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytask.balance.base import Balancer, GramBalancer, Level, joint_values
from polytask.balance.exchange import Exchange
from polytask.balance.features import Features, Losses


class TorchJDWeighting(GramBalancer):
    """Weights from an object that maps Gram matrices to weights, such as ``torchjd.aggregation.UPGradWeighting()``.

    Absent tasks are left out of the matrix; an object made for a fixed number of tasks refuses that itself.

    Parameters
    ----------
    weighting
        The object.
    n_tasks, level, every
        See :class:`~polytask.balance.base.GramBalancer`.
    """

    def __init__(self, weighting: nn.Module, n_tasks: int, *, level: Level = "exact", every: int = 1) -> None:
        super().__init__(n_tasks, level=level, every=every)
        self.weighting = weighting

    def gram_weights(self, gram: Tensor, losses: Tensor) -> Tensor:  # noqa: ARG002  # of the contract
        weights: Tensor = self.weighting(gram)
        return weights.detach()


class TorchJDScalarizer(Balancer):
    """The gradient of an object that maps losses to one number, such as ``torchjd.scalarization.STCH(1.0)``.

    Absent tasks are left out of the vector; an object made for a fixed number of tasks refuses that itself.

    Parameters
    ----------
    scalarizer
        The object; its parameters are the balancer's.
    """

    needs_shared = False

    def __init__(self, scalarizer: nn.Module) -> None:
        super().__init__()
        self.scalarizer = scalarizer

    def backward(
        self,
        losses: Losses,
        shared: Sequence[nn.Parameter],  # noqa: ARG002  # a plain backward pass
        private: Sequence[nn.Parameter],  # noqa: ARG002  # reaches both
        *,
        present: Tensor | None = None,
        features: Features | None = None,  # noqa: ARG002  # and asks nothing of the representation
        exchange: Exchange | None = None,
    ) -> Tensor:
        if not isinstance(losses, Tensor):
            losses = torch.stack(list(losses))
        weights = torch.zeros_like(losses)
        if present is None:
            present = torch.ones_like(losses, dtype=torch.bool)
        if not bool(present.any()):
            return weights
        chosen = joint_values(losses, exchange)[present].requires_grad_()
        self.scalarizer(chosen).backward()
        if chosen.grad is not None:
            weights[present] = chosen.grad
        losses.backward(weights)  # type: ignore[no-untyped-call]  # torch's is
        return weights
