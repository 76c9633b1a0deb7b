"""Run folders: safe names, one process at a time, and a log of events."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import socket
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polytask.core.errors import InputError
from polytask.core.files import writing

_RESERVED = {"con", "prn", "aux", "nul", *(f"{name}{number}" for name in ("com", "lpt") for number in range(1, 10))}
_LONGEST = 80
RUN_FILES = ("runs.sqlite", "results.json", "config.yaml", "events.jsonl", "report.html", "report.md")
LOCK = ".lock"


def safe_name(text: str) -> str:
    """Return a file name made of ``text`` that is one folder deep on every system.

    Letters, digits, ``-``, ``_`` and inner dots stay; anything else becomes ``-``; names that some
    system reserves get a ``_``; at most 80 characters are kept.
    """
    plain = unicodedata.normalize("NFKC", text)
    name = re.sub(r"[^\w.-]+", "-", plain).strip("-. ")
    name = re.sub(r"\.{2,}", ".", name)[:_LONGEST].strip("-. ")
    while len(name.encode()) > 2 * _LONGEST:
        name = name[:-1]
    if name.split(".")[0].lower() in _RESERVED:
        name = f"_{name}"
    return name or "run"


def run_folder(out: str | None, title: str, *, typed: bool = True) -> Path:
    """Return the folder of a run: ``out`` when given, else ``runs/`` and a safe form of the title.

    Parameters
    ----------
    typed
        Whether a person typed ``out`` as a flag. In a settings file, which may come from somebody
        else, it must stay inside the current folder.
    """
    if out is None:
        return Path("runs") / safe_name(title)
    path = Path(out)
    if not typed and (path.is_absolute() or ".." in path.parts):
        raise InputError(f'out: "{out}" leads out of the current folder; give such a folder as --out {out}')
    if path.name in {"", ".."}:
        raise InputError(f'out: "{out}" is no name for a folder; write for example runs/houses')
    return path.with_name(safe_name(path.name))


def check_run_folder(folder: Path) -> None:
    """Refuse a folder that holds something else, before anything is written into it."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; choose another run folder with --out")
    found = [path.name for path in folder.iterdir()]
    if found and not {*RUN_FILES, LOCK} & set(found):
        raise InputError(
            f"{folder} holds other files ({sorted(found)[0]}, …) and no run; choose another folder with --out"
        )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder; a second process is told at once who holds it. A dead holder's lock is free."""
    from filelock import FileLock, Timeout

    path = folder / LOCK
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        holder = folder / f"{LOCK}.json"
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"{folder} is in use by {_holder(holder)}; wait for it, or choose another --out"
            ) from error
    try:
        with writing(holder):
            holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _holder(path: Path) -> str:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return f"process {int(about['pid'])} on {about['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


class Events:
    """A log of what happened, one JSON object a line, appended as it happens."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, event: str, **about: Any) -> None:
        """Append one event with the time it happened (UTC)."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **about}, ensure_ascii=False)
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
