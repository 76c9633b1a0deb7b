"""Models on disk: a folder of plain data with checksums, written whole or not at all.

    model.safetensors   arrays
    model.json          class name, tasks, description, notes on how it was made
    encoder.json        state of the fitted table encoder
    schema.json         what the training table looked like
    manifest.json       format, versions, size and sha256 of every other file

Nothing in it is code: pickle files are never opened, and a class is loaded only if this version
exports it. A folder that was changed, truncated or made by a newer format is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polytask.core.errors import InputError, ModelRefusedError
from polytask.core.files import flush_folder, sweep, write_through, writing
from polytask.core.learner import Model
from polytask.core.task import task_from

FORMAT = "polytask-model"
VERSION = (1, 0)
MANIFEST = "manifest.json"
_FILES = ("model.safetensors", "model.json", "encoder.json", "schema.json")
_LIBRARIES = ("numpy", "scipy", "scikit-learn", "pandas", "safetensors", "torch")
_MOST_HEADER = 8 * 2**20
_MOST_JSON = 256 * 2**20
_PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".npy", ".npz", ".skops", ".ckpt", ".bin")


@dataclass(frozen=True)
class LoadedModel:
    """A model folder, read and checked.

    Attributes
    ----------
    model
        The fitted model.
    encoder_state
        State of the table encoder the model was fitted behind; empty when it had none.
    schema
        What the training table looked like.
    meta
        How the model was made: method, settings, seed.
    libraries
        Versions it was saved with.
    """

    model: Model
    encoder_state: Mapping[str, Any]
    schema: Mapping[str, Any]
    meta: Mapping[str, Any]
    libraries: Mapping[str, str] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """Return one line for each library whose major version is not the one the model was saved with."""
        now = library_versions()
        return [
            f"saved with {name} {then}, running {name} {now.get(name, '(not installed)')}"
            for name, then in self.libraries.items()
            if name in now and now[name].split(".")[0] != then.split(".")[0]
        ]


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries a model or a result depends on."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


# -- writing ------------------------------------------------------------------------------------


def save_model(
    folder: str | Path,
    model: Model,
    *,
    encoder_state: Mapping[str, Any],
    schema: Mapping[str, Any],
    meta: Mapping[str, Any],
) -> None:
    """Save a fitted model as a folder, whole or not at all.

    An earlier model in ``folder`` is replaced as a whole, and kept when writing fails.

    Parameters
    ----------
    folder
        Where to. A folder that exists and is not a polytask model is refused.
    model
        Its class must be exported by a room of polytask, or it could not be loaded again.
    encoder_state, schema, meta
        Plain data (JSON): the fitted encoder, the training table, how the model was made.

    Raises
    ------
    InputError
        The folder holds something else, or the data is not plain.
    DiskError
        The disk is full or cannot be written.
    """
    folder = Path(folder)
    check_replaceable(folder)
    files = _contents(model, encoder_state, schema, meta)
    beside = folder.with_name(f".{folder.name[:80]}.tmp-{os.getpid()}")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        try:
            beside.mkdir()
            for name, data in files.items():
                write_through(beside / name, data)
            flush_folder(beside)
            _swap(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _contents(
    model: Model, encoder_state: Mapping[str, Any], schema: Mapping[str, Any], meta: Mapping[str, Any]
) -> dict[str, bytes]:
    from safetensors.numpy import save

    from polytask import __version__
    from polytask.registry import model_class

    name = type(model).__name__
    model_class(name)
    description, arrays = model.state()
    about = {
        "class": name,
        "tasks": [task.describe() for task in model.tasks],
        "description": description,
        "meta": dict(meta),
    }
    files = {
        "model.safetensors": save({key: np.ascontiguousarray(array) for key, array in arrays.items()}),
        "model.json": _json("meta or model description", about),
        "encoder.json": _json("encoder state", encoder_state),
        "schema.json": _json("schema", schema),
    }
    manifest = {
        "format": FORMAT,
        "version": ".".join(map(str, VERSION)),
        "polytask": __version__,
        "libraries": library_versions(),
        "files": {key: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for key, data in files.items()},
    }
    return {**files, MANIFEST: _json("manifest", manifest)}


def _json(what: str, plain: Any) -> bytes:
    try:
        return json.dumps(plain, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} is not plain data that JSON can hold: {error}") from error


def check_replaceable(folder: Path) -> None:
    """Refuse to put a model in place of anything that is not one."""
    if folder.is_dir() and not folder.is_symlink():
        if any(folder.iterdir()) and not (folder / MANIFEST).is_file():
            raise InputError(f"{folder} exists and is not a polytask model; choose another folder name")
    elif folder.exists() or folder.is_symlink():
        raise InputError(f"{folder} exists and is not a folder; choose another name for the model")


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _swap(beside: Path, folder: Path) -> None:
    """Put ``beside`` in place of ``folder``; a kill between the two renames leaves ``.name.previous`` to load."""
    previous = _previous(folder)
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
        try:
            beside.rename(folder)
        except OSError:
            previous.rename(folder)
            raise
    else:
        beside.rename(folder)
    flush_folder(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


# -- reading ------------------------------------------------------------------------------------


def load_model(folder: str | Path) -> LoadedModel:
    """Read a model folder, checking every byte of it first.

    Raises
    ------
    ModelRefusedError
        It is not a polytask model, was changed after saving, or is of a newer format.
    """
    folder = _found(Path(folder))
    manifest = _manifest(folder)
    files = {name: _checked(folder, name, manifest["files"][name]) for name in _FILES}
    about = _plain(folder / "model.json", files["model.json"])
    encoder_state = _plain(folder / "encoder.json", files["encoder.json"])
    schema = _plain(folder / "schema.json", files["schema.json"])
    return LoadedModel(
        model=_model(folder, about, files["model.safetensors"]),
        encoder_state=encoder_state,
        schema=schema,
        meta=about.get("meta", {}),
        libraries={str(name): str(value) for name, value in manifest.get("libraries", {}).items()},
    )


def _found(folder: Path) -> Path:
    if folder.is_dir():
        return folder
    previous = _previous(folder)
    if not folder.exists() and previous.is_dir():
        return previous  # saving was killed between two renames: the earlier model is whole
    if not folder.exists():
        raise ModelRefusedError(f"{folder} does not exist; give the folder of a model that polytask train saved")
    last = " Pickle files are never opened." if folder.suffix.lower() in _PICKLES else ""
    raise ModelRefusedError(f"{folder} is not a polytask model (expected a directory with {MANIFEST}).{last}")


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists() and not path.is_symlink():
        raise ModelRefusedError(f"{folder} is not a polytask model (it has no {MANIFEST})")
    manifest = _plain(path, _read(path, most=2**20))
    if manifest.get("format") != FORMAT:
        raise ModelRefusedError(f"{path} is not the manifest of a polytask model (no format {FORMAT})")
    major = str(manifest.get("version", "")).partition(".")[0]
    if not major.isdecimal() or not 1 <= int(major[:9]) <= VERSION[0]:
        raise ModelRefusedError(
            f"{folder} has model format {str(manifest.get('version'))[:20]}; this version of polytask reads up to "
            f"{VERSION[0]}.x: install a newer polytask"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not isinstance(manifest.get("libraries", {}), dict):
        raise ModelRefusedError(f"{path} is damaged: it lists no files")
    for name in files:
        if name not in _FILES:
            raise ModelRefusedError(f"{path} lists a file that no model has: {name[:80]!r}; nothing was read")
    for name in _FILES:
        entry = files.get(name)
        if not isinstance(entry, dict) or set(entry) != {"sha256", "size"} or type(entry["size"]) is not int:
            raise ModelRefusedError(f"{path} is damaged: no checksum of {name}")
    return manifest


def _read(path: Path, *, most: int | None = None, size: int | None = None) -> bytes:
    """Read a regular file (no link, no pipe) of at most ``most`` bytes, or of exactly ``size``."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        why = "is a link" if path.is_symlink() else f"cannot be read ({error.strerror})"
        raise ModelRefusedError(f"{path} {why}; the model was not loaded") from error
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise ModelRefusedError(f"{path} is not a regular file; the model was not loaded")
    with os.fdopen(handle, "rb") as file:
        if most is not None and found.st_size > most:
            raise ModelRefusedError(f"{path} has {found.st_size:,} bytes, more than any model needs; it was not read")
        if size is not None and found.st_size != size:
            raise ModelRefusedError(
                f"{path} has {found.st_size:,} bytes but {size:,} were saved: it was changed or cut short"
            )
        if path.suffix == ".safetensors":
            _check_header(path, file.read(8), found.st_size)
            file.seek(0)
        return file.read()


def _check_header(path: Path, start: bytes, size: int) -> None:
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(_MOST_HEADER, size - 8):
        raise ModelRefusedError(f"{path} has a header of {length:,} bytes, which no model has; it was not read")


def _checked(folder: Path, name: str, entry: Mapping[str, Any]) -> bytes:
    path = folder / name
    data = _read(path, most=_MOST_JSON if name.endswith(".json") else None, size=entry["size"])
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise ModelRefusedError(f"{path} is not as it was saved (sha256 differs); the model was not loaded")
    return data


def _plain(path: Path, data: bytes) -> dict[str, Any]:
    try:
        plain = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelRefusedError(f"{path} is damaged: {str(error)[:120]}") from error
    if not isinstance(plain, dict):
        raise ModelRefusedError(f"{path} is damaged: it holds no settings")
    return plain


def _model(folder: Path, about: Mapping[str, Any], data: bytes) -> Model:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    from polytask.registry import model_class

    kind = model_class(str(about.get("class")))
    try:
        tasks = tuple(task_from(task) for task in about["tasks"])
        return kind.from_state(tasks, about["description"], load(data))
    except (SafetensorError, KeyError, ValueError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        raise ModelRefusedError(f"{folder} does not hold a whole {kind.__name__}: {str(error)[:200]}") from error
