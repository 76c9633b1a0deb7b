"""A moving average of the weights along training, which is often better than the last ones.

    a <- d a + (1 - d) θ        d = min(decay, (1 + n) / (10 + n)) after n steps, so that the start is forgotten

It averages parameters and what else is a floating-point number in the network's state; counts are left as they are.

Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AveragedWeights:
    """The average of a network's weights.

    Parameters
    ----------
    network
        The network; its weights now are the first average.
    decay
        d, in (0, 1).
    steps
        Steps averaged before.
    """

    def __init__(self, network: nn.Module, decay: float, steps: int = 0) -> None:
        self.decay, self.steps = decay, steps
        self.values = {name: value.clone() for name, value in _floats(network).items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards the network's weights."""
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        torch._foreach_lerp_(list(self.values.values()), list(_floats(network).values()), share)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take over values, by name."""
        for name, value in values.items():
            if name in self.values:
                self.values[name] = value.clone()

    @contextmanager
    def in_place(self, network: nn.Module) -> Iterator[None]:
        """Put the average in the place of the network's weights for a while."""
        now = _floats(network)
        kept = {name: value.clone() for name, value in now.items()}
        _put(now, self.values)
        try:
            yield
        finally:
            _put(now, kept)


def _floats(network: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in network.state_dict().items() if value.is_floating_point()}


@torch.no_grad()
def _put(places: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, place in places.items():
        place.copy_(values[name])
