"""Encoders of images ``(B, C, H, W)``: a small convolutional network and a residual one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from torch import nn

from polytask.core.errors import InputError, unknown
from polytask.deep.encoders.base import Encoder
from polytask.deep.encoders.inputs import TensorInput
from polytask.deep.encoders.parts import check_dropout, check_sizes, checked_activation, dense
from polytask.deep.seeding import seeded
from polytask.deep.stacking.composite import Residual

_MOST_GROUPS = 8
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(math.gcd(_MOST_GROUPS, channels), channels),
}


def convnet(
    shape: Sequence[int],
    channels: Sequence[int] = (16, 32, 64),
    *,
    widths: Sequence[int] = (64,),
    kernel: int = 3,
    pool: int = 2,
    norm: Literal["batch", "group"] | None = None,
    activation: str = "relu",
    dropout: float = 0.0,
    seed: int = 0,
) -> Encoder:
    """Return a small convolutional network: stages ``input``, ``conv1``, ``conv2`` …, ``layer1`` ….

    A convolutional stage is convolution (same size), norm, maximum over ``pool`` × ``pool``, activation (for an
    increasing activation the same as the maximum afterwards, on fewer positions); a fully connected one is
    linear, activation, dropout. Without ``widths`` the features are the mean over positions of the last
    convolutional stage.

    Parameters
    ----------
    shape
        Channels, height and width of an image.
    channels
        Channels of each convolutional stage.
    widths
        Width of each fully connected stage.
    kernel
        Side of the kernels, odd.
    pool
        Side of the squares whose maximum is kept; 1 keeps all positions.
    norm
        ``"batch"``, ``"group"`` (8 groups where the channels allow) or None.
    activation
        One of relu, leaky_relu, elu, gelu, silu, tanh.
    dropout
        Share of units dropped after each fully connected stage, in [0, 1).
    seed
        Seed of the initial weights; global random state is not touched.
    """
    n_channels, height, width = _checked(shape, channels, norm)
    check_sizes("widths", widths, "layer needs at least one unit")
    check_dropout(dropout)
    activated = checked_activation(activation)
    if kernel < 1 or kernel % 2 == 0:
        raise InputError(f"kernel is {kernel}; give an odd number of at least 1")
    if pool < 1 or min(height, width) < pool ** len(channels):
        raise InputError(
            f"pool is {pool} in {len(channels)} stages, but an image has {height} × {width} positions; "
            "use fewer stages or pool=1"
        )
    sizes = {"input": n_channels}
    stages: dict[str, nn.Module] = {"input": TensorInput("image")}
    with seeded(seed):
        for number, wider in enumerate(channels, start=1):
            maximum = [nn.MaxPool2d(pool)] if pool > 1 else []
            layer = _convolution(n_channels, wider, kernel=kernel, norm=norm)
            stages[f"conv{number}"] = nn.Sequential(*layer, *maximum, activated())
            sizes[f"conv{number}"] = n_channels = wider
        shrunk = pool ** len(channels)
        units = n_channels * (height // shrunk) * (width // shrunk)
        for number, wider in enumerate(widths, start=1):
            parts = dense(units, wider, norm=None, activation=activated, dropout=dropout)
            stages[f"layer{number}"] = nn.Sequential(*([nn.Flatten()] if number == 1 else []), *parts)
            sizes[f"layer{number}"] = units = wider
    return Encoder(stages, n_features=list(sizes.values())[-1], channels=sizes)


def resnet(
    shape: Sequence[int],
    channels: Sequence[int] = (16, 32, 64),
    *,
    blocks: int = 1,
    norm: Literal["batch", "group"] | None = "batch",
    activation: str = "relu",
    seed: int = 0,
) -> Encoder:
    """Return a residual network for small images: stages ``input``, ``stem``, ``stage1``, ``stage2`` ….

    Each stage has ``blocks`` residual blocks of two 3 × 3 convolutions; from the second stage on the first
    block halves height and width. The features are the mean over positions of the last stage.

    Parameters
    ----------
    shape
        Channels, height and width of an image.
    channels
        Channels of each stage; the stem has those of the first.
    blocks
        Residual blocks per stage; with three stages the network has ``6 blocks + 1`` convolutions in a row.
    norm
        ``"batch"``, ``"group"`` (8 groups where the channels allow) or None.
    activation
        One of relu, leaky_relu, elu, gelu, silu, tanh.
    seed
        Seed of the initial weights; global random state is not touched.

    References
    ----------
    He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, CVPR 2016.
    """
    n_channels, _, _ = _checked(shape, channels, norm)
    activated = checked_activation(activation)
    if blocks < 1 or not channels:
        raise InputError(f"blocks is {blocks} and channels is {list(channels)}; need at least one block and one stage")
    sizes = {"input": n_channels, "stem": channels[0]}
    stages: dict[str, nn.Module] = {"input": TensorInput("image")}
    with seeded(seed):
        stages["stem"] = nn.Sequential(*_convolution(n_channels, channels[0], kernel=3, norm=norm), activated())
        n_channels = channels[0]
        for number, wider in enumerate(channels, start=1):
            parts: list[nn.Module] = []
            for place in range(blocks):
                stride = 2 if number > 1 and place == 0 else 1
                parts += [_residual(n_channels, wider, stride, norm, activated), activated()]
                n_channels = wider
            stages[f"stage{number}"] = nn.Sequential(*parts)
            sizes[f"stage{number}"] = wider
    return Encoder(stages, n_features=n_channels, channels=sizes)


def _checked(shape: Sequence[int], channels: Sequence[int], norm: str | None) -> tuple[int, int, int]:
    if len(shape) != 3 or any(size < 1 for size in shape):
        raise InputError(f"shape is {tuple(shape)}; give channels, height and width of an image")
    check_sizes("channels", channels, "stage needs at least one channel")
    if norm is not None and norm not in NORMS:
        raise InputError(unknown("norm", norm, NORMS))
    n_channels, height, width = shape
    return n_channels, height, width


def _convolution(n_inputs: int, channels: int, *, kernel: int, norm: str | None, stride: int = 1) -> list[nn.Module]:
    """Return a convolution that keeps the size, up to the stride, and its norm."""
    bias = norm is None
    convolution = nn.Conv2d(n_inputs, channels, kernel, stride=stride, padding=kernel // 2, bias=bias)
    return [convolution, *([] if norm is None else [NORMS[norm](channels)])]


def _residual(n_inputs: int, channels: int, stride: int, norm: str | None, activation: type[nn.Module]) -> Residual:
    block = nn.Sequential(
        *_convolution(n_inputs, channels, kernel=3, norm=norm, stride=stride),
        activation(),
        *_convolution(channels, channels, kernel=3, norm=norm),
    )
    if stride == 1 and n_inputs == channels:
        return Residual(block)
    return Residual(block, nn.Sequential(*_convolution(n_inputs, channels, kernel=1, norm=norm, stride=stride)))
