"""``polytask compare --demo``: two questions about the embedded health survey, with a small tuning budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polytask.core.results import Comparison, Results

FEW = "body_fat_pct=40"
_SMALL = {"dataset": "nhanes", "splits": "5x1", "trials": 3}
_BUDGET = "a small budget: 3 trials and 5 splits, where 10 and 10 are the default, and networks that stop early"
_NETWORK = {"batch_size": 256, "patience": 10}
_FEW_METHODS: dict[str, dict[str, Any]] = {
    "ridge": {},
    "lasso": {},
    "single-task-network": _NETWORK,  # no network shares without its twin alone
    "block-sparse": {},
    "hard-sharing": _NETWORK,
}
_METHODS = {**_FEW_METHODS, "mean-regularised": {}}


def questions(given: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return (question, settings) for each comparison of the demonstration; flags that were given win."""
    if "labels" in given:
        return [("what changes when labels are few?", {**_SMALL, "methods": _METHODS, **given})]
    first = {**_SMALL, "methods": _METHODS, "title": "nhanes-demo", **given}
    few = {**_SMALL, "methods": _FEW_METHODS, "title": "nhanes-demo-few-labels", "labels": [FEW], **given}
    if "out" in given:
        few["out"] = f"{given['out']}-few-labels"
    return [
        (f"which of twelve health measures should be learned together? ({_BUDGET})", first),
        (f"had body fat been measured on 40 people only, would the other measures help? ({_BUDGET})", few),
    ]


def answers(results: Results, labels: Mapping[str, int]) -> list[str]:
    """Say for every task with thinned labels (task → how many) whether the other tasks helped it."""
    found = []
    for verdict in results.verdicts:
        if verdict.task not in labels:
            continue
        rows = [c for c in results.comparisons if c.task == verdict.task and c.gain is not None]
        said = {
            "gains": "yes, the others help",
            "hurt": "no, sharing hurts",
            "cannot tell": "not for sure",
            "not measurable": "it could not be measured",
        }[verdict.verdict]
        detail = "; ".join(_line(row) for row in rows)
        found.append(f"{verdict.task} with {labels[verdict.task]} labels: {said}. {detail}")
    return found


def _line(row: Comparison) -> str:
    span = "" if row.low is None or row.high is None else f" [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
    return f"{row.method} {100 * (row.gain or 0.0):+.1f} %{span} against {row.baseline} alone"
