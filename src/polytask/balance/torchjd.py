"""Any TorchJD object as a balancer.

    weighting:     A (T, T) -> w (T,)         :class:`TorchJDWeighting`
    scalarizer:    L (T,) -> one number       :class:`TorchJDScalarizer`

The object is handed over, so TorchJD is needed only by who uses it. Its state is saved as far as it keeps it in
parameters and buffers; what it keeps elsewhere (GradVac and PCD: the size they made them for) begins anew. What it
draws depends on a seed and on the number of the step, so that processes that train together draw the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from polytask.balance.base import Balancer, GramBalancer, Level, joint_values
from polytask.balance.draws import drawing
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
    seed
        Seed of what the object draws.
    """

    drawn: Tensor

    def __init__(
        self, weighting: nn.Module, n_tasks: int, *, level: Level = "exact", every: int = 1, seed: int = 0
    ) -> None:
        super().__init__(n_tasks, level=level, every=every)
        self.weighting, self.seed = weighting, seed
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_fill_unset)  # type: ignore[no-untyped-call]  # torch's is

    def gram_weights(self, gram: Tensor, losses: Tensor) -> Tensor:  # noqa: ARG002  # of the contract
        """Return the object's weights; besides its own state, the count of draws is remembered."""
        with drawing(self.seed, int(self.drawn), gram.device):
            weights: Tensor = self.weighting(gram)
        self.drawn += 1
        return weights.detach()


class TorchJDScalarizer(Balancer):
    """The gradient of an object that maps losses to one number, such as ``torchjd.scalarization.STCH(1.0)``.

    Absent tasks are left out of the vector; an object made for a fixed number of tasks refuses that itself.

    Parameters
    ----------
    scalarizer
        The object; its parameters are the balancer's.
    seed
        Seed of what the object draws.
    """

    needs_shared = False
    drawn: Tensor

    def __init__(self, scalarizer: nn.Module, *, seed: int = 0) -> None:
        super().__init__()
        self.scalarizer, self.seed = scalarizer, seed
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_fill_unset)  # type: ignore[no-untyped-call]  # torch's is

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
        with drawing(self.seed, int(self.drawn), chosen.device):
            value = self.scalarizer(chosen)
        self.drawn += 1
        value.backward()
        if chosen.grad is not None:
            weights[present] = chosen.grad
        losses.backward(weights)  # type: ignore[no-untyped-call]  # torch's is
        return weights


def _fill_unset(module: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    """Fill buffers that the object sets when first used, and that loading would refuse before."""
    for name, part in module.named_modules(prefix=prefix.rstrip(".")):
        for key in [key for key, value in part._buffers.items() if value is None]:
            found = state.get(f"{name}.{key}" if name else key)
            if found is not None:
                part._buffers[key] = found.clone()
