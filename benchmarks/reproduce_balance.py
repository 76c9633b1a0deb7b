"""Every balancer of the library with hard sharing on three data sets, against single-task networks.

    python benchmarks/reproduce_balance.py                            everything that is not done yet
    python benchmarks/reproduce_balance.py --only tox21               some protocols (the beginning of their names)
    python benchmarks/reproduce_balance.py --methods mgda rlw         some balancers
    python benchmarks/reproduce_balance.py --report docs/balance.md   from the stored cells write the tables there

Cells, their store and the choice of settings are those of :mod:`deep_cells`. Every balancer and the single-task
networks have the protocol's network (:mod:`deep_protocols`), the same epochs, batches, cosine schedule and seeds, and
the same four learning rates to choose from; other settings of balancers are the library's usual ones. Controls are
random loss weighting, which is one of the balancers, and tuned linear scalarisation, which has more to choose from than
the others: every learning rate with every one of four tilts a, for fixed weights

    w_t = n_t^a / sum_s n_s^a

where n_t is the number of labels of task t (two classes: of the rarer one) or, where all tasks have the same, a
geometric sequence from 2 to 1/2.

The change against single-task networks, positive where a balancer is better, is

    Δ_t = 100 s_t (log M_t - log B_t),        Δm = 1/T sum_t Δ_t

with the metric M_t of the balancer and B_t of the single-task network on task t, on the same split with the same seed,
and s_t = 1 where higher is better, otherwise -1: nearly percent, and the same in every unit. (Several published
programs report -Δm.) Values are means over splits; intervals and p-values take sampling of test rows and of training
rows apart (:mod:`polytask.compare.statistics`), with the influence 100 s_t (u / M_t - v / B_t) of a test label on Δ_t,
u and v being those on the two metrics. p-values of Δm are adjusted by Holm's method over the methods of a table, those
of Δ_t over the tasks of a method.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import deep_protocols as dp
from deep_cells import Method, absent, command, complete, plan, run_cell, setting_text, sizes, task_counts
from linear_protocols import Case, Scored
from polytask.balance import Fixed
from polytask.balance.base import Balancer
from polytask.compare.statistics import LEVEL, Interval, Parts, holm, interval, standard_error
from polytask.core.data import TaskData
from polytask.core.errors import InputError
from polytask.core.learner import Model
from polytask.core.metrics import METRICS
from polytask.core.task import Floats, Task
from polytask.train.balancers import BALANCERS
from polytask.train.learners import HardSharingLearner
from reproduction import Key, Store, head, line, published_lines

BUDGET = "4 learning rates"
PROTOCOLS = ("multi-mnist", "tox21", "school")
RATES = tuple({"learning_rate": rate} for rate in (3e-4, 1e-3, 3e-3, 1e-2))
TILTS = (-0.5, 0.0, 0.5, 1.0)
MOST_TASKS_SHOWN = 12
"""Tables of single tasks have at most so many columns."""


# -- methods ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LinearScalarisation(HardSharingLearner):
    """Hard sharing with fixed weights of the losses.

    Parameters
    ----------
    tilt
        a in w_t ∝ n_t^a; see the program's text.
    weights
        Of the losses; made from the training labels.
    """

    tilt: float = 0.0
    weights: tuple[float, ...] = ()

    def fit(self, train: TaskData, **more: Any) -> Model:
        """Train with the weights that the labels give."""
        return HardSharingLearner.fit(replace(self, weights=tuple(tilted(train, self.tilt).tolist())), train, **more)

    def _balancer(self, tasks: tuple[Task, ...], seed: int) -> Balancer:  # noqa: ARG002  # of the contract
        return Fixed(self.weights)


def tilted(train: TaskData, tilt: float) -> Floats:
    """Return n^tilt of every task, as shares of their sum."""
    counts = np.array([max(1, _labels(task, train.labels[task.name].values)) for task in train.tasks], dtype=np.float64)
    raised = (np.geomspace(2.0, 0.5, len(counts)) if np.ptp(counts) == 0 else counts) ** tilt
    return np.asarray(raised / raised.sum())


def _labels(task: Task, values: Floats) -> int:
    return int(np.bincount(values.astype(np.int64), minlength=2).min()) if task.kind == "binary" else len(values)


_OWN_ROWS = {"school": "it compares gradients at a representation of rows that tasks share; here they share none"}
SINGLE, SCALARISATION, EQUAL = "single-task", "linear scalarisation, tuned", "equal"
METHODS = (
    Method(SINGLE, "single-task-network", grid=RATES),
    Method(
        SCALARISATION,
        "linear-scalarisation",
        grid=tuple({**rate, "tilt": tilt} for rate in RATES for tilt in TILTS),
        made_here=LinearScalarisation,
    ),
    *(
        Method(name, "hard-sharing", {"balancer": name}, RATES, left_out=_OWN_ROWS if name == "graddrop" else {})
        for name in BALANCERS
    ),
)


def protocols() -> tuple[dp.Protocol, ...]:
    """Return the protocols on which balancers are compared."""
    return tuple(protocol for protocol in dp.PROTOCOLS if protocol.name in PROTOCOLS)


# -- one cell ---------------------------------------------------------------------------------


def signed_logs(protocol: dp.Protocol, case: Case, scores: dp.Scores) -> tuple[Scored, Floats]:
    """Return the protocol's score, influences on 100 s_t log M_t (one task after the other), and all M_t."""
    (value, _), _ = protocol.score(case, scores)
    metrics, influences = [], []
    for task, (metric, influence) in zip(case.test.tasks, protocol.by_task(case, scores), strict=True):
        if metric <= 0:
            raise InputError(
                f"{task.metric} of task {task.name} is {metric:g}, so that no relative change can be told; "
                "choose another metric, or compare differences"
            )
        metrics.append(metric)
        influences.append(100 * _sign(task) * influence / metric)
    return (value, np.concatenate(influences)), np.array(metrics)


def _sign(task: Task) -> int:
    return 1 if METRICS[task.metric].higher_is_better else -1


def run_key(folder: Path, key: Key) -> tuple[Key, dict[str, Any], bytes]:
    """Run one cell (in a worker)."""
    return run_cell(folder, key, METHODS, BUDGET, signed_logs)


def planned(only: Sequence[str], chosen: Sequence[str]) -> list[Key]:
    """Return the cells to run."""
    return plan(protocols(), METHODS, only, chosen)


# -- changes against a baseline ----------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What is stored of a method on all splits of a protocol.

    Parameters
    ----------
    values
        Score of every split, ``(J,)``.
    metrics
        Metric of every split and task, ``(J, T)``.
    influences
        Of every split: of the test labels of all tasks on 100 s_t log M_t, one task after the other.
    seconds
        Processor time of training, of every split, ``(J,)``.
    setting
        The one that was chosen.
    """

    values: Floats
    metrics: Floats
    influences: list[Floats]
    seconds: Floats
    setting: dict[str, Any]


def measured(protocol: dp.Protocol, store: Store) -> dict[str, Measured]:
    """Return label → what was measured, of the methods that have all splits."""
    return {
        label: Measured(
            np.array([facts["scores"][protocol.metric] for facts, _ in cells]),
            np.array([list(facts["tasks"].values()) for facts, _ in cells]),
            [numbers for _, numbers in cells],
            np.array([facts["trained"] for facts, _ in cells]),
            setting,
        )
        for label, (setting, cells) in complete(protocol, store, METHODS).items()
    }


@dataclass(frozen=True)
class Change:
    """Δm of one method against another, and its parts.

    Parameters
    ----------
    mean
        Δm with its interval.
    tasks
        Δ of every task with its interval.
    p_tasks
        p-values of these, adjusted by Holm's method over tasks.
    better
        Share of (split, task) in which the method is better; ties count half.
    """

    mean: Interval
    tasks: list[Interval]
    p_tasks: list[float]
    better: float

    @property
    def hurt(self) -> int:
        """Number of tasks that are worse."""
        return sum(task.value < 0 for task in self.tasks)

    def surely(self, sign: int) -> int:
        """Return the number of tasks that are better (1) or worse (-1) after the adjustment."""
        return sum(_sure(task, p) == sign for task, p in zip(self.tasks, self.p_tasks, strict=True))


class Changes:
    """Changes between the methods of a protocol.

    Parameters
    ----------
    protocol
        Where methods are compared.
    """

    def __init__(self, protocol: dp.Protocol) -> None:
        cases = [protocol.case(split) for split in range(dp.N_SPLITS)]
        self.case = cases[0]
        self.ratio = protocol.test_to_train
        self.signs = np.array([_sign(task) for task in self.case.test.tasks])
        self.ends = [np.cumsum([len(case.test.labels[name]) for name in case.test.names]) for case in cases]
        self.places = [self._by_task(protocol.places(case), split) for split, case in enumerate(cases)]

    def _by_task(self, values: Any, split: int) -> list[Any]:
        return np.split(values, self.ends[split][:-1])

    def between(self, one: Measured, other: Measured) -> Change:
        """Return the change from one method's baseline ``other`` to ``one``."""
        change = 100 * self.signs * (np.log(one.metrics) - np.log(other.metrics))
        influences = [
            self._by_task(ours - theirs, split)
            for split, (ours, theirs) in enumerate(zip(one.influences, other.influences, strict=True))
        ]
        parts = [
            Parts(
                change[:, task],
                tuple((self.places[split][task], influences[split][task]) for split in range(len(change))),
            )
            for task in range(change.shape[1])
        ]
        tasks = [self._interval(part) for part in parts]
        better = float(np.mean((change > 0) + 0.5 * (change == 0)))
        return Change(self._interval(Parts.mean(parts)), tasks, holm([task.p for task in tasks]), better)

    def _interval(self, parts: Parts) -> Interval:
        return interval(float(parts.splits.mean()), *standard_error(parts, self.ratio))


def _sure(gap: Interval, p: float) -> int:
    """Return 1 where a change is surely for the better, -1 where for the worse, 0 where it is open."""
    return 0 if p >= LEVEL else 1 if gap.value > 0 else -1


# -- tables -----------------------------------------------------------------------------------


def protocol_lines(protocol: dp.Protocol, store: Store) -> list[str]:
    """Return the tables of a protocol."""
    lines = [f"### {protocol.title}", ""]
    found = measured(protocol, store)
    if SINGLE not in found:
        return [*lines, protocol.missing() or "Not run yet.", ""]
    changes = Changes(protocol)
    against = {label: changes.between(one, found[SINGLE]) for label, one in found.items() if label != SINGLE}
    lines += [
        f"{task_counts(changes.case)} Network: {sizes(protocol.network)}, {protocol.network['max_epochs']} epochs, "
        f"batches of at most {protocol.network['batch_size']}. Metric of tasks: {changes.case.test.tasks[0].metric}.",
        "",
        *_main_table(protocol, found, changes, against),
        "",
    ]
    if len(changes.case.test.tasks) <= MOST_TASKS_SHOWN:
        lines += [*_task_table(changes.case.test.names, against), ""]
    return [*lines, *absent(protocol, store, METHODS, found), *published_lines(protocol.published), ""]


def _main_table(
    protocol: dp.Protocol, found: dict[str, Measured], changes: Changes, against: dict[str, Change]
) -> list[str]:
    n_tasks = len(changes.case.test.tasks)
    adjusted = dict(zip(against, holm([change.mean.p for change in against.values()]), strict=True))
    lines = head(
        [
            "balancer",
            protocol.metric,
            "Δm against single-task, %",
            "p (Holm)",
            "Δm against linear scalarisation, %",
            "Δm against equal weights, %",
            f"tasks worse of {n_tasks} (surely)",
            "surely better",
            "better in",
            "setting",
            "CPU s",
            "× equal",
        ]
    )
    for label, one in found.items():
        score = f"{one.values.mean():.4g} ± {one.values.std(ddof=1):.2g}"
        cost = [setting_text(one.setting), f"{one.seconds.mean():.1f}", _cost(one, found.get(EQUAL))]
        if label == SINGLE:
            lines.append(line([label, score, *[""] * 7, *cost]))
            continue
        change = against[label]
        controls = [found.get(name) for name in (SCALARISATION, EQUAL)]
        beside = [
            "" if control is None or control is one else _change_text(changes.between(one, control).mean)
            for control in controls
        ]
        lines.append(
            line(
                [
                    _marked(label, _sure(change.mean, adjusted[label])),
                    score,
                    _change_text(change.mean),
                    f"{adjusted[label]:.2g}",
                    *beside,
                    f"{change.hurt} ({change.surely(-1)})",
                    str(change.surely(1)),
                    f"{change.better:.0%}",
                    *cost,
                ]
            )
        )
    return lines


def _task_table(names: Sequence[str], against: dict[str, Change]) -> list[str]:
    lines = ["Δ of every task, %:", "", *head(["balancer", *names])]
    for label, change in against.items():
        marks = [
            _marked(f"{task.value:+.2f}", _sure(task, p)) for task, p in zip(change.tasks, change.p_tasks, strict=True)
        ]
        lines.append(line([label, *marks]))
    return lines


def _cost(one: Measured, equal: Measured | None) -> str:
    """Return the median over splits of the ratio of training times."""
    return "" if equal is None else f"{np.median(one.seconds / equal.seconds):.1f}"


def _change_text(gap: Interval) -> str:
    return f"{gap.value:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]"


def _marked(text: str, sure: int) -> str:
    return {1: f"**{text}**", 0: text, -1: f"*{text}*"}[sure]


def report(store: Store) -> str:
    """Return all tables as Markdown."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("polytask", "torch", "numpy"))
    rates = ", ".join(f"{setting['learning_rate']:g}" for setting in RATES)
    lines = [
        f"Made by `make reproduce-balance` ({libraries}, Python {platform.python_version()}). Mean ± standard "
        f"deviation over {dp.N_SPLITS} splits, each with a seed of its own that all methods share. Δm: mean over tasks "
        "of 100 log(metric / metric of the single-task network), with the sign by which **positive is better**, paired "
        "over splits, with 95 % intervals. **Bold**: better than single-task networks (p < 0.05 after Holm's "
        "adjustment, over the methods of a table or the tasks of a method); *italics*: worse. Better in: share of "
        f"(split, task) pairs. All choose among the same learning rates ({rates}) within the training rows of the "
        f"first split; tuned linear scalarisation alone tries {len(TILTS)} weightings with each (weight ∝ labels^tilt, "
        f"tilt {', '.join(f'{tilt:g}' for tilt in TILTS)}; labels of the rarer class, or 2 and ½ where tasks have "
        "equally many). CPU s: training of one split in one thread; × equal: median over splits of its ratio to "
        "equal weighting, which is the cost of a step, as all make the same steps.",
        "",
    ]
    for protocol in protocols():
        lines += protocol_lines(protocol, store)
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run cells and write tables."""
    command(
        "Balancers on the same data, network and budget.",
        "runs/reproduce-balance",
        BUDGET,
        planned=planned,
        run=run_key,
        report=report,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
