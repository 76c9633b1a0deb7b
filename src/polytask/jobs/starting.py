"""``polytask init``: guess settings from a table and write them with comments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polytask.core.errors import InputError
from polytask.core.files import write_file
from polytask.jobs.tables import advice_in_flags, in_flags
from polytask.settings import Settings, load_settings

if TYPE_CHECKING:
    from polytask.core.task import Floats
    from polytask.sources import Table

_LOOKS_LIKE_TARGET = re.compile(r"(^|[_ .])(target|label|outcome|response|class|y)[_ .]?\d*$", re.IGNORECASE)
_CODES = (-9.0, -99.0, -999.0, -9999.0, -99999.0, 99.0, 999.0, 9999.0, 99999.0, 999999.0)
_LEAST_REPEATS = 3


def write_settings(table: Path, out: Path, *, targets: tuple[str, ...] = (), overwrite: bool = False) -> list[str]:
    """Write settings for a table, with guesses to check; return what was guessed, one line each.

    Parameters
    ----------
    targets
        Columns to predict; guessed from names and gaps when empty.

    Raises
    ------
    InputError
        The table cannot be read, or ``out`` exists and may not be overwritten.
    """
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists; give another name with --out, or overwrite it with --force")
    from polytask.sources import read_table

    with advice_in_flags():
        names = column_names(table)
        chosen, why = (targets, "") if targets else guess_targets(table, names)
        known = [name for name in names if name not in chosen]
        read = read_table(table, targets=list(chosen), allow_leak=known)
    missing = guess_missing(read)
    drop = [name for name in known if name not in read.data.inputs and name not in read.data.keys]
    kinds = {task.name: _kind_of(task.kind, task.labels) for task in read.data.tasks}
    settings = load_settings(
        data=str(table),
        targets=list(chosen),
        kinds=kinds,
        missing=missing or None,
        drop=drop or None,
        splits="5x2",
        trials=10,
        seed=0,
    )
    write_file(out, _commented(settings, read, why))
    lines = [f"{name}: {kind}" for name, kind in kinds.items()]
    lines += [f"{name}: {', '.join(map(str, codes))} may mean missing" for name, codes in missing.items()]
    return ([why] if why else []) + lines


def column_names(table: Path) -> list[str]:
    """Return the names of a table's columns as the reader cleans them."""
    from polytask.sources.preflight import clean_names, read_cells

    if table.is_file():
        with table.open("rb") as file:
            packed = file.read(4) == b"PAR1"
        if packed and find_spec("pyarrow") is not None:
            import pyarrow
            from pyarrow.parquet import read_schema

            try:
                names = read_schema(table).names
            except (pyarrow.ArrowException, OSError) as error:
                raise InputError(f"{table.name} is a damaged Parquet file ({str(error)[:100]})") from error
            return list(clean_names(names, [True] * len(names), [])[0])
    return list(read_cells(table).names)


def guess_targets(table: Path, names: list[str]) -> tuple[tuple[str, ...], str]:
    """Guess the target columns: called like targets, else the last column."""
    alike = tuple(name for name in names if _LOOKS_LIKE_TARGET.search(name))
    if alike and len(alike) < len(names):
        return alike, f"targets guessed from their names: {', '.join(alike)}"
    if len(names) < 2:
        raise InputError(f"{table.name} has one column only; a table needs inputs and targets")
    return (names[-1],), f"target guessed: the last column, {names[-1]}; name yours with --targets a,b"


def guess_missing(table: Table) -> dict[str, list[float | str]]:
    """Return column → codes such as -9 or 999 that stand far outside the other numbers, again and again."""
    found: dict[str, list[float | str]] = {}
    columns = dict(table.data.inputs)
    columns.update({task.name: table.data.labels[task.name].values for task in table.data.tasks if not task.labels})
    for name, values in columns.items():
        if values.dtype != object:
            codes = _codes(values[~np.isnan(values)])
            if codes:
                found[name] = codes
    return found


def _codes(values: Floats) -> list[float | str]:
    distinct, counts = np.unique(values, return_counts=True)
    found: list[float | str] = []
    while len(distinct) > 2:
        width = max(distinct[-2] - distinct[1], 1.0)
        if distinct[0] in _CODES and counts[0] >= _LEAST_REPEATS and distinct[1] - distinct[0] > width:
            found.append(int(distinct[0]))
            distinct, counts = distinct[1:], counts[1:]
        elif distinct[-1] in _CODES and counts[-1] >= _LEAST_REPEATS and distinct[-1] - distinct[-2] > width:
            found.append(int(distinct[-1]))
            distinct, counts = distinct[:-1], counts[:-1]
        else:
            break
    return found


def _kind_of(kind: str, labels: tuple[str, ...]) -> str:
    return f"ordinal: {' < '.join(labels)}" if kind == "ordinal" else kind


def _commented(settings: Settings, table: Table, why: str) -> str:
    facts = table.summary()
    inputs = ", ".join(f"{item['name']} ({item['kind']})" for item in facts["features"][:40])
    more = ", …" if len(facts["features"]) > 40 else ""
    comments: Mapping[str, str] = {
        "data": "Settings of polytask, guessed from the table: check them, then run\n"
        "  polytask check --config FILE      (reads and estimates, trains nothing)\n"
        "  polytask compare --config FILE",
        "targets": "Columns to predict, one task each." + (f" Guess: {why}" if why else ""),
        "kinds": "regression, binary, multiclass, or ordinal: low < medium < high",
        "missing": "Codes that stand far outside the other numbers and may mean missing (guessed).",
        "drop": "Not used as inputs: no values, or they only name the rows.",
        "group": f"Inputs: {inputs}{more}\n"
        "group: patient      rows of one patient are never in both training and test\n"
        "time: date          train on earlier rows, test on later ones",
        "methods": "methods: auto, or a list (polytask methods), or with fixed parameters:\n"
        "methods:\n  ridge: {alpha: 1.0}\n  hard-sharing: {}",
        "labels": "labels: {price: 40}   keep only 40 labels of a task, to see what sharing does with few",
        "splits": "folds x repeats",
        "trials": "configurations tried for every method, the single-task baselines included",
        "seed": "same seed, same result",
    }
    notes = "".join(f"# note: {in_flags(note)}\n" for note in table.notes)
    shown = {key: "\n".join(line for line in text.splitlines()) for key, text in comments.items()}
    always = ("group", "methods", "labels", "splits", "trials", "seed")
    return settings.to_yaml(comments=shown, always=always) + notes
