"""Facts to charts: plain dictionaries in plotly's form, drawn by plotly.js in the page.

Plotly reads labels as pseudo-HTML, so every text passes through :func:`label`. Hover texts are arrays,
never templates, so that a name such as ``%{x}`` stays a name.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polytask.report.sharing import dendrogram
from polytask.report.words import clip, interval, number, percent

Figure = dict[str, Any]

INK, MUTED, GRID, ZERO = "#1c2530", "#5b6673", "#e6e9ed", "#8a94a0"
COLOURS = {"gains": "#1763ad", "hurt": "#bd4b07", "cannot tell": "#77818c", "not measurable": "#77818c"}
MARKS = {"gains": "triangle-up", "hurt": "triangle-down", "cannot tell": "circle-open", "not measurable": "x-thin"}
# eight colours that stay apart for the colour-blind (Okabe and Ito)
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a6c00", "#444444")
DIVERGING = [[0, "#b3470b"], [0.25, "#eda877"], [0.5, "#f6f6f3"], [0.75, "#8bb8e0"], [1, "#12508f"]]
SEQUENTIAL = [[0, "#f6f6f3"], [0.5, "#8bb8e0"], [1, "#12508f"]]
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
MOST_ROWS = 30
MOST_POINTS = 400
_LABEL = 24


def label(text: str, most: int = _LABEL) -> str:
    """Return ``text`` cut and escaped for a plotly label (quotes are printed as they are)."""
    return html.escape(clip(text, most), quote=False)


def _layout(height: int, **rest: Any) -> dict[str, Any]:
    return {
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 8, "b": 36},
        "font": {"family": FONT, "size": 12, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": False,
        "hoverlabel": {"bgcolor": "#ffffff", "bordercolor": "#c9d0d8", "font": {"color": INK}, "align": "left"},
        **rest,
    }


def _axis(**rest: Any) -> dict[str, Any]:
    return {
        "gridcolor": GRID,
        "zeroline": False,
        "ticks": "",
        "linecolor": GRID,
        "tickfont": {"color": MUTED},
        "fixedrange": True,
        "automargin": True,
        **rest,
    }


def _names(names: Sequence[str], **rest: Any) -> dict[str, Any]:
    return _axis(tickmode="array", tickvals=list(range(len(names))), ticktext=[label(n) for n in names], **rest)


# -- gains -------------------------------------------------------------------------------------------


def forests(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one forest plot of gains for each sharing method: tasks against gain, one common scale.

    With more than :data:`MOST_ROWS` tasks the tasks are sorted by gain and not named (the name shows on
    hovering); of more than :data:`MOST_POINTS` only the outermost are drawn.
    """
    table = facts["gains"]
    order = {row["task"]: place for place, row in enumerate(facts["verdicts"])}
    rows = sorted(table["tasks"], key=lambda row: order.get(row["task"], 0))
    span = _span([cell for row in rows for cell in row["cells"] if cell["status"] == "measured"])
    found = []
    for place, method in enumerate(table["methods"]):
        cells = [(row["task"], row["cells"][place]) for row in rows]
        measured = [(task, cell) for task, cell in cells if cell["status"] == "measured"]
        if not measured:
            reasons = sorted({cell.get("reason", "") for _, cell in cells})
            found.append({"method": method, "figure": None, "note": "; ".join(reasons[:3])})
            continue
        draw = _caterpillar if len(rows) > MOST_ROWS else _forest
        figure, note = draw(method, cells if draw is _forest else measured, span)
        found.append({"method": method, "figure": figure, "note": note})
    return found


def _span(cells: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the ends of the common gain axis: all intervals, unless a few would squeeze the rest."""
    ends = [100.0 * value for cell in cells for value in (cell["gain"], cell["low"], cell["high"]) if value is not None]
    if not ends:
        return -1.0, 1.0
    reach = 3.0 * float(np.percentile(np.abs(ends), 90)) + 1e-9
    low, high = max(min(ends), -reach), min(max(ends), reach)
    low, high = min(low, 0.0), max(high, 0.0)
    pad = 0.06 * (high - low) or 1.0
    return low - pad, high + pad


def _points(
    cells: Sequence[tuple[str, Mapping[str, Any]]], places: Sequence[float], span: tuple[float, float], size: int
) -> list[dict[str, Any]]:
    traces = []
    for verdict in ("cannot tell", "hurt", "gains"):
        own = [(place, task, cell) for place, (task, cell) in zip(places, cells, strict=True)]
        own = [entry for entry in own if entry[2]["status"] == "measured" and entry[2]["verdict"] == verdict]
        if not own:
            continue
        gains = [100.0 * cell["gain"] for _, _, cell in own]
        shown = [min(max(gain, span[0]), span[1]) for gain in gains]
        bars = [
            (100.0 * (cell["high"] if cell["high"] is not None else cell["gain"]) - gain,
             gain - 100.0 * (cell["low"] if cell["low"] is not None else cell["gain"]))
            for gain, (_, _, cell) in zip(gains, own, strict=True)
        ]  # fmt: skip
        colour = COLOURS[verdict]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": verdict,
                "x": [_short(x) for x in shown],
                "y": [place for place, _, _ in own],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [_short(up) for up, _ in bars],
                    "arrayminus": [_short(down) for _, down in bars],
                    "thickness": 1.6 if size > 6 else 1,
                    "width": 0,
                    "color": colour,
                },
                "marker": {
                    "symbol": MARKS[verdict].removesuffix("-open") if size < 6 else MARKS[verdict],
                    "size": size,
                    "color": colour,
                    "line": {"width": 1.8, "color": colour},
                },
                "hoverinfo": "text",
                "hovertext": [_hover(task, cell) for _, task, cell in own],
            }
        )
    return traces


def _hover(task: str, cell: Mapping[str, Any]) -> str:
    lines = [
        f"<b>{label(task, 60)}</b>: {cell['verdict']}",
        f"{percent(cell['gain'], signed=True)} {interval(cell['low'], cell['high'])}",
        f"score {number(cell['score'])}, alone {number(cell['baseline_score'])} ({label(cell['baseline'], 40)})",
    ]
    return "<br>".join(lines)


def _forest(
    method: str, cells: Sequence[tuple[str, Mapping[str, Any]]], span: tuple[float, float]
) -> tuple[Figure, str]:
    n = len(cells)
    gaps = [
        {
            "x": 0, "y": place, "xanchor": "left", "xshift": 6, "showarrow": False, "text": cell["status"],
            "font": {"color": MUTED, "size": 11},
        }
        for place, (_, cell) in enumerate(cells) if cell["status"] != "measured"
    ]  # fmt: skip
    figure = {
        "data": _points(cells, range(n), span, 9),
        "layout": _layout(
            24 * n + 52,
            xaxis=_axis(zeroline=True, zerolinecolor=ZERO, range=list(span), ticksuffix=" %", nticks=5, tickangle=0),
            yaxis=_names([task for task, _ in cells], range=[n - 0.3, -0.7], showgrid=False),
            annotations=gaps,
        ),
        "about": f"Gains of {method} on {n} tasks with 95 % intervals",
    }
    reasons = sorted({cell["reason"] for _, cell in cells if cell["status"] == "n/a" and cell.get("reason")})
    return figure, ("n/a: " + "; ".join(reasons[:2]) + ("; …" if len(reasons) > 2 else "")) if reasons else ""


def _caterpillar(
    method: str, cells: Sequence[tuple[str, Mapping[str, Any]]], span: tuple[float, float]
) -> tuple[Figure, str]:
    ranked = sorted(cells, key=lambda entry: entry[1]["gain"])
    left_out = len(ranked) - MOST_POINTS
    note = ""
    if left_out > 0:
        ranked = ranked[: MOST_POINTS // 2] + ranked[-MOST_POINTS // 2 :]
        note = f"{left_out} tasks in the middle are not drawn; the table above has them all."
    n = len(ranked)
    figure = {
        "data": _points(ranked, range(n), span, 5),
        "layout": _layout(
            420,
            xaxis=_axis(zeroline=True, zerolinecolor=ZERO, range=list(span), ticksuffix=" %", nticks=5, tickangle=0),
            yaxis=_axis(range=[-1, n], showgrid=False, showticklabels=False),
        ),
        "about": f"Gains of {method} on {n} tasks, sorted, with 95 % intervals",
    }
    return figure, note


def _short(value: float | None, digits: int = 5) -> float | None:
    return None if value is None else float(f"{value:.{digits}g}")


# -- learning curves -----------------------------------------------------------------------------------


def curve_figures(curves: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the learning curves: a small chart per task with one line per method, or one per method."""
    methods = [entry["method"] for entry in curves]
    single = [entry for entry in curves if "tasks" in entry]
    charts = []
    for task in dict.fromkeys(own["task"] for entry in single for own in entry["tasks"]):
        traces: list[dict[str, Any]] = []
        for entry in single:
            own = next((own for own in entry["tasks"] if own["task"] == task), None)
            if own is not None:
                traces += _lines(entry, own, LINES[methods.index(entry["method"]) % len(LINES)])
        charts.append({"title": task, "figure": _curve_figure(traces, f"Learning curves of {task}", 190)})
    bands = []
    for entry in curves:
        if "band" in entry:
            colour = LINES[methods.index(entry["method"]) % len(LINES)]
            about = f"Learning curves of {entry['method']} over {entry['n_tasks']} tasks"
            bands.append({"title": entry["method"], "figure": _curve_figure(_bands(entry, colour), about, 260)})
    return {"legend": [{"method": m, "colour": k % len(LINES)} for k, m in enumerate(methods)],
            "tasks": charts, "bands": bands}  # fmt: skip


def _curve_figure(traces: list[dict[str, Any]], about: str, height: int) -> Figure:
    layout = _layout(
        height,
        xaxis=_axis(nticks=5, showgrid=False, ticks="outside", tickcolor=GRID, rangemode="tozero"),
        yaxis=_axis(nticks=5),
        margin={"l": 8, "r": 8, "t": 6, "b": 26},
    )
    return {"data": traces, "layout": layout, "about": about}


def _lines(entry: Mapping[str, Any], own: Mapping[str, Any], colour: str) -> list[dict[str, Any]]:
    traces: list[dict[str, Any]] = []
    for side, dash, width in (("train", "dot", 1.2), ("valid", "solid", 1.9)):
        if own[side]:
            text = f"{label(entry['method'], 40)}, {'training' if side == 'train' else 'validation'}"
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": text,
                    "x": entry["epoch"],
                    "y": [_short(value, 4) for value in own[side]],
                    "line": {"color": colour, "width": width, "dash": dash},
                    "hoverinfo": "x+y+name",
                    "hoverlabel": {"namelength": -1},
                }
            )
    best = entry["best_epoch"]
    if own["valid"] and best in entry["epoch"]:
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [best],
                "y": [own["valid"][entry["epoch"].index(best)]],
                "marker": {"color": colour, "size": 7, "line": {"color": "#ffffff", "width": 1.5}},
                "hoverinfo": "text",
                "hovertext": [f"{label(entry['method'], 40)}: kept epoch {best}"],
            }
        )
    return traces


def _bands(entry: Mapping[str, Any], colour: str) -> list[dict[str, Any]]:
    traces: list[dict[str, Any]] = []
    for side, dash in (("train", "dot"), ("valid", "solid")):
        band = entry["band"].get(side)
        if not band:
            continue
        shared = {"type": "scatter", "mode": "lines", "x": entry["epoch"], "hoverinfo": "skip"}
        if side == "valid":
            traces.append({**shared, "y": band["low"], "line": {"width": 0}})
            fill = {"fill": "tonexty", "fillcolor": _faint(colour)}
            traces.append({**shared, "y": band["high"], "line": {"width": 0}, **fill})
        name = f"{'training' if side == 'train' else 'validation'}, median task"
        line = {"color": colour, "width": 2, "dash": dash}
        traces.append({**shared, "y": band["middle"], "line": line, "name": name, "hoverinfo": "x+y+name"})
    return traces


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"


# -- what is shared ------------------------------------------------------------------------------------


def relation_figure(table: Mapping[str, Any]) -> Figure | None:
    """Return the chart of one relation; None where a table says it better (few coefficients)."""
    if table["kind"] == "tree":
        return _tree(table)
    if not table["rows"] or not table["columns"] or shown_as_table(table):
        return None
    return _heat(table)


def shown_as_table(table: Mapping[str, Any]) -> bool:
    """Whether a relation is few enough numbers to be a table."""
    return table["kind"] == "coefficients" and len(table["columns"]) <= 14


def _heat(table: Mapping[str, Any]) -> Figure:
    rows, columns, values = table["rows"], table["columns"], table["values"]
    n, m = len(rows), len(columns)
    top = max((abs(value) for row in values for value in row if value is not None), default=1.0) or 1.0
    signed = any(value is not None and value < 0 for row in values for value in row)
    limit = 1.0 if table["kind"] == "correlation" else top
    between = table["kind"] in ("correlation", "covariance")
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": values,
        "x": list(range(m)),
        "y": list(range(n)),
        "zmin": -limit if signed or between else 0,
        "zmax": limit,
        "colorscale": DIVERGING if signed or between else SEQUENTIAL,
        "xgap": 1 if m <= 40 else 0,
        "ygap": 1 if n <= 40 else 0,
        "colorbar": {"thickness": 10, "outlinewidth": 0, "tickfont": {"color": MUTED, "size": 11}, "len": 0.9},
        "hovertemplate": "%{y} × %{x}: %{z:.3g}<extra></extra>",
    }
    if n * m <= 196:
        trace["text"] = [["" if value is None else f"{value:.2g}" for value in row] for row in values]
        trace["texttemplate"] = "%{text}"
        trace["textfont"] = {"size": 10}
    named_rows, named_columns = n <= 40, m <= 40
    height = (max(24 * n, 120) if named_rows else 560 if between else 380) + (120 if named_columns else 30)
    layout = _layout(
        height,
        xaxis=_names(columns, showgrid=False, tickangle=-45, showticklabels=named_columns, range=[-0.5, m - 0.5]),
        yaxis=_names(rows, showgrid=False, range=[n - 0.5, -0.5], showticklabels=named_rows),
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
    )
    return {"data": [trace], "layout": layout, "about": f"Heat map of {table['name']}, {n} by {m}"}


def _tree(table: Mapping[str, Any]) -> Figure | None:
    leaves = table["leaves"]
    order, brackets = dendrogram(len(leaves), table["merges"])
    if not brackets:
        return None
    n = len(order)
    top = max(bracket["x"][1] for bracket in brackets) or 1.0
    x: list[float | None] = []
    y: list[float | None] = []
    for bracket in brackets:
        x += [*(_short(value) for value in bracket["x"]), None]
        y += [*bracket["y"], None]
    trace = {
        "type": "scatter", "mode": "lines", "x": x, "y": y, "hoverinfo": "skip",
        "line": {"color": COLOURS["gains"], "width": 1.6},
    }  # fmt: skip
    names = [leaves[k] for k in order]
    named = n <= 60
    layout = _layout(
        22 * n + 50 if named else 520,
        xaxis=_axis(range=[0, 1.04 * top], nticks=6, title={"text": "distance", "font": {"color": MUTED, "size": 11}}),
        yaxis=_names(names, range=[n - 0.3, -0.7], showgrid=False, showticklabels=named),
        margin={"l": 8, "r": 12, "t": 8, "b": 44},
    )
    return {"data": [trace], "layout": layout, "about": f"Tree of {n} tasks"}
