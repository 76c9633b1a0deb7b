"""Readers of the catalogue's sets of images: MNIST and its kin, two of them overlaid, Omniglot."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from polytask.core.data import Array, Labels, TaskData
from polytask.core.errors import InputError
from polytask.core.task import Multiclass, Task
from polytask.sources.images import Bytes, idx_array, labelled_images, read_pictures, unpacked

PARTS = ("train", "test")
OMNIGLOT_SIZE = (28, 28)
_CANVAS = 36


def digits(raws: Sequence[bytes], paths: Sequence[str], task: Task) -> TaskData:
    """Read training images and labels, then test images and labels, from four IDX files.

    ``keys["part"]`` is ``"train"`` or ``"test"``.
    """
    arrays = [_idx(raw, path) for raw, path in zip(raws, paths, strict=True)]
    images, codes = np.concatenate(arrays[0::2]), np.concatenate(arrays[1::2])
    return labelled_images(images, {task.name: codes}, tasks=[task], keys=_parts([len(part) for part in arrays[1::2]]))


def overlaid(left: TaskData, right: TaskData, *, seed: int) -> TaskData:
    """Lay a random image of ``right`` over every image of ``left``: two tasks, ``left`` and ``right``.

    The canvas has 36 x 36 pixels; the left image fills its upper left 28 x 28 pixels, the right one its
    lower right; where both have ink the larger value counts. Training images meet training images only,
    test images test images. Partners are drawn with replacement from ``seed``.
    """
    (one,), (other,) = left.tasks, right.tasks
    rng = np.random.default_rng(seed)
    partner = np.zeros(left.n_rows, dtype=np.int64)
    for part in PARTS:
        here = np.flatnonzero(left.keys["part"] == part)
        partner[here] = rng.choice(np.flatnonzero(right.keys["part"] == part), size=len(here))
    over, under = left.inputs["image"], right.inputs["image"]
    side = over.shape[-1]
    images: Bytes = np.zeros((left.n_rows, 1, _CANVAS, _CANVAS), dtype=np.uint8)
    images[:, :, :side, :side] = over
    corner = images[:, :, _CANVAS - side :, _CANVAS - side :]
    np.maximum(corner, under[partner], out=corner)
    tasks = [Multiclass("left", one.metrics, one.labels), Multiclass("right", other.metrics, other.labels)]
    values = right.labels[other.name].values[partner]
    codes = {"left": left.labels[one.name].values.astype(np.int64), "right": values.astype(np.int64)}
    return labelled_images(images, codes, tasks=tasks, keys=left.keys)


def omniglot(raws: Sequence[bytes], paths: Sequence[str]) -> TaskData:
    """Read every alphabet as a task that tells its characters apart, with rows of its own.

    Drawings of 105 x 105 pixels are averaged to 28 x 28; ink is 255. Keys: ``alphabet``, ``drawer``
    (1 … 20), ``part`` (``"background"`` or ``"evaluation"``, as published).
    """
    files: list[IO[bytes]] = []
    found: list[tuple[str, str, int, str]] = []  # alphabet, character, drawer, part
    for raw, path, part in zip(raws, paths, ("background", "evaluation"), strict=True):
        for name, picture in _members(raw, path):
            _, owner, sign, file = Path(name).parts
            files.append(picture)
            found.append((owner.replace("_", " "), sign, int(Path(file).stem.split("_")[1]), part))
    order = sorted(range(len(found)), key=found.__getitem__)
    names = ["/".join(map(str, found[number])) for number in order]
    images = 255 - read_pictures([files[number] for number in order], names=names, channels=1, size=OMNIGLOT_SIZE)
    alphabet, character, part_of = (_texts([found[number][place] for number in order]) for place in (0, 1, 3))
    tasks, labels = [], {}
    for name in dict.fromkeys(alphabet.tolist()):
        rows = np.flatnonzero(alphabet == name)
        classes, codes = np.unique(character[rows], return_inverse=True)
        tasks.append(Multiclass(name, ("accuracy", "log_loss"), tuple(classes.tolist())))
        labels[name] = Labels(rows, codes.astype(np.float64))
    drawer = np.array([found[number][2] for number in order], dtype=np.int64)
    keys = {"alphabet": alphabet, "drawer": drawer, "part": part_of}
    return TaskData(tuple(tasks), {"image": images}, labels, keys=keys)


def _members(raw: bytes, path: str) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".png"):
                stored = archive.extractfile(member)
                if stored is None:
                    raise InputError(f"{path} lacks {member.name}; fetch it again")
                yield member.name, io.BytesIO(stored.read())


def _idx(raw: bytes, path: str) -> Array:
    with unpacked(io.BytesIO(raw)) as stream:
        return idx_array(stream, path)


def _parts(sizes: Sequence[int]) -> dict[str, Array]:
    return {"part": _texts([part for part, size in zip(PARTS, sizes, strict=True) for _ in range(size)])}


def _texts(values: Sequence[Any]) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
