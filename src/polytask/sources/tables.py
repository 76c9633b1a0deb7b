"""Tables with several targets: one column per target (wide), or one target and a column naming the task (long).

``read_table`` gives a :class:`Table`: raw :class:`~polytask.core.data.TaskData`, whose inputs are one
1-d array per column, with everything a person should know about the reading. What a fitted model needs
to read new rows in the same way is its :class:`Schema`. No row disappears without a sentence about it:
rows read = rows of the data + rows reported.
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polytask.core.data import Array, Labels, TaskData
from polytask.core.errors import InputError, MissingExtraError, unknown
from polytask.core.files import write_file
from polytask.core.task import Task, task_from
from polytask.sources.columns import KINDS, Converted, RawColumn, Reader, convert, count_of, plain_number
from polytask.sources.preflight import Refused, clean_names, read_cells
from polytask.sources.targets import (
    Request,
    Target,
    find_leak,
    label_notes,
    present_count,
    read_target,
)

SCHEMA_FORMAT = 1
Missing = Collection[str] | Mapping[str, Collection[str]]
_ROLES = ("group", "time", "id")
_ID_NAME = re.compile(r"(^|[_ .])(id|idx|index|row|rownames|row_number|seqn|uuid|guid|key)$", re.IGNORECASE)
_ID_ROWS = 20
_QUOTED = re.compile(r'[",\r\n]')
_GUARDED = re.compile(r"'*[=+\-@\t\r]")


@dataclass(frozen=True)
class Source:
    """Where a table comes from.

    Attributes
    ----------
    file
        File name without folders, or ``"frame"``.
    sha256, encoding, separator
        Of the file as stored; empty where they do not apply.
    """

    file: str
    sha256: str = ""
    encoding: str = ""
    separator: str = ""

    def describe(self) -> dict[str, str]:
        """Return the description as plain data."""
        return {"file": self.file, "sha256": self.sha256, "encoding": self.encoding, "separator": self.separator}


@dataclass(frozen=True)
class Schema:
    """What must be known to read new rows as the training rows were read.

    Attributes
    ----------
    columns
        Input name → kind (``numeric``, ``boolean``, ``date``, ``categorical``), in order.
    keys
        Role (``group``, ``time``, ``id``, ``task``) → column name.
    tasks
        The tasks.
    missing
        Column name (or ``"*"`` for all) → codes that mean "no value".
    """

    columns: Mapping[str, str]
    keys: Mapping[str, str]
    tasks: tuple[Task, ...]
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """Return plain data that JSON can hold; :meth:`from_state` is the inverse."""
        return {
            "format": SCHEMA_FORMAT,
            "columns": [[name, kind] for name, kind in self.columns.items()],
            "keys": dict(self.keys),
            "tasks": [task.describe() for task in self.tasks],
            "missing": {name: list(codes) for name, codes in self.missing.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Schema:
        """Build the schema that :meth:`state` described."""
        if state.get("format") != SCHEMA_FORMAT:
            raise InputError(f"the schema has format {state.get('format')!r}, this version reads {SCHEMA_FORMAT}")
        columns = {str(name): str(kind) for name, kind in state["columns"]}
        for name, kind in columns.items():
            if kind not in KINDS:
                raise InputError(f'schema column "{name}": ' + unknown("kind", kind, KINDS))
        return cls(
            columns,
            dict(state["keys"]),
            tuple(task_from(task) for task in state["tasks"]),
            {name: tuple(codes) for name, codes in state["missing"].items()},
        )


@dataclass(frozen=True)
class Table:
    """A table that was read.

    Attributes
    ----------
    data
        Raw task data: one 1-d array per input column (float64 with NaN, or strings with None).
    notes
        Plain sentences: what was renamed, guessed, left out or refused.
    source
        File name, checksum, encoding and separator.
    refused
        Records of the file that are not in ``data``, with line and reason.
    form
        ``"wide"`` or ``"long"``.
    rows_read
        Records below the header: rows of ``data`` + refused + those reported without label.
    """

    data: TaskData
    notes: tuple[str, ...]
    source: Source
    refused: tuple[Refused, ...]
    form: str
    rows_read: int
    _schema: Schema

    def schema(self) -> Schema:
        """Return what is needed to read new rows in the same way."""
        return self._schema

    def summary(self) -> dict[str, Any]:
        """Return the facts about the table as plain data, for ``Results.data``.

        ``missing`` counts rows without a value (features) or without a label (tasks; in the long form
        rows of the task itself that lack one).
        """
        return {
            "rows": self.data.n_rows,
            "rows_read": self.rows_read,
            "rows_refused": len(self.refused),
            "form": self.form,
            "source": self.source.describe(),
            "features": [
                {"name": name, "kind": self._schema.columns[name], "missing": len(values) - present_count(values)}
                for name, values in self.data.inputs.items()
            ],
            "tasks": [self._summarise(task) for task in self.data.tasks],
            "notes": list(self.notes),
        }

    def _summarise(self, task: Task) -> dict[str, Any]:
        values = self.data.labels[task.name].values
        if self.form == "long":
            missing = int((self.data.keys[self._schema.keys["task"]] == task.name).sum()) - len(values)
        else:
            missing = self.data.n_rows - len(values)
        facts: dict[str, Any] = {
            "name": task.name,
            "kind": task.kind,
            "n_labels": len(values),
            "missing": missing,
            "labels": list(task.labels),
        }
        if task.labels:
            counts = np.bincount(values.astype(np.int64), minlength=len(task.labels))
            return facts | {"shares": [float(share) for share in counts / max(1, len(values))]}
        return facts | {
            "mean": float(values.mean()) if len(values) else None,
            "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
        }

    def describe_tasks(self) -> str:
        """Return one line of text per task: name, kind, labels, levels."""
        width = max(len(name) for name in self.data.names)
        lines = []
        for facts in self.summary()["tasks"]:
            share = facts["missing"] / max(1, facts["missing"] + facts["n_labels"])
            gaps = f" ({share:.0%} missing)" if facts["missing"] else ""
            sign = " < " if facts["kind"] == "ordinal" else ", "
            more = "  " + sign.join(facts["labels"]) if facts["labels"] else ""
            labels = count_of(facts["n_labels"], "label")
            lines.append(f"{facts['name']:<{width}}  {facts['kind']:<10}  {labels}{gaps}{more}")
        return "\n".join(lines)


# -- reading ----------------------------------------------------------------------------------


def read_table(
    source: Any,
    *,
    targets: Sequence[str] | None = None,
    task_column: str | None = None,
    target: str | None = None,
    kinds: Mapping[str, Request] | None = None,
    metrics: Mapping[str, Sequence[str]] | None = None,
    drop: Sequence[str] = (),
    group: str | None = None,
    time: str | None = None,
    id_column: str | None = None,
    missing: Missing = (),
    allow_leak: Sequence[str] = (),
    separator: str | None = None,
    encoding: str | None = None,
    decimal: str | None = None,
) -> Table:
    """Read a table with several targets.

    Parameters
    ----------
    source
        Path of a delimited text file (compressed or not) or of a Parquet file; or a pandas, polars or
        pyarrow frame; or a mapping of column names to arrays.
    targets
        Wide form: the target columns, one task each. Labels may be missing.
    task_column, target
        Long form: ``task_column`` names each row's task, ``target`` holds its label.
    kinds
        Column → kind. For inputs ``numeric``, ``boolean``, ``date`` or ``categorical``; for targets
        ``regression``, ``binary``, ``multiclass`` or ``ordinal``, optionally with the levels
        (``"ordinal: low < medium < high"``), or the sequence of levels alone. Others are guessed.
    metrics
        Target → metrics to report, the first one for gains.
    drop
        Columns to leave out.
    group, time, id_column
        Columns carried along in ``data.keys`` for splitting and naming rows; they are not inputs.
    missing
        Codes that mean "no value": for all columns, or column → codes.
    allow_leak
        Inputs that may repeat a target.
    separator, encoding, decimal
        Of a text file; found by looking when None. ``decimal`` is ``"."`` or ``","``.

    Raises
    ------
    InputError
        When the table cannot be read without guessing; names column, first row, value and remedy.
    MissingExtraError
        For a Parquet file without pyarrow.
    """
    raw = _load(source, separator, encoding, decimal, keep_all_rows=False)
    names = list(raw.columns)
    codes = _missing_codes(missing, names)
    wanted = _wanted(targets, task_column, target, names)
    roles = {role: _known(column, names, role) for role, column in zip(_ROLES, (group, time, id_column), strict=True)}
    dropped = [_known(column, names, "drop") for column in drop]
    for role, column in roles.items():
        if column in wanted:
            raise InputError(f'{role}="{column}" is also a target; choose another column')
    for column in {**(kinds or {}), **(metrics or {})}:
        _known(column, names, "kinds" if kinds and column in kinds else "metrics")
    notes = list(raw.notes)
    targets_read = _read_targets(raw, wanted, kinds or {}, codes, notes)
    taken = {
        *wanted,
        *dropped,
        *(column for column in roles.values() if column),
        *([task_column] if task_column else []),
    }
    features = _read_features(raw, [name for name in names if name not in taken], kinds or {}, codes)
    features, ids = _without_useless(features, kinds or {}, notes)
    if not features:
        raise InputError(
            f"{raw.source.file} has no input columns besides targets and keys; add columns to predict from"
        )
    _refuse_leaks(features, targets_read, allow_leak)
    key_columns = {role: column for role, column in roles.items() if column}
    if ids and "id" not in key_columns:
        key_columns["id"] = ids[0]
    if task_column:
        key_columns["task"] = task_column
    keys = {column: _key_values(raw, column, role, codes) for role, column in key_columns.items()}
    reported = {name: tuple(chosen) for name, chosen in (metrics or {}).items()}
    inputs = {name: feature.values for name, feature in features.items()}
    if task_column:
        keys[task_column], tasks, labels = _long(keys[task_column], task_column, targets_read, reported, notes)
    else:
        tasks, labels = _wide(targets_read, reported, notes)
    notes.extend(note for feature in features.values() for note in feature.notes)
    data = TaskData(tasks, inputs, labels, keys=keys)
    data = _labelled_rows(data, notes)
    schema = Schema({name: feature.kind for name, feature in features.items()}, key_columns, tasks, codes)
    form = "long" if task_column else "wide"
    return Table(data, tuple(notes), raw.source, raw.refused, form, raw.n_rows + len(raw.refused), schema)


def read_labels(
    source: Any,
    *,
    keys: Sequence[str],
    targets: Sequence[str] | None = None,
    task_column: str | None = None,
    target: str | None = None,
    kinds: Mapping[str, Request] | None = None,
    missing: Missing = (),
) -> tuple[tuple[Task, ...], Mapping[str, Labels], Mapping[str, Array]]:
    """Read the labels of inputs that lie elsewhere, such as images: tasks, labels and key columns (as texts).

    Every record is taken, in the order of the file, or the file is refused. Other columns are ignored.
    Arguments as in :func:`read_table`; ``keys`` are the columns to carry along.
    """
    raw = _load(source, None, None, None, keep_all_rows=True)
    names = list(raw.columns)
    codes = _missing_codes(missing, names)
    wanted = _wanted(targets, task_column, target, names)
    carried = {_known(column, names, "keys"): raw.columns[column] for column in keys}
    for column, values in carried.items():
        if values.kind != "text":
            raise InputError(f'column "{column}" of {raw.source.file} holds numbers; it must hold texts')
    read = _read_targets(raw, wanted, kinds or {}, codes, [])
    found = {column: values.values for column, values in carried.items()}
    if task_column is None:
        return *_wide(read, {}, []), found
    owners, tasks, labels = _long(_key_values(raw, task_column, "task", codes), task_column, read, {}, [])
    return tasks, labels, found | {task_column: owners}


def read_features(
    source: Any,
    schema: Schema,
    *,
    separator: str | None = None,
    encoding: str | None = None,
    decimal: str | None = None,
) -> Table:
    """Read rows to predict: the inputs of ``schema``, in the same kinds; labels are neither needed nor read.

    The rows are the file's, all of them, in order. Columns that are not inputs are ignored with a
    note; a key column that is absent is left out.

    Raises
    ------
    InputError
        When an input column is missing, or a value does not fit its kind.
    """
    raw = _load(source, separator, encoding, decimal, keep_all_rows=True)
    for name in schema.columns:
        if name not in raw.columns:
            raise InputError(f"{raw.source.file}: " + unknown("column", name, raw.columns) + " The model needs it.")
    notes = list(raw.notes)
    features = _read_features(raw, list(schema.columns), schema.columns, schema.missing)
    notes.extend(note for feature in features.values() for note in feature.notes)
    kept = {role: column for role, column in schema.keys.items() if column in raw.columns}
    keys = {column: _key_values(raw, column, role, schema.missing) for role, column in kept.items()}
    if "task" in kept:
        keys[kept["task"]] = _task_names(keys[kept["task"]], kept["task"])
    extra = [name for name in raw.columns if name not in schema.columns and name not in keys]
    if extra:
        listed = ", ".join(f'"{name}"' for name in extra[:5]) + (", …" if len(extra) > 5 else "")
        notes.append(f"{count_of(len(extra), 'column')} not used as input: {listed}")
    none = Labels(np.zeros(0, dtype=np.int64), np.zeros(0))
    data = TaskData(
        schema.tasks,
        {name: feature.values for name, feature in features.items()},
        {task.name: none for task in schema.tasks},
        keys=keys,
    )
    form = "long" if "task" in schema.keys else "wide"
    return Table(data, tuple(notes), raw.source, raw.refused, form, raw.n_rows + len(raw.refused), schema)


# -- loading columns --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Raw:
    columns: dict[str, RawColumn]
    notes: tuple[str, ...]
    source: Source
    refused: tuple[Refused, ...]
    reader: Reader

    @property
    def n_rows(self) -> int:
        return len(next(iter(self.columns.values())).values)


def _load(
    source: Any, separator: str | None, encoding: str | None, decimal: str | None, *, keep_all_rows: bool
) -> _Raw:
    if decimal not in (None, ".", ","):
        raise InputError(f"decimal must be '.' or ',', got {decimal!r}")
    comma = None if decimal is None else decimal == ","
    if not isinstance(source, str | os.PathLike):
        return _load_frame(source, Source("frame"), comma)
    path = Path(source)
    if path.is_file():
        with path.open("rb") as file:
            if re.fullmatch(rb"PAR1[^,;|\t\r\n \"]", file.read(5), re.DOTALL):
                return _load_parquet(path, comma)
    cells = read_cells(path, separator=separator, encoding=encoding, keep_all_rows=keep_all_rows)
    columns = {}
    for name, texts in zip(cells.names, cells.columns, strict=True):
        values = np.empty(len(texts), dtype=object)
        values[:] = texts
        columns[name] = RawColumn(name, values)
    where = Source(cells.file, cells.sha256, cells.encoding, cells.separator)
    reader = Reader(cells.file, cells.lines, comma, cells.separator)
    return _Raw(columns, cells.notes, where, cells.refused, reader)


def _load_parquet(path: Path, comma: bool | None) -> _Raw:
    import hashlib

    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError(f'{path.name} is a Parquet file: pip install "polytask[parquet]"') from error
    try:
        frame = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path.name} is a damaged Parquet file ({str(error)[:200]}); write it again") from error
    return _load_frame(frame, Source(path.name, hashlib.sha256(path.read_bytes()).hexdigest()), comma)


def _load_frame(frame: Any, source: Source, comma: bool | None) -> _Raw:
    originals, take = _columns_of(frame)
    notes: list[str] = []
    names, _ = clean_names([str(name) or " " for name in originals], [True] * len(originals), notes, f"{source.file}: ")
    columns = {name: take(original, name) for name, original in zip(names, originals, strict=True)}
    lengths = {len(column.values) for column in columns.values()}
    if len(lengths) > 1:
        raise InputError(f"the columns have different numbers of rows: {sorted(lengths)}")
    if lengths == {0}:
        raise InputError(f"{source.file} has columns but no rows; a table needs at least 1 row")
    return _Raw(columns, tuple(notes), source, (), Reader(source.file, None, comma))


def _columns_of(frame: Any) -> tuple[list[Any], Any]:
    """Return the column names of a frame or mapping and a function that fetches one column."""
    if isinstance(frame, Mapping):
        return list(frame), lambda original, name: _from_array(name, np.asarray(frame[original]))
    import narwhals as nw

    if hasattr(frame, "columns") and not all(isinstance(name, str) for name in frame.columns):
        texts = [str(name) for name in frame.columns]
        frame = frame.set_axis(texts, axis=1) if hasattr(frame, "set_axis") else frame
    if hasattr(frame, "columns") and len(set(map(str, frame.columns))) < len(list(frame.columns)):
        clean_names([str(name) for name in frame.columns], [True] * len(frame.columns), [], "frame: ")
    try:
        table = nw.from_native(frame, eager_only=True)
    except TypeError as error:
        raise InputError(
            f"cannot read a table from {type(frame).__name__}; give a path, a pandas, polars or pyarrow frame, or a "
            "mapping of columns"
        ) from error
    return list(table.columns), lambda original, name: _from_series(name, table[original])


def _from_series(name: str, series: Any) -> RawColumn:
    import narwhals as nw

    kind = series.dtype
    if kind == nw.Boolean:
        words = {True: "true", False: "false"}
        return _objects(name, [words.get(value) for value in series.to_list()])
    if kind.is_numeric():
        return RawColumn(name, np.array([np.nan if _blank(v) else float(v) for v in series.to_list()]), "numeric")
    if kind == nw.Duration:
        spans = [np.nan if _blank(v) else v.total_seconds() / 86_400 for v in series.to_list()]
        return RawColumn(name, np.array(spans), "numeric")
    if kind in (nw.Datetime, nw.Date):
        moments = np.array([np.datetime64("NaT") if _blank(v) else _moment(v) for v in series.to_list()], "M8[us]")
        days = np.where(np.isnat(moments), np.nan, moments.astype(np.int64) / 86_400e6)
        return RawColumn(name, days, "date")
    values = [None if _blank(value) else value for value in series.to_list()]
    odd = next((value for value in values if isinstance(value, list | tuple | dict | set | np.ndarray)), None)
    if odd is not None:
        raise InputError(f'column "{name}" holds a {type(odd).__name__} in a cell; spread it over several columns')
    return _objects(name, [value if value is None else _cell(value) for value in values])


def _from_array(name: str, values: Array) -> RawColumn:
    if values.ndim != 1:
        raise InputError(f'column "{name}" has shape {values.shape}; give one value per row')
    if values.dtype.kind in "iuf":
        return RawColumn(name, values.astype(np.float64), "numeric")
    if values.dtype.kind == "c":
        raise InputError(f'column "{name}" holds complex numbers; give real and imaginary parts as two columns')
    if values.dtype.kind == "M":
        moments = values.astype("M8[us]")
        return RawColumn(name, np.where(np.isnat(moments), np.nan, moments.astype(np.int64) / 86_400e6), "date")
    return _objects(name, [None if _blank(value) else _cell(value) for value in values.tolist()])


def _blank(value: Any) -> bool:
    """Return whether a cell is None, NaN, NaT or pandas' NA (which differ from themselves)."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or bool(value != value)


def _moment(value: Any) -> Any:
    if getattr(value, "tzinfo", None) is not None:
        from datetime import UTC

        value = value.astimezone(UTC).replace(tzinfo=None)
    return np.datetime64(value, "us")


def _cell(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    return plain_number(float(value)) if isinstance(value, float | np.floating) and np.isfinite(value) else str(value)


def _objects(name: str, values: list[str | None]) -> RawColumn:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return RawColumn(name, array)


# -- choosing columns -------------------------------------------------------------------------


def _known(column: str | None, names: Collection[str], argument: str) -> str:
    if column is None:
        return ""
    if column not in names:
        raise InputError(f"{argument}: " + unknown("column", column, names))
    return column


def _wanted(
    targets: Sequence[str] | None, task_column: str | None, target: str | None, names: Collection[str]
) -> list[str]:
    if isinstance(targets, str):
        targets = [targets]
    if (task_column is None) != (target is None):
        raise InputError("the long form needs both task_column and target; the wide form needs targets alone")
    if (targets is None) == (target is None):
        raise InputError("give targets=[...] (one column per task), or task_column and target (one row per label)")
    wanted = list(targets) if targets is not None else [str(target)]
    if not wanted:
        raise InputError("targets is empty; name at least one target column")
    for column in wanted:
        _known(column, names, "targets" if targets is not None else "target")
    twice = [column for column in wanted if wanted.count(column) > 1]
    if twice:
        raise InputError(f'targets names "{twice[0]}" twice; name each column once')
    if task_column is not None:
        _known(task_column, names, "task_column")
        if task_column == target:
            raise InputError(f'task_column and target are both "{target}"; they must be two columns')
    return wanted


def _missing_codes(missing: Missing, names: Collection[str]) -> dict[str, tuple[str, ...]]:
    if isinstance(missing, str):
        missing = (missing,)
    if not isinstance(missing, Mapping):
        return {"*": tuple(map(str, missing))} if missing else {}
    for column in missing:
        if column != "*":
            _known(column, names, "missing")
    return {name: (codes,) if isinstance(codes, str) else tuple(map(str, codes)) for name, codes in missing.items()}


def _codes_of(name: str, codes: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    return (*codes.get("*", ()), *codes.get(name, ()))


def _read_targets(
    raw: _Raw,
    wanted: list[str],
    kinds: Mapping[str, Request],
    codes: Mapping[str, tuple[str, ...]],
    notes: list[str],
) -> dict[str, Target]:
    """Read the target columns; those without labels or with a single class are left out with a note."""
    found = {}
    for name in wanted:
        target = read_target(raw.columns[name], raw.reader, kinds.get(name), _codes_of(name, codes))
        if target is None:
            notes.append(f'target "{name}" has one class only: left out, there is nothing to learn')
        elif np.isnan(target.values).all():
            notes.append(f'target "{name}" has no labels at all: left out')
        else:
            found[name] = target
            notes.extend(target.notes)
    if not found:
        raise InputError(f"no target can be learned: {'; '.join(notes[-len(wanted) :])}")
    return found


def _read_features(
    raw: _Raw, names: list[str], kinds: Mapping[str, Any], codes: Mapping[str, tuple[str, ...]]
) -> dict[str, Converted]:
    found = {}
    for name in names:
        kind = kinds.get(name)
        if kind is not None and kind not in KINDS:
            if not isinstance(kind, str):
                raise InputError(f'kinds["{name}"]: levels are for targets, but "{name}" is an input')
            raise InputError(f'kinds["{name}"]: ' + unknown("kind of input", kind, KINDS))
        found[name] = convert(raw.columns[name], raw.reader, kind=kind, missing=_codes_of(name, codes))
    return found


def _without_useless(
    features: dict[str, Converted], kinds: Mapping[str, Any], notes: list[str]
) -> tuple[dict[str, Converted], list[str]]:
    """Leave out columns without values and those that name rows; a kind given by the user keeps a column."""
    kept: dict[str, Converted] = {}
    ids = []
    for name, feature in features.items():
        if not feature.present.any():
            notes.append(f'column "{name}" has no values: left out')
        elif name not in kinds and (why := _names_rows(name, feature)):
            notes.append(f'column "{name}" {why}: not used as input (kinds={{"{name}": "{feature.kind}"}} keeps it)')
            ids.append(name)
        else:
            kept[name] = feature
    return kept, ids


def _names_rows(name: str, feature: Converted) -> str:
    """Return why a column looks like a row identifier, or an empty string."""
    values = feature.values
    n = len(values)
    if n < _ID_ROWS or feature.kind in ("boolean", "date") or not feature.present.all():
        return ""
    if feature.kind == "categorical":
        return "has a different text in every row" if len(set(values.tolist())) == n else ""
    if (values != np.round(values)).any():
        return ""
    steps = np.diff(values)
    if (steps == 1.0).all() and values[0] in (0.0, 1.0):
        return "counts the rows"
    if _ID_NAME.search(name) and len(np.unique(values)) == n:
        return "has a different number in every row and is called like an identifier"
    return ""


def _refuse_leaks(features: Mapping[str, Converted], targets: Mapping[str, Target], allow_leak: Sequence[str]) -> None:
    if isinstance(allow_leak, str):
        allow_leak = (allow_leak,)
    checked = {name: feature for name, feature in features.items() if name not in allow_leak}
    for name, target in targets.items():
        leak = find_leak(checked, target)
        if leak:
            raise InputError(
                f'column "{leak[0]}" repeats target "{name}" ({leak[1]}); drop it, or allow it with '
                f'allow_leak=["{leak[0]}"]'
            )


def _key_values(raw: _Raw, column: str, role: str, codes: Mapping[str, tuple[str, ...]]) -> Array:
    """Return a key column: numbers for a time that is a number or a date, texts otherwise."""
    kind = None if role == "time" else "categorical"
    return convert(raw.columns[column], raw.reader, kind=kind, missing=_codes_of(column, codes)).values


# -- the two forms ----------------------------------------------------------------------------


def _wide(
    targets: Mapping[str, Target], metrics: Mapping[str, tuple[str, ...]], notes: list[str]
) -> tuple[tuple[Task, ...], dict[str, Labels]]:
    tasks, labels = [], {}
    for name, target in targets.items():
        rows = np.flatnonzero(~np.isnan(target.values))
        tasks.append(target.task(name, metrics.get(name, ())))
        labels[name] = Labels(rows, target.values[rows])
        notes.extend(label_notes(name, target))
    return tuple(tasks), labels


def _task_names(column: Array, task_column: str) -> Array:
    """Return the task of each row: the cell's text, with the column's name before plain numbers."""
    names = np.empty(len(column), dtype=object)
    names[:] = [
        None if cell is None else f"{task_column} {cell}" if re.fullmatch(r"[\d.]+", cell) else cell
        for cell in column.tolist()
    ]
    return names


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts "school 2" before "school 10"."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _long(
    column: Array,
    task_column: str,
    targets: Mapping[str, Target],
    metrics: Mapping[str, tuple[str, ...]],
    notes: list[str],
) -> tuple[Array, tuple[Task, ...], dict[str, Labels]]:
    (target_name, target), *_ = targets.items()
    names = _task_names(column, task_column)
    known = sorted({name for name in names if name is not None}, key=_natural)
    number = {name: place for place, name in enumerate(known)}
    place = np.array([-1 if name is None else number[name] for name in names], dtype=np.int64)
    labelled = np.flatnonzero(~np.isnan(target.values) & (place >= 0))
    order = labelled[np.argsort(place[labelled], kind="stable")]
    bounds = np.searchsorted(place[order], np.arange(len(known) + 1))
    tasks, labels, without, few, constant = [], {}, [], [], []
    for name, start, end in zip(known, bounds[:-1], bounds[1:], strict=True):
        if start == end:
            without.append(name)
            continue
        rows = order[start:end]
        tasks.append(target.task(name, metrics.get(target_name, ())))
        labels[name] = Labels(rows, target.values[rows])
        said = " ".join(label_notes(name, Target(target.kind, target.labels, target.values[rows])))
        few += [name] if "only" in said else []
        constant += [name] if "constant" in said else []
    if not tasks:
        raise InputError(f'no row has both a task in "{task_column}" and a label in "{target_name}"')
    for group, what in (
        (without, "no labels at all: left out"),
        (few, "fewer than 20 labels: expect no sure verdict"),
        (constant, "a constant target: its scores cannot be measured"),
    ):
        if group:
            verb = "has" if len(group) == 1 else "have"
            shown = ", ".join(group[:3]) + (", …" if len(group) > 3 else "")
            notes.append(f"{count_of(len(group), 'task')} ({shown}) {verb} {what}")
    return names, tuple(tasks), labels


def _labelled_rows(data: TaskData, notes: list[str]) -> TaskData:
    """Keep the rows with at least one label; say how many were left out."""
    seen = np.zeros(data.n_rows, dtype=np.bool_)
    for labels in data.labels.values():
        seen[labels.rows] = True
    if seen.all():
        return data
    notes.append(f"{count_of(int((~seen).sum()), 'row')} without any label left out")
    return data.rows(seen)


# -- writing ----------------------------------------------------------------------------------


def write_csv(path: str | os.PathLike[str], columns: Mapping[str, Any]) -> None:
    """Write columns as CSV (UTF-8, comma; ``.gz`` is compressed) that no spreadsheet runs as a formula.

    A text that starts with ``= + - @`` tab or carriage return gets a leading apostrophe, which
    :func:`read_table` takes off again; numbers do not. None and NaN are empty cells. Numbers are
    written with all their digits. The file appears whole or not at all.

    Raises
    ------
    InputError
        When the columns differ in length.
    DiskError
        When the file cannot be written.
    """
    goal = Path(path)
    cells = {str(name): [_written(value) for value in _items(values)] for name, values in columns.items()}
    lengths = {name: len(values) for name, values in cells.items()}
    if len(set(lengths.values())) != 1:
        raise InputError(f"all columns need the same number of rows, got {lengths}")
    lines = [",".join(map(_quote, map(_guard, cells)))]
    lines += [",".join(row) or '""' for row in zip(*cells.values(), strict=True)]
    raw = "\n".join([*lines, ""]).encode("utf-8")
    write_file(goal, gzip.compress(raw, mtime=0) if goal.suffix == ".gz" else raw, make_folder=False)


def _items(values: Any) -> list[Any]:
    plain = values.tolist() if isinstance(values, np.ndarray) else values
    return [value.item() if isinstance(value, np.generic) else value for value in plain]


def _written(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):
        return str(value)
    return _quote(_guard(str(value)))


def _quote(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


def _guard(text: str) -> str:
    return "'" + text if _GUARDED.match(text) else text
