"""Cells of the comparisons of deep networks: how a method's setting is chosen, and how it is trained on a split.

A cell is one method on one split (:mod:`reproduction` stores them). The cell of split :data:`TUNING` holds the choice
of a method's setting: the one with the best score on a quarter of the training rows of the first split, by networks
trained on the other three quarters. Test rows are read once, by the final model of each split.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deep_protocols as dp
from linear_protocols import Case, Scored
from polytask import registry
from polytask.compare.tuning import NUMERICAL
from polytask.core.data import TaskData
from polytask.core.errors import PolytaskError
from polytask.core.learner import Learner
from polytask.core.task import Floats
from polytask.train.batches import Placed
from polytask.train.model import NetworkModel
from reproduction import Key, Store, run_all, write_between

TUNING = -1
"""The split of the cell in which a method's setting is chosen."""

Measure = Callable[[dp.Protocol, Case, dp.Scores], tuple[Scored, Floats]]
"""What a cell keeps: the score with influences of test labels, and the score of every task."""


def grid(name: str, *values: Any) -> tuple[dict[str, Any], ...]:
    """Return one setting per value of a field."""
    return tuple({name: value} for value in values)


WEIGHT_DECAYS = grid("weight_decay", 1e-4, 1e-2, 1e-1)


@dataclass(frozen=True)
class Method:
    """One row of the tables.

    Parameters
    ----------
    label
        Its name there.
    learner
        Name in the registry.
    fixed
        Fields that are the same everywhere.
    grid
        The settings to choose from.
    wide
        Whether it gets the protocol's wide network.
    left_out
        Protocol → why the method does not run there.
    shares_of_epochs
        Field → its value as a share of the epochs.
    holds_out
        Whether it holds out a fifth of the training rows, to learn from what networks find difficult there.
    made_here
        The class of the learner, where it is not in the registry.
    """

    label: str
    learner: str
    fixed: dict[str, Any] = field(default_factory=dict)
    grid: tuple[dict[str, Any], ...] = WEIGHT_DECAYS
    wide: bool = False
    left_out: dict[str, str] = field(default_factory=dict)
    shares_of_epochs: dict[str, float] = field(default_factory=dict)
    holds_out: bool = False
    made_here: type[Learner] | None = None

    @cached_property
    def key(self) -> str:
        """Label and a digest of the settings."""
        settings = [self.learner, self.fixed, list(self.grid), self.wide, self.shares_of_epochs, self.holds_out]
        return f"{self.label} {zlib.crc32(json.dumps(settings, sort_keys=True).encode()):08x}"


def fitted(protocol: dp.Protocol, method: Method, setting: dict[str, Any], case: Case, seed: int) -> NetworkModel:
    """Train for the whole budget; what is held out, where something is, chooses the epoch."""
    fields = {**protocol.network, **(protocol.wide if method.wide else {}), **method.fixed, **setting}
    fields |= {name: max(1, round(share * fields["max_epochs"])) for name, share in method.shares_of_epochs.items()}
    learner = (method.made_here or registry.learner_class(method.learner))(
        **fields,
        patience=fields["max_epochs"],
        schedule="cosine",
        own_rows=case.train.one_task_per_row,
        device="cpu",
    )
    nothing = None if method.holds_out else case.train.rows(np.arange(1)).without_labels()
    model = learner.fit(case.train, valid=nothing, seed=seed)
    assert isinstance(model, NetworkModel)
    return model


@torch.no_grad()
def scores_of(model: NetworkModel, test: TaskData) -> dp.Scores:
    """Return the scores of the labelled rows of every task; tasks with rows of their own read these only."""
    if not test.one_task_per_row:
        found = model.predict(test)
        return {name: found[name][test.labels[name].rows] for name in test.names}
    batches = Placed(test, model.scaler, torch.device("cpu")).everything(own_rows=True)
    parts = [(model.network.all_scores(batch.inputs, own_rows=True), batch.present) for batch in batches]
    scores = torch.cat([part for part, _ in parts], dim=1).double().numpy()
    present = torch.cat([part for _, part in parts], dim=1).numpy()
    return {
        task.name: model.scaler.undo(number, scores[number][present[number]][:, : task.n_outputs])
        for number, task in enumerate(test.tasks)
    }


def n_parameters(model: NetworkModel) -> int:
    """Return how many numbers training may change."""
    return sum(value.numel() for value in model.network.parameters())


def choose(protocol: dp.Protocol, method: Method) -> dict[str, Any]:
    """Return the facts of the choice among a method's settings."""
    case = protocol.tuning_case()
    found, failed = [], []
    for setting in method.grid:
        try:
            model = fitted(protocol, method, setting, case, seed=0)
            found.append((protocol.score(case, scores_of(model, case.test))[0][0], setting))
        except (*NUMERICAL, PolytaskError) as error:
            failed.append(str(error))
    if not found:
        return {"refused": failed[0]}
    better = max if protocol.higher_is_better else min
    value, setting = better(found, key=lambda item: item[0])
    return {"scores": {protocol.metric: value}, "chosen": setting, "tried": found, "failed": failed}


def scored(protocol: dp.Protocol, case: Case, scores: dp.Scores) -> tuple[Scored, Floats]:
    """Keep the protocol's score."""
    return protocol.score(case, scores)


def run_cell(
    folder: Path, key: Key, methods: Iterable[Method], budget: str, measure: Measure = scored
) -> tuple[Key, dict[str, Any], bytes]:
    """Run one cell (in a worker)."""
    torch.set_num_threads(1)
    protocol = next(protocol for protocol in dp.PROTOCOLS if protocol.key == key[0])
    method = next(method for method in methods if method.key == key[1])
    started = time.process_time()
    if key[2] == TUNING:
        facts = choose(protocol, method)
        return key, {**facts, "seconds": time.process_time() - started}, b""
    chosen, _ = Store(folder, budget).read(protocol.key)[method.key, TUNING]
    if "refused" in chosen:
        return key, {"refused": chosen["refused"], "seconds": 0.0}, b""
    case = protocol.case(key[2])
    began = time.process_time()
    try:
        model = fitted(protocol, method, chosen["chosen"], case, seed=key[2])
        trained = time.process_time() - began
        (value, influences), tasks = measure(protocol, case, scores_of(model, case.test))
    except (*NUMERICAL, PolytaskError) as error:
        return key, {"refused": str(error), "seconds": time.process_time() - started}, b""
    facts = {
        "scores": {protocol.metric: value},
        "tasks": dict(zip(case.test.names, tasks.tolist(), strict=False)),
        "parameters": n_parameters(model),
        "train": sum(map(len, case.train.labels.values())),
        "test": sum(map(len, case.test.labels.values())),
        "trained": trained,
        "seconds": time.process_time() - started,
    }
    return key, facts, influences.tobytes()


def plan(
    protocols: Iterable[dp.Protocol], methods: Iterable[Method], only: Sequence[str], chosen: Sequence[str]
) -> list[Key]:
    """Return the cells to run, the choices of settings first; say which data are missing."""
    choices: list[Key] = []
    cells: list[Key] = []
    methods = tuple(methods)
    for protocol in protocols:
        if only and not any(protocol.name.startswith(prefix) for prefix in only):
            continue
        reason = protocol.missing()
        if reason is not None:
            print(f"{protocol.name}: left out, {reason}")
            continue
        for method in methods:
            if protocol.name in method.left_out or (
                chosen and method.label not in chosen and method.learner not in chosen
            ):
                continue
            choices.append((protocol.key, method.key, TUNING))
            cells += [(protocol.key, method.key, split) for split in range(dp.N_SPLITS)]
    return choices + cells


# -- what is stored, for tables ----------------------------------------------------------------


Cell = tuple[dict[str, Any], Floats]
"""Facts and numbers of a cell."""


def complete(
    protocol: dp.Protocol, store: Store, methods: Iterable[Method]
) -> dict[str, tuple[dict[str, Any], list[Cell]]]:
    """Return label → chosen setting and cells of all splits, of the methods that have them."""
    cells = store.read(protocol.key)
    found = {}
    for method in methods:
        splits = [cells.get((method.key, split)) for split in range(dp.N_SPLITS)]
        whole = [cell for cell in splits if cell is not None and "refused" not in cell[0]]
        if len(whole) == dp.N_SPLITS:
            found[method.label] = cells[method.key, TUNING][0]["chosen"], whole
    return found


def absent(protocol: dp.Protocol, store: Store, methods: Iterable[Method], present: Iterable[str]) -> list[str]:
    """Say which methods are not in the table, and why."""
    cells = store.read(protocol.key)
    shown, lines = set(present), []
    for method in methods:
        if method.label in shown:
            continue
        stored = [cells[method.key, split] for split in range(TUNING, dp.N_SPLITS) if (method.key, split) in cells]
        refused = next((facts["refused"] for facts, _ in stored if "refused" in facts), None)
        reason = method.left_out.get(protocol.name) or refused or "not run yet"
        lines.append(f"Left out: {method.label} ({reason.splitlines()[0]}).")
    return lines


def task_counts(case: Case) -> str:
    """Say how many tasks and labels a protocol has."""
    counts = [len(labels) for labels in case.train.labels.values()]
    return (
        f"{len(case.test.tasks)} tasks; {sum(counts):,} training labels ({min(counts):,} to {max(counts):,} per task), "
        f"{sum(map(len, case.test.labels.values())):,} test labels."
    )


def sizes(network: dict[str, Any]) -> str:
    """Say how large a network is."""
    parts = [f"channels {network['channels']}"] if "channels" in network else []
    return ", ".join([*parts, f"hidden layers {network['widths']}"])


def setting_text(setting: dict[str, Any]) -> str:
    """Say which setting was chosen."""
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in setting.items())


def command(
    description: str,
    folder: str,
    budget: str,
    *,
    planned: Callable[[Sequence[str], Sequence[str]], list[Key]],
    run: Callable[[Path, Key], tuple[Key, dict[str, Any], bytes]],
    report: Callable[[Store], str],
    arguments: Sequence[str] | None,
) -> None:
    """Run cells and write tables, as the command line says.

    Parameters
    ----------
    description
        What the program does.
    folder
        Where cells are stored, unless the command line says otherwise.
    budget
        What a cell may spend.
    planned
        Returns the cells of some protocols and methods.
    run
        Runs one.
    report
        Returns the tables.
    arguments
        Of the command line.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--folder", type=Path, default=Path(folder), help="where cells are stored")
    parser.add_argument("--only", nargs="*", default=[], help="protocols whose names begin so")
    parser.add_argument("--methods", nargs="*", default=[], help="methods to run (all)")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--report", type=Path, help="write the tables into this file, between its markers; runs nothing"
    )
    options = parser.parse_args(arguments)
    store = Store(options.folder, budget)
    if options.report is not None:
        write_between(options.report, report(store))
        return
    keys = planned(options.only, options.methods)
    one = partial(run, options.folder)
    run_all([key for key in keys if key[2] == TUNING], store, options.jobs, one)
    run_all([key for key in keys if key[2] != TUNING], store, options.jobs, one)
    print(report(store))
