"""Rough costs: how long the fits of a plan take, from sizes alone."""

from __future__ import annotations

from collections.abc import Mapping

from polytask.compare.plan import Plan
from polytask.core.data import TaskData

_BATCH = 128
_EPOCHS = 50  # a typical early stop


def seconds(plan: Plan, data: TaskData, fits: Mapping[str, int]) -> float:
    """Return about how many seconds the fits take on one core; right to a factor of three or so."""
    return sum(count * _per_fit(plan, label, data) for label, count in fits.items())


def _per_fit(plan: Plan, label: str, data: TaskData) -> float:
    spec = next(spec for spec in plan.methods if spec.label == label)
    n_labels = sum(len(labels) for labels in data.labels.values())
    n_inputs = 2 * len(data.inputs)
    if spec.learner_class().__module__.startswith("polytask.train."):
        copies = 1 if spec.name == "hard-sharing" else len(data.tasks)
        steps = _EPOCHS * max(1, data.n_rows // _BATCH)
        return steps * (2.5e-3 + 1.2e-4 * copies)
    return 0.04 + 8e-8 * n_labels * n_inputs * (1 if spec.learner_class().sharing == "single" else 3)


def duration(seconds: float) -> str:
    """Write a rough time: ``40 s``, ``4 min``, ``2 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
