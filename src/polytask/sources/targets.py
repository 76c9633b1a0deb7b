"""Target columns become tasks: which kind, which levels in which order, and what looks like a leak."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polytask.core.errors import InputError, unknown
from polytask.core.task import KINDS, Binary, Floats, Multiclass, Ordinal, Regression, Task
from polytask.sources.columns import Converted, RawColumn, Reader, convert, count_of, plain_number, present

MOST_CLASSES = 50
FEW_LABELS = 20
LEAK_CORRELATION = 0.999
_LEAK_ROWS = 10
_LEAK_ROWS_CLASSES = 20
_LEAK_SAMPLE = 5000
_LEAK_GLANCE = 50

SCALES: tuple[tuple[str, ...], ...] = (
    ("very poor", "poor", "fair", "good", "very good", "excellent"),
    ("very bad", "bad", "fair", "average", "good", "very good", "excellent"),
    ("very low", "low", "medium", "high", "very high"),
    ("very low", "low", "moderate", "high", "very high"),
    ("none", "minimal", "mild", "moderate", "severe", "very severe", "extreme"),
    ("never", "rarely", "seldom", "sometimes", "often", "usually", "very often", "always"),
    ("strongly disagree", "disagree", "somewhat disagree", "neutral", "somewhat agree", "agree", "strongly agree"),
    ("very dissatisfied", "dissatisfied", "neutral", "satisfied", "very satisfied"),
    ("very unlikely", "unlikely", "neutral", "likely", "very likely"),
    ("xs", "s", "m", "l", "xl", "xxl"),
    ("tiny", "small", "medium", "large", "huge"),
)
"""Level words that are recognised as ordered, lowest first."""

_MAKERS: dict[str, Callable[[str, tuple[str, ...], tuple[str, ...]], Task]] = {
    "binary": Binary,
    "multiclass": Multiclass,
    "ordinal": Ordinal,
}

Request = str | Sequence[str]
"""What a user may say about a target: a kind, ``"ordinal: low < high"``, or the levels in order."""


@dataclass(frozen=True)
class Target:
    """A target column as numbers and the recipe for its tasks.

    Attributes
    ----------
    kind, labels
        Task kind and the names of its classes or levels.
    values
        Numbers or class codes, NaN where missing, ``(n,)``.
    notes
        What was guessed.
    """

    kind: str
    labels: tuple[str, ...]
    values: Floats
    notes: tuple[str, ...] = ()

    def task(self, name: str, metrics: tuple[str, ...] = ()) -> Task:
        """Build the task of that name."""
        if self.kind == "regression":
            return Regression(name, metrics)
        return _MAKERS[self.kind](name, metrics, self.labels)


def read_target(column: RawColumn, reader: Reader, request: Request | None, missing: Sequence[str]) -> Target | None:
    """Turn a target column into numbers; None when it has one class only, so that nothing can be learned.

    Raises
    ------
    InputError
        When the column cannot be a target of the kind asked for, or of any kind.
    """
    kind, levels = _parse_request(column.name, request)
    if kind == "regression":
        found = convert(column, reader, kind="numeric", missing=missing)
        return Target("regression", (), found.values, found.notes)
    found = convert(column, reader, missing=missing, kind="categorical" if levels else None)
    if found.kind == "date":
        raise InputError(
            f'{reader.where}: target "{column.name}" holds dates, which cannot be predicted; give a number instead, '
            "such as days until the date"
        )
    if kind is None and found.kind == "numeric":
        return _guess_number(column.name, found)
    words, order = _levels(found)
    if levels:
        _check_levels(column.name, reader, words, levels)
    labels, kind = _settle(column.name, kind, levels, order, found)
    if len(labels) < 2:
        return None
    notes = list(found.notes)
    if request is None:
        sign = " < " if kind == "ordinal" else ", "
        notes.append(
            f'target "{column.name}" read as {kind}: {sign.join(labels[:10])}{"…" if len(labels) > 10 else ""}'
        )
    return Target(kind, labels, _codes(words, labels), tuple(notes))


def _parse_request(name: str, request: Request | None) -> tuple[str | None, tuple[str, ...]]:
    if request is None:
        return None, ()
    if not isinstance(request, str):
        return ("binary" if len(request) == 2 else "ordinal"), tuple(map(str, request))
    kind, _, listed = request.partition(":")
    kind = kind.strip().lower()
    if kind not in KINDS:
        raise InputError(f'kinds["{name}"]: ' + unknown("task kind", kind, KINDS))
    separator = "<" if "<" in listed else ","
    levels = tuple(level.strip() for level in listed.split(separator) if level.strip())
    if levels and kind == "regression":
        raise InputError(f'kinds["{name}"]: a regression has no levels, got {list(levels)}')
    return kind, levels


def _guess_number(name: str, found: Converted) -> Target:
    distinct = np.unique(found.values[found.present])
    if len(distinct) == 2:
        labels = tuple(plain_number(value) for value in distinct.tolist())
        codes = np.where(found.present, (found.values == distinct[1]).astype(np.float64), np.nan)
        note = f'target "{name}" has two values, read as binary: {labels[0]}, {labels[1]}'
        return Target("binary", labels, codes, (*found.notes, note))
    notes = list(found.notes)
    if 2 < len(distinct) <= 10 and (distinct == np.round(distinct)).all():
        notes.append(
            f'target "{name}" has {len(distinct)} different whole numbers, read as regression; if they are levels, '
            f'use kinds={{"{name}": "ordinal"}}'
        )
    return Target("regression", (), found.values, tuple(notes))


def _levels(found: Converted) -> tuple[list[str | None], tuple[str, ...]]:
    """Return each row's level and the levels in numeric, boolean or alphabetical order."""
    if found.kind == "categorical":
        words: list[str | None] = found.values.tolist()
        return words, tuple(sorted({word for word in words if word is not None}))
    numbers = found.values.tolist()
    name_of = {0.0: found.words[0], 1.0: found.words[1]} if found.words else {}
    distinct = sorted({value for value in numbers if value == value})
    name_of |= {value: plain_number(value) for value in distinct if value not in name_of}
    words = [name_of[value] if value == value else None for value in numbers]
    return words, tuple(name_of[value] for value in distinct)


def _check_levels(name: str, reader: Reader, words: list[str | None], levels: tuple[str, ...]) -> None:
    wrong = next(((row, word) for row, word in enumerate(words) if word is not None and word not in levels), None)
    if wrong:
        raise InputError(
            f'{reader.place(name, wrong[0])}: "{wrong[1]}" is not among the levels given ({", ".join(levels)}); add it '
            "to kinds, or list it under missing"
        )


def _settle(
    name: str, kind: str | None, given: tuple[str, ...], order: tuple[str, ...], found: Converted
) -> tuple[tuple[str, ...], str]:
    """Fix the kind and the order of the levels; levels that were given keep theirs."""
    levels = given or order
    scale = _scale_of(levels) if not given and found.kind == "categorical" else ()
    guessed = kind is None
    if kind is None:
        kind = "binary" if len(levels) <= 2 else "ordinal" if scale else "multiclass"
    if kind == "binary" and len(levels) > 2:
        raise InputError(f'target "{name}" has {len(levels)} different values, binary needs 2; use kind "multiclass"')
    if kind == "ordinal" and found.kind == "categorical" and not given and not scale:
        raise InputError(
            f'target "{name}": the order of {", ".join(levels[:6])} is not known; give it from low to high, as in '
            f'kinds={{"{name}": "ordinal: low < medium < high"}}'
        )
    if guessed and len(levels) > MOST_CLASSES:
        raise InputError(
            f'target "{name}" has {len(levels):,} different texts, such as "{levels[0]}"; targets are numbers or at '
            f"most {MOST_CLASSES} classes. Choose another target, or set its kind with kinds"
        )
    return (scale if scale and kind != "multiclass" else levels), kind


def _scale_of(levels: tuple[str, ...]) -> tuple[str, ...]:
    """Return the levels in the order of a scale that has them all, or nothing."""
    plain = {level.lower().replace("_", " ").replace("-", " "): level for level in levels}
    if len(plain) < len(levels):
        return ()
    for scale in SCALES:
        if set(plain) <= set(scale):
            return tuple(plain[word] for word in scale if word in plain)
    return ()


def _codes(words: list[str | None], labels: tuple[str, ...]) -> Floats:
    code = {label: float(number) for number, label in enumerate(labels)}
    return np.array([code[word] if word is not None else np.nan for word in words])


# -- leaks ------------------------------------------------------------------------------------


def find_leak(features: Mapping[str, Converted], target: Target) -> tuple[str, str] | None:
    """Return (feature, how) of the first feature that repeats the target, or None.

    Numbers repeat a number or a yes/no target when |r| > 0.999; any column repeats classes when its
    values and the classes match one to one.
    """
    labelled = ~np.isnan(target.values)
    for name, feature in features.items():
        both = labelled & feature.present
        if both.sum() < _LEAK_ROWS:
            continue
        if feature.kind != "categorical" and target.kind in ("regression", "binary"):
            r = _correlation(feature.values, target.values, both)
            if abs(r) > LEAK_CORRELATION:
                return name, f"r = {r:.4f}"
        if target.labels and both.sum() >= _LEAK_ROWS_CLASSES and _one_to_one(feature.values, target.values, both):
            return name, "its values match the classes one to one"
    return None


def _correlation(x: Floats, y: Floats, rows: NDArray[np.bool_]) -> float:
    chosen = np.flatnonzero(rows)
    for part in (chosen[:_LEAK_SAMPLE], chosen):
        a, b = x[part] - x[part].mean(), y[part] - y[part].mean()
        size = np.sqrt((a @ a) * (b @ b))
        r = float(a @ b / size) if size > 0 else 0.0
        if part is not chosen and len(part) < len(chosen) and abs(r) < 0.99:
            return 0.0
    return r


def _one_to_one(x: NDArray[np.generic], y: Floats, rows: NDArray[np.bool_]) -> bool:
    chosen = np.flatnonzero(rows)
    for part in (chosen[:_LEAK_GLANCE], chosen[:_LEAK_SAMPLE], chosen):
        left, right = x[part].tolist(), y[part].tolist()
        pairs = len(set(zip(left, right, strict=True)))
        if not pairs == len(set(left)) == len(set(right)):
            return False
    return pairs >= 2


# -- what to say ------------------------------------------------------------------------------


def label_notes(name: str, target: Target) -> list[str]:
    """Say what limits learning: few labels, a constant."""
    values = target.values[~np.isnan(target.values)]
    notes = []
    if len(values) < FEW_LABELS:
        notes.append(f'task "{name}" has only {count_of(len(values), "label")}: expect no sure verdict')
    if len(values) and (values == values[0]).all():
        shown = target.labels[int(values[0])] if target.labels else f"{values[0]:g}"
        notes.append(f'task "{name}" is constant ({shown}): its scores cannot be measured')
    return notes


def present_count(values: NDArray[np.generic]) -> int:
    """Count the entries that are not missing."""
    return int(present(values).sum())
