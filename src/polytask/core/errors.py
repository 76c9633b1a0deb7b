"""Errors a user can mend: each names the argument, the value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class PolytaskError(Exception):
    """Base of every error polytask raises on purpose; ``exit_code`` is what the command line returns."""

    exit_code: ClassVar[int] = 1


class InputError(PolytaskError, ValueError):
    """Bad data or settings (exit code 2)."""

    exit_code: ClassVar[int] = 2


class MissingExtraError(PolytaskError, ImportError):
    """An optional dependency is not installed (exit code 2)."""

    exit_code: ClassVar[int] = 2


class ModelRefusedError(PolytaskError):
    """A model folder that is not polytask's, is damaged or is too new (exit code 3)."""

    exit_code: ClassVar[int] = 3


class DiskError(PolytaskError, OSError):
    """The disk is full or cannot be written (exit code 74)."""

    exit_code: ClassVar[int] = 74


def nearest(name: str, options: Iterable[str]) -> str | None:
    """Return the option closest in spelling to ``name``, or None when nothing is close."""
    by_lower = {option.lower(): option for option in options}
    hits = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[hits[0]] if hits else None


def unknown(what: str, name: str, options: Iterable[str], *, most: int = 12) -> str:
    """Say that ``name`` is unknown, with the nearest right one and what is available."""
    known = sorted(options)
    hit = nearest(name, known)
    listed = ", ".join(known[:most]) + (f", … ({len(known)} in all)" if len(known) > most else "")
    guess = f' Did you mean "{hit}"?' if hit else ""
    return f'unknown {what} "{name}".{guess} Available: {listed or "none"}.'
