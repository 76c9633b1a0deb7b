"""Random numbers of a balancer: the n-th draw depends on the seed and on n alone, so a resumed run draws the same."""

from __future__ import annotations

import torch

_ODD = 0x9E3779B97F4A7C15  # spreads neighbouring seeds over all 64 bits


def generator(seed: int, draw: int) -> torch.Generator:
    """Return the CPU generator of one draw."""
    return torch.Generator().manual_seed((seed * _ODD + draw * (_ODD >> 7) + 1) % 2**63)
