"""Checkpoints: named tensors and plain facts in one safetensors file, replaced atomically.

The facts are JSON in the file's own header, so tensors and facts cannot disagree. A reader, or a restart after a kill,
finds the old checkpoint or the new one, never a mix (:mod:`polytask.core.files`). Nothing here can hold or run code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from polytask.core.errors import ModelRefusedError
from polytask.core.files import sweep, write_file

_FACTS, _DIGEST = "polytask", "blake2b"


def fingerprint(facts: Mapping[str, Any], arrays: Iterable[Mapping[str, NDArray[Any]]]) -> str:
    """Return 16 hex digits that tell one fit (settings, seed, data, first weights) from another."""
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8)
    for group in arrays:
        _add(digest, group)
    return digest.hexdigest()


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    _add(digest, {name: tensor.numpy() for name, tensor in tensors.items()})
    return digest.hexdigest()


def _add(digest: hashlib.blake2b, arrays: Mapping[str, NDArray[Any]]) -> None:
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a checkpoint in place of the one at ``path``.

    Raises
    ------
    DiskError
        When the disk is full or the folder cannot be written; the old checkpoint is untouched.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(facts)
    content = save(plain, metadata={_FACTS: text, _DIGEST: _digest(text, plain)})
    write_file(path, content)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return (tensors on the CPU, facts) of a checkpoint, or None when there is none.

    Leftovers of killed writes are removed.

    Raises
    ------
    ModelRefusedError
        When the file is damaged.
    """
    if not path.parent.is_dir():
        return None
    sweep(path)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if header[_DIGEST] != _digest(header[_FACTS], tensors):
            raise ValueError("its checksum is wrong")
        return tensors, json.loads(header[_FACTS])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelRefusedError(f"the checkpoint {path} is damaged ({error}); delete it to start afresh") from error


def flatten(prefix: str, nested: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under ``prefix/name``."""
    return {f"{prefix}/{name}": tensor for name, tensor in nested.items()}


def under(prefix: str, tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the tensors whose name starts with ``prefix/``, without it, on ``device``."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor.to(device) for name, tensor in tensors.items() if name.startswith(start)}
