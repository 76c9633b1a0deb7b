"""Recurrent layers over sequences of several lengths, and n branches of them.

    forward:   h_l = cell(x_l, h_{l-1}),      l = 1 … length
    backward:  g_l = cell'(x_l, g_{l+1}),     l = length … 1
    output:    [h_l, g_l], 0 beyond the length

Rows are reversed within their length by an index, so that padding touches no state and nothing is packed.
Branches run one after the other: each is one call of the recurrent kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from polytask.core.errors import InputError, unknown
from polytask.deep.stacking.base import STACKS, Stacked, pick, stacked_parameter

_CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


class Recurrent(nn.Module):
    """A recurrent layer, ``(B, L, p)`` → ``(B, L, hidden · directions)``.

    Parameters
    ----------
    n_inputs
        Width of the inputs, p.
    hidden
        Units per direction.
    cell
        ``"lstm"`` or ``"gru"``.
    bidirectional
        Whether a second layer reads every row from its end.

    References
    ----------
    Hochreiter, Schmidhuber, Long Short-Term Memory, Neural Computation 9, 1997; Cho et al., Learning Phrase
    Representations using RNN Encoder–Decoder, EMNLP 2014; Graves, Schmidhuber, Framewise Phoneme
    Classification with Bidirectional LSTM, Neural Networks 18, 2005.
    """

    reads_length = True

    def __init__(
        self, n_inputs: int, hidden: int, *, cell: Literal["lstm", "gru"] = "lstm", bidirectional: bool = True
    ) -> None:
        super().__init__()
        if cell not in _CELLS:
            raise InputError(unknown("cell", cell, _CELLS))
        self.cell, self.hidden = cell, hidden
        self.n_features = hidden * (1 + bidirectional)
        self.ahead = _CELLS[cell](n_inputs, hidden, batch_first=True)
        self.back = _CELLS[cell](n_inputs, hidden, batch_first=True) if bidirectional else None

    def forward(self, inputs: Mapping[str, Tensor] | Tensor) -> Tensor:
        """Return the states of a ``"sequence"`` ``(B, L, p)`` with ``"length"`` ``(B,)``, or of a full tensor."""
        x, length = _unpacked(inputs)
        order = _order(x, length)
        ahead = _valid(self.ahead(x)[0], length)
        if self.back is None:
            return ahead
        back = _reordered(self.back(_reordered(x, order))[0], order)
        return torch.cat([ahead, _valid(back, length)], dim=-1)


def _unpacked(inputs: Mapping[str, Tensor] | Tensor) -> tuple[Tensor, Tensor | None]:
    if isinstance(inputs, Mapping):
        return inputs["sequence"], inputs.get("length")
    return inputs, None


def _order(x: Tensor, length: Tensor | None) -> Tensor | None:
    """Return for each position where the reversed row has it, ``(B, L)``; None where all rows are full."""
    if length is None:
        return None
    positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    ends = length.unsqueeze(1)
    return torch.where(positions < ends, ends - 1 - positions, positions)


def _reordered(x: Tensor, order: Tensor | None) -> Tensor:
    """Reverse every row; done twice it changes nothing."""
    return x.flip(1) if order is None else x.gather(1, order.unsqueeze(-1).expand_as(x))


def _valid(x: Tensor, length: Tensor | None) -> Tensor:
    if length is None:
        return x
    beyond = torch.arange(x.shape[1], device=x.device) >= length.unsqueeze(1)
    return x.masked_fill(beyond.unsqueeze(-1), 0)


class _Recurrent(Stacked):
    """Weights ``(n, …)`` under the names of the plain layer."""

    def __init__(self, modules: Sequence[Recurrent]) -> None:
        super().__init__(modules)
        first = modules[0]
        self.cell, self.hidden, self.n_inputs = first.cell, first.hidden, first.ahead.input_size
        for direction in ("ahead", "back") if first.back is not None else ("ahead",):
            held = nn.Module()
            for name, _ in first.get_submodule(direction).named_parameters():
                weights = [module.get_submodule(direction).get_parameter(name) for module in modules]
                held.register_parameter(name, stacked_parameter(weights))
            self.add_module(direction, held)

    def forward(self, x: Mapping[str, Tensor] | Tensor, own: bool, only: Tensor | None) -> tuple[Tensor, bool]:
        x, length = _unpacked(x)
        chosen = {name: pick(weight, only).unbind(0) for name, weight in self.named_parameters()}
        outputs = []
        for place in range(self.asked(only)):
            weights = {name: parts[place] for name, parts in chosen.items()}
            rows = length if length is None or length.dim() == 1 else length[place]
            outputs.append(self._branch(x[place] if own else x, weights, rows))
        return torch.stack(outputs), True

    def _branch(self, x: Tensor, weights: Mapping[str, Tensor], length: Tensor | None) -> Tensor:
        ahead = _valid(self._states(x, weights, "ahead"), length)
        if not hasattr(self, "back"):
            return ahead
        order = _order(x, length)
        back = _reordered(self._states(_reordered(x, order), weights, "back"), order)
        return torch.cat([ahead, _valid(back, length)], dim=-1)

    def _states(self, x: Tensor, weights: Mapping[str, Tensor], direction: str) -> Tensor:
        """Return the states ``(B, L, hidden)`` of one layer in one direction."""
        own = [weight for name, weight in weights.items() if name.startswith(f"{direction}.")]
        start = x.new_zeros(1, len(x), self.hidden)
        if self.cell == "lstm":
            return torch.lstm(x, [start, start], own, True, 1, 0.0, self.training, False, True)[0]
        return torch.gru(x, start, own, True, 1, 0.0, self.training, False, True)[0]

    def copy(self, branch: int) -> nn.Module:
        plain = Recurrent(self.n_inputs, self.hidden, cell=self.cell, bidirectional=hasattr(self, "back"))
        for name, weight in self.named_parameters():
            values = nn.Parameter(weight[branch].detach().clone(), requires_grad=weight.requires_grad)
            direction, _, leaf = name.partition(".")
            setattr(plain.get_submodule(direction), leaf, values)
        return plain


def _refuse(modules: Sequence[nn.Module]) -> Stacked:
    name = type(modules[0]).__name__
    raise InputError(f"{name} returns a tuple, so it cannot be a block; use polytask.deep.Recurrent in its place")


STACKS[Recurrent] = _Recurrent
STACKS.update(dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU), _refuse))
