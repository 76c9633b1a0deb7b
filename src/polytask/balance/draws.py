"""Random numbers of a balancer: the n-th draw depends on the seed and on n alone, so a resumed run draws the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_ODD = 0x9E3779B97F4A7C15  # spreads neighbouring seeds over all 64 bits


def generator(seed: int, draw: int) -> torch.Generator:
    """Return the CPU generator of one draw."""
    return torch.Generator().manual_seed(_mixed(seed, draw))


@contextmanager
def drawing(seed: int, draw: int, device: torch.device) -> Iterator[None]:
    """Let code that asks torch's global generator make one draw; then that one goes on as if nothing was drawn."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(_mixed(seed, draw))
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(_mixed(seed, draw))
        yield


def _mixed(seed: int, draw: int) -> int:
    return (seed * _ODD + draw * (_ODD >> 7) + 1) % 2**63
