"""Encoders made of networks that exist: any ``nn.Sequential``, a timm feature network, a Hugging Face encoder.

Each adapter names the stages, finds their channels by running the network once on an example, and checks that
the stages in a row give what the network gives. Neither timm nor transformers is imported: the adapters read
the network they are handed. Its weights are the encoder's, not copied; a branched encoder copies them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from polytask.core.errors import InputError
from polytask.deep.encoders.base import Encoder
from polytask.deep.encoders.inputs import TensorInput

Inputs = Mapping[str, Tensor]
_KEYS = {2: "numeric", 3: "sequence", 4: "image"}


def from_sequential(
    module: nn.Sequential,
    example: Tensor | Inputs,
    *,
    stages: Mapping[str, Sequence[str]] | None = None,
    channel_axis: int | None = None,
) -> Encoder:
    """Return an encoder whose stages are the children of a ``Sequential``.

    Stages are ``input``, which picks the tensor, and one per child: its name, or ``layer0``, ``layer1`` … where
    children have numbers.

    Parameters
    ----------
    module
        The network, up to its last hidden representation.
    example
        A few rows of input: a tensor ``(B, p)``, ``(B, L, p)`` or ``(B, C, H, W)``, read from the inputs
        ``"numeric"``, ``"sequence"`` or ``"image"``; or a mapping with the one input that the network reads.
    stages
        Stage name → names of the children it is made of, all children in order; None: one child per stage.
    channel_axis
        See :class:`~polytask.deep.encoders.base.Encoder`; None: -1 for ``"sequence"`` and ``"tokens"``, else 1.

    Raises
    ------
    InputError
        If the stages do not cover the children, or a stage's output is not one tensor with the rows of the
        example.
    """
    if type(module).forward is not nn.Sequential.forward:
        raise InputError(f"module is a {type(module).__name__}; give an nn.Sequential")
    key, tensor = _picked(example)
    children = [name for name, _ in module.named_children()]
    names = {_stage_name(name): [name] for name in children} if stages is None else stages
    if [child for part in names.values() for child in part] != children:
        raise InputError(f"stages has {[list(part) for part in names.values()]}; name every child in order: {children}")
    blocks = {
        name: module.get_submodule(part[0]) if len(part) == 1 else _joined(module, part) for name, part in names.items()
    }
    if channel_axis is None:
        channel_axis = -1 if key in ("sequence", "tokens") else 1
    return _chain(
        TensorInput(key), blocks, {key: tensor}, lambda inputs: module(inputs[key]), channel_axis=channel_axis
    )


def from_timm(model: nn.Module, example: Tensor) -> Encoder:
    """Return an encoder of a timm network built with ``features_only=True``; a stage ends at each feature map.

    Parameters
    ----------
    model
        ``timm.create_model(name, features_only=True)``: a ``ModuleDict`` run in order, with ``return_layers``, or
        a network of ``conv_stem``, ``bn1`` and ``blocks`` (EfficientNet, MobileNet).
    example
        A few images ``(B, C, H, W)``.

    Raises
    ------
    InputError
        If the network is not of that form.
    """
    blocks: dict[str, nn.Module] = {}
    part: list[nn.Module] = []
    for name, child, ends in _timm_parts(model):
        part.append(child)
        if ends:
            blocks[name] = nn.Sequential(*part) if len(part) > 1 else child
            part = []
    last = str(getattr(model, "output_fmt", "NCHW")).upper().endswith("NHWC")
    return _chain(TensorInput("image"), blocks, {"image": example}, _last_of(model), channel_axis=-1 if last else 1)


def from_hugging_face(model: nn.Module, example: Inputs) -> Encoder:
    """Return an encoder of a Hugging Face model: stages ``input`` (its embeddings), ``layer1``, ``layer2`` ….

    The features are the mean over valid positions of the last layer; a pooler is not used.

    Parameters
    ----------
    model
        A model with ``embeddings`` and a list of layers in ``encoder`` or ``transformer``: BERT, RoBERTa, ELECTRA,
        DistilBERT, ViT and their kind.
    example
        ``"tokens"`` ``(B, L)`` with ``"length"`` ``(B,)`` or not, or ``"image"`` ``(B, C, H, W)``.

    Raises
    ------
    InputError
        If the model has no such parts, or needs more between them than hidden states and a mask.
    """
    key = "tokens" if "tokens" in example else "image"
    if key not in example:
        raise InputError(f'example has {sorted(example)}; give "tokens" or "image"')
    blocks: dict[str, nn.Module] = {
        f"layer{number}": _TransformerLayer(layer) for number, layer in enumerate(_layers(model), start=1)
    }
    if isinstance(norm := getattr(model, "layernorm", None), nn.Module):
        blocks["norm"] = norm
    embeddings = model.get_submodule("embeddings")
    return _chain(_Embeddings(embeddings, key), blocks, dict(example), _last_hidden(model, key), channel_axis=-1)


def _timm_parts(model: nn.Module) -> list[tuple[str, nn.Module, bool]]:
    """Return name, module and whether a stage ends there, of the parts that run in a row."""
    returned = getattr(model, "return_layers", None)
    if isinstance(model, nn.ModuleDict) and returned:
        return [(name, child, name in returned) for name, child in model.items()]
    stem = [getattr(model, name, None) for name in ("conv_stem", "bn1", "blocks")]
    if all(isinstance(part, nn.Module) for part in stem):
        blocks = list(model.get_submodule("blocks").children())
        named = dict(model.named_children())
        first = [named[name] for name in ("conv_stem", "bn1", "act1") if name in named]  # act1 may be part of bn1
        return [
            *(("stem", part, part is first[-1]) for part in first),
            *((f"stage{number}", block, True) for number, block in enumerate(blocks, start=1)),
        ]
    raise InputError(
        f"model is a {type(model).__name__}, which is no row of parts; build a convolutional network with "
        "timm.create_model(name, features_only=True)"
    )


class _Embeddings(nn.Module):
    """The embeddings of a Hugging Face model, reading one of the inputs."""

    def __init__(self, embeddings: nn.Module, key: str) -> None:
        super().__init__()
        self.embeddings, self.key = embeddings, key

    def forward(self, inputs: Inputs) -> Tensor:
        embedded: Tensor = self.embeddings(inputs[self.key])
        return embedded


class _TransformerLayer(nn.Module):
    """A layer of hidden states and a mask ``(B, 1, 1, L)`` made of lengths: 0, or the least number beyond them."""

    reads_length = True

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Inputs | Tensor) -> Tensor:
        if isinstance(inputs, Tensor):
            return _first(self.layer(inputs))
        x, length = inputs["sequence"], inputs["length"]
        beyond = torch.arange(x.shape[1], device=x.device) >= length.unsqueeze(1)
        mask = x.new_zeros(beyond.shape).masked_fill(beyond, torch.finfo(x.dtype).min)
        return _first(self.layer(x, mask[:, None, None, :]))


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _layers(model: nn.Module) -> nn.ModuleList:
    for path in ("encoder.layer", "encoder.layers", "transformer.layer", "layers"):
        try:
            found = model.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(found, nn.ModuleList) and isinstance(getattr(model, "embeddings", None), nn.Module):
            return found
    raise InputError(f"model is a {type(model).__name__}; give one with embeddings and a list of encoder layers")


def _last_hidden(model: nn.Module, key: str) -> Callable[[Inputs], Tensor]:
    def run(inputs: Inputs) -> Tensor:
        if key == "image":
            hidden: Tensor = model(pixel_values=inputs["image"]).last_hidden_state
            return hidden
        tokens, length = inputs["tokens"], inputs.get("length")
        mask = None
        if length is not None:
            mask = (torch.arange(tokens.shape[1], device=tokens.device) < length.unsqueeze(1)).long()
        hidden = model(input_ids=tokens, attention_mask=mask).last_hidden_state
        return hidden if mask is None else hidden * mask.unsqueeze(-1)

    return run


def _last_of(model: nn.Module) -> Callable[[Inputs], Tensor]:
    def run(inputs: Inputs) -> Tensor:
        last: Tensor = model(inputs["image"])[-1]
        return last

    return run


def _picked(example: Tensor | Inputs) -> tuple[str, Tensor]:
    if isinstance(example, Tensor):
        if example.dim() not in _KEYS:
            raise InputError(f"example has shape {tuple(example.shape)}; give (B, p), (B, L, p) or (B, C, H, W)")
        return _KEYS[example.dim()], example
    names = [name for name in example if name != "length"]
    if len(names) != 1:
        raise InputError(f"example has {names}; a Sequential reads one input")
    return names[0], example[names[0]]


def _stage_name(child: str) -> str:
    return f"layer{child}" if child.isdecimal() or child == "input" else child


def _joined(module: nn.Sequential, names: Sequence[str]) -> nn.Sequential:
    if not names:
        raise InputError("a stage has no children; name at least one")
    part = nn.Sequential()
    for name in names:
        part.add_module(name, module.get_submodule(name))
    return part


def _chain(
    first: nn.Module,
    blocks: Mapping[str, nn.Module],
    example: Inputs,
    whole: Callable[[Inputs], Tensor],
    *,
    channel_axis: int,
) -> Encoder:
    """Return the encoder of these stages, with the channels that one run on the example shows."""
    stages = {"input": first, **blocks}
    encoder = Encoder(stages, n_features=1, channel_axis=channel_axis)
    with _evaluating(encoder), torch.no_grad():
        found = encoder.outputs(example)
        expected = whole(example)
    n_rows = len(next(iter(example.values())))
    for name, output in found.items():
        if not isinstance(output, Tensor) or output.dim() < 2 or len(output) != n_rows:
            raise InputError(f'stage "{name}" does not return one tensor (B, channels, …) with the {n_rows} rows given')
    last = list(found.values())[-1]
    if "length" in example:
        beyond = torch.arange(last.shape[1], device=last.device) >= example["length"].unsqueeze(1)
        last = last.masked_fill(beyond.unsqueeze(-1), 0)
    if last.shape != expected.shape or not torch.allclose(last, expected, rtol=1e-3, atol=1e-4):
        raise InputError(
            f"the stages {list(stages)} in a row do not give what the network gives, so it does more between them; "
            "build an Encoder of its parts by hand"
        )
    channels = {name: output.shape[channel_axis] for name, output in found.items()}
    return Encoder(stages, n_features=last.shape[channel_axis], channels=channels, channel_axis=channel_axis)


@contextmanager
def _evaluating(encoder: nn.Module) -> Iterator[None]:
    """Evaluate inside the block; every module is in its own mode again afterwards."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
