"""Encoders of tables: a multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from polytask.core.errors import InputError, unknown
from polytask.deep.encoders.base import Encoder
from polytask.deep.encoders.inputs import TableInput
from polytask.deep.encoders.parts import check_dropout, check_sizes, checked_activation, dense
from polytask.deep.seeding import seeded

NORMS: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}


def mlp(
    n_numeric: int,
    widths: Sequence[int] = (64, 64),
    *,
    cardinalities: Sequence[int] = (),
    embedding: int | Literal["auto"] = "auto",
    dropout: float = 0.0,
    norm: Literal["layer", "batch"] | None = None,
    activation: str = "relu",
    seed: int = 0,
) -> Encoder:
    """Return a multilayer perceptron over a table: stages ``input``, ``layer1``, ``layer2`` and so on.

    Each layer is linear, norm, activation, dropout.

    Parameters
    ----------
    n_numeric
        Number of numeric columns.
    widths
        Width of each hidden layer.
    cardinalities
        Number of codes of each categorical column.
    embedding
        Width of every embedding; ``"auto"`` is min(50, (codes + 1) // 2) per column.
    dropout
        Share of units dropped after each layer, in [0, 1).
    norm
        ``"layer"``, ``"batch"`` or None. Batch norm cannot train on a batch of one row.
    activation
        One of relu, leaky_relu, elu, gelu, silu, tanh.
    seed
        Seed of the initial weights; global random state is not touched.
    """
    if n_numeric < 0 or n_numeric + len(cardinalities) == 0:
        raise InputError(
            f"n_numeric is {n_numeric} and there are {len(cardinalities)} categorical columns; need at least one column"
        )
    check_sizes("widths", widths, "layer needs at least one unit")
    if embedding != "auto" and embedding < 1:
        raise InputError(f'embedding is {embedding}; give a width of at least 1, or "auto"')
    check_dropout(dropout)
    activated = checked_activation(activation)
    if norm is not None and norm not in NORMS:
        raise InputError(unknown("norm", norm, NORMS))
    embedded = [min(50, (rows + 1) // 2) if embedding == "auto" else embedding for rows in cardinalities]
    with seeded(seed):
        table = TableInput(n_numeric, cardinalities, embedded)
        stages: dict[str, nn.Module] = {"input": table}
        channels = {"input": table.n_features}
        width = table.n_features
        for number, wider in enumerate(widths, start=1):
            scale = None if norm is None else NORMS[norm](wider)
            stages[f"layer{number}"] = nn.Sequential(
                *dense(width, wider, norm=scale, activation=activated, dropout=dropout)
            )
            channels[f"layer{number}"] = width = wider
    return Encoder(stages, n_features=width, channels=channels)
