"""Realistic results, made up but computed the way a comparison computes them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy import stats

from polytask.core.metrics import METRICS
from polytask.core.relation import Relation
from polytask.core.results import Comparison, MethodInfo, Results, Run, Verdict

METHODS = (
    ("ridge", "single", "each task alone, squared weights penalised"),
    ("lasso", "single", "each task alone, few features"),
    ("single-task-network", "single", "one small network for each task"),
    ("pooled", "pooled", "one model for all tasks"),
    ("block-sparse", "shared", "all tasks use the same few features (L1/Linf)"),
    ("mean-regularised", "shared", "weights pulled to their mean over tasks"),
    ("hard-sharing", "shared", "one network body, a head for each task"),
    ("soft-sharing", "shared", "one network per task, weights kept close"),
)
NETWORKS = ("single-task-network", "hard-sharing", "soft-sharing")
WIDE = (
    ("systolic_bp", "regression", (), 4810),
    ("diastolic_bp", "regression", (), 4806),
    ("cholesterol", "regression", (), 2210),
    ("hdl", "regression", (), 2210),
    ("fasting_glucose", "regression", (), 640),
    ("bmi", "regression", (), 4790),
    ("diabetes", "binary", ("no", "yes"), 4812),
    ("hypertension", "binary", ("no", "yes"), 4812),
    ("smoker", "binary", ("no", "yes"), 3900),
    ("activity", "multiclass", ("low", "moderate", "high"), 3120),
    ("self_rated_health", "ordinal", ("poor", "fair", "good", "very good", "excellent"), 4400),
    ("rare_condition", "binary", ("no", "yes"), 61),
)
# task -> sharing method -> true relative gain
EFFECTS = {
    "systolic_bp": (-0.02, 0.004, 0.002, 0.031, 0.018),
    "diastolic_bp": (-0.03, 0.006, 0.009, 0.027, 0.020),
    "cholesterol": (-0.01, 0.002, 0.012, 0.005, 0.004),
    "hdl": (-0.06, 0.001, -0.004, -0.041, -0.012),
    "fasting_glucose": (0.02, 0.061, 0.043, 0.074, 0.052),
    "bmi": (-0.11, -0.003, -0.021, -0.034, -0.016),
    "diabetes": (0.0, 0.0, 0.0, 0.048, 0.033),
    "hypertension": (0.0, 0.0, 0.0, 0.006, 0.011),
    "smoker": (0.0, 0.0, 0.0, -0.052, -0.020),
    "activity": (0.0, 0.0, 0.0, 0.004, -0.003),
    "self_rated_health": (0.0, 0.0, 0.0, 0.012, 0.002),
    "rare_condition": (0.0, 0.0, 0.0, 0.0, 0.0),
}
LEVEL = {
    "rmse": 8.0, "r2": 0.42, "explained_variance": 0.43, "log_loss": 0.48, "auc": 0.78, "accuracy": 0.74, "f1": 0.61,
    "ordinal_mae": 0.71, "quadratic_kappa": 0.44,
}  # fmt: skip
DEFAULTS = {
    "regression": ["rmse", "r2", "explained_variance"],
    "binary": ["log_loss", "auc", "accuracy", "f1"],
    "multiclass": ["log_loss", "accuracy", "f1"],
    "ordinal": ["ordinal_mae", "quadratic_kappa", "accuracy"],
}


def _refused(method: str, tasks: tuple[tuple[str, str, tuple[str, ...], int], ...]) -> dict[str, str]:
    if method in ("pooled", "block-sparse", "mean-regularised", "lasso"):
        return {name: f"{kind}: the method is for regression" for name, kind, _, _ in tasks if kind != "regression"}
    return {}


def _curve(rng: np.random.Generator, start: float, end: float, overfit: float, n: int) -> list[float]:
    epoch = np.arange(n)
    curve = end + (start - end) * np.exp(-epoch / 9) + overfit * np.maximum(epoch - 30, 0) / 60
    return [float(v) for v in curve + 0.006 * rng.standard_normal(n)]


def _history(rng: np.random.Generator, names: list[str]) -> dict[str, Any]:
    n = 60
    ends = {name: rng.uniform(0.45, 0.8) for name in names}
    return {
        "epoch": list(range(1, n + 1)),
        "train": {name: _curve(rng, 1.05, ends[name] - 0.08, 0.0, n) for name in names},
        "valid": {name: _curve(rng, 1.08, ends[name], rng.uniform(0, 0.08), n) for name in names},
        "best_epoch": 34,
    }


def _relations(rng: np.random.Generator, method: str, names: list[str], features: list[str]) -> dict[str, Relation]:
    blocks = rng.integers(0, 3, len(names))
    factors = rng.standard_normal((3, 8))[blocks] + 0.7 * rng.standard_normal((len(names), 8))
    correlation = np.corrcoef(factors)
    weights = rng.standard_normal((len(features), len(names))) * rng.exponential(0.4, (len(features), 1))
    if method == "block-sparse":
        weights[rng.permutation(len(features))[: len(features) * 2 // 3]] = 0.0
        return {
            "coefficients": Relation(
                "coefficients", weights, tuple(features), tuple(names), "Effect of one standard deviation."
            ),
            "coefficient_correlation": Relation(
                "correlation", correlation, tuple(names), tuple(names), "Correlation of the tasks' coefficients."
            ),
        }
    if method == "mean-regularised":
        return {
            "coefficients": Relation(
                "coefficients", weights, tuple(features), tuple(names), "Effect of one standard deviation."
            )
        }
    if method == "soft-sharing":
        from scipy.cluster.hierarchy import linkage

        return {
            "tower_tree": Relation(
                "tree", linkage(factors, "average"), tuple(names), ("a", "b", "height", "size"), "Networks by distance"
            ),
            "layer_weights": Relation(
                "weights", np.abs(rng.standard_normal((len(names), 4))), tuple(names), ("layer 1", "layer 2", "layer 3",
                "layer 4"), "Distance from the mean network, layer by layer.",
            ),
        }  # fmt: skip
    return {}


def _compare(per_split: np.ndarray, base: np.ndarray, sign: float) -> tuple[float, float, float, float]:
    """Relative gain with the corrected resampled interval (test share 0.2)."""
    n = len(per_split)
    gains = sign * (per_split - base) / abs(base.mean())
    scale = gains.std(ddof=1) * np.sqrt(1 / n + 0.25)
    if scale == 0:
        return float(gains.mean()), float(gains.mean()), float(gains.mean()), 1.0
    t = stats.t(n - 1)
    half = t.ppf(0.975) * scale
    return (
        float(gains.mean()),
        float(gains.mean() - half),
        float(gains.mean() + half),
        float(2 * t.sf(abs(gains.mean() / scale))),
    )


def make(
    tasks: tuple[tuple[str, str, tuple[str, ...], int], ...] = WIDE,
    effects: dict[str, tuple[float, ...]] = EFFECTS,
    *,
    title: str = "Health survey",
    n_splits: int = 10,
    seed: int = 0,
    features: list[str] | None = None,
    not_measurable: tuple[str, ...] = ("rare_condition",),
    failed: tuple[tuple[str, int], ...] = (("soft-sharing", 7),),
    form: str = "wide",
    setup: dict[str, Any] | None = None,
    noise: float = 0.012,
) -> Results:
    rng = np.random.default_rng(seed)
    features = features or [
        "age", "height", "weight", "waist", "pulse", "income", "education", "sleep_hours", "salt", "sugar", "fibre",
        "alcohol", "steps", "screen_time", "region", "sex", "household_size", "year", "season", "medication",
    ]  # fmt: skip
    names = [name for name, *_ in tasks]
    methods = tuple(MethodInfo(name, sharing, text, _refused(name, tasks)) for name, sharing, text in METHODS)
    scores: dict[tuple[str, str, str], np.ndarray] = {}
    for name, kind, _, n_labels in tasks:
        level = rng.uniform(0.8, 1.25)
        common = 0.03 * rng.standard_normal(n_splits)
        for method in methods:
            if name in method.refused or name in not_measurable:
                continue
            shared = [m for m, sharing, _ in METHODS if sharing != "single"]
            gain = effects[name][shared.index(method.name)] if method.name in shared else 0.0
            gain -= {"lasso": 0.006, "single-task-network": 0.004}.get(method.name, 0.0)
            own = noise * np.sqrt(2000 / (n_labels + 500)) * rng.standard_normal(n_splits)
            for metric in DEFAULTS[kind]:
                sign = 1.0 if METRICS[metric].higher_is_better else -1.0
                values = LEVEL[metric] * level * (1 + common + sign * (gain + own))
                scores[name, method.name, metric] = np.minimum(values, 0.99) if sign > 0 else values
    runs = []
    for split in range(n_splits):
        for method in methods:
            if (method.name, split) in failed:
                runs.append(Run(method.name, split, split, "failed", "the loss became infinite in epoch 3 (task hdl)"))
                continue
            own = [name for name in names if name not in method.refused]
            runs.append(
                Run(
                    method.name,
                    split,
                    split,
                    scores={
                        name: {
                            metric: float(scores[name, method.name, metric][split])
                            for metric in DEFAULTS[kind]
                            if (name, method.name, metric) in scores
                        }
                        for name, kind, _, _ in tasks
                        if name in own
                    },
                    chosen={"all": {"alpha": 0.1}},
                    counts={
                        name: {"train": int(n * 0.6), "valid": int(n * 0.2), "test": int(n * 0.2)}
                        for name, _, _, n in tasks
                    },
                    history=_history(rng, own) if method.name in NETWORKS else {},
                    relations=_relations(rng, method.name, own, features) if split == 0 else {},
                )
            )
    comparisons, verdicts = _judge(tasks, methods, scores, not_measurable, dict(failed), n_splits)
    return Results(
        title=title,
        setup=setup
        or {
            "command": "polytask compare health.csv --targets systolic_bp,diastolic_bp,... --splits 10 --seed 0",
            "config": {
                "source": {"path": "health.csv", "sha256": "9b0f…"},
                "methods": [m.name for m in methods],
                "splits": n_splits,
                "shares": [0.6, 0.2, 0.2],
                "trials": 20,
                "seed": 0,
            },
            "versions": {"polytask": "0.1.0", "python": "3.11.4", "numpy": "2.4.6", "torch": "2.13.0"},
        },
        data={
            "rows": 4812,
            "form": form,
            "features": [
                {"name": f, "kind": "categorical" if f in ("region", "sex", "season") else "numeric",
                 "missing": int(rng.integers(0, 400))} for f in features
            ],
            "tasks": [
                {
                    "name": name, "kind": kind, "n_labels": n, "missing": max(4812 - n, 0), "labels": list(labels),
                    **({"mean": 12.0, "sd": 3.4} if not labels
                       else {"shares": {label: 1 / len(labels) for label in labels}}),
                }
                for name, kind, labels, n in tasks
            ],
            "notes": ["3 rows were refused: too few cells (lines 17, 411, 2050)", 'column "id" left out'],
        },
        tasks=tuple({"name": n, "kind": k, "metrics": DEFAULTS[k], "labels": list(ls)} for n, k, ls, _ in tasks),
        methods=methods,
        runs=tuple(runs),
        comparisons=comparisons,
        verdicts=verdicts,
        timing={"seconds": 231.4, "n_jobs": 2, "runs": {m.name: 11.5 for m in methods}},
    )  # fmt: skip


def _judge(tasks, methods, scores, not_measurable, failed, n_splits):
    raw, means = [], {}
    singles = [m.name for m in methods if m.sharing == "single"]
    for name, kind, _, _ in tasks:
        metric = DEFAULTS[kind][0]
        sign = 1.0 if METRICS[metric].higher_is_better else -1.0
        held = [s for s in singles if (name, s, metric) in scores]
        baseline = max(held, key=lambda s: sign * scores[name, s, metric].mean(), default=singles[0])
        for method in methods:
            if method.sharing == "single":
                continue
            if name in method.refused:
                raw.append(Comparison(name, method.name, baseline, metric, verdict="not measurable",
                                      reason=method.refused[name]))  # fmt: skip
                continue
            if name in not_measurable:
                raw.append(Comparison(name, method.name, baseline, metric, verdict="not measurable",
                                      reason="one class only in the test rows of 8 of 10 splits"))  # fmt: skip
                continue
            keep = np.array([s for s in range(n_splits) if failed.get(method.name) != s])
            mine, base = scores[name, method.name, metric][keep], scores[name, baseline, metric][keep]
            gain, low, high, p = _compare(mine, base, sign)
            means.setdefault(method.name, []).append(sign * (mine - base) / abs(base.mean()))
            raw.append(Comparison(name, method.name, baseline, metric, float(mine.mean()), float(base.mean()),
                                  gain, low, high, p, None, len(keep)))  # fmt: skip
    measured = sorted((i for i, c in enumerate(raw) if c.p is not None), key=lambda i: raw[i].p)
    running = 0.0
    for rank, i in enumerate(measured):
        running = max(running, min(1.0, raw[i].p * (len(measured) - rank)))
        verdict = "cannot tell" if running >= 0.05 else "gains" if raw[i].gain > 0 else "hurt"
        raw[i] = dataclasses.replace(raw[i], p_holm=running, verdict=verdict)
    for method, gains in means.items():
        per_split = np.mean(gains, axis=0)
        mean, low, high, p = _compare(1 + per_split, np.ones_like(per_split), 1.0)
        verdict = "cannot tell" if p >= 0.05 else "gains" if mean > 0 else "hurt"
        raw.append(Comparison(None, method, "best single", "gain", None, None, mean, low, high, p, None,
                              len(per_split), verdict))  # fmt: skip
    verdicts = []
    for name, *_ in tasks:
        own = [c for c in raw if c.task == name]
        gains, hurts = ([c for c in own if c.verdict == v] for v in ("gains", "hurt"))
        hurt_by = tuple(c.method for c in hurts)
        if gains:
            best = max(gains, key=lambda c: c.gain)
            verdicts.append(Verdict(name, "gains", best.method, best.baseline, best.gain, best.low, best.high, hurt_by,
                                    f"Learn {name} together with the others, by {best.method}."))  # fmt: skip
        elif hurts:
            worst = min(hurts, key=lambda c: c.gain)
            verdicts.append(Verdict(name, "hurt", worst.method, worst.baseline, worst.gain, worst.low, worst.high,
                                    hurt_by, f"Keep {name} on its own ({worst.baseline})."))  # fmt: skip
        elif any(c.p is not None for c in own):
            best = max((c for c in own if c.gain is not None), key=lambda c: c.gain)
            verdicts.append(Verdict(name, "cannot tell", best.method, best.baseline, best.gain, best.low, best.high, (),
                                    f"Either way will do for {name}; more labels would decide it."))  # fmt: skip
        else:
            verdicts.append(Verdict(name, "not measurable", None, None, None, None, None, (),
                                    f"Collect more labels of {name} before asking again."))  # fmt: skip
    return tuple(raw), tuple(verdicts)


def make_long(n_tasks: int = 139, n_splits: int = 10) -> Results:
    rng = np.random.default_rng(7)
    tasks = tuple((f"school {k + 1:03d}", "regression", (), int(rng.integers(22, 251))) for k in range(n_tasks))
    effects = {
        name: tuple(np.array([-0.01, 0.02, 0.035, 0.015, 0.01]) + 0.05 * rng.standard_normal(5)) for name, *_ in tasks
    }
    results = make(
        tasks, effects, title="School: exam scores of 139 schools", n_splits=n_splits, seed=3, not_measurable=(),
        failed=(), form="long", noise=0.009,
        features=["year", "gender", "VR band 1", "VR band 2", "VR band 3", "ethnic group 1", "ethnic group 2",
                  "free meals %", "VR band 1 %", "school gender", "denomination"],
        setup={
            "command": "polytask compare school.csv --task-column school --target score --splits 10",
            "config": {"source": {"name": "school"}, "splits": n_splits, "seed": 0},
            "versions": {"polytask": "0.1.0"},
            "fingerprint": "5be1…", "plan": {"trials": 20, "seeds": [0]},
            "published": [
                {"what": "independent ridge", "metric": "explained_variance_global", "low": 23, "high": 24,
                 "source": "Argyriou et al. 2008"},
                {"what": "multi-task feature learning", "metric": "explained_variance_global", "low": 26, "high": 27,
                 "source": "Argyriou et al. 2008"},
                {"what": "multi-task relationship learning", "metric": "explained_variance_global", "low": 29.9,
                 "high": 29.9, "source": "Zhang and Yeung 2010", "note": "protocol not stated in full"},
            ],
        },
    )  # fmt: skip
    overall = {}
    for k, method in enumerate(results.methods):
        ev = 33 + 0.8 * k
        overall[method.name] = {
            "explained_variance_global": {"mean": ev, "low": ev - 1.1, "high": ev + 1.2},
            "explained_variance_per_task": {"mean": ev - 10, "low": ev - 11.2, "high": ev - 8.9},
        }
    return dataclasses.replace(results, overall=overall)


def make_empty() -> Results:
    full = make(n_splits=2)
    return dataclasses.replace(
        full,
        runs=tuple(Run(r.method, r.split, r.seed, "failed", "killed by the system: out of memory") for r in full.runs),
        comparisons=(),
        verdicts=(),
    )
