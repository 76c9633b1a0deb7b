"""Facts on what the methods learned: their learning curves and what the tasks share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytask.core.relation import Relation
from polytask.core.results import Results, Run
from polytask.report.words import printable

MOST_CURVES = 24
MOST_POINTS = 120
MOST_TASKS = 150
TOP_ROWS = 15
_BAND = (10, 50, 90)


def finite(value: Any, digits: int = 5) -> float | None:
    """Return ``value`` as a float of some significant digits, or None where it is no finite number."""
    if value is None or isinstance(value, (bool, str)) or not math.isfinite(value):
        return None
    return float(f"{float(value):.{digits}g}")


# -- learning curves -----------------------------------------------------------------------------


def curves(results: Results) -> list[dict[str, Any]]:
    """Return the learning curves of every method that has some, from its first finished split.

    Up to :data:`MOST_CURVES` tasks are kept one by one; of more tasks the 10 %, 50 % and 90 %
    quantiles over tasks are kept.
    """
    found = []
    for method in results.methods:
        run = next((r for r in results.runs if r.method == method.name and r.status == "done" and r.history), None)
        if run is None:
            continue
        sides = {side: _side(run.history.get(side)) for side in ("train", "valid")}
        names = [str(task["name"]) for task in results.tasks if any(task["name"] in side for side in sides.values())]
        longest = max((len(curve) for side in sides.values() for curve in side.values()), default=0)
        if longest < 2:
            continue
        epochs = [int(e) for e in run.history.get("epoch", [])] or list(range(1, longest + 1))
        length = min(longest, len(epochs))
        keep = np.unique(np.linspace(0, length - 1, min(length, MOST_POINTS)).round().astype(int))
        best = run.history.get("best_epoch")
        entry: dict[str, Any] = {
            "method": printable(method.name),
            "split": run.split + 1,
            "epoch": [epochs[i] for i in keep],
            "best_epoch": int(best) if isinstance(best, (int, np.integer)) and not isinstance(best, bool) else None,
            "n_tasks": len(names),
        }
        if len(names) <= MOST_CURVES:
            entry["tasks"] = [
                {"task": printable(name), **{side: _at(sides[side].get(name, []), keep) for side in sides}}
                for name in names
            ]
        else:
            entry["band"] = {side: _band([sides[side].get(name, []) for name in names], keep) for side in sides}
        found.append(entry)
    return found


def _side(plain: Any) -> dict[str, list[float | None]]:
    return {task: [finite(value) for value in curve] for task, curve in plain.items()} if plain else {}


def _at(curve: Sequence[float | None], keep: NDArray[np.int_]) -> list[float | None]:
    return [curve[i] if i < len(curve) else None for i in keep] if curve else []


def _band(all_curves: Sequence[Sequence[float | None]], keep: NDArray[np.int_]) -> dict[str, list[float | None]]:
    bands: dict[str, list[float | None]] = {"low": [], "middle": [], "high": []}
    for i in keep:
        values = [curve[i] for curve in all_curves if i < len(curve)]
        known = [value for value in values if value is not None]
        for name, share in zip(bands, _BAND, strict=True):
            bands[name].append(finite(np.percentile(known, share)) if known else None)
    return bands if any(value is not None for value in bands["middle"]) else {}


# -- what is shared --------------------------------------------------------------------------------


def relations(results: Results) -> list[dict[str, Any]]:
    """Return, for every method that has some, its relations on its first finished split; sharing methods first."""
    found = []
    for method in sorted(results.methods, key=lambda method: method.sharing == "single"):
        run = _first_with_relations(results.runs, method.name)
        if run is not None:
            tables = [_relation(name, relation) for name, relation in sorted(run.relations.items())]
            found.append(
                {
                    "method": printable(method.name),
                    "summary": printable(method.summary),
                    "split": run.split + 1,
                    "tables": tables,
                }
            )
    return found


def _first_with_relations(runs: Sequence[Run], method: str) -> Run | None:
    return next((run for run in runs if run.method == method and run.status == "done" and run.relations), None)


def _relation(name: str, relation: Relation) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": printable(name),
        "kind": relation.kind,
        "about": printable(relation.about),
        "n_rows": len(relation.rows),
        "n_columns": len(relation.columns),
    }
    rows, columns = [[printable(label) for label in axis] for axis in (relation.rows, relation.columns)]
    if relation.kind == "tree":
        return {**facts, "leaves": rows, "merges": _table(relation.values)}
    if relation.kind in ("correlation", "covariance"):
        return {**facts, **_between_tasks(relation.values, rows)}
    if relation.kind == "coefficients":
        return {**facts, **_coefficients(relation.values, rows, columns)}
    top = np.arange(min(len(rows), MOST_TASKS))
    left = np.arange(min(len(columns), MOST_TASKS))
    return {
        **facts,
        "rows": [rows[i] for i in top],
        "columns": [columns[i] for i in left],
        "values": _table(relation.values[np.ix_(top, left)]),
        "left_out": len(rows) - len(top),
    }


def _between_tasks(values: NDArray[np.float64], names: list[str]) -> dict[str, Any]:
    """Order the tasks so that similar ones lie together, and name the closest and most opposed pairs."""
    order = similar_together(values)[:MOST_TASKS]
    upper = np.argwhere(np.triu(np.ones(values.shape, dtype=bool), 1))
    strength = values[upper[:, 0], upper[:, 1]]
    ranked = np.argsort(-strength, kind="stable")

    def pair(k: int) -> dict[str, Any]:
        i, j = upper[k]
        return {"first": names[i], "second": names[j], "value": finite(values[i, j])}

    return {
        "rows": [names[i] for i in order],
        "columns": [names[i] for i in order],
        "values": _table(values[np.ix_(order, order)]),
        "left_out": len(names) - len(order),
        "closest": [pair(int(k)) for k in ranked[:3] if strength[k] > 0],
        "opposed": [pair(int(k)) for k in ranked[::-1][:3] if strength[k] < 0],
    }


def similar_together(values: NDArray[np.float64]) -> NDArray[np.int_]:
    """Return an order of the tasks in which similar ones are neighbours.

    The angles of the first two eigenvectors, cut at the widest gap (Friendly, Corrgrams, 2002).
    """
    n = len(values)
    if n < 3:
        return np.arange(n)
    scale = np.sqrt(np.clip(np.diag(values), 1e-12, None))
    _, vectors = np.linalg.eigh((values + values.T) / 2 / np.outer(scale, scale))
    first, second = vectors[:, -1], vectors[:, -2]
    first = first * (1.0 if first[np.argmax(np.abs(first))] > 0 else -1.0)
    angles = np.arctan2(second, first)
    order = np.argsort(angles, kind="stable")
    sorted_angles = angles[order]
    gaps = np.append(np.diff(sorted_angles), sorted_angles[0] + 2 * np.pi - sorted_angles[-1])
    return np.roll(order, -(int(np.argmax(gaps)) + 1))


def _coefficients(values: NDArray[np.float64], rows: list[str], columns: list[str]) -> dict[str, Any]:
    size = np.abs(values).max(axis=1, initial=0.0)
    top = np.argsort(-size, kind="stable")[: min(TOP_ROWS, max(int((size > 0).sum()), 1))]
    left = np.arange(min(len(columns), MOST_TASKS))
    used = values != 0.0
    return {
        "rows": [rows[i] for i in top],
        "columns": [columns[i] for i in left],
        "values": _table(values[np.ix_(top, left)]),
        "left_out": int((size > 0).sum()) - len(top),
        "n_used": int(used.any(axis=1).sum()),
        "n_used_by_all": int(used.all(axis=1).sum()) if len(columns) else 0,
    }


def _table(values: NDArray[np.float64]) -> list[list[float | None]]:
    return [[finite(value, 4) for value in row] for row in values]


def dendrogram(n_leaves: int, merges: Sequence[Sequence[float]]) -> tuple[list[int], list[dict[str, list[float]]]]:
    """Return the order of the leaves and one bracket (three line pieces) for each merge of a linkage matrix.

    Returns
    -------
    order
        Leaf numbers from top to bottom.
    brackets
        ``{"x": heights (4), "y": places (4)}`` of every merge that can be drawn.
    """
    children = {n_leaves + k: (int(row[0]), int(row[1])) for k, row in enumerate(merges)}
    roots = sorted(set(range(n_leaves + len(merges))) - {child for pair in children.values() for child in pair})
    order: list[int] = []
    stack = roots[::-1]
    while stack:
        node = stack.pop()
        if node in children:
            stack.extend(children[node][::-1])
        else:
            order.append(node)
    place: dict[int, float] = {leaf: float(k) for k, leaf in enumerate(order)}
    height: dict[int, float] = dict.fromkeys(order, 0.0)
    brackets = []
    for k, row in enumerate(merges):
        a, b = children[n_leaves + k]
        top = float(row[2])
        brackets.append({"x": [height[a], top, top, height[b]], "y": [place[a], place[a], place[b], place[b]]})
        place[n_leaves + k], height[n_leaves + k] = (place[a] + place[b]) / 2, top
    return order, brackets


def used_sentence(table: Mapping[str, Any]) -> str:
    """Say how many features a coefficient table uses, where some are exactly zero."""
    used, everywhere, n = table["n_used"], table["n_used_by_all"], table["n_rows"]
    if used == n == everywhere:
        return f"All {n} features carry weight for every task."
    return f"{used} of {n} features carry weight for some task, {everywhere} of them for every task; the rest is zero."
