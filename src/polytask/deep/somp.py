"""A thin encoder from a wide trained one, by simultaneous orthogonal matching pursuit (SOMP).

The filters of a layer are the rows of ``W`` (d, c). SOMP picks d' of them, one by one, and weights A (d, d') with

    minimise ||W - A W[picked]||_F         next row = argmax_j  sum_i |<R_i, W_j>| / ||W_j||,   R = W - A W[picked]

The thin layer keeps the rows picked, and the next layer reads them through A: its weights on the axis of input
channels are replaced by their product with A, so that it sees ``A z_thin ≈ z_wide``. Because of the non-linearity
between this is a warm start, exact for d' = d.

Lu et al., Fully-adaptive Feature Sharing, CVPR 2017. SOMP: Tropp, Gilbert, Strauss, Signal Processing 86, 2006.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polytask.core.errors import InputError
from polytask.deep.encoders import Encoder

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Picked:
    """Rows that stand for all.

    Attributes
    ----------
    rows
        Numbers of the rows picked, increasing, ``(d',)``.
    weights
        Weights A ``(d, d')``; a row that was picked stands for itself alone.
    residuals
        ``||W - A W[picked]||_F`` after 0, 1, …, d' rows.
    """

    rows: Tensor
    weights: Tensor
    residuals: tuple[float, ...]


@torch.no_grad()
def somp(W: Tensor, n_rows: int) -> Picked:
    """Pick rows of ``W`` (d, c) whose span is close to all of them.

    Raises
    ------
    InputError
        If ``n_rows`` is not between 1 and d.
    """
    if not 1 <= n_rows <= len(W):
        raise InputError(f"n_rows is {n_rows}; of {len(W)} rows 1 to {len(W)} can be picked")
    W64 = W.double()
    lengths = W64.norm(dim=1).clamp(min=1e-300)
    rows: list[int] = []
    weights = W64.new_zeros(len(W), 0)
    residual, residuals = W64, [float(W64.norm())]
    for _ in range(n_rows):
        closeness = (residual @ W64.T).abs().sum(0) / lengths
        closeness[rows] = -1.0
        rows.append(int(closeness.argmax()))
        weights = W64 @ torch.linalg.pinv(W64[rows])
        weights[rows] = torch.eye(len(rows), dtype=W64.dtype, device=W64.device)
        residual = W64 - weights @ W64[rows]
        residuals.append(float(residual.norm()))
    order = torch.tensor(rows, device=W.device).argsort()
    return Picked(torch.tensor(rows, device=W.device)[order], weights[:, order].to(W.dtype), tuple(residuals))


def thin_encoder(encoder: Encoder, widths: Sequence[int]) -> Encoder:
    """Return a thin encoder that starts close to a wide trained one.

    Parameters
    ----------
    encoder
        The wide encoder: linear layers and convolutions in sequence, with batch or layer norm and parts without
        weights between. Its first stage is kept as it is. It is not changed.
    widths
        Number of units or channels of each linear layer and convolution, input to output.

    Raises
    ------
    InputError
        If the widths do not fit or the encoder has another kind of layer with weights.
    """
    names = encoder.names
    layers = [part for name in names[1:] for part in _parts(encoder.stages[name]) if _has_filters(part)]
    if len(layers) != len(widths):
        raise InputError(
            f"widths has {len(widths)} entries, but the encoder has {len(layers)} layers; give one for each"
        )
    thinner = _Thinner(iter(widths))
    stages: dict[str, nn.Module] = {names[0]: copy.deepcopy(encoder.stages[names[0]])}
    channels = dict(encoder.channels)
    for name in names[1:]:
        stages[name] = thinner(encoder.stages[name])
        if name in channels and thinner.picked is not None:
            channels[name] = len(thinner.picked.rows)
    width = encoder.n_features if thinner.picked is None else len(thinner.picked.rows)
    return Encoder(stages, n_features=width, channels=channels or None, channel_axis=encoder.channel_axis)


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    if _is_chain(module):
        for child in module.children():
            yield from _parts(child)
    else:
        yield module


def _is_chain(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward


def _has_filters(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, *_CONVOLUTIONS))


class _Thinner:
    """Thins one layer after the other; ``picked`` are the channels of the layer before that were kept."""

    def __init__(self, widths: Iterator[int]) -> None:
        self.widths = widths
        self.picked: Picked | None = None

    def __call__(self, module: nn.Module) -> nn.Module:
        if _is_chain(module):
            thin = nn.Sequential().train(module.training)
            for name, child in module.named_children():
                thin.add_module(name, self(child))
            return thin
        found = copy.deepcopy(module)
        if isinstance(found, nn.Linear):
            self._filters(found)
            found.out_features, found.in_features = found.weight.shape
        elif isinstance(found, _CONVOLUTIONS) and found.groups == 1:
            self._filters(found)
            found.out_channels, found.in_channels = found.weight.shape[:2]
        elif isinstance(found, (nn.LayerNorm, *_BATCH_NORMS)):
            self._norm(found)
        elif any(True for _ in found.parameters()):
            raise InputError(
                f"thin_encoder cannot thin {module}; it can thin linear layers and convolutions in sequence"
            )
        return found

    def _filters(self, layer: Any) -> None:
        weight = layer.weight.detach()
        if self.picked is not None:
            mixed = weight.unflatten(
                1, (len(self.picked.weights), -1)
            )  # a flattened map has several inputs per channel
            weight = torch.einsum("oc...,ck->ok...", mixed, self.picked.weights).flatten(1, 2)
        width = next(self.widths)
        if not 1 <= width <= len(weight):
            raise InputError(
                f"widths has {width} for a layer of {len(weight)} units; a thin layer has 1 to {len(weight)}"
            )
        self.picked = somp(weight.flatten(1), width)
        rows = self.picked.rows
        layer.weight = nn.Parameter(weight[rows])
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.detach()[rows])

    def _norm(self, norm: Any) -> None:
        if self.picked is None:
            return
        rows = self.picked.rows
        if isinstance(norm, nn.LayerNorm):
            if len(norm.normalized_shape) != 1:
                raise InputError(f"thin_encoder cannot thin {norm}; it can thin a norm over the channels")
            norm.normalized_shape = (len(rows),)
        else:
            norm.num_features = len(rows)
        for name, value in [*norm.named_parameters(), *norm.named_buffers()]:
            if value.ndim:
                kept = value.detach()[rows].clone()
                setattr(norm, name, nn.Parameter(kept) if isinstance(value, nn.Parameter) else kept)
