"""Settings to a table: read a file or a named data set, and say in one line what was read."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polytask.core.errors import InputError, unknown
from polytask.settings import Settings

if TYPE_CHECKING:
    from polytask.sources import Table

_FLAGS = (
    (re.compile(r'allow_leak=\["(.*?)"\]'), r'--allow-leak "\1"'),
    (re.compile(r'kinds=\{"(.*?)": "(.*?)"\}'), r'--kind "\1=\2"'),
    (re.compile(r"^(target|task|drop|group|time|targets|missing|kinds|metrics): "), r"--\1: "),
)
_ONLY_FOR_FILES = (
    "target",
    "task",
    "kinds",
    "missing",
    "drop",
    "time",
    "id",
    "allow_leak",
    "separator",
    "encoding",
    "decimal",
)


def in_flags(text: str) -> str:
    """Rewrite advice given as Python arguments as flags of the command line."""
    for pattern, flag in _FLAGS:
        text = pattern.sub(flag, text)
    return text.replace("list it under missing", "list it with --missing")


@contextlib.contextmanager
def advice_in_flags() -> Iterator[None]:
    """Give the advice of an :class:`InputError` in flags."""
    try:
        yield
    except InputError as error:
        raise InputError(in_flags(str(error))) from error


def title_of(settings: Settings) -> str:
    """Return the name of a comparison: its title, or the name of the data."""
    if settings.title:
        return settings.title
    if settings.dataset:
        return settings.dataset
    return re.sub(r"\.(csv|tsv|txt|parquet|gz|xz|bz2)\b", "", Path(settings.data or "run").name) or "run"


def open_table(settings: Settings) -> Table:
    """Read the table that the settings name.

    Raises
    ------
    InputError
        No table or no targets are named, or the table cannot be read; advice is given in flags.
    """
    with advice_in_flags():
        if settings.dataset is not None:
            return _named(settings)
        if settings.data is None:
            raise InputError("no table is given; name a file, or a data set with --dataset (polytask datasets)")
        return _file(settings)


def _file(settings: Settings) -> Table:
    from polytask.sources import read_table

    if not settings.targets and settings.target is None:
        raise InputError(
            "no targets are given; name the columns to predict: --targets a,b (or --target and --task, one row per "
            "task and case)"
        )
    return read_table(
        found_file(settings),
        targets=list(settings.targets) or None,
        task_column=settings.task,
        target=settings.target,
        kinds=settings.kinds,
        metrics=settings.metrics,
        drop=settings.drop,
        group=settings.group,
        time=settings.time,
        id_column=settings.id,
        missing={name: [_code(code) for code in codes] for name, codes in settings.missing.items()},
        allow_leak=settings.allow_leak,
        separator=settings.separator,
        encoding=settings.encoding,
        decimal=settings.decimal,
    )


def found_file(settings: Settings) -> Path:
    """Return the path of the table: as written, or beside the settings file that names it."""
    path = Path(settings.data or "")
    beside = Path(settings.origin_path).parent / path
    return beside if settings.origin_path and not path.exists() and beside.exists() else path


def _code(code: float | str) -> str:
    return str(int(code)) if isinstance(code, float) and code.is_integer() else str(code)


def _named(settings: Settings) -> Table:
    from polytask.sources.catalog import load

    for key in _ONLY_FOR_FILES:
        if getattr(settings, key):
            raise InputError(
                f"{settings.where(key)}: data set {settings.dataset} is read in its own way; export it to a file to "
                "read it differently"
            )
    table = load(settings.dataset or "")
    if settings.group is not None and settings.group not in table.data.keys:
        raise InputError(f"{settings.where('group')}: " + unknown("key column", settings.group, table.data.keys))
    if not settings.targets and not settings.metrics:
        return table
    return _with_tasks(table, settings)


def _with_tasks(table: Table, settings: Settings) -> Table:
    """Keep the tasks named, with the metrics named, and the rows that carry a label of theirs."""
    data = table.data.only(settings.targets or table.data.names)
    for name in settings.metrics:
        data.task(name)
    tasks = tuple(replace(task, metrics=settings.metrics.get(task.name, task.metrics)) for task in data.tasks)
    data = replace(data, tasks=tasks)
    seen = np.zeros(data.n_rows, dtype=np.bool_)
    for labels in data.labels.values():
        seen[labels.rows] = True
    without = int((~seen).sum())
    notes = (*table.notes, f"{_rows(without)} without any label left out") if without else table.notes
    return replace(
        table,
        data=data.rows(seen) if without else data,
        notes=notes,
        _schema=replace(table.schema(), tasks=tasks),
    )


def read_line(table: Table, name: str) -> str:
    """Say what was read: ``houses.csv  4,812 rows  37 columns  utf-8 ','  (3 rows refused)``."""
    summary = table.summary()
    n_columns = len(table.data.inputs) + len(table.data.keys) + (1 if table.form == "long" else len(table.data.tasks))
    parts = [name, f"{summary['rows']:,} rows", f"{n_columns} columns ({len(table.data.inputs)} inputs)"]
    source = table.source
    if source.encoding:
        parts.append(f"{source.encoding} {source.separator!r}")
    if table.refused:
        parts.append(f"({_rows(len(table.refused))} refused)")
    left_out = summary["rows_read"] - len(table.refused) - summary["rows"]
    if left_out > 0:
        parts.append(f"({_rows(left_out)} without labels left out)")
    return "  ".join(parts)


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
