"""Results: what a comparison found, as plain data (JSON both ways).

The same plan, data and seed give the same bytes, apart from the ``timing`` section.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from polytask.core.errors import InputError
from polytask.core.relation import Relation

FORMAT = 1


@dataclass(frozen=True)
class Run:
    """One method on one split.

    Attributes
    ----------
    method, split, seed
        What was run. Splits count from 0; the seed also drives initial weights and batches.
    status
        ``"done"`` or ``"failed"``; then ``error`` says why in a sentence.
    scores
        Task → metric → value on the test rows. A metric that cannot be measured (one class only,
        constant target) is left out.
    overall
        Scores over all tasks together, such as ``"explained_variance_global"``.
    valid
        Task → mean validation loss of the chosen configuration, relative to the best constant.
    chosen
        Hyper-parameters that won the tuning: ``{"all": {...}}``, or task → its own.
    counts
        Task → ``{"train": …, "valid": …, "test": …}`` labelled rows.
    history
        Learning curves (:meth:`polytask.core.learner.Model.history`).
    relations
        What the tasks share (first split only, to keep files small).
    """

    method: str
    split: int
    seed: int
    status: str = "done"
    error: str = ""
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    overall: Mapping[str, float] = field(default_factory=dict)
    valid: Mapping[str, float] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    history: Mapping[str, Any] = field(default_factory=dict)
    relations: Mapping[str, Relation] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "relations"}
        plain["relations"] = {name: relation.to_json() for name, relation in self.relations.items()}
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        relations = {name: Relation.from_json(value) for name, value in plain.get("relations", {}).items()}
        return cls(**{**plain, "relations": relations})


@dataclass(frozen=True)
class MethodInfo:
    """One compared method: CLI name, ``sharing`` (single, pooled, shared), one line, and refusals.

    ``refused`` maps a task to the reason why the method cannot learn it.
    """

    name: str
    sharing: str
    summary: str
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """One method against the best single-task baseline, on one task or on the mean of all.

    A gain counts as sure only when it is sure against every single-task baseline.

    Attributes
    ----------
    task
        Name, or None for the mean relative gain Δm over tasks.
    method, baseline
        CLI names; for the mean the baseline is ``"best single"``.
    metric, score, baseline_score
        Mean test scores over splits; NaN-free: None where not measurable.
    gain, low, high
        Relative gain (0.05 = 5 % better; positive is always better) with its 95 % interval.
    p, p_holm
        Two-sided p-value, and Holm's adjustment over the family of all (method, task) pairs.
    n_splits
        How many paired splits it rests on.
    verdict
        ``"gains"``, ``"hurt"``, ``"cannot tell"`` or ``"not measurable"`` (then ``reason`` says why).
    """

    task: str | None
    method: str
    baseline: str
    metric: str
    score: float | None = None
    baseline_score: float | None = None
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    n_splits: int = 0
    verdict: str = "cannot tell"
    reason: str = ""


@dataclass(frozen=True)
class Verdict:
    """The answer for one task.

    Attributes
    ----------
    verdict
        ``"gains"`` when a sharing method is better than the best single-task baseline beyond doubt;
        else ``"hurt"`` when one is worse beyond doubt; else ``"cannot tell"``; or ``"not measurable"``.
    method
        The sharing method it speaks of: the one with the largest sure gain, or the largest sure loss.
    hurt_by
        Every sharing method that is worse beyond doubt, also when another one gains.
    advice
        One sentence for a person.
    """

    task: str
    verdict: str
    method: str | None
    baseline: str | None
    gain: float | None
    low: float | None
    high: float | None
    hurt_by: tuple[str, ...]
    advice: str


@dataclass(frozen=True)
class Results:
    """Everything a comparison found.

    Attributes
    ----------
    title
        Name of the comparison, for people.
    setup
        Exact settings, source and library versions to repeat the run.
    data
        Summary of the table: ``rows``, ``form`` (wide, long), ``features`` (name, kind, missing),
        ``tasks`` (name, kind, n_labels, missing, labels, mean, sd or shares), ``notes``.
    tasks
        :meth:`Task.describe` of every task.
    methods, runs, comparisons, verdicts
        See the classes.
    overall
        Method → metric over all tasks → ``{"mean", "low", "high"}`` over splits.
    timing
        Seconds; the only part that differs between two equal runs.
    """

    title: str
    setup: Mapping[str, Any]
    data: Mapping[str, Any]
    tasks: tuple[Mapping[str, Any], ...]
    methods: tuple[MethodInfo, ...]
    runs: tuple[Run, ...]
    comparisons: tuple[Comparison, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    overall: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    timing: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def without_timing(self) -> Results:
        """Return a copy without its ``timing`` section: what two equal runs must share."""
        return replace(self, timing={})

    def to_json(self) -> str:
        """Return the results as JSON text with sorted keys; NaN and infinity are refused."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain["methods"] = [asdict(method) for method in self.methods]
        plain["runs"] = [run.to_json() for run in self.runs]
        plain["comparisons"] = [asdict(item) for item in self.comparisons]
        plain["verdicts"] = [asdict(item) for item in self.verdicts]
        return json.dumps(plain, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote."""
        plain = json.loads(text)
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            raise InputError(f"these results are not of format {FORMAT}; write them with this version of polytask")
        return cls(
            **{
                **plain,
                "tasks": tuple(plain["tasks"]),
                "methods": tuple(MethodInfo(**item) for item in plain["methods"]),
                "runs": tuple(Run.from_json(item) for item in plain["runs"]),
                "comparisons": tuple(Comparison(**item) for item in plain["comparisons"]),
                "verdicts": tuple(Verdict(**{**item, "hurt_by": tuple(item["hurt_by"])}) for item in plain["verdicts"]),
            }
        )
