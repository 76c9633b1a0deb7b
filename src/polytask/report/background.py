"""Facts around the verdicts: scores over all tasks, the data, failed runs and how to repeat the comparison."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polytask.core.results import Results
from polytask.report.sharing import finite
from polytask.report.words import printable, printable_lines, title_of

MOST_FEATURES = 500
MOST_FAILED = 50

_OVERALL = {
    "explained_variance_global": (
        "Explained variance, overall mean",
        "1 − SSE / SST, with the spread of all test targets around their common mean: "
        "what sets the tasks apart counts as explained.",
    ),
    "explained_variance_per_task": (
        "Explained variance, task means",
        "1 − SSE / SST, with the spread of test targets around the mean of their own task: "
        "the stricter definition; figures of the two cannot be compared.",
    ),
    "mean_task_rmse": ("Mean RMSE", "Root mean squared error, averaged over tasks; lower is better."),
    "arrmse": (
        "Average relative RMSE",
        "Error relative to always predicting the task's training mean, averaged over tasks; lower is better.",
    ),
}
_NOT_SETTINGS = ("command", "versions", "published", "yaml", "statistics")


def overall(results: Results) -> dict[str, Any]:
    """Return the scores over all tasks, metric by metric, beside published ones."""
    names = sorted({name for scores in results.overall.values() for name in scores})
    names.sort(key=lambda name: list(_OVERALL).index(name) if name in _OVERALL else len(_OVERALL))
    published = _published(results.setup.get("published"))
    metrics = []
    for name in names:
        label, about = _OVERALL.get(name, (title_of(name), ""))
        rows = []
        for method in results.methods:
            score = results.overall.get(method.name, {}).get(name)
            if score is not None:
                ends = {end: _share(name, score.get(end)) for end in ("mean", "low", "high")}
                rows.append({"method": printable(method.name), "sharing": method.sharing, **ends})
        metrics.append(
            {
                "name": printable(name),
                "label": label,
                "about": about,
                "percent": _is_share(name),
                "rows": rows,
                "published": [entry for entry in published if entry["metric"] == name],
            }
        )
    placed = {metric["name"] for metric in metrics}
    return {"metrics": metrics, "published": [entry for entry in published if entry["metric"] not in placed]}


def _is_share(metric: str) -> bool:
    return metric.startswith("explained_variance")


def _share(metric: str, value: Any) -> float | None:
    """Return a score over all tasks; explained variance comes in per cent and leaves as a fraction."""
    known = finite(value, 6)
    return finite(known / 100.0, 6) if known is not None and _is_share(metric) else known


def _published(plain: Any) -> list[dict[str, Any]]:
    """Read reference ranges from ``setup["published"]``.

    A list of ``{"what", "metric", "low", "high", "source", "note"}`` (all but ``what`` optional), or a
    mapping from ``what`` to such an entry, to ``[low, high]``, to a number or to a text. Explained
    variance is given in per cent, as in the scores over all tasks.
    """
    if not plain:
        return []
    if isinstance(plain, Mapping):
        entries = [{"what": what, **_range(value)} for what, value in sorted(plain.items())]
    elif isinstance(plain, str):
        entries = [{"what": plain}]
    else:
        entries = [_range(value) if isinstance(value, Mapping) else {"what": value} for value in plain]
    found = []
    for entry in entries:
        metric = str(entry.get("metric", ""))
        ends = [_share(metric, entry.get(end)) for end in ("low", "high")]
        found.append(
            {
                "what": printable(entry.get("what") or entry.get("method") or entry.get("label") or "published"),
                "metric": metric,
                "low": ends[0],
                "high": ends[1],
                "source": printable(entry.get("source") or entry.get("citation") or ""),
                "note": printable(entry.get("note") or entry.get("text") or ""),
                "approximate": True,
            }
        )
    return found


def _range(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, str):
        return {"note": value}
    if isinstance(value, Sequence):
        return {"low": value[0], "high": value[-1]} if value else {}
    return {"low": value, "high": value}


def data(results: Results) -> dict[str, Any]:
    """Return the summary of the table: rows, features, tasks and notes."""
    plain = results.data
    n_rows = plain.get("rows")
    features = [_feature(feature, n_rows) for feature in plain.get("features", ())]
    tasks = [
        {
            "task": printable(task.get("name", "")),
            "kind": printable(task.get("kind", "")),
            "n_labels": task.get("n_labels"),
            "missing": _missing(task.get("missing"), n_rows),
            "mean": finite(task.get("mean")),
            "sd": finite(task.get("sd")),
            "labels": [printable(label) for label in task.get("labels") or ()],
            "shares": _shares(task),
        }
        for task in plain.get("tasks", ())
    ]
    kinds: dict[str, int] = {}
    for feature in features:
        kinds[feature["kind"]] = kinds.get(feature["kind"], 0) + 1
    return {
        "rows": n_rows,
        "form": printable(plain.get("form", "")),
        "n_features": len(features),
        "feature_kinds": kinds,
        "features": features[:MOST_FEATURES],
        "tasks": tasks,
        "notes": [printable(note, 1000) for note in plain.get("notes", ())],
    }


def _feature(feature: Any, n_rows: Any) -> dict[str, Any]:
    if not isinstance(feature, Mapping):
        return {"name": printable(feature), "kind": "", "missing": None}
    return {
        "name": printable(feature.get("name", "")),
        "kind": printable(feature.get("kind", "")),
        "missing": _missing(feature.get("missing"), n_rows),
    }


def _missing(value: Any, n_rows: Any) -> float | None:
    """Return the share that is missing, from a share (float) or a count (int)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return finite(value / n_rows) if n_rows else None
    return finite(value)


def _shares(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    shares = task.get("shares")
    if not shares:
        return []
    labels = [str(label) for label in task.get("labels") or ()]
    if isinstance(shares, Mapping):
        pairs = sorted(shares.items(), key=lambda pair: labels.index(pair[0]) if pair[0] in labels else len(labels))
    else:
        pairs = list(zip(labels, shares, strict=False))
    return [{"label": printable(label), "share": finite(share)} for label, share in pairs]


def failed(results: Results) -> dict[str, Any]:
    """Return how many runs failed, and the first of them with their reasons."""
    runs = [run for run in results.runs if run.status == "failed"]
    return {
        "n": len(runs),
        "rows": [
            {
                "method": printable(run.method),
                "split": run.split + 1,
                "seed": run.seed,
                "error": printable(run.error, 1000),
            }
            for run in runs[:MOST_FAILED]
        ],
    }


def settings(results: Results) -> dict[str, Any]:
    """Return the command, the settings as YAML, plain further values and library versions."""
    setup = results.setup
    command = setup.get("command", "")
    if not isinstance(command, str):
        command = shlex.join(str(part) for part in command)
    rest = {name: setup[name] for name in sorted(setup) if name not in _NOT_SETTINGS}
    blocks = {name: value for name, value in rest.items() if isinstance(value, (Mapping, list, tuple))}
    main = next((name for name in ("config", "settings", "plan") if name in blocks), None)
    given = setup.get("yaml") or (_yaml(blocks.pop(main)) if main else "")
    versions = setup.get("versions", {})
    return {
        "command": printable(command, 10_000),
        "yaml": printable_lines(str(given)).strip(),
        "more": [{"name": title_of(name), "yaml": printable_lines(_yaml(blocks[name])).strip()} for name in blocks],
        "others": [
            {"name": title_of(name), "value": printable(value)}
            for name, value in rest.items()
            if name not in blocks and name != main
        ],
        "versions": [{"name": printable(name), "version": printable(versions[name])} for name in sorted(versions)],
    }


def _yaml(plain: Any) -> str:
    import yaml

    if not plain:
        return ""
    return yaml.safe_dump(_plain(plain), sort_keys=True, allow_unicode=True, default_flow_style=None, width=100)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Iterable):
        return [_plain(inner) for inner in value]
    return str(value)


def timing(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the seconds the comparison took, and those of computing each method."""
    seconds = finite(plain.get("seconds"))
    by_method = plain.get("runs") or {}
    return {
        "seconds": seconds,
        "by_method": [
            {"method": printable(name), "seconds": finite(value)} for name, value in sorted(by_method.items())
        ],
    }
