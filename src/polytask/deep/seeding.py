"""Initial weights from a seed, without touching global random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[torch.Generator]:
    """Draw from ``seed`` inside the block and put the CPU generator's state back afterwards.

    PyTorch's layers draw their initial weights from the default CPU generator, which takes no argument;
    the generator is handed out so that a block can start it again. Other devices are not touched.
    """
    with torch.random.fork_rng(devices=[]):
        yield torch.default_generator.manual_seed(seed)
