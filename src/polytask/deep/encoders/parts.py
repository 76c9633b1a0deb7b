"""Choices that encoders have in common: activations, and checks of sizes and shares."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from polytask.core.errors import InputError, unknown

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def checked_activation(name: str) -> type[nn.Module]:
    """Return the activation of that name."""
    if name not in ACTIVATIONS:
        raise InputError(unknown("activation", name, ACTIVATIONS))
    return ACTIVATIONS[name]


def check_dropout(dropout: float) -> None:
    """Refuse a share outside [0, 1)."""
    if not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout}; give a share from 0 up to, but without, 1")


def check_sizes(name: str, sizes: Sequence[int], what: str) -> None:
    """Refuse a list with a size below 1."""
    if any(size < 1 for size in sizes):
        raise InputError(f"{name} is {list(sizes)}; every {what}")


def dense(
    n_inputs: int, width: int, *, norm: nn.Module | None, activation: type[nn.Module], dropout: float
) -> list[nn.Module]:
    """Return the parts of a fully connected layer: linear, norm, activation, dropout."""
    layer: list[nn.Module] = [nn.Linear(n_inputs, width)]
    if norm is not None:
        layer.append(norm)
    layer.append(activation())
    if dropout:
        layer.append(nn.Dropout(dropout))
    return layer
