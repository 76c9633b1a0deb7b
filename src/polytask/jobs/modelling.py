"""Train the best method on all rows and save it; predict new rows with a saved model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polytask.core.data import Array
from polytask.core.errors import InputError, ModelRefusedError, unknown
from polytask.core.learner import Model, Progress
from polytask.core.results import Results
from polytask.core.task import Floats, Task
from polytask.jobs.comparing import fixed_parameters, for_networks, has_torch
from polytask.jobs.folders import locked
from polytask.jobs.tables import advice_in_flags, open_table
from polytask.registry import learner_class, learner_names
from polytask.settings import Settings
from polytask.storage import LoadedModel, check_replaceable, load_model, save_model

if TYPE_CHECKING:
    from polytask.sources import Table, TableEncoder


@dataclass(frozen=True)
class Trained:
    """A model that was fitted and saved."""

    folder: Path
    methods: Mapping[str, str]
    rows: int
    chosen: Mapping[str, Any]


def best_methods(results: Results, tasks: tuple[str, ...]) -> dict[str, str]:
    """Return task → method: the one that surely gains there, else its best single-task baseline.

    Raises
    ------
    InputError
        The results say nothing of a task.
    """
    by_task = {verdict.task: verdict for verdict in results.verdicts}
    found = {}
    for task in tasks:
        if task not in by_task:
            raise InputError("the results are of other targets: " + unknown("task", task, by_task))
        verdict = by_task[task]
        method = verdict.method if verdict.verdict == "gains" else verdict.baseline
        found[task] = method or _first_baseline(results, task)
    return found


def _first_baseline(results: Results, task: str) -> str:
    for method in results.methods:
        if method.sharing == "single" and task not in method.refused:
            return method.name
    raise InputError(f'no method of the results can learn task "{task}"; name one with --method')


def train(
    settings: Settings,
    folder: Path,
    *,
    method: str | None = None,
    results: Results | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Tune and fit a method on all rows and save the model folder.

    Every task is given to its best method of ``results``, or all tasks to ``method``. A method that
    shares still learns from every task; of its predictions those of its own tasks are used. A long
    training goes on where it stopped when the same command is given again.

    Raises
    ------
    InputError
        Unknown method, a task no method can learn, results of other targets.
    DiskError
        The model cannot be written; an earlier one is kept.
    """
    check_replaceable(folder)
    if (method is None) == (results is None):
        raise InputError("name a method (--method), or give the run folder of a comparison (--from), not both")
    if method is not None and method not in learner_names():
        raise InputError(unknown("method", method, learner_names()))
    table = open_table(settings)
    labels = _labels_of(results) if results is not None else {}
    of_task = dict.fromkeys(table.data.names, method) if method else best_methods(results, table.data.names)  # type: ignore[arg-type]  # one is given
    encoder, model, chosen = _fit(settings, table, of_task, labels, _unfinished(folder), progress)
    meta = {
        "methods": of_task,
        "chosen": chosen,
        "rows": table.data.n_rows,
        "labels": {name: len(found) for name, found in table.data.labels.items()},
        "source": table.source.describe(),
        "settings": settings.exact(),
        "seed": settings.seed,
    }
    save_model(folder, model, encoder_state=encoder.state(), schema=table.schema().state(), meta=meta)
    shutil.rmtree(_unfinished(folder), ignore_errors=True)
    return Trained(folder, of_task, table.data.n_rows, chosen)


def _unfinished(folder: Path) -> Path:
    """Return where a training that is under way keeps its checkpoints."""
    return folder.with_name(f".{folder.name}.training")


def _labels_of(results: Results) -> dict[str, dict[str, Any]]:
    """Return label in results → name and fixed parameters of the method."""
    plan = results.setup.get("plan", {})
    return {str(method["label"]): dict(method) for method in plan.get("methods", ())}


def _fit(
    settings: Settings,
    table: Table,
    of_task: Mapping[str, str],
    labels: Mapping[str, Mapping[str, Any]],
    checkpoints: Path,
    progress: Progress | None,
) -> tuple[TableEncoder, Model, dict[str, Any]]:
    from polytask.compare import TaskwiseModel, tune_and_fit
    from polytask.compare.cell import one_thread
    from polytask.sources import TableEncoder

    data = table.data.thinned(settings.labels, seed=settings.seed) if settings.labels else table.data
    encoder = TableEncoder().fit(data)
    encoded = encoder.transform(data)
    parts, chosen = [], {}
    for label in dict.fromkeys(of_task.values()):
        about = labels.get(label) or {"name": label, "fixed": fixed_parameters(settings, label)}
        fixed = {**for_networks(settings, about["name"]), **about["fixed"]}
        learner = learner_class(about["name"])
        own = tuple(name for name in data.names if of_task[name] == label)
        for name in own:
            reason = learner(**fixed).refuses(data.task(name))
            if reason is not None:
                raise InputError(f'method "{label}" cannot learn task "{name}": {reason}; choose another --method')
        with locked(checkpoints), one_thread(), advice_in_flags():
            tuned = tune_and_fit(
                about["name"],
                encoded.only(own) if learner.sharing == "single" else encoded,
                fixed=fixed,
                trials=settings.trials,
                group=settings.group,
                time=settings.time,
                seed=settings.seed,
                progress=progress,
                checkpoint=checkpoints / label if has_torch() else None,
            )
        parts.append((own, tuned.model))
        chosen[label] = dict(tuned.chosen)
    if len(parts) == 1 and parts[0][1].tasks == data.tasks:
        return encoder, parts[0][1], chosen
    return encoder, TaskwiseModel(data.tasks, tuple(parts)), chosen


# -- prediction ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predicted:
    """Predictions that were written."""

    path: Path
    rows: int
    tasks: int
    unseen: Mapping[str, int]
    notes: tuple[str, ...]


def predict(model_folder: Path, table_path: Path, out: Path) -> Predicted:
    """Predict every row of a table with a saved model and write the predictions as CSV.

    Wide form: one column per regression task; for tasks with classes the predicted one and a column
    ``P(task=class)`` each. Long form: the row's task, its prediction and, with classes, ``P(class)``.
    Rows in = rows out, in the same order.

    Raises
    ------
    ModelRefusedError
        The model folder is damaged, too new or not a model.
    InputError
        The table lacks a column the model needs.
    """
    from polytask.sources import Schema, TableEncoder, read_features, write_csv

    loaded = load_model(model_folder)
    try:
        schema, encoder = Schema.from_state(loaded.schema), TableEncoder.from_state(loaded.encoder_state)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise ModelRefusedError(f"{model_folder} has no whole schema or encoder: {str(error)[:200]}") from error
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the name of a file, such as pred.csv")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is not a folder; create it first, or write somewhere else with -o")
    if out.exists() and table_path.exists() and out.samefile(table_path):
        raise InputError(f"{out} is the table itself; write the predictions somewhere else with -o")
    with advice_in_flags():
        table = read_features(table_path, schema)
    data = replace(table.data, tasks=loaded.model.tasks, labels=_no_labels(table, loaded))
    scores = loaded.model.predict(encoder.transform(data))
    columns: dict[str, Any] = {}
    notes = [*loaded.notes()]
    if "id" in schema.keys and schema.keys["id"] in data.keys:
        columns[schema.keys["id"]] = data.keys[schema.keys["id"]]
    task_column = schema.keys.get("task")
    if task_column is not None and task_column in data.keys:
        more, note = _own_task(loaded.model.tasks, scores, task_column, data.keys[task_column])
        columns.update(more)
        notes += note
    else:
        for task in loaded.model.tasks:
            columns.update(_columns(task, scores[task.name]))
    write_csv(out, columns)
    return Predicted(out, data.n_rows, len(loaded.model.tasks), encoder.unseen(data), tuple(notes))


def _no_labels(table: Table, loaded: LoadedModel) -> dict[str, Any]:
    nothing = next(iter(table.data.labels.values()))
    return {task.name: nothing for task in loaded.model.tasks}


def _columns(task: Task, scores: Floats) -> dict[str, Any]:
    decided = task.decide(scores)
    if not task.labels:
        return {task.name: decided}
    chances = task.probabilities(scores)
    named = {f"P({task.name}={label})": chances[:, number] for number, label in enumerate(task.labels)}
    return {task.name: [task.labels[int(code)] for code in decided], **named}


def _own_task(
    tasks: tuple[Task, ...], scores: Mapping[str, Floats], task_column: str, of_row: Array
) -> tuple[dict[str, Any], list[str]]:
    """Return each row's prediction for its own task, and a note about rows whose task the model does not know."""
    place = {task.name: number for number, task in enumerate(tasks)}
    number = np.array([place.get(name, -1) for name in of_row.tolist()], dtype=np.int64)
    first = tasks[0]
    values: list[Any] = [None] * len(of_row)
    chances: dict[str, list[float | None]] = {f"P({label})": [None] * len(of_row) for label in first.labels}
    for task in tasks:
        rows = np.flatnonzero(number == place[task.name])
        if not len(rows):
            continue
        found = list(_columns(task, scores[task.name][rows]).values())
        for column, target in zip(found, [values, *chances.values()], strict=True):
            for row, value in zip(rows.tolist(), column, strict=True):
                target[row] = value
    strange = int((number < 0).sum())
    notes = [f"{strange:,} rows have a task the model does not know: their predictions are empty"] if strange else []
    return {task_column: of_row, "prediction": values, **chances}, notes
