"""Delimited text of any kind a spreadsheet exports, read whole or refused with a reason.

:func:`read_cells` turns bytes into text cells: compression, encoding, separator, quoting, ragged and
blank rows, column names. It never drops a row without saying so: ``n_read = rows + refused``. Turning
cells into numbers, dates and categories is the work of :mod:`polytask.sources.columns`.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import lzma
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from polytask.core.data import Ints
from polytask.core.errors import InputError, nearest, unknown
from polytask.sources.columns import count_of

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
LONGEST_NAME = 100
MOST_REFUSED = 0.10
_MOST_BYTES = 4 << 30
_SAMPLE = 100
Unpacked = gzip.GzipFile | lzma.LZMAFile | bz2.BZ2File
PACKERS: tuple[tuple[re.Pattern[bytes], Callable[[BinaryIO], Unpacked]], ...] = (
    (re.compile(rb"\x1f\x8b"), lambda file: gzip.GzipFile(fileobj=file)),
    (re.compile(rb"\xfd7zXZ\x00"), lzma.LZMAFile),
    (re.compile(rb"BZh[1-9]1AY&SY"), bz2.BZ2File),
)
"""First bytes of a compressed file, and what unpacks it."""
_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_GUARD = re.compile(r"'+[=+\-@\t\r]")
# letters of other alphabets that look like Latin ones, enough to notice a copy-and-paste trap
_LOOKALIKES = str.maketrans(
    "АВЕКМНОРСТУХасеорхуіјѕԁһІЈЅΑΒΕΖΗΙΚΜΝΟΡΤΥΧοανικρυх‐‑‒–—−’‘",
    "ABEKMHOPCTYXaceopxyijsdhIJSABEZHIKMNOPTYXoavikpux------''",
)


@dataclass(frozen=True)
class Refused:
    """A record of the file that was not taken: its first line and the reason."""

    line: int
    reason: str


@dataclass(frozen=True)
class Cells:
    """The text of a delimited file.

    Attributes
    ----------
    names
        Column names, cleaned and all different.
    columns
        One list of text cells per column.
    lines
        First line of every row in the file, shape ``(n,)``; the header is on line 1.
    refused
        Records that are not rows of the table.
    notes
        Everything that was changed or guessed, one plain sentence each.
    file, sha256, encoding, separator
        Where the cells come from; ``sha256`` is of the file as stored.
    """

    names: tuple[str, ...]
    columns: tuple[list[str], ...]
    lines: Ints
    refused: tuple[Refused, ...]
    notes: tuple[str, ...]
    file: str
    sha256: str
    encoding: str
    separator: str

    @property
    def n_read(self) -> int:
        """Records read below the header, taken or refused."""
        return len(self.lines) + len(self.refused)


def read_cells(
    path: Path, *, separator: str | None = None, encoding: str | None = None, keep_all_rows: bool = False
) -> Cells:
    """Read a delimited text file, compressed (gz, xz, bz2) or not.

    Parameters
    ----------
    path
        The file.
    separator, encoding
        Found by looking when None.
    keep_all_rows
        Refuse the whole file rather than a row: prediction must return as many rows as it got.

    Raises
    ------
    InputError
        When the file cannot be read as a table, with line and remedy.
    """
    notes: list[str] = []
    name = path.name
    raw = _read_bytes(path)
    digest = hashlib.sha256(raw).hexdigest()
    text, used = _decode(_unpack(raw, name), name, encoding, notes)
    if not text.strip("\r\n\t ,;|\"'\x1a"):
        raise InputError(f"{name} is empty; export the table again")
    text, first_line, hinted = _skip_hint(text, notes)
    if separator is not None and len(separator) != 1:
        raise InputError(f"separator must be one character such as ',' ';' or a tab, got {separator!r}")
    sign = separator or hinted or _find_separator(text)
    records = _records(text, sign, name, first_line)
    _, header = next(records)
    header = [_unguard(cell) for cell in header]
    cells, lines, refused, blank_tail = _rows(records, len(header), name, keep_all_rows)
    if not lines:
        why = f" ({len(refused)} rows refused: line {refused[0].line} {refused[0].reason})" if refused else ""
        raise InputError(f"{name} has a header but no rows{why}; a table needs at least 1 row below the names")
    if len(refused) > max(1, MOST_REFUSED * (len(lines) + len(refused))):
        raise InputError(
            f"{name}: {len(refused)} of {len(lines) + len(refused)} rows do not fit the header, the first on line "
            f"{refused[0].line} {refused[0].reason}; check the separator ({SEPARATORS.get(sign, sign)} was used)"
        )
    if blank_tail:
        notes.append(f"{count_of(blank_tail, 'row')} had extra empty cells at the end, which were left out")
    notes.extend(_tell(refused))
    names, kept = clean_names(header, [any(map(str.strip, column)) for column in cells], notes, f"{name}: ")
    return Cells(
        names,
        tuple(cells[number] for number in kept),
        np.asarray(lines, dtype=np.int64),
        tuple(refused),
        tuple(notes),
        name,
        digest,
        used,
        sign,
    )


# -- bytes and text ---------------------------------------------------------------------------


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else None
        raise InputError(f"no file {path}." + (f' Did you mean "{near}"?' if near else "")) from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give the table's file") from None
    except PermissionError:
        raise InputError(f"{path} may not be read; check its permissions") from None
    if not raw:
        raise InputError(f"{path.name} is empty (0 bytes); export the table again")
    return raw


def _unpack(raw: bytes, name: str) -> bytes:
    for magic, opened in PACKERS:
        if magic.match(raw):
            try:
                with opened(io.BytesIO(raw)) as file:
                    raw = file.read(_MOST_BYTES + 1)  # a bomb is not unpacked further
            except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
                raise InputError(f"{name} is compressed but damaged ({error}); copy it again") from error
            break
    if raw.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise InputError(f"{name} is a workbook or a zip archive, not text; save the sheet as CSV (UTF-8)")
    if len(raw) > _MOST_BYTES:
        raise InputError(f"{name} holds more than {_MOST_BYTES >> 30} GiB of text; use Parquet, or a sample")
    return raw


def _decode(raw: bytes, name: str, encoding: str | None, notes: list[str]) -> tuple[str, str]:
    used = encoding or next((found for mark, found in _MARKS if raw.startswith(mark)), None) or _guess_wide(raw, notes)
    if used is None:
        try:
            text, used = raw.decode("utf-8"), "utf-8"
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            text, used = _decode_western(raw)
            notes.append(f"not UTF-8 (line {line}): read as {used}; save as UTF-8 if letters look wrong")
    else:
        try:
            text = raw.decode(used)
        except LookupError:
            raise InputError(unknown("encoding", used, ("utf-8", "utf-16", "cp1252", "latin-1"))) from None
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name} is not {used}: byte {error.start} cannot be read; save it again as UTF-8"
            ) from error
    if "\x00" in text:
        at = text.index("\x00")
        raise InputError(
            f"{name} line {text.count(chr(10), 0, at) + 1} holds a NUL byte: the file is damaged or not text; "
            "export it again as CSV (UTF-8)"
        )
    return text, used


def _guess_wide(raw: bytes, notes: list[str]) -> str | None:
    """Recognise utf-16 without a mark: in mostly Latin text every second byte is NUL."""
    head = raw[:2000]
    pairs = len(head) // 2
    if pairs < 2:
        return None
    even, odd = head[0::2].count(0) / pairs, head[1::2].count(0) / pairs
    if max(even, odd) < 0.7 or min(even, odd) > 0.1:
        return None
    guess = "utf-16-le" if odd > even else "utf-16-be"
    notes.append(f"no byte-order mark: read as {guess}")
    return guess


def _decode_western(raw: bytes) -> tuple[str, str]:
    try:
        return raw.decode("cp1252"), "cp1252"
    except UnicodeDecodeError:
        return raw.decode("latin-1"), "latin-1"


def _skip_hint(text: str, notes: list[str]) -> tuple[str, int, str | None]:
    """Skip blank first lines and a line ``sep=;`` as spreadsheets write it."""
    start = re.match(r"(?:[ \t]*\r?\n)*", text)
    skipped = start.group() if start else ""
    text, line = text[len(skipped) :], 1 + skipped.count("\n")
    if skipped:
        notes.append(f"{count_of(line - 1, 'blank line')} above the header skipped")
    hint = re.match(r'"?sep=(.)"?\r?\n', text)
    if hint is None:
        return text, line, None
    notes.append("the line sep= above the header was obeyed")
    return text[hint.end() :], line + 1, hint.group(1)


# -- records ----------------------------------------------------------------------------------


def _find_separator(text: str) -> str:
    """Return the separator under which most of the first records have the header's number of cells."""

    def fit(sign: str) -> tuple[float, int]:
        try:
            reader = csv.reader(io.StringIO(text[:200_000], newline=""), delimiter=sign)
            widths = [len(record) for record in islice(reader, _SAMPLE) if record]
        except csv.Error:
            return 0.0, 0
        width = widths[0] if widths else 0
        return (sum(w == width for w in widths) / len(widths), width) if width > 1 else (0.0, 0)

    fits = {sign: fit(sign) for sign in SEPARATORS}
    return max(SEPARATORS, key=lambda sign: (round(fits[sign][0], 1), fits[sign][1]))


def _records(text: str, sign: str, name: str, first_line: int) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, cells) of every record, the header first."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True)
    while True:
        line = first_line + reader.line_num
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            what = str(error)
            if "unexpected end" in what or "field limit" in what:
                raise InputError(
                    f'{name} line {line}: a quotation mark (") is opened and never closed; close or double it'
                ) from error
            raise InputError(
                f"{name} line {line}: text follows a closing quotation mark ({what}); double the quotation marks "
                'inside a cell ("")'
            ) from error
        yield line, record


def _rows(
    records: Iterator[tuple[int, list[str]]], width: int, name: str, keep_all: bool
) -> tuple[list[list[str]], list[int], list[Refused], int]:
    columns: list[list[str]] = [[] for _ in range(width)]
    pools: list[dict[str, str]] = [{} for _ in range(width)]  # equal cells are stored once
    lines: list[int] = []
    refused: list[Refused] = []
    trimmed = 0
    for line, record in records:
        if not record and width > 1:
            continue  # an empty line is not a row
        cells = record or [""]
        if len(cells) > width and not any(map(str.strip, cells[width:])):
            cells = cells[:width]
            trimmed += 1
        if len(cells) != width:
            refused.append(Refused(line, f"has {count_of(len(cells), 'cell')}, the header has {width}"))
        elif not keep_all and width > 1 and not any(map(str.strip, cells)):
            refused.append(Refused(line, "is blank"))
        else:
            lines.append(line)
            for column, pool, cell in zip(columns, pools, cells, strict=True):
                if cell not in pool:
                    pool[cell] = _unguard(cell)
                column.append(pool[cell])
        if keep_all and refused:
            raise InputError(f"{name} line {line} {refused[0].reason}; every row must have as many cells as the header")
    return columns, lines, refused, trimmed


def _unguard(cell: str) -> str:
    """Take off the apostrophe that keeps a spreadsheet from running a cell as a formula."""
    return cell[1:] if cell.startswith("'") and _GUARD.match(cell) else cell


def _tell(refused: list[Refused]) -> list[str]:
    """Sum up the refused records, one sentence per reason."""
    reasons = Counter(item.reason for item in refused)
    said = []
    for reason, count in reasons.items():
        lines = [item.line for item in refused if item.reason == reason]
        shown = ", ".join(map(str, lines[:5])) + (", …" if count > 5 else "")
        said.append(f"{count_of(count, 'row')} refused: line {shown} {reason}")
    return said


# -- column names -----------------------------------------------------------------------------


def clean_names(
    header: list[str], filled: list[bool], notes: list[str], where: str = ""
) -> tuple[tuple[str, ...], list[int]]:
    """Return cleaned column names and the numbers of the columns kept; refuse what could be confused.

    A column with neither name nor values is left out; a nameless one with values is called
    ``column N``. Names are never merged: two that are equal, or look equal, are an error.
    """
    names: list[str] = []
    kept: list[int] = []
    for number, raw in enumerate(header):
        name = _clean_name(raw)
        if not name:
            if not filled[number]:
                notes.append(f"column {number + 1} has no name and no values: left out")
                continue
            name = f"column {number + 1}"
            notes.append(f'column {number + 1} has no name: called "{name}"')
        elif len(name) > LONGEST_NAME:
            name = f"{name[: LONGEST_NAME - 20]}… (column {number + 1})"
            notes.append(f'the name of column {number + 1} has {len(raw):,} characters: shortened to "{name}"')
        elif name != raw:
            notes.append(f'column {raw!r} renamed to "{name}" (spaces or invisible characters)')
        names.append(name)
        kept.append(number)
    if not names:
        raise InputError(f"{where}the header has no column names; the first row must name the columns")
    _refuse_alike(names, kept, where)
    return tuple(names), kept


def _clean_name(raw: str) -> str:
    """Collapse white space and drop invisible characters (zero-width, direction marks, soft hyphens)."""
    visible = "".join(c for c in raw if unicodedata.category(c) != "Cf")
    spaced = "".join(" " if unicodedata.category(c) in ("Cc", "Zs", "Zl", "Zp") else c for c in visible)
    return " ".join(spaced.split())


def _refuse_alike(names: list[str], kept: list[int], where: str) -> None:
    seen: dict[str, int] = {}
    for position, name in enumerate(names):
        key = unicodedata.normalize("NFKC", name).translate(_LOOKALIKES)
        if key not in seen:
            seen[key] = position
            continue
        other = seen[key]
        places = f"columns {kept[other] + 1} and {kept[position] + 1}"
        if names[other] == name:
            raise InputError(f'{where}{places} are both called "{name}"; rename one of them')
        raise InputError(
            f"{where}{places} look alike but are spelled differently: {names[other]!a} and {name!a}; rename one of them"
        )
