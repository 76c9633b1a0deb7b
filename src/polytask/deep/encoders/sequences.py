"""Encoders of sequences: tokens ``(B, L)`` or vectors ``(B, L, p)``, with lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from polytask.core.errors import InputError
from polytask.deep.encoders.base import Encoder
from polytask.deep.encoders.inputs import TensorInput, TokenInput
from polytask.deep.encoders.parts import check_dropout, check_sizes
from polytask.deep.seeding import seeded
from polytask.deep.stacking.recurrent import Recurrent


def bilstm(
    *,
    vocabulary: int | None = None,
    n_inputs: int | None = None,
    embedding: int = 64,
    hidden: Sequence[int] = (64,),
    cell: Literal["lstm", "gru"] = "lstm",
    bidirectional: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
) -> Encoder:
    """Return layers of (bidirectional) recurrent cells: stages ``input``, ``layer1``, ``layer2`` ….

    The states are 0 beyond a row's length; the features are their mean over its positions.

    Parameters
    ----------
    vocabulary
        Number of different tokens, for the input ``"tokens"``; this or ``n_inputs``.
    n_inputs
        Width of the vectors, for the input ``"sequence"``.
    embedding
        Width of the embedding of tokens.
    hidden
        Units per direction of each layer.
    cell
        ``"lstm"`` or ``"gru"``.
    bidirectional
        Whether every layer reads rows from both ends; its output is then twice as wide.
    dropout
        Share of units dropped after each layer, in [0, 1).
    seed
        Seed of the initial weights; global random state is not touched.
    """
    if (vocabulary is None) == (n_inputs is None):
        raise InputError(
            f"vocabulary is {vocabulary} and n_inputs is {n_inputs}; give the first for tokens, the second for vectors"
        )
    width = embedding if n_inputs is None else n_inputs
    check_sizes("vocabulary, n_inputs, embedding", [vocabulary or 1, width], "size is at least 1")
    check_sizes("hidden", hidden, "layer needs at least one unit")
    check_dropout(dropout)
    sizes = {"input": width}
    with seeded(seed):
        table = TensorInput("sequence") if vocabulary is None else TokenInput(vocabulary, embedding)
        stages: dict[str, nn.Module] = {"input": table}
        for number, units in enumerate(hidden, start=1):
            layer = Recurrent(width, units, cell=cell, bidirectional=bidirectional)
            stages[f"layer{number}"] = nn.Sequential(layer, *([nn.Dropout(dropout)] if dropout else []))
            sizes[f"layer{number}"] = width = layer.n_features
    return Encoder(stages, n_features=width, channels=sizes, channel_axis=-1)
