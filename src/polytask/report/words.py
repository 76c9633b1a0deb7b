"""How numbers and names are written for people, the same way in every kind of report."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

VERDICTS = ("gains", "hurt", "cannot tell", "not measurable")
SYMBOLS = {"gains": "▲", "hurt": "▼", "cannot tell": "○", "not measurable": "–"}
SHARING = {"single": "each task alone", "pooled": "one model for all", "shared": "shared"}
_MOST_CHARACTERS = 300

# what could move the cursor, reorder the line or break the encoding: C0 and C1 controls, bidirectional
# overrides, lone surrogates
_BREAKS = re.compile(r"[\t\n\r\v\f\x85\u2028\u2029]+")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def printable(text: object, most: int = _MOST_CHARACTERS) -> str:
    """Return ``text`` as one line without control characters, cut to ``most`` characters."""
    line = _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", _BREAKS.sub(" ", str(text)))
    return clip(line, most)


def printable_lines(text: str) -> str:
    """Return ``text`` with its line breaks but without other control characters."""
    return "\n".join(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", line) for line in re.split(r"\r\n|\r|\n", text))


def clip(text: str, most: int) -> str:
    """Return ``text``, cut to ``most`` characters with an ellipsis where it is longer."""
    return text if len(text) <= most else text[: max(most - 1, 0)] + "…"


def percent(share: float | None, *, signed: bool = False) -> str:
    """Write a share such as 0.0312 as ``3.1 %``; None as a dash.

    >>> percent(0.0312, signed=True)
    '+3.1 %'
    """
    if share is None:
        return "–"
    value = 100.0 * share
    if abs(value) >= 1e6:
        return f"{value:{'+' if signed else ''}.1e} %"
    digits = 0 if abs(value) >= 100 else 1
    value = round(value, digits) + 0.0  # no "-0.0"
    return f"{value:{'+' if signed and value else ''}.{digits}f} %"


def interval(low: float | None, high: float | None) -> str:
    """Write an interval of shares as ``[+1.2, +5.0] %``; empty where there is none."""
    if low is None or high is None:
        return ""
    return f"[{percent(low, signed=True)[:-2]}, {percent(high, signed=True)[:-2]}] %"


def number(value: float | None) -> str:
    """Write a score with four significant digits; None as a dash."""
    if value is None:
        return "–"
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        decimals = 3 if value == 0 else min(max(3 - math.floor(math.log10(abs(value))), 0), 6)
        return f"{value:.{decimals}f}"
    return f"{value:.3e}"


def fixed(value: float | None, top: float) -> str:
    """Write a number of a table whose largest is ``top``: three digits of that one for all."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if not 1e-3 <= top < 1e6:
        return f"{value:.1e}"
    return f"{value:.{min(max(2 - math.floor(math.log10(top)), 0), 6)}f}"


def mean_sd(mean: float | None, sd: float | None) -> str:
    """Write ``mean ± sd`` with two significant digits of the spread."""
    if mean is None:
        return "–"
    if not sd or abs(mean) >= 1e6 or abs(mean) < 1e-4 or sd < 1e-6:
        return number(mean)
    decimals = min(max(1 - math.floor(math.log10(float(f"{sd:.1e}"))), 0), 4)
    return f"{mean:.{decimals}f} ± {sd:.{decimals}f}"


def count(n: int, one: str, many: str = "") -> str:
    """Write ``1 task`` or ``3 tasks``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}".replace(",", "\u202f" if n >= 10_000 else "")


def listed(names: Sequence[str], most: int = 6) -> str:
    """Write names as ``a, b and c``; a long list is cut with how many are left."""
    if len(names) > most:
        return ", ".join(names[:most]) + f" and {len(names) - most} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))


def title_of(name: str) -> str:
    """Write a key such as ``task_correlation`` as ``Task correlation``."""
    spaced = printable(name).replace("_", " ").strip()
    return spaced[:1].upper() + spaced[1:]
