"""Files that are written whole or not at all, and one sentence for a disk that cannot be written.

Content goes to ``.name.tmp-PROCESS`` beside the file, is flushed to the disk and renamed over it: a reader finds the
old file or the new one, whenever the writer is killed. What killed writers left is removed by the next.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polytask.core.errors import DiskError


def free_space(path: Path) -> str:
    """Return how many bytes are free where ``path`` lies, in words."""
    near = next((folder for folder in (path, *path.parents) if folder.exists()), Path())
    try:
        return f"{shutil.disk_usage(near).free:,} bytes free"
    except OSError:
        return "free space unknown"


def disk_error(path: Path, error: OSError) -> DiskError:
    """Say in one sentence that ``path`` could not be written, why, and how much space is left."""
    why = error.strerror or error
    return DiskError(f"cannot write {path}: {why} ({free_space(path)} there); what was there before is unchanged")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an :class:`OSError` of the block into a :class:`~polytask.core.errors.DiskError` that names ``path``."""
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        raise disk_error(path, error) from error


def write_file(path: str | Path, content: str | bytes, *, make_folder: bool = True) -> None:
    """Write a file whole or not at all.

    Parameters
    ----------
    path
        The file.
    content
        Text is written as UTF-8.
    make_folder
        Whether to make the folder where it is missing.

    Raises
    ------
    DiskError
        The disk is full or cannot be written; an older file is left as it was.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    beside = path.with_name(f".{path.name[:80]}.tmp-{os.getpid()}")
    with writing(path):
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        try:
            write_through(beside, data)
            beside.replace(path)
            flush_folder(path.parent)
        finally:
            beside.unlink(missing_ok=True)


def write_through(path: Path, data: bytes) -> None:
    """Write a file and flush it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Flush the names of a folder to the disk."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep(path: Path) -> None:
    """Remove what processes that are gone left half-written of a file or folder."""
    for left in path.parent.glob(f".{_literal(path.name[:80])}.tmp-*"):
        number = left.name.rpartition("-")[2]
        if number.isdigit() and not _alive(int(number)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _alive(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
