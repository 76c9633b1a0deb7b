"""Text cells or frame columns become numbers, dates, yes/no values or categories — or an error that says where.

Kinds of columns: ``numeric`` (float64, NaN where missing), ``boolean`` (float64 0 and 1), ``date``
(float64 days since 1970-01-01 UTC) and ``categorical`` (strings, None where missing). The way numbers
and dates are written is found anew in every file; only the kind is remembered between training and
prediction.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytask.core.data import Array, Ints
from polytask.core.errors import InputError
from polytask.core.task import Floats

KINDS = ("numeric", "boolean", "date", "categorical")
LARGEST = 1e100
MIXED = 0.9
_DATE_SAMPLE = 200
NUMERIC_MISSING = frozenset({"na", "n/a", "#n/a", "n.a.", "nan", "null", "none", "nil", ".", "-", "--", "?"})
_LITERALS = frozenset({"na", "n/a", "nan", "null", "none"})
_PAIRS = (
    ("no", "yes"),
    ("false", "true"),
    ("n", "y"),
    ("f", "t"),
    ("off", "on"),
    ("nein", "ja"),
    ("non", "oui"),
)
TRUTH = {word: float(value) for pair in _PAIRS for value, word in enumerate(pair)} | {"0": 0.0, "1": 1.0}
_INFINITE = re.compile(r"[+-]?(inf|infinity|∞)", re.IGNORECASE)
_POINT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+|\d{1,3}(,\d{3})+(\.\d*)?)([eE][+-]?\d+)?")
_COMMA = re.compile(r"[+-]?(\d+,?\d*|,\d+|\d{1,3}(\.\d{3})+(,\d*)?)([eE][+-]?\d+)?")
_DATE_START = re.compile(
    r"\d{1,4}[-/. ]\d{1,2}[-/. ]|\d{1,4}-\d{2}$|\d{1,2}[-/. ]?[A-Za-z]{3}|[A-Za-z]{3,9} \d{1,2},? \d{4}"
)
_DAYS = ("%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%d/%m/%y", "%m/%d/%y", "%d.%m.%y")
_WORDED = ("%d-%b-%Y", "%d-%b-%y", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%d%b%Y")
_CLOCKS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")


@dataclass(frozen=True)
class RawColumn:
    """One column before its kind is known.

    Attributes
    ----------
    name
        Column name.
    values
        Objects (text cells, None where missing) or float64 with NaN where missing.
    kind
        ``"text"``, or the kind a frame already gave it.
    """

    name: str
    values: Array
    kind: str = "text"


@dataclass(frozen=True)
class Reader:
    """What conversion needs to know about the file.

    Attributes
    ----------
    where
        Name of the file, for messages.
    lines
        First line of each row, or None for a frame.
    comma_is_decimal
        True or False when told, None when the cells decide.
    separator
        Separator of the file; a comma inside a number is read as decimal unless the separator is a comma.
    """

    where: str
    lines: Ints | None = None
    comma_is_decimal: bool | None = None
    separator: str = ","

    def place(self, name: str, row: int) -> str:
        """Return ``column "x", row 3 (line 4)``, rows counted from 1."""
        line = f" (line {int(self.lines[row])})" if self.lines is not None else ""
        return f'{self.where}: column "{name}", row {row + 1}{line}'


@dataclass(frozen=True)
class Converted:
    """A column of known kind, what there is to say about it, and the words of its 0 and 1 if boolean."""

    name: str
    kind: str
    values: Array
    notes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which rows have a value, ``(n,)``."""
        return present(self.values)


def present(values: Array) -> NDArray[np.bool_]:
    """Return which entries of a raw column are not missing, ``(n,)``."""
    if values.dtype == object:
        return np.fromiter((value is not None for value in values), dtype=np.bool_, count=len(values))
    return ~np.isnan(values)


def convert(column: RawColumn, reader: Reader, *, kind: str | None = None, missing: Collection[str] = ()) -> Converted:
    """Find the kind of a column, or apply the one given, and convert its values.

    Raises
    ------
    InputError
        For infinite or huge numbers, for a number column with a few texts in it and for values that
        do not fit the kind given; names column, first row, value and remedy.
    """
    if column.kind == "text" or kind == "categorical" or (kind is not None and kind != column.kind):
        texts = _texts(column, frozenset(missing))
        if kind is None:
            return _guess(column.name, texts, reader)
        return _MAKERS[kind](column.name, texts, reader)
    values = np.asarray(column.values, dtype=np.float64)
    codes = [float(code) for code in missing if _POINT.fullmatch(code)]
    values = np.where(np.isin(values, codes), np.nan, values) if codes else values
    _check_size(column.name, values, reader, [])
    return Converted(column.name, column.kind, values)


def _texts(column: RawColumn, missing: Collection[str]) -> list[str | None]:
    """Return stripped text cells with None where blank or listed as missing."""
    if column.values.dtype != object:
        cells: list[Any] = [None if math.isnan(v) else plain_number(v) for v in column.values.tolist()]
    else:
        cells = column.values.tolist()
    clean: dict[Any, str | None] = {None: None}
    for cell in set(cells) - {None}:
        text = str(cell).strip()
        clean[cell] = None if not text or text in missing else text
    return [clean[cell] for cell in cells]


def count_of(number: int, noun: str) -> str:
    """Write a count: ``1 row``, ``2,000 rows``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def plain_number(value: float) -> str:
    """Write a number as a category: whole numbers without a point."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


# -- guessing ---------------------------------------------------------------------------------


def _guess(name: str, texts: list[str | None], reader: Reader) -> Converted:
    levels = set(texts) - {None}
    candidates = {text for text in levels if text is not None and text.lower() not in NUMERIC_MISSING}
    if not candidates:
        if not levels <= {".", "-", "--", "?"}:
            return _categorical(name, texts, reader)
        return Converted(name, "numeric", np.full(len(texts), np.nan))
    numbers, style = _parse_numbers(candidates, reader)
    share = _share(texts, numbers, candidates)
    if share == 1.0 and _are_codes(candidates):
        found = _categorical(name, texts, reader)
        note = f'column "{name}": numbers with leading zeros, read as categories'
        return Converted(name, found.kind, found.values, (*found.notes, note))
    if share == 1.0:
        return _number_column(name, texts, reader, numbers, style)
    if share >= MIXED:
        row, value = _first(texts, lambda text: text in candidates and text not in numbers)
        raise InputError(
            f'{reader.place(name, row)}: "{_short(value)}" is not a number, but {share:.1%} of the column is; correct '
            f'it, list it under missing, or declare the column: kinds={{"{name}": "categorical"}}'
        )
    if any(candidates <= {word for word in levels if word and word.lower() in pair} for pair in _PAIRS):
        return _boolean(name, texts, reader)
    dates, _, _ = _parse_dates(candidates)
    share_dates = _share(texts, dates, candidates)
    if share_dates == 1.0:
        return _date(name, texts, reader)
    if share_dates >= MIXED:
        row, value = _first(texts, lambda text: text in candidates and text not in dates)
        raise InputError(
            f'{reader.place(name, row)}: "{_short(value)}" is not a date like the rest of the column; correct it, list '
            f'it under missing, or declare the column: kinds={{"{name}": "categorical"}}'
        )
    found = _categorical(name, texts, reader)
    if share >= 0.2:
        note = f'column "{name}": {share:.0%} of the values are numbers; read as categories'
        return Converted(name, found.kind, found.values, (*found.notes, note))
    return found


def _are_codes(levels: Collection[str]) -> bool:
    """Tell codes such as 01234 (all of one length, some with a leading zero) from numbers."""
    return len({len(text) for text in levels}) == 1 and any(re.fullmatch(r"0\d+", text) for text in levels)


def _share(texts: list[str | None], good: Collection[str], candidates: Collection[str]) -> float:
    total = sum(text in candidates for text in texts)
    return sum(text in good for text in texts) / total


def _first(texts: Sequence[str | None], wrong: Callable[[str], bool]) -> tuple[int, str]:
    return next((row, text) for row, text in enumerate(texts) if text is not None and wrong(text))


def _short(text: str) -> str:
    shown = text if len(text) <= 40 else text[:39] + "…"
    return "".join(c if c.isprintable() else " " for c in shown)


# -- one maker per kind -----------------------------------------------------------------------


def _numeric(name: str, texts: list[str | None], reader: Reader) -> Converted:
    levels = {text for text in set(texts) if text is not None}
    codes = {text for text in levels if text.lower() in NUMERIC_MISSING}
    numbers, style = _parse_numbers(levels - codes, reader)
    if len(numbers) < len(levels - codes):
        row, value = _first(texts, lambda text: text not in numbers and text not in codes)
        raise InputError(
            f'{reader.place(name, row)}: "{_short(value)}" is not a number; correct it, or list it under missing'
        )
    return _number_column(name, texts, reader, numbers, style)


def _number_column(
    name: str, texts: list[str | None], reader: Reader, numbers: dict[str, float], style: str
) -> Converted:
    values = np.array([numbers.get(text, math.nan) if text is not None else math.nan for text in texts])
    _check_size(name, values, reader, texts)
    notes = _tell_codes(name, texts)
    if style:
        notes.append(f'column "{name}": {style}')
    return Converted(name, "numeric", values, tuple(notes))


def _check_size(name: str, values: Floats, reader: Reader, texts: Sequence[str | None]) -> None:
    bad = np.flatnonzero(np.abs(values) > LARGEST)  # NaN compares as False
    if len(bad):
        row = int(bad[0])
        value = (texts[row] if texts else None) or f"{values[row]:g}"
        what = "infinite" if _INFINITE.fullmatch(value) else f"beyond ±{LARGEST:g}"
        raise InputError(f"{reader.place(name, row)}: {value} is {what}; correct it, or list it under missing")


def _parse_numbers(levels: Collection[str], reader: Reader) -> tuple[dict[str, float], str]:
    """Read numbers with a decimal point or a decimal comma, whichever reads more of the cells."""
    chosen = {text: text.replace(",", "") if "," in text else text for text in levels if _POINT.fullmatch(text)}
    style = "comma read as the thousands sign"
    commas = any("," in text for text in levels)
    if reader.comma_is_decimal or (reader.comma_is_decimal is None and commas):
        comma = {text: text.replace(".", "").replace(",", ".") for text in levels if _COMMA.fullmatch(text)}
        more = len(comma) > len(chosen) or (len(comma) == len(chosen) and reader.separator != ",")
        if reader.comma_is_decimal or (more and any("," in text for text in comma)):
            chosen, style = comma, "comma read as the decimal sign"
    numbers = {text: float(plain) for text, plain in chosen.items()}
    if len(numbers) < len(levels):
        numbers |= {text: float(text.replace("∞", "inf")) for text in levels if _INFINITE.fullmatch(text)}
    return numbers, style if commas and any("," in text for text in chosen) else ""


def _boolean(name: str, texts: list[str | None], _: Reader) -> Converted:
    values = np.array([TRUTH.get(text.lower(), math.nan) if text is not None else math.nan for text in texts])
    known = TRUTH.keys() | NUMERIC_MISSING
    unknown = [text for text in texts if text is not None and text.lower() not in known]
    notes = _tell_codes(name, texts)
    if unknown:
        notes.append(
            f'column "{name}": {count_of(len(unknown), "cell")} such as "{_short(unknown[0])}" not yes/no: missing'
        )
    return Converted(name, "boolean", values, tuple(notes), _words(texts))


def _words(texts: list[str | None]) -> tuple[str, ...]:
    """Return how the column spells 0 and 1; a word that does not occur comes from its pair."""
    seen = Counter(text for text in texts if text is not None and text.lower() in TRUTH)
    common = {TRUTH[text.lower()]: text for text, _ in reversed(seen.most_common())}
    pair = next((pair for pair in _PAIRS if {text.lower() for text in common.values()} <= set(pair)), ("0", "1"))
    return tuple(common.get(float(value), word) for value, word in enumerate(pair))


def _tell_codes(name: str, texts: list[str | None]) -> list[str]:
    codes = {text for text in set(texts) if text is not None and text.lower() in NUMERIC_MISSING}
    if not codes:
        return []
    listed = ", ".join(f'"{code}"' for code in sorted(codes))
    return [f'column "{name}": {listed} read as missing ({count_of(sum(text in codes for text in texts), "cell")})']


def _date(name: str, texts: list[str | None], reader: Reader) -> Converted:
    levels = {text for text in texts if text is not None and text.lower() not in NUMERIC_MISSING}
    days, how, doubt = _parse_dates(levels)
    if len(days) < len(levels):
        row, value = _first(texts, lambda text: text in levels and text not in days)
        raise InputError(
            f'{reader.place(name, row)}: "{_short(value)}" is not a date; write dates as 2024-12-31, or list it under '
            "missing"
        )
    values = np.array([days.get(text, math.nan) if text is not None else math.nan for text in texts])
    notes = [*_tell_codes(name, texts), f'column "{name}": dates written as {how}, read as days since 1970-01-01']
    if doubt:
        notes.append(f'column "{name}": day and month cannot be told apart; {how} assumed')
    return Converted(name, "date", values, tuple(notes))


def _parse_dates(levels: Collection[str]) -> tuple[dict[str, float], str, bool]:
    """Return text → days since 1970-01-01 by the form that reads most cells, the form, and whether two do."""
    sample = [text for _, text in zip(range(_DATE_SAMPLE), sorted(levels), strict=False)]
    if sum(_DATE_START.match(text) is not None for text in sample) < len(sample) / 2:
        return {}, "", False
    every = ("ISO8601", *(day + clock for day in (*_DAYS, *_WORDED) for clock in _CLOCKS))
    forms = [form for form in every if np.mean(~np.isnan(_days(sample, form))) > 0.5]
    ordered = sorted(levels)
    found = [(form, _days(ordered, form)) for form in forms]
    if not found:
        return {}, "", False
    counts = [int((~np.isnan(days)).sum()) for _, days in found]
    form, best = found[int(np.argmax(counts))]
    doubt = sum(count == max(counts) and not np.array_equal(days, best, equal_nan=True)
                for count, (_, days) in zip(counts, found, strict=True)) > 0  # fmt: skip
    read = {text: day for text, day in zip(ordered, best.tolist(), strict=True) if not math.isnan(day)}
    return read, _how(form), doubt and form != "ISO8601"


def _days(texts: list[str], form: str) -> Floats:
    """Return days since 1970-01-01 UTC, NaN where a text is not written in this form."""
    import pandas as pd

    moments = pd.to_datetime(pd.Series(texts, dtype=object), format=form, errors="coerce", utc=True)
    stamps = moments.dt.tz_localize(None).to_numpy().astype("datetime64[us]").astype(np.int64)
    return np.where(moments.notna().to_numpy(), stamps / 86_400e6, np.nan)


def _how(form: str) -> str:
    return "ISO 8601 (2024-12-31)" if form == "ISO8601" else form


def _categorical(name: str, texts: list[str | None], _: Reader) -> Converted:
    kept = sorted({text for text in texts if text is not None and text.lower() in _LITERALS})
    notes: tuple[str, ...] = ()
    if kept:
        listed = ", ".join(f'"{text}"' for text in kept)
        notes = (f'column "{name}": {listed} kept as a category; list it under missing if it means no value',)
    values = np.empty(len(texts), dtype=object)
    values[:] = texts
    return Converted(name, "categorical", values, notes)


_MAKERS: dict[str, Callable[[str, list[str | None], Reader], Converted]] = {
    "numeric": _numeric,
    "boolean": _boolean,
    "date": _date,
    "categorical": _categorical,
}
