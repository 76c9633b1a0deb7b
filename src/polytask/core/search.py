"""Where a hyper-parameter may lie; a learner names its own, ``compare`` draws from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Distribution(Protocol):
    """A set of values one hyper-parameter may take."""

    def sample(self, rng: np.random.Generator) -> Any:
        """Draw one value."""
        ...


@dataclass(frozen=True)
class LogUniform:
    """A positive number whose logarithm is uniform on [log low, log high]."""

    low: float
    high: float

    def sample(self, rng: np.random.Generator) -> float:
        return float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))


@dataclass(frozen=True)
class Uniform:
    """A number uniform on [low, high]."""

    low: float
    high: float

    def sample(self, rng: np.random.Generator) -> float:
        return float(rng.uniform(self.low, self.high))


@dataclass(frozen=True)
class Choice:
    """One of a few plain values (numbers, strings or booleans)."""

    values: tuple[Any, ...]

    def sample(self, rng: np.random.Generator) -> Any:
        return self.values[int(rng.integers(len(self.values)))]
