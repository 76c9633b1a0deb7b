"""What a step changes before the weights move, so that it can be undone.

A forward pass moves running means, what balancers and networks remember, and the random state. An :class:`Undo` made
before it puts all of that back, bit for bit, without asking for memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Undo:
    """Copies of tensors, and of the random state, as they were when this was made.

    Parameters
    ----------
    places
        Returns the tensors by name; they are written in place.
    device
        Whose random state is kept, besides the CPU's.
    """

    def __init__(self, places: Callable[[], Mapping[str, Tensor]], device: torch.device) -> None:
        self.places, self.device = places, device
        self.values = {name: value.detach().clone() for name, value in places().items()}
        self.random = torch.get_rng_state()
        self.random_cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        for name, place in self.places().items():
            place.copy_(self.values[name])
        torch.set_rng_state(self.random)
        if self.random_cuda is not None:
            torch.cuda.set_rng_state(self.random_cuda, self.device)
