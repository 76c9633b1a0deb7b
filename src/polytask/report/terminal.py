"""Facts to the terminal: the verdict table, one line per method, and what went wrong.

Texts from the data are never read as rich markup, and a terminal that knows only ASCII gets ASCII.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polytask.core.results import Results
from polytask.report.facts import facts_of
from polytask.report.words import SYMBOLS, VERDICTS, clip, count, interval, number, percent

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

MOST_TASKS = 24
_STYLES = {"gains": "bold blue", "hurt": "bold dark_orange3", "cannot tell": "", "not measurable": "dim"}
_ASCII = {
    "▲": "+", "▼": "-", "○": "?", "–": "-", "…": "...", "±": "+/-", "→": "->", "↑": "^", "↓": "v", "−": "-",
    "²": "2", "“": '"', "”": '"', "≈": "~", "×": "x", "\u202f": " ",
}  # fmt: skip


def to_terminal(results: Results | Mapping[str, Any], *, most_tasks: int = MOST_TASKS) -> Summary:
    """Return the report as something rich can print in 100 columns (and in fewer).

    Parameters
    ----------
    results
        Results, or the facts :func:`polytask.report.collect` made of them.
    most_tasks
        Rows of the verdict table. Of more tasks the strongest of each verdict are shown, and how many
        are left out.

    Examples
    --------
    ``rich.console.Console().print(to_terminal(results))``
    """
    return Summary(facts_of(results), most_tasks)


@dataclass(frozen=True)
class Summary:
    """What :func:`to_terminal` returns; rich draws it."""

    facts: Mapping[str, Any]
    most_tasks: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text

        facts, pen = self.facts, _Pen(options.ascii_only)
        yield pen.text(facts["title"], "bold", most=options.max_width)
        yield pen.text(facts["headline"]["sentence"], "bold")
        yield Text("")
        shown = _strongest(facts["verdicts"], self.most_tasks)
        if shown:
            yield _verdicts(shown, pen, options.max_width)
        if len(shown) < len(facts["verdicts"]):
            yield pen.text(f"{len(shown)} of {len(facts['verdicts'])} tasks shown; the report has all of them.", "dim")
        lines = [row for row in facts["methods"] if "sentence" in row]
        if lines:
            yield Text("")
        for row in lines:
            yield pen.text(row["sentence"] + ".")
        yield from _overall(facts, pen)
        for sentence in facts["headline"]["notes"]:
            yield pen.text(sentence)
        for run in facts["failed"]["rows"][:3]:
            yield pen.text(f"failed: {run['method']}, split {run['split']}: {run['error']}", most=300)
        if facts["failed"]["n"] > 3:
            yield pen.text(f"… and {facts['failed']['n'] - 3} more failed runs", "dim")


@dataclass(frozen=True)
class _Pen:
    """Writes text that is shown as it is."""

    ascii_only: bool

    def plain(self, text: str) -> str:
        if not self.ascii_only:
            return text
        for sign, instead in _ASCII.items():
            text = text.replace(sign, instead)
        return text.encode("ascii", "backslashreplace").decode("ascii")

    def text(self, text: str, style: str = "", most: int = 2000, **rest: Any) -> Any:
        from rich.text import Text

        return Text(self.plain(clip(text, most)), style=style, **rest)


def _strongest(rows: list[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """Return the rows, or of too many an equal share of every verdict, the strongest first."""
    if len(rows) <= most:
        return rows
    by_verdict = {verdict: [row for row in rows if row["verdict"] == verdict] for verdict in VERDICTS}
    room = dict.fromkeys(VERDICTS, 0)
    while sum(room.values()) < most:
        for verdict in VERDICTS:
            if room[verdict] < len(by_verdict[verdict]) and sum(room.values()) < most:
                room[verdict] += 1
    return [row for verdict in VERDICTS for row in by_verdict[verdict][: room[verdict]]]


def _verdicts(rows: list[Mapping[str, Any]], pen: _Pen, width: int) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    wide = width >= 90
    table.add_column("task", overflow="fold", min_width=10, max_width=26)
    table.add_column("verdict", no_wrap=True)
    table.add_column("method", overflow="fold", max_width=18)
    table.add_column("gain", justify="right", no_wrap=True)
    if wide:
        table.add_column("95 % interval", justify="right", no_wrap=True)
        table.add_column("best alone", overflow="fold")
    for row in rows:
        spoken = row if row["gain"] is not None or row["seen"] is None else row["seen"]
        style = _STYLES[row["verdict"]]
        sure = "" if row["verdict"] in ("gains", "hurt") else "dim"
        cells = [
            pen.text(row["task"], most=60),
            pen.text(f"{SYMBOLS[row['verdict']]} {row['verdict']}", style),
            pen.text(spoken["method"] or "–", sure, most=40),
            pen.text(percent(spoken["gain"], signed=True), sure or style),
        ]
        if wide:
            score = f"{row['metric_label']} {number(row['baseline_score'])}"
            alone = f"{clip(row['baseline'], 24)}, {score}" if row["baseline"] else row["reason"] or "–"
            cells += [
                pen.text(interval(spoken["low"], spoken["high"]).removesuffix(" %"), sure),
                pen.text(alone, "dim", most=80),
            ]
        table.add_row(*cells)
    return table


def _overall(facts: Mapping[str, Any], pen: _Pen) -> Iterator[RenderableType]:
    """Yield one line for each score over all tasks: the best method, and published ranges."""
    for metric in facts["overall"]["metrics"]:
        known = [row for row in metric["rows"] if row["mean"] is not None]
        if not metric["percent"] or not known:
            continue
        scores = ", ".join(f"{row['method']} {percent(row['mean'])}" for row in known)
        yield pen.text(f"{metric['label']}: {scores}.")
        for row in metric["published"]:
            if row["low"] is not None and row["high"] is not None:
                same = row["low"] == row["high"]
                ends = percent(row["low"]) if same else f"{percent(row['low'])} to {percent(row['high'])}"
                yield pen.text(f"  published, approximate: {row['what']} {ends}", "dim")
    if len(facts["verdicts"]) > MOST_TASKS:
        tally = facts["headline"]["counts"]
        told = ", ".join(f"{tally[verdict]} {verdict}" for verdict in VERDICTS if tally[verdict])
        yield pen.text(f"{count(facts['n_tasks'], 'task')}: {told}.")
