"""Random search with the same budget for every method, on inner validation rows.

Trial 0 is the learner's defaults, the others are drawn from its search space. The criterion of task t is

    c_t = (mean validation loss of t) / (mean loss of the best constant of the inner training rows)

pooled over the inner folds. A method whose tasks are independent (``sharing = "single"``) takes each
task's own best trial; any other takes the one trial with the smallest mean of c_t over tasks.

The encoder is fitted anew on the inner training rows of every fold, so validation rows are as unseen
in tuning as test rows are in the comparison; the final encoder is fitted on the rows of the final fit.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from polytask.compare.plan import Encoder, MethodSpec, expanding_windows, fold_pairs, mixed_seed
from polytask.compare.taskwise import TaskwiseModel
from polytask.core.data import Ints, TaskData
from polytask.core.errors import DiskError, InputError, MissingExtraError, PolytaskError
from polytask.core.learner import Learner, Model, Progress
from polytask.core.splits import split_rows
from polytask.core.task import Floats

NUMERICAL = (PolytaskError, ArithmeticError, ValueError)
"""What a configuration that does not work may raise: overflow, divergence, singular systems, refused values."""
BROKEN = (DiskError, MissingExtraError)
"""What no other configuration would mend."""

_WORST = float("inf")


@dataclass(frozen=True)
class Tuned:
    """A tuned and fitted method.

    Attributes
    ----------
    model
        The fitted model; of the tasks the method does not refuse.
    encoder
        The encoder its inputs went through, or None for data that was encoded already.
    chosen
        ``{"all": {...}}``, or task → its own configuration.
    valid
        Task → criterion c_t of the chosen configuration; absent where it cannot be measured.
    counts
        Task → ``{"train": …, "valid": …}``: labelled rows of the final fit, and of all inner
        validation parts together.
    trials
        Every trial: ``{"values": {...}, "valid": {task: c_t}, "error": ""}``.
    history
        Learning curves of the final fit.
    """

    model: Model
    encoder: Encoder | None
    chosen: Mapping[str, Any]
    valid: Mapping[str, float]
    counts: Mapping[str, Mapping[str, int]]
    trials: tuple[Mapping[str, Any], ...] = ()
    history: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Pair:
    """Encoded inner training and validation rows."""

    train: TaskData
    valid: TaskData
    encoder: Encoder | None


def encode(encoder: Encoder | None, fit_on: TaskData, *others: TaskData) -> tuple[Encoder | None, list[TaskData]]:
    """Fit a copy of the encoder on ``fit_on`` and return it with all the tables encoded."""
    if encoder is None:
        return None, [fit_on, *others]
    fitted = copy.deepcopy(encoder).fit(fit_on)
    return fitted, [fitted.transform(part) for part in (fit_on, *others)]


def configurations(spec: MethodSpec, trials: int, *, seed: int) -> list[dict[str, Any]]:
    """Return the distinct configurations of a search: the defaults, then ``trials - 1`` draws."""
    space = dict(sorted(spec.learner_class().search_space().items()))
    found: list[dict[str, Any]] = [{}]
    for trial in range(1, trials):
        rng = np.random.default_rng([seed, trial])
        drawn = {name: where.sample(rng) for name, where in space.items()}
        free = {name: value for name, value in drawn.items() if name not in spec.fixed}
        if free not in found and free:
            found.append(free)
    return found


def inner_pairs(
    data: TaskData, n_folds: int, *, valid_share: float, seed: int, group: str | None = None, time: str | None = None
) -> list[tuple[Ints, Ints]]:
    """Return inner (training, validation) rows: ``n_folds`` folds, or a single part when it is 1."""
    if n_folds <= 1 or data.n_rows < n_folds:
        shares = (1.0 - valid_share, valid_share)
        train, valid = split_rows(data, shares, seed=seed, group=group, time=time)
        return [(train, valid)]
    if time is not None:
        return list(expanding_windows(data, n_folds, time))
    return fold_pairs(data, n_folds, seed=seed, group=group)


def tune(
    spec: MethodSpec,
    data: TaskData,
    *,
    encoder: Encoder | None = None,
    trials: int = 20,
    valid_share: float = 0.2,
    group: str | None = None,
    time: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> Tuned:
    """Tune a method on inner validation rows of ``data`` (training rows only) and fit it.

    Raises
    ------
    InputError
        When the method refuses every task.
    """
    learner = spec.build()
    data = data.only([task.name for task in data.tasks if learner.refuses(task) is None])
    if not data.tasks:
        raise InputError(f'method "{spec.label}" refuses every task')
    candidates = configurations(spec, trials, seed=seed)
    folds = learner.inner_folds if learner.refits else 1
    rows = inner_pairs(data, folds, valid_share=valid_share, seed=mixed_seed(seed, 1), group=group, time=time)
    pairs = [_encoded(encoder, data.rows(train), data.rows(valid)) for train, valid in rows]
    search = _Search(spec, pairs, seed, progress, checkpoint)
    for number in range(len(candidates)):
        search.try_out(number, candidates)
    winners = search.winners(learner.sharing == "single")
    fitted, model = search.finish(winners, data, encoder, candidates)
    valid = {name: search.criteria[trial][name] for name, trial in winners.items()}
    return Tuned(
        model=model,
        encoder=fitted,
        chosen=_chosen(winners, spec, candidates, learner.sharing == "single"),
        valid={name: value for name, value in valid.items() if np.isfinite(value)},
        counts=_counts(data, pairs, refits=learner.refits),
        trials=search.record(candidates),
        history=model.history(),
    )


def _encoded(encoder: Encoder | None, train: TaskData, valid: TaskData) -> _Pair:
    fitted, (inner, outer) = encode(encoder, train, valid)
    return _Pair(inner, outer, fitted)


def _counts(data: TaskData, pairs: Sequence[_Pair], *, refits: bool) -> dict[str, dict[str, int]]:
    final = data if refits else pairs[0].train
    return {
        name: {
            "train": len(final.labels[name]),
            "valid": sum(len(pair.valid.labels[name]) for pair in pairs),
        }
        for name in data.names
    }


def _chosen(
    winners: Mapping[str, int], spec: MethodSpec, candidates: Sequence[Mapping[str, Any]], single: bool
) -> dict[str, Any]:
    def values(trial: int) -> dict[str, Any]:
        learner = spec.build(candidates[trial])
        names = sorted({*learner.search_space(), *spec.fixed})
        return {name: getattr(learner, name) for name in names if hasattr(learner, name)}

    if single:
        return {name: values(trial) for name, trial in winners.items()}
    return {"all": values(next(iter(winners.values())))}


class _Search:
    """The trials of one method: their criteria, and the models worth keeping."""

    def __init__(
        self,
        spec: MethodSpec,
        pairs: Sequence[_Pair],
        seed: int,
        progress: Progress | None,
        checkpoint: Path | None,
    ) -> None:
        self.spec = spec
        self.pairs = pairs
        self.seed = seed
        self.progress = progress
        self.checkpoint = checkpoint
        self.names = pairs[0].train.names
        self.constants = _constant_losses(pairs)
        self.criteria: dict[int, dict[str, float]] = {}
        self.errors: dict[int, Exception] = {}
        self.kept: dict[int, Model] = {}

    def try_out(self, number: int, candidates: Sequence[Mapping[str, Any]]) -> None:
        """Fit one configuration on every inner fold and note its criteria."""
        totals = dict.fromkeys(self.names, 0.0)
        counts = dict.fromkeys(self.names, 0)
        for fold, pair in enumerate(self.pairs):
            share = 1.0 / len(self.pairs) / (len(candidates) + 1)
            done = number / (len(candidates) + 1) + fold * share
            try:
                learner = self.spec.build(candidates[number])
                model = self._fit(learner, pair, f"trial-{number:03d}-{fold}", done, share)
                losses = _finite_losses(model, pair.valid)
            except BROKEN:
                raise
            except NUMERICAL as error:
                if isinstance(error, InputError) and number == 0:
                    raise
                self.errors[number] = error
            if number in self.errors:
                self.criteria[number] = dict.fromkeys(self.names, _WORST)
                return
            for name, values in losses.items():
                totals[name] += float(values.sum())
                counts[name] += len(values)
            if not learner.refits:
                self.kept[number] = model
        self.criteria[number] = {
            name: totals[name] / counts[name] / self.constants[name] if name in self.constants else float("nan")
            for name in self.names
        }
        self._forget()

    def _fit(self, learner: Learner, pair: _Pair, place: str, done: float, share: float) -> Model:
        return learner.fit(
            pair.train,
            valid=pair.valid,
            seed=self.seed,
            progress=_scaled(self.progress, done, share),
            checkpoint=None if self.checkpoint is None else self.checkpoint / place,
        )

    def _forget(self) -> None:
        """Keep only the models that can still win."""
        wanted = set(self.winners(single=True).values()) | set(self.winners(single=False).values())
        self.kept = {trial: model for trial, model in self.kept.items() if trial in wanted}

    def winners(self, single: bool) -> dict[str, int]:
        """Return task → winning trial; the earliest of equals, trial 0 where nothing can be measured."""
        order = sorted(self.criteria)
        if all(trial in self.errors for trial in order):
            raise self.errors[order[0]]
        table = np.array([[self.criteria[trial][name] for name in self.names] for trial in order])
        measured = np.array([name in self.constants for name in self.names])
        usable = next(place for place, trial in enumerate(order) if trial not in self.errors)
        best = np.full(len(self.names), usable)
        if single:
            best[measured] = np.argmin(table[:, measured], axis=0)
        elif measured.any():
            best[:] = np.argmin(table[:, measured].mean(axis=1))
        return {name: order[place] for name, place in zip(self.names, best.tolist(), strict=True)}

    def finish(
        self,
        winners: Mapping[str, int],
        data: TaskData,
        encoder: Encoder | None,
        candidates: Sequence[Mapping[str, Any]],
    ) -> tuple[Encoder | None, Model]:
        """Return the final model: refitted on all rows, or the one that validation stopped."""
        used = sorted(set(winners.values()))
        parts: list[tuple[tuple[str, ...], Model]] = []
        if self.kept:
            fitted = self.pairs[0].encoder
        else:
            fitted, (encoded,) = encode(encoder, data)
        share = 1.0 / len(used) / (len(candidates) + 1)
        for place, trial in enumerate(used):
            names = tuple(name for name in self.names if winners[name] == trial)
            if self.kept:
                parts.append((names, self.kept[trial]))
                continue
            learner = self.spec.build(candidates[trial])
            model = learner.fit(
                encoded.only(names) if len(used) > 1 else encoded,
                seed=self.seed,
                progress=_scaled(self.progress, len(candidates) / (len(candidates) + 1) + place * share, share),
                checkpoint=None if self.checkpoint is None else self.checkpoint / f"final-{place}",
            )
            parts.append((names, model))
        if len(parts) == 1:
            return fitted, parts[0][1]
        return fitted, TaskwiseModel(data.tasks, tuple(parts))

    def record(self, candidates: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
        return tuple(
            {
                "values": dict(candidates[trial]),
                "valid": {name: value for name, value in criteria.items() if np.isfinite(value)},
                "error": str(self.errors[trial]) if trial in self.errors else "",
            }
            for trial, criteria in sorted(self.criteria.items())
        )


def _constant_losses(pairs: Sequence[_Pair]) -> dict[str, float]:
    """Return task → pooled validation loss of the best constants; tasks that cannot be measured are absent."""
    found = {}
    for task in pairs[0].train.tasks:
        losses, values = [], []
        for pair in pairs:
            train, valid = pair.train.labels[task.name], pair.valid.labels[task.name]
            constant = task.constant_scores(train.values)
            losses.append(task.losses(np.tile(constant, (len(valid), 1)), valid.values))
            values.append(valid.values)
        loss, value = np.concatenate(losses), np.concatenate(values)
        floor = 1e-20 * max(1.0, float(np.mean(np.square(value)))) if len(value) else 0.0
        if len(loss) and loss.mean() > floor:
            found[task.name] = float(loss.mean())
    return found


def _finite_losses(model: Model, data: TaskData) -> dict[str, Floats]:
    scores = model.predict(data)
    losses = {}
    for task in data.tasks:
        labels = data.labels[task.name]
        rows = task.losses(np.asarray(scores[task.name], dtype=np.float64)[labels.rows], labels.values)
        if not np.isfinite(rows).all():
            raise FloatingPointError(f'predictions of task "{task.name}" are not finite')
        losses[task.name] = rows
    return losses


def _scaled(progress: Progress | None, done: float, share: float) -> Progress | None:
    if progress is None:
        return None
    return lambda text, part: progress(text, min(1.0, done + share * part))


def tune_and_fit(
    learner_name: str,
    data: TaskData,
    *,
    encoder: Encoder | None = None,
    fixed: Mapping[str, Any] | None = None,
    trials: int = 20,
    valid_share: float = 0.2,
    group: str | None = None,
    time: str | None = None,
    seed: int = 0,
    metrics: Mapping[str, tuple[str, ...]] | None = None,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> Tuned:
    """Tune one method on inner validation rows of ``data`` and fit it on all of them.

    Parameters
    ----------
    learner_name
        CLI name, such as ``"block-sparse"``.
    data
        Raw data with an ``encoder``, or encoded data without one.
    fixed
        Parameters that are not tuned.
    checkpoint
        Folder in which a long fit keeps what it needs to go on after a kill.

    Returns
    -------
    Tuned
        The model, the encoder fitted with it, and the configuration chosen.
    """
    if trials < 1:
        raise InputError(f"trials={trials}; at least 1 is needed (the defaults)")
    spec = MethodSpec(learner_name, dict(fixed or {}))
    if metrics:
        tasks = tuple(replace(task, metrics=tuple(metrics.get(task.name, task.metrics))) for task in data.tasks)
        data = replace(data, tasks=tasks)
    return tune(
        spec,
        data,
        encoder=encoder,
        trials=trials,
        valid_share=valid_share,
        group=group,
        time=time,
        seed=seed,
        progress=progress,
        checkpoint=checkpoint,
    )


def plain(value: Any) -> Any:
    """Return ``value`` as JSON would give it back, so that stored and fresh results are equal."""
    return json.loads(json.dumps(value, allow_nan=False, default=_number))


def _number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
