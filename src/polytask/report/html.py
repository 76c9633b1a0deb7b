"""Facts to one HTML file that opens from disk, offline, with every script known by its hash.

Three fences keep text from a table from becoming code: Jinja escapes it, data for scripts is JSON
without ``<``, ``>`` or ``&``, and a content security policy lets only the two scripts of this room run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytask.core.errors import InputError
from polytask.core.files import write_file
from polytask.core.results import Results
from polytask.report import words
from polytask.report.facts import facts_of
from polytask.report.figures import curve_figures, forests, relation_figure, shown_as_table
from polytask.report.sharing import used_sentence

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).parent / "templates"
MOST_METRIC_ROWS = 600
MOST_GAIN_ROWS = 300
MANY = 30
_CLASSES = {"gains": "gains", "hurt": "hurt", "cannot tell": "unsure", "not measurable": "unmeasured"}


def write_html(results: Results | Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the report as one self-contained HTML file (about 5 MB, most of it plotly.js).

    The file is written whole or not at all: readers see the old file or the new one.

    Parameters
    ----------
    results
        Results, or the facts :func:`polytask.report.collect` made of them.
    path
        Where to write; its folder must exist.

    Returns
    -------
    pathlib.Path
        The path.

    Raises
    ------
    InputError
        The folder does not exist, or the path is a folder.
    DiskError
        The disk is full or cannot be written; an older file is left as it was.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f'path: the folder "{target.parent}" does not exist; create it first')
    if target.is_dir():
        raise InputError(f'path: "{target}" is a folder; give the name of a file, such as report.html')
    write_file(target, to_html(results))
    return target


def to_html(results: Results | Mapping[str, Any]) -> str:
    """Return the report as the text of one HTML file; see :func:`write_html`."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    facts = facts_of(results)
    figures: list[dict[str, Any]] = []
    view = _view(facts, figures)
    scripts = {"plotly": get_plotlyjs(), "page": (_TEMPLATES / "report.js").read_text(encoding="utf-8")}
    for name, script in scripts.items():
        if "</script" in script.lower() or "<!--" in script or "\r" in script:
            raise ValueError(f"the script {name} cannot stand inside an HTML page as it is")
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            facts=facts,
            view=view,
            many=len(facts["verdicts"]) > MANY,
            policy=content_security_policy(scripts.values()),
            style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
            figures=Markup(script_json(figures)),  # noqa: S704 - made safe by script_json
            scripts={name: Markup(script) for name, script in scripts.items()},  # noqa: S704 - plotly.js and our own
        )
    )


def content_security_policy(scripts: Iterable[str]) -> str:
    """Return the policy: nothing is loaded from anywhere, and only these scripts run."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode() for script in scripts]
    rules = {
        "default-src": "'none'",
        "script-src": " ".join(f"'sha256-{value}'" for value in hashes),
        "style-src": "'unsafe-inline'",  # plotly.js sets styles of its own
        "img-src": "data: blob:",  # saving a chart as a picture
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def script_json(value: Any) -> str:
    """Return JSON that can stand inside a script element: no ``<``, ``>``, ``&`` and no line separators."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        percent=lambda share, signed=False: _typeset(words.percent(share, signed=signed)),
        signed=lambda share: _typeset(words.percent(share, signed=True)),
        number=lambda value: _typeset(words.number(value)),
        clip=words.clip,
        name=words.title_of,
        verdict_class=lambda verdict: _CLASSES[verdict],
        symbol=lambda verdict: words.SYMBOLS[verdict],
        shade=_shade,
        fixed=lambda value, top: _typeset(words.fixed(value, top)),
    )
    environment.globals.update(
        interval=lambda row: _typeset(words.interval(row["low"], row["high"])),
        mean_sd=lambda cell: _typeset(words.mean_sd(cell["mean"], cell["sd"])),
        count=words.count,
        used_sentence=used_sentence,
        sharing_words=words.SHARING,
        verdicts=words.VERDICTS,
    )
    return environment


def _typeset(text: str) -> str:
    """Use a true minus sign and a narrow space before the per cent sign."""
    return text.replace("-", "\N{MINUS SIGN}").replace(" %", "\N{NARROW NO-BREAK SPACE}%")


def _shade(value: float | None, top: float) -> str:
    """Return the class of a shaded cell: sign and one of four strengths."""
    if not value or not top:
        return ""
    return f"{'p' if value > 0 else 'n'}{min(int(4 * abs(value) / top) + 1, 4)}"


# -- what the template needs besides the facts -----------------------------------------------------------


def _view(facts: Mapping[str, Any], figures: list[dict[str, Any]]) -> dict[str, Any]:
    """Return numbered charts, placed interval bars and capped tables; ``figures`` is filled on the way."""

    def number_of(figure: dict[str, Any] | None) -> int | None:
        if figure is None:
            return None
        figures.append({"data": figure["data"], "layout": figure["layout"]})
        return len(figures) - 1

    def placed(chart: dict[str, Any]) -> dict[str, Any]:
        figure = chart["figure"]
        about = figure["about"] if figure else ""
        height = figure["layout"]["height"] if figure else 0
        return {**chart, "figure": number_of(figure), "alt": about, "height": height}

    curves = curve_figures(facts["curves"])
    shared = [row for row in facts["methods"] if row["sharing"] != "single"]
    shared.sort(key=lambda row: -(row["mean"]["gain"] if row["mean"] and row["mean"]["gain"] is not None else -1e9))
    metric_rows = facts["metrics"]["rows"]
    gain_rows = facts["gains"]["tasks"]
    order = {row["task"]: place for place, row in enumerate(facts["verdicts"])}
    return {
        "verdict_bars": _bars([_speaks(row) for row in facts["verdicts"]]),
        "shared_methods": shared,
        "method_bars": _bars([row["mean"] for row in shared]),
        "forests": [placed(chart) for chart in forests(facts)],
        "curve_legend": curves["legend"],
        "curve_tasks": [placed(chart) for chart in curves["tasks"]],
        "curve_bands": [placed(chart) for chart in curves["bands"]],
        "relations": [
            {**entry, "tables": [_relation(table, placed) for table in entry["tables"]]} for entry in facts["relations"]
        ],
        "gain_rows": sorted(gain_rows, key=lambda row: order.get(row["task"], 0))[:MOST_GAIN_ROWS],
        "gain_rows_left": max(len(gain_rows) - MOST_GAIN_ROWS, 0),
        "gain_top": max(
            (abs(c["gain"]) for row in gain_rows for c in row["cells"] if c["status"] == "measured"), default=0.0
        ),
        "metric_groups": _by_task(metric_rows[:MOST_METRIC_ROWS]),
        "metric_rows_left": max(len(metric_rows) - MOST_METRIC_ROWS, 0),
        "overall_bars": [_bars_of_scores(metric) for metric in facts["overall"]["metrics"]],
    }


def _speaks(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return row if row["gain"] is not None else row["seen"]


def _relation(table: Mapping[str, Any], placed: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    figure = relation_figure(table)
    top = max((abs(v) for row in table.get("values", ()) for v in row if v is not None), default=0.0)
    return placed({**table, "figure": figure, "as_table": shown_as_table(table), "top": top})


def _by_task(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = []
    for row in rows:
        if not groups or groups[-1]["task"] != row["task"]:
            groups.append({"task": row["task"], "kind": row["kind"], "rows": []})
        groups[-1]["rows"].append(row)
    return groups


def _bars(rows: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Place every interval on a common scale of 0 … 100; what lies beyond is cut at the ends."""
    ends = [value for row in rows if row for value in (row["gain"], row["low"], row["high"], 0.0) if value is not None]
    low, high = _scale(ends)
    return {"zero": round(_place(0.0, low, high), 2), "rows": [_bar(row, "gain", low, high) for row in rows]}


def _bars_of_scores(metric: Mapping[str, Any]) -> list[dict[str, float] | None]:
    """Place scores and published ranges on one scale of 0 … 100."""
    rows = [*metric["rows"], *metric["published"]]
    ends = [row[end] for row in rows for end in ("mean", "low", "high") if row.get(end) is not None]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    pad = 0.08 * (high - low) or 0.01
    return [_bar(row, "mean", low - pad, high + pad) for row in rows]


def _scale(ends: Sequence[float]) -> tuple[float, float]:
    if not ends:
        return -1.0, 1.0
    ranked = sorted(abs(value) for value in ends)
    reach = 3.0 * ranked[int(0.9 * (len(ranked) - 1))] or 1.0
    low, high = max(min(ends), -reach), min(max(ends), reach)
    pad = 0.05 * (high - low) or 0.01
    return low - pad, high + pad


def _place(value: float, low: float, high: float) -> float:
    return min(max(100.0 * (value - low) / (high - low), 1.0), 99.0)


def _bar(row: Mapping[str, Any] | None, middle: str, low: float, high: float) -> dict[str, float] | None:
    if row is None:
        return None
    centre = row.get(middle)
    ends = [row.get("low") if row.get("low") is not None else centre,
            row.get("high") if row.get("high") is not None else centre]  # fmt: skip
    if ends[0] is None or ends[1] is None:
        return None
    bar = {"low": round(_place(ends[0], low, high), 2), "high": round(_place(ends[1], low, high), 2)}
    if centre is None and bar["low"] == bar["high"]:
        centre = ends[0]
    if centre is not None:
        bar["middle"] = round(_place(centre, low, high), 2)
    return bar
