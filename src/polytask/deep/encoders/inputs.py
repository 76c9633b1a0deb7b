"""First stages: from the mapping of inputs to one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from polytask.deep.stacking.base import STACKS, Stacked, stack


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


class TensorInput(nn.Module):
    """Pick one tensor of the inputs.

    Parameters
    ----------
    key
        Its name: ``"image"``, ``"sequence"``, ``"numeric"``.
    """

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def extra_repr(self) -> str:
        return f"key={self.key}"

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the tensor as it is."""
        return inputs[self.key]


class _StackedTensorInput(Stacked):
    """The same tensor for all branches, or each branch's own."""

    def __init__(self, modules: Sequence[TensorInput]) -> None:
        super().__init__(modules)
        self.key = modules[0].key

    def forward(self, x: Mapping[str, Tensor], own: bool, only: Tensor | None) -> tuple[Tensor, bool]:  # noqa: ARG002
        return x[self.key], own

    def copy(self, branch: int) -> nn.Module:  # noqa: ARG002  # all branches are alike
        return TensorInput(self.key)


class TokenInput(nn.Module):
    """Embed ``"tokens"`` ``(B, L)`` into ``(B, L, width)``.

    Parameters
    ----------
    vocabulary
        Number of different tokens.
    width
        Width of the embedding.
    """

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the embedded tokens."""
        embedded: Tensor = self.embedding(inputs["tokens"])
        return embedded


class _StackedTokenInput(Stacked):
    """One table of embeddings per branch."""

    def __init__(self, modules: Sequence[TokenInput]) -> None:
        super().__init__(modules)
        self.embedding = stack([module.embedding for module in modules])

    def forward(self, x: Mapping[str, Tensor], own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        y: tuple[Tensor, bool] = self.embedding(x["tokens"], own, only)
        return y

    def copy(self, branch: int) -> nn.Module:
        table = self.embedding.copy(branch)
        assert isinstance(table, nn.Embedding)
        plain = TokenInput(1, 1)
        plain.embedding = table
        return plain


STACKS.update({TableInput: _StackedTableInput, TensorInput: _StackedTensorInput, TokenInput: _StackedTokenInput})
