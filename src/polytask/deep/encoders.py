"""Encoders: named stages between which sharing may happen.

An encoder reads the mapping of inputs described in :mod:`polytask.deep.base` and returns features
``(B, n_features)``. Its first stage, ``"input"``, joins numbers and embedded codes; the others are
blocks that :class:`~polytask.deep.branches.Branches` can stack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from polytask.core.errors import InputError, unknown
from polytask.deep.branches import STACKS, Branches, Stacked, stack
from polytask.deep.seeding import seeded

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
NORMS: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}


class TableInput(nn.Module):
    """Join numeric columns ``(B, p)`` and one embedding per categorical column into ``(B, p + sum of widths)``.

    Parameters
    ----------
    n_numeric
        Number of numeric columns, p.
    cardinalities
        Number of codes of each categorical column.
    widths
        Embedding width of each categorical column.
    """

    def __init__(self, n_numeric: int, cardinalities: Sequence[int] = (), widths: Sequence[int] = ()) -> None:
        super().__init__()
        self.n_numeric = n_numeric
        self.embeddings = nn.ModuleList(
            nn.Embedding(rows, width) for rows, width in zip(cardinalities, widths, strict=True)
        )
        self.n_features = n_numeric + sum(widths)

    def extra_repr(self) -> str:
        return f"n_numeric={self.n_numeric}"

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the joined features; leading axes are kept."""
        if not self.embeddings:
            return inputs["numeric"]
        codes = inputs["categorical"].unbind(-1)
        embedded = [table(code) for table, code in zip(self.embeddings, codes, strict=True)]
        return torch.cat([inputs["numeric"], *embedded], dim=-1)


class _StackedTableInput(Stacked):
    """One table input per branch."""

    def __init__(self, modules: Sequence[TableInput]) -> None:
        super().__init__(modules)
        self.n_numeric = modules[0].n_numeric
        self.embeddings = nn.ModuleList(
            stack(list(tables)) for tables in zip(*(module.embeddings for module in modules), strict=True)
        )

    def forward(self, x: Mapping[str, Tensor], own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        numeric = x["numeric"]
        if not self.embeddings:
            return numeric, own
        codes = x["categorical"].unbind(-1)
        embedded = [table(code, own, only)[0] for table, code in zip(self.embeddings, codes, strict=True)]
        if not own:
            numeric = numeric.expand(len(embedded[0]), *numeric.shape)
        return torch.cat([numeric, *embedded], dim=-1), True

    def copy(self, branch: int) -> nn.Module:
        plain = TableInput(self.n_numeric)
        for table in self.embeddings:
            plain.embeddings.append(table.copy(branch))  # type: ignore[operator]  # they are Stacked
        plain.n_features += sum(table.embedding_dim for table in plain.embeddings)  # type: ignore[misc]  # Embedding's
        return plain


STACKS[TableInput] = _StackedTableInput


class Encoder(nn.Module):
    """Named stages in order; the first reads the mapping of inputs.

    Parameters
    ----------
    stages
        Stage name → block; names have no dots.
    n_features
        Width of the last stage's output.
    """

    def __init__(self, stages: Mapping[str, nn.Module], *, n_features: int) -> None:
        super().__init__()
        if not stages:
            raise InputError("stages is empty; an encoder needs at least its input stage")
        self.stages = nn.ModuleDict(dict(stages))
        self.n_features = n_features

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return features ``(B, n_features)``."""
        x: Mapping[str, Tensor] | Tensor = inputs
        for stage in self.stages.values():
            x = stage(x)
        assert isinstance(x, Tensor)
        return x


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
    if any(width < 1 for width in widths):
        raise InputError(f"widths is {list(widths)}; every layer needs at least one unit")
    if embedding != "auto" and embedding < 1:
        raise InputError(f'embedding is {embedding}; give a width of at least 1, or "auto"')
    if not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout}; give a share from 0 up to, but without, 1")
    if activation not in ACTIVATIONS:
        raise InputError(unknown("activation", activation, ACTIVATIONS))
    if norm is not None and norm not in NORMS:
        raise InputError(unknown("norm", norm, NORMS))
    embedded = [min(50, (rows + 1) // 2) if embedding == "auto" else embedding for rows in cardinalities]
    with seeded(seed):
        table = TableInput(n_numeric, cardinalities, embedded)
        stages: dict[str, nn.Module] = {"input": table}
        width = table.n_features
        for number, wider in enumerate(widths, start=1):
            layer: list[nn.Module] = [nn.Linear(width, wider)]
            if norm is not None:
                layer.append(NORMS[norm](wider))
            layer.append(ACTIVATIONS[activation]())
            if dropout:
                layer.append(nn.Dropout(dropout))
            stages[f"layer{number}"] = nn.Sequential(*layer)
            width = wider
    return Encoder(stages, n_features=width)


class BranchedEncoder(nn.Module):
    """n copies of an encoder, one :class:`Branches` per stage.

    Parameters
    ----------
    encoder
        The encoder to copy; every copy starts with its weights unless ``identical`` is False.
    n
        Number of copies.
    seed, identical
        As in :class:`Branches`; each stage draws from a seed of its own.
    """

    def __init__(self, encoder: Encoder, n: int, *, seed: int = 0, identical: bool = True) -> None:
        super().__init__()
        self.n_features = encoder.n_features
        self.stages = nn.ModuleDict(
            {
                name: Branches(stage, n, seed=seed + number, identical=identical)
                for number, (name, stage) in enumerate(encoder.stages.items())
            }
        )

    def weights(self, stages: Sequence[str] | None = None) -> dict[str, nn.Parameter]:
        """Return ``stage.weight name`` → stacked weights ``W[branch, …]`` of the stages named (None: all)."""
        for name in stages or ():
            if name not in self.stages:
                raise InputError(unknown("stage", name, self.stages))
        return {
            f"{name}.{weight}": tensor
            for name, branches in self.stages.items()
            if stages is None or name in stages
            for weight, tensor in branches.weights.items()  # type: ignore[union-attr, operator]  # they are Branches
        }

    def forward(self, inputs: Mapping[str, Tensor], own: bool = False, *, only: Tensor | None = None) -> Tensor:
        """Return features ``(n, B, n_features)``; arguments as in :meth:`Branches.forward`."""
        last = list(self.stages.values())[-1]
        x: Mapping[str, Tensor] | Tensor = inputs
        for branches in self.stages.values():
            if branches is last:
                x = branches(x, own, only=only)
            else:
                x, own = branches.run(x, own, only=only)  # type: ignore[operator]  # they are Branches
        assert isinstance(x, Tensor)
        return x
