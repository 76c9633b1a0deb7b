"""Facts to Markdown, for a pull request, an issue or a lab notebook."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from polytask.core.results import Results
from polytask.report.facts import facts_of
from polytask.report.sharing import used_sentence
from polytask.report.words import SYMBOLS, clip, count, fixed, interval, mean_sd, number, percent, title_of

MOST_TASKS = 40
_MOST_LEAVES = 30  # of a tree that is written as a list
_MOST_COLUMNS = 12
_MEANT = re.compile(r"([\\`*_{}\[\]#|~$])")


def to_markdown(results: Results | Mapping[str, Any], *, most_tasks: int = MOST_TASKS) -> str:
    """Return the report as Markdown text.

    Parameters
    ----------
    results
        Results, or the facts :func:`polytask.report.collect` made of them.
    most_tasks
        Rows of the tables of tasks; how many are left out is said below a table.
    """
    facts = facts_of(results)
    parts = [
        f"# {escape(facts['title'])}",
        "**" + escape(facts["headline"]["sentence"]) + "**",
        _bullets(facts["headline"]["sentences"][1:]),
        "## Verdict for each task",
        _verdicts(facts, most_tasks),
        "### How to read this",
        _bullets(facts["reading"]),
        "## Gain by sharing method",
        _methods(facts),
        _gains(facts, most_tasks),
        _overall(facts),
        _shared(facts),
        "## Scores",
        "Mean ± standard deviation over splits; ↓ lower is better, ↑ higher is better.",
        _metrics(facts, most_tasks),
        _data(facts),
        _failed(facts),
        _settings(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: object, most: int = 200) -> str:
    """Return text that Markdown shows as it is, also inside a table cell."""
    safe = clip(str(text), most).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MEANT.sub(r"\\\1", safe)


def fenced(text: str, kind: str = "") -> str:
    """Return a block of code whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{kind}\n{text}\n{fence}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return a table of cells that are escaped already; ``right`` are the columns of numbers."""
    if not rows:
        return ""
    rule = ["---:" if column in right else "---" for column in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join("- " + escape(sentence, 2000) for sentence in sentences)


def _more(n: int, most: int, what: str) -> str:
    return f"\n\n{count(n - most, f'more {what}')} left out here." if n > most else ""


def _verdicts(facts: Mapping[str, Any], most: int) -> str:
    rows = []
    for row in facts["verdicts"][:most]:
        spoken = row if row["gain"] is not None or row["seen"] is None else row["seen"]
        method = escape(spoken["method"]) if spoken["method"] else "–"
        gain = f"{percent(spoken['gain'], signed=True)} {interval(spoken['low'], spoken['high'])}".strip()
        baseline = f"{escape(row['baseline'])} ({number(row['baseline_score'])})" if row["baseline"] else "–"
        rows.append(
            [
                escape(row["task"]),
                f"{row['kind']}, {row['metric_label']}",
                "–" if row["n_labels"] is None else str(row["n_labels"]),
                f"{SYMBOLS[row['verdict']]} {row['verdict']}",
                method,
                gain,
                baseline,
                ", ".join(escape(name) for name in row["hurt_by"]) or "–",
            ]
        )
    head = ["task", "kind, metric", "labels", "verdict", "method", "gain [95 %]", "best alone", "hurt by"]
    return _table(head, rows, (2, 5)) + _more(len(facts["verdicts"]), most, "task")


def _methods(facts: Mapping[str, Any]) -> str:
    return _bullets([row["sentence"] + "." for row in facts["methods"] if "sentence" in row])


def _gains(facts: Mapping[str, Any], most: int) -> str:
    table = facts["gains"]
    if not table["methods"]:
        return ""
    rows = [
        [escape(row["task"]), *(_gain(cell) for cell in row["cells"])] for row in table["tasks"][:most]
    ]  # fmt: skip
    text = _table(["task", *map(escape, table["methods"])], rows, range(1, len(table["methods"]) + 1))
    why = [
        f"- n/a for {escape(method['method'])}: "
        + "; ".join(f"{escape(entry['reason'])} ({count(entry['n'], 'task')})" for entry in method["refused"][:4])
        for method in facts["methods"]
        if method["refused"]
    ]
    return text + _more(len(table["tasks"]), most, "task") + ("\n\n" + "\n".join(why) if why else "")


def _gain(cell: Mapping[str, Any]) -> str:
    if cell["status"] != "measured":
        return str(cell["status"])
    return f"{SYMBOLS[cell['verdict']]} {percent(cell['gain'], signed=True)}"


def _overall(facts: Mapping[str, Any]) -> str:
    parts = []
    for metric in facts["overall"]["metrics"]:
        write = percent if metric["percent"] else number
        rows = [
            [escape(row["method"]), write(row["mean"]), _range(row, write)]
            for row in metric["rows"]
        ] + [
            [f"{escape(row['what'])} (published, approximate)", "≈", _range(row, write)]
            for row in metric["published"]
        ]  # fmt: skip
        parts += [f"### {escape(metric['label'])}", escape(metric["about"], 500)]
        parts.append(_table(["method", "mean", "95 % interval"], rows, (1, 2)))
    parts += [
        f"- {escape(row['what'])} (published, approximate): {_range(row, number)} {escape(row['note'])}"
        for row in facts["overall"]["published"]
    ]
    return "\n\n".join(["## All tasks together", *filter(None, parts)]) if parts else ""


def _range(row: Mapping[str, Any], write: Any) -> str:
    if row["low"] is None or row["high"] is None:
        return "–"
    return str(write(row["low"])) if row["low"] == row["high"] else f"{write(row['low'])} to {write(row['high'])}"


def _shared(facts: Mapping[str, Any]) -> str:
    parts = []
    for entry in facts["relations"]:
        for table in entry["tables"]:
            parts.append(f"### {escape(entry['method'])}: {escape(title_of(table['name']))}")
            parts.append(escape(table["about"], 500))
            parts.append(_relation(table))
    return "\n\n".join(["## What is shared", *filter(None, parts)]) if parts else ""


def _relation(table: Mapping[str, Any]) -> str:
    if table["kind"] == "coefficients":
        head = ["feature", *(escape(name, 40) for name in table["columns"][:12])]
        top = max((abs(v) for row in table["values"] for v in row if v is not None), default=0.0)
        rows = [
            [escape(name), *(fixed(value, top) for value in values[:12])]
            for name, values in zip(table["rows"], table["values"], strict=True)
        ]
        return used_sentence(table) + "\n\n" + _table(head, rows, range(1, len(head)))
    if "closest" in table:
        lines = []
        for what, pairs in (("Most alike", table["closest"]), ("Most opposed", table["opposed"])):
            named = [f"{escape(p['first'])} and {escape(p['second'])} ({fixed(p['value'], 1.0)})" for p in pairs]
            lines += [f"- {what}: {'; '.join(named)}"] if named else []
        return "\n".join(lines)
    if table["kind"] == "tree":
        if 2 <= len(table["leaves"]) == len(table["merges"]) + 1 <= _MOST_LEAVES:
            return "\n".join(_branch(table, len(table["leaves"]) + len(table["merges"]) - 1, 0))
        return f"A tree of {count(table['n_rows'], 'leaf', 'leaves')}; drawn in the HTML report."
    if 0 < table["n_columns"] <= _MOST_COLUMNS or 0 < table["n_rows"] <= _MOST_COLUMNS:
        return _numbers(table)
    return f"{count(table['n_rows'], 'row')} by {count(table['n_columns'], 'column')}; drawn in the HTML report."


def _branch(table: Mapping[str, Any], node: int, depth: int) -> list[str]:
    """Return a node of a tree and what is below it as a nested list."""
    leaves, indent = table["leaves"], "  " * depth + "- "
    if node < len(leaves):
        return [indent + escape(leaves[node], 60)]
    first, second, height = table["merges"][node - len(leaves)][:3]
    below = _branch(table, int(first), depth + 1) + _branch(table, int(second), depth + 1)
    return [f"{indent}joined at {number(height)}", *below]


def _numbers(table: Mapping[str, Any]) -> str:
    """Return weights or loadings; more columns than fit on a page become rows."""
    rows, columns, values, total = table["rows"], table["columns"], table["values"], table["n_rows"]
    if len(columns) > _MOST_COLUMNS:
        rows, columns, values, total = columns, rows, list(zip(*values, strict=True)), table["n_columns"]
    top = max((abs(value) for row in values for value in row if value is not None), default=0.0)
    cells = [[escape(name), *(fixed(value, top) for value in row)] for name, row in zip(rows, values, strict=True)]
    head = ["", *(escape(name, 40) for name in columns)]
    shown = cells[:MOST_TASKS]
    return _table(head, shown, range(1, len(head))) + _more(total, len(shown), "row")


def _metrics(facts: Mapping[str, Any], most: int) -> str:
    table = facts["metrics"]
    tasks = list(dict.fromkeys(row["task"] for row in table["rows"]))
    kept = set(tasks[:most])
    rows = [
        [escape(row["task"]), row["label"] + (" ↑" if row["higher_is_better"] else " ↓"), *map(_score, row["cells"])]
        for row in table["rows"]
        if row["task"] in kept
    ]
    head = ["task", "metric", *map(escape, table["methods"])]
    return _table(head, rows, range(2, len(head))) + _more(len(tasks), most, "task")


def _score(cell: Mapping[str, Any]) -> str:
    if cell["mean"] is None:
        return str(cell["status"])
    text = mean_sd(cell["mean"], cell["sd"])
    return f"**{text}**" if cell["best"] else text


def _data(facts: Mapping[str, Any]) -> str:
    data = facts["data"]
    rows = "" if data["rows"] is None else f"{count(data['rows'], 'row')}, "
    line = f"{rows}{count(data['n_features'], 'feature')}, {count(facts['n_tasks'], 'task')}."
    return "\n\n".join(filter(None, ["## Data", line, _bullets(data["notes"])]))


def _failed(facts: Mapping[str, Any]) -> str:
    failed = facts["failed"]
    rows = [[escape(r["method"]), str(r["split"]), str(r["seed"]), escape(r["error"], 500)] for r in failed["rows"]]
    if not rows:
        return ""
    table = _table(["method", "split", "seed", "why"], rows, (1, 2))
    return "## Failed runs\n\n" + table + _more(failed["n"], len(rows), "run")


def _settings(facts: Mapping[str, Any]) -> str:
    settings = facts["settings"]
    parts = ["## To repeat this"]
    parts += [fenced(settings["command"], "sh")] if settings["command"] else []
    parts += [fenced(settings["yaml"], "yaml")] if settings["yaml"] else []
    parts += [fenced(block["yaml"], "yaml") for block in settings["more"]]
    parts += [_bullets([f"{pair['name']}: {pair['value']}" for pair in settings["others"]])]
    versions = ", ".join(f"{escape(entry['name'])} {escape(entry['version'])}" for entry in settings["versions"])
    return "\n\n".join(filter(None, [*parts, versions]))
