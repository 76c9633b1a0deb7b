"""Finished runs in one SQLite file of the run folder, written by the parent process only.

Each run is stored the moment it is finished, in its own transaction with SQLite's rollback journal, so
a kill at any time leaves every finished run readable. A lock file keeps a second command out of the
folder; the operating system drops the lock with the process, so a dead command blocks nobody.
"""

from __future__ import annotations

import io
import json
import os
import socket
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import filelock
import numpy as np

from polytask.core.data import Ints
from polytask.core.errors import DiskError, InputError
from polytask.core.files import free_space
from polytask.core.results import Run
from polytask.core.task import Floats

FILE = "runs.sqlite"
LOCK = "run.lock"
OWNER = "run.owner.json"

RowInfluences = Mapping[str, tuple[Ints, Floats]]
"""Task → (row numbers of the table, their influences on the primary metric)."""

_TABLE = """
create table if not exists runs (
    fingerprint text not null,
    method text not null,
    split integer not null,
    seed integer not null,
    status text not null,
    seconds real not null,
    run text not null,
    influences blob not null,
    primary key (fingerprint, method, split, seed)
)
"""


@dataclass(frozen=True)
class Stored:
    """One run as stored: the run, its row influences and its seconds."""

    run: Run
    influences: RowInfluences
    seconds: float


class RunStore:
    """The runs of one folder; use as a context manager, which holds the folder's lock.

    Parameters
    ----------
    folder
        Run folder; made if it is missing.

    Raises
    ------
    InputError
        On entering, when another process works in the folder; names its process and host.
    DiskError
        When the disk is full or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FILE
        self._lock = filelock.FileLock(str(folder / LOCK), timeout=0)
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        with _disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except filelock.Timeout:
                raise InputError(
                    f"{self.folder} is in use by {_owner(self.folder)}; wait for it or give another run folder"
                ) from None
        try:
            with _disk(self.path):
                owner = {"pid": os.getpid(), "host": socket.gethostname()}
                (self.folder / OWNER).write_text(json.dumps(owner), encoding="utf-8")
                self._connection = sqlite3.connect(self.path)
                self._connection.execute("pragma synchronous = full")
                with self._connection:
                    self._connection.execute(_TABLE)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        (self.folder / OWNER).unlink(missing_ok=True)
        self._lock.release()

    @property
    def connection(self) -> sqlite3.Connection:
        """The open connection."""
        if self._connection is None:
            raise RuntimeError("the store is closed; use it in a with statement")
        return self._connection

    def put(self, fingerprint: str, stored: Stored) -> None:
        """Store one run, replacing a failed one of the same key."""
        run = stored.run
        text = json.dumps(run.to_json(), sort_keys=True, allow_nan=False)
        row = (
            fingerprint,
            run.method,
            run.split,
            run.seed,
            run.status,
            stored.seconds,
            text,
            _to_bytes(stored.influences),
        )
        with _disk(self.path), self.connection:
            self.connection.execute("insert or replace into runs values (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def status(self, fingerprint: str, method: str, split: int, seed: int) -> str | None:
        """Return ``"done"``, ``"failed"``, or None for a run that was never made."""
        query = "select status from runs where fingerprint = ? and method = ? and split = ? and seed = ?"
        with _disk(self.path):
            found = self.connection.execute(query, (fingerprint, method, split, seed)).fetchone()
        return None if found is None else str(found[0])

    def get(self, fingerprint: str, method: str, split: int, seed: int) -> Stored | None:
        """Return a stored run, or None."""
        query = (
            "select run, influences, seconds from runs where fingerprint = ? and method = ? and split = ? and seed = ?"
        )
        with _disk(self.path):
            found = self.connection.execute(query, (fingerprint, method, split, seed)).fetchone()
        if found is None:
            return None
        return Stored(Run.from_json(json.loads(found[0])), _from_bytes(found[1]), float(found[2]))


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turn errors of the disk into one sentence with the path and the free space."""
    try:
        yield
    except InputError:
        raise
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
            raise InputError(f"{path} is not a file of polytask runs; move it away or give another folder") from error
        raise DiskError(f"cannot write {path}: {error} ({free_space(path)})") from error
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror or error} ({free_space(path)})") from error


def _owner(folder: Path) -> str:
    """Return who holds the lock, as far as its note can be read."""
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return f"process {int(owner['pid'])} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _to_bytes(values: RowInfluences) -> bytes:
    """Write row influences as an npz archive; names of tasks go into a JSON array of bytes."""
    names = sorted(values)
    arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {
        "names": np.frombuffer(json.dumps(names).encode(), dtype=np.uint8)
    }
    for number, name in enumerate(names):
        arrays[f"rows{number}"], arrays[f"values{number}"] = values[name]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # keywords are arrays, not allow_pickle
    return buffer.getvalue()


def _from_bytes(blob: bytes) -> RowInfluences:
    with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
        names = json.loads(arrays["names"].tobytes())
        return {name: (arrays[f"rows{number}"], arrays[f"values{number}"]) for number, name in enumerate(names)}
