"""Images with labels: IDX files, and folders of PNG and JPEG files that a label table names.

Images stay as they are stored, ``inputs["image"]`` ``(n, C, H, W)`` uint8 with values 0 … 255: a quarter of
the memory of float32. Networks scale every batch to [0, 1] when they read it
(:mod:`polytask.train.batches`); floats, finite and scaled as you like, are taken too.

An IDX file is a header (two zero bytes, type, number of axes, one big-endian uint32 per axis) and the numbers in
C order. A file whose header and length disagree, that holds more than it says, or that unpacks to more than
``most_bytes`` is refused; so are pictures with more than ``MOST_PIXELS`` pixels, before they are unpacked, and
paths of a label table that lead out of its folder, also through links. Nothing is unpickled.
"""

from __future__ import annotations

import lzma
import math
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from polytask.core.data import Array, Labels, TaskData
from polytask.core.errors import InputError, MissingExtraError, nearest
from polytask.core.task import Binary, Multiclass, Task
from polytask.sources.preflight import PACKERS
from polytask.sources.tables import Missing, read_labels
from polytask.sources.targets import Request

MOST_PIXELS = 64 << 20
"""Pixels a single picture may have."""
MOST_BYTES = 4 << 30
"""Bytes all images of a data set may have together, by default."""
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_FORMATS = ("PNG", "JPEG")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_BLOCK = 1 << 20
Bytes = NDArray[np.uint8]


class Reads(Protocol):
    """A stream of bytes."""

    def read(self, size: int = ..., /) -> bytes: ...


# -- IDX --------------------------------------------------------------------------------------


def read_idx(path: str | os.PathLike[str], *, most_bytes: int = MOST_BYTES) -> Array:
    """Read an array from an IDX file, compressed (gz, xz, bz2) or not.

    Parameters
    ----------
    path
        The file.
    most_bytes
        Largest array that is read.

    Raises
    ------
    InputError
        For a file that is absent, damaged, not IDX, shorter or longer than its header says, or too large.
    """
    file = Path(path)
    try:
        with file.open("rb") as stored, unpacked(stored) as stream:
            return idx_array(stream, file.name, most_bytes=most_bytes)
    except FileNotFoundError:
        near = nearest(file.name, [p.name for p in file.parent.iterdir()]) if file.parent.is_dir() else None
        raise InputError(f"no file {file}." + (f' Did you mean "{near}"?' if near else "")) from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"{file.name} cannot be read ({error}); copy it again") from error


@contextmanager
def unpacked(stored: BinaryIO) -> Iterator[Reads]:
    """Yield the unpacked stream of an open file, compressed or not."""
    first = stored.read(16)
    stored.seek(0)
    for magic, opened in PACKERS:
        if magic.match(first):
            with opened(stored) as stream:
                yield stream
            return
    yield stored


def idx_array(stream: Reads, name: str, *, most_bytes: int = MOST_BYTES) -> Array:
    """Read an array from an open, unpacked IDX stream; see :func:`read_idx`."""
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES or not 1 <= magic[3] <= 8:
        raise InputError(f"{name} is not an IDX file: it begins with {magic.hex(' ') or 'nothing'}")
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise InputError(f"{name} ends within its header; copy it again")
    shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
    kind = np.dtype(_IDX_TYPES[magic[2]])
    announced = math.prod(shape) * kind.itemsize
    if announced > most_bytes:
        raise InputError(
            f"{name} says it holds {' x '.join(map(str, shape))} numbers, {announced:,} bytes; at most {most_bytes:,} "
            "are read (most_bytes)"
        )
    held = bytearray()
    while len(held) < announced and (block := stream.read(min(_BLOCK, announced - len(held)))):
        held += block  # grows with what is there, whatever the header says
    if len(held) < announced or stream.read(1):
        what = "more" if len(held) == announced else f"{len(held):,}"
        raise InputError(f"{name} holds {what} bytes of data, its header says {announced:,}; copy it again")
    return np.frombuffer(held, kind).astype(kind.newbyteorder("="), copy=False).reshape(shape)


def read_idx_images(
    images: str | os.PathLike[str],
    labels: Mapping[str, str | os.PathLike[str]],
    *,
    tasks: Sequence[Task] | None = None,
    most_bytes: int = MOST_BYTES,
) -> TaskData:
    """Read images ``(n, H, W)`` and one file of class codes ``(n,)`` per task.

    Parameters
    ----------
    images
        IDX file of uint8 images.
    labels
        Task name → IDX file of its codes 0 … K-1.
    tasks
        The tasks, in the order of ``labels``; None names the classes by their codes.
    most_bytes
        Largest array that is read.
    """
    pictures = read_idx(images, most_bytes=most_bytes)
    codes = {name: read_idx(path, most_bytes=most_bytes) for name, path in labels.items()}
    return labelled_images(pictures, codes, tasks=tasks)


def labelled_images(
    images: Array,
    codes: Mapping[str, Array],
    *,
    tasks: Sequence[Task] | None = None,
    keys: Mapping[str, Array] | None = None,
) -> TaskData:
    """Return task data of images ``(n, H, W)`` or ``(n, C, H, W)`` and class codes ``(n,)`` of every task."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape[1:]:
        raise InputError(f"images has shape {images.shape}, type {images.dtype}; give (n, H, W) or (n, C, H, W) uint8")
    for name, values in codes.items():
        if values.shape != (len(images),) or values.dtype.kind not in "ui":
            raise InputError(
                f'labels of "{name}" have shape {values.shape} and type {values.dtype}; give one whole number for each '
                f"of the {len(images)} images"
            )
    if tasks is None:
        tasks = [_coded_task(name, values) for name, values in codes.items()]
    elif [task.name for task in tasks] != list(codes):
        raise InputError(f"tasks has {[task.name for task in tasks]}, labels {list(codes)}; they must be the same")
    rows = np.arange(len(images))
    labels = {name: Labels(rows, values.astype(np.float64)) for name, values in codes.items()}
    pictures = images if images.ndim == 4 else images[:, None]
    return TaskData(tuple(tasks), {"image": pictures}, labels, keys=keys or {})


def _coded_task(name: str, codes: Array) -> Task:
    if not len(codes) or codes.min() < 0 or codes.max() > 10_000:
        raise InputError(f'labels of "{name}" must be class codes from 0 on, 10,000 at most')
    classes = tuple(str(code) for code in range(max(2, int(codes.max()) + 1)))
    return Binary(name, classes=classes) if len(classes) == 2 else Multiclass(name, classes=classes)


# -- folders of pictures ----------------------------------------------------------------------


def read_image_folder(
    folder: str | os.PathLike[str],
    table: Any,
    *,
    path_column: str = "path",
    targets: Sequence[str] | None = None,
    task_column: str | None = None,
    target: str | None = None,
    kinds: Mapping[str, Request] | None = None,
    missing: Missing = (),
    keys: Sequence[str] = (),
    channels: Literal[1, 3] = 3,
    size: tuple[int, int] | None = None,
    most_bytes: int = MOST_BYTES,
) -> TaskData:
    """Read PNG and JPEG files and the labels a table has for them.

    Parameters
    ----------
    folder
        Where the files are, in sub-folders or not.
    table
        Labels: a file or frame as :func:`~polytask.sources.tables.read_table` takes it, one record per image.
    path_column
        Column with each image's path below ``folder``.
    targets, task_column, target, kinds, missing
        Which columns are labels, and their kinds; as in :func:`~polytask.sources.tables.read_table`.
    keys
        Columns to carry along in ``data.keys``, such as a group to split by; the path is always there.
    channels
        1: grey; 3: red, green, blue. Transparency is dropped. Pictures lie as stored: the orientation a
        camera notes is not applied.
    size
        (height, width) to which pictures are resized (averaging); None: all must have the same size.
    most_bytes
        Bytes all images may have together.

    Raises
    ------
    InputError
        Names the file: a path that leads out of the folder, a file that is absent, damaged or too large, a
        picture of another size or with more than 8 bits per channel.
    MissingExtraError
        Without Pillow (``pip install "polytask[images]"``).
    """
    root = Path(folder).resolve()
    if not root.is_dir():
        raise InputError(f"folder is {folder}, which is not a folder")
    if channels not in (1, 3):
        raise InputError(f"channels is {channels}; give 1 (grey) or 3 (colours)")
    tasks, labels, carried = read_labels(
        table,
        keys=[path_column, *keys],
        targets=targets,
        task_column=task_column,
        target=target,
        kinds=kinds,
        missing=missing,
    )
    names = carried[path_column].tolist()
    paths = [inside(root, name) for name in names]
    images = read_pictures(paths, names=names, channels=channels, size=size, most_bytes=most_bytes)
    return TaskData(tasks, {"image": images}, labels, keys=carried)


def inside(root: Path, name: str) -> Path:
    """Return the file that ``name`` means below the resolved folder ``root``; refuse what lies elsewhere."""
    try:
        path = (root / name).resolve()
        within, is_file = path.is_relative_to(root), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a zero byte, a circle of links, a name that is too long
        raise InputError(f'"{name}" is no usable path ({error})') from error
    if not within:
        raise InputError(f'"{name}" leads out of the folder of images; give paths below it')
    if not is_file:
        raise InputError(f'there is no image file "{name}" in the folder')
    return path


def read_pictures(
    files: Sequence[Path | IO[bytes]],
    *,
    names: Sequence[str],
    channels: Literal[1, 3] = 3,
    size: tuple[int, int] | None = None,
    most_bytes: int = MOST_BYTES,
) -> Bytes:
    """Read pictures of one size into ``(n, channels, H, W)``; ``names`` are for messages.

    Arguments as in :func:`read_image_folder`.
    """
    if size is not None and min(size) < 1:
        raise InputError(f"size is {size}; give (height, width) of at least 1 pixel")
    images: Bytes = np.zeros((0, channels, *(size or (0, 0))), dtype=np.uint8)
    for number, (file, name) in enumerate(zip(files, names, strict=True)):
        picture = _pixels(file, name, channels, size)
        if not number:
            needed = len(files) * picture.nbytes
            if needed > most_bytes:
                raise InputError(
                    f"{len(files):,} images of {picture.shape[1]} x {picture.shape[2]} pixels are {needed:,} bytes, "
                    f"more than most_bytes={most_bytes:,}; give a smaller size"
                )
            images = np.empty((len(files), *picture.shape), dtype=np.uint8)
        if picture.shape != images.shape[1:]:
            raise InputError(
                f'"{name}" has {picture.shape[1]} x {picture.shape[2]} pixels, "{names[0]}" has {images.shape[2]} x '
                f"{images.shape[3]}; give size=(height, width) to resize them"
            )
        images[number] = picture
    return images


def _pixels(file: Path | IO[bytes], name: str, channels: int, size: tuple[int, int] | None) -> Bytes:
    """Return one picture as ``(channels, H, W)``."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingExtraError('reading pictures needs Pillow: pip install "polytask[images]"') from error
    with _readable(name, Image.DecompressionBombError), Image.open(file, formats=_FORMATS) as picture:
        _check_picture(name, picture.mode, picture.size)
        plain = picture.convert("L" if channels == 1 else "RGB")
        if size is not None and plain.size != size[::-1]:
            plain = plain.resize(size[::-1], Image.Resampling.BOX)
        pixels = np.asarray(plain, dtype=np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


@contextmanager
def _readable(name: str, bomb: type[Exception]) -> Iterator[None]:
    """Say which picture is damaged, in whichever way Pillow notices."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of sizes above its own limit and of odd metadata
            yield
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error, bomb) as error:
        raise InputError(f'"{name}" is not a readable {" or ".join(_FORMATS)} file ({error})') from error


def _check_picture(name: str, mode: str, size: tuple[int, int]) -> None:
    if size[0] * size[1] > MOST_PIXELS:
        raise InputError(f'"{name}" says it has {size[0]} x {size[1]} pixels, over {MOST_PIXELS:,}; make it smaller')
    if mode not in _MODES:
        raise InputError(f'"{name}" has pixels of type {mode}; give 8 bits per channel, grey or colours')


# -- few labels -------------------------------------------------------------------------------


def few_per_class(data: TaskData, count: int, *, seed: int) -> tuple[TaskData, TaskData]:
    """Split the rows of tasks with rows of their own: ``count`` of every class to learn from, and the rest.

    Parameters
    ----------
    data
        Tasks with classes; no row carries two labels.
    count
        Rows of each class of each task in the first part; a class with no more rows gives all but one.
    seed
        Which rows are drawn; a task's rows do not depend on which other tasks there are.

    Returns
    -------
    few, rest
        Two parts of the labelled rows.
    """
    if count < 1:
        raise InputError(f"count is {count}; give at least 1 row of each class")
    if len(data.tasks) > 1 and not data.one_task_per_row:
        raise InputError("few_per_class needs rows of their own for each task; some row carries two labels")
    few, rest = [], []
    for task in data.tasks:
        if not task.labels:
            raise InputError(f'task "{task.name}" is {task.kind} and has no classes to draw from')
        labels = data.labels[task.name]
        rng = np.random.default_rng([seed, zlib.crc32(task.name.encode())])
        for code in range(len(task.labels)):
            rows = rng.permutation(labels.rows[labels.values == code])
            taken = min(count, len(rows) - 1) if len(rows) > 1 else len(rows)
            few.append(rows[:taken])
            rest.append(rows[taken:])
    return data.rows(np.sort(np.concatenate(few))), data.rows(np.sort(np.concatenate(rest)))
