"""Settings of a comparison: a YAML file, flags that override it, and answers to typos.

Every wrong key or value is answered with its place (``polytask.yaml:7 splits``), and with the
nearest right one. YAML is read as plain data: no tags, no anchors, no key twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from polytask.core.errors import InputError, nearest, unknown
from polytask.core.metrics import METRICS
from polytask.core.task import KINDS
from polytask.registry import learner_names

Place = tuple[str | int, ...]
Code = int | float | StrictStr
COLUMN_KINDS = ("numeric", "boolean", "date", "categorical")
AUTO: Literal["auto"] = "auto"
_MOST_BYTES = 4 * 2**20


def _as_list(value: Any) -> Any:
    """Let one word stand for a list of one, and ``a, b`` for a list of two."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _one_of(what: str, options: Iterable[str], *, upto: str = "\n") -> AfterValidator:
    """Check a word against a fixed list; the answer to a wrong one names the nearest."""

    def check(text: str) -> str:
        word = text.partition(upto)[0].strip()
        if word not in options:
            raise PydanticCustomError("unknown", "{why}", {"why": unknown(what, word, options)})
        return text

    return AfterValidator(check)


Names = Annotated[tuple[StrictStr, ...], BeforeValidator(_as_list)]
Kind = Annotated[StrictStr, _one_of("kind", (*KINDS, *COLUMN_KINDS), upto=":")]
Metrics = Annotated[tuple[Annotated[StrictStr, _one_of("metric", METRICS)], ...], BeforeValidator(_as_list)]
LabelCount = Annotated[int, Field(strict=True, ge=1)]


@dataclass(frozen=True)
class Origin:
    """Where settings came from: the file, the line of each key, and the keys given as flags."""

    path: str = field(default="", compare=False)
    lines: Mapping[Place, int] = field(default_factory=dict, compare=False)
    flags: frozenset[str] = field(default=frozenset(), compare=False)

    def where(self, place: Place) -> str:
        """Return ``polytask.yaml:7 methods.ridge.alpha``, ``--trials`` or just the key."""
        key = ".".join(str(part) for part in place if not isinstance(part, int))
        if place and place[0] in self.flags:
            return f"--{str(place[0]).replace('_', '-')}"
        if not self.path:
            return key
        for end in range(len(place), 0, -1):
            if place[:end] in self.lines:
                return f"{self.path}:{self.lines[place[:end]]} {key}"
        return f"{self.path} {key}".rstrip()


class Settings(BaseModel):
    """Everything ``compare`` and ``train`` need to know; see ``polytask init`` for a commented file."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_max_length=10_000)

    data: StrictStr | None = Field(None, description="table to read: CSV, TSV or Parquet")
    dataset: StrictStr | None = Field(None, description="a named data set instead; see polytask datasets")
    separator: StrictStr | None = Field(None, description="of a text file; found by looking")
    encoding: StrictStr | None = Field(None, description="of a text file; found by looking")
    decimal: StrictStr | None = Field(None, description="decimal sign of a text file, '.' or ','; found by looking")
    title: StrictStr | None = Field(None, description="name shown in the report")
    published: StrictStr | None = Field(None, description="named data set whose published scores are shown beside")
    targets: Names = Field((), description="columns to predict, one task each")
    target: StrictStr | None = Field(None, description="long form: the column that holds every task's target")
    task: StrictStr | None = Field(None, description="long form: the column that says which task a row belongs to")
    kinds: dict[StrictStr, Kind | tuple[StrictStr, ...]] = Field(
        {}, description="kind of a column, levels in order where it has some (ordinal: low < high)"
    )
    missing: dict[StrictStr, list[Code]] = Field({}, description="codes that mean missing, by column")
    drop: Names = Field((), description="columns to leave out")
    group: StrictStr | None = Field(None, description="rows of one group are never in both training and test")
    time: StrictStr | None = Field(None, description="column to order rows by: train on earlier, test on later")
    id: StrictStr | None = Field(None, description="column that names the rows; not an input")
    allow_leak: Names = Field((), description="inputs that may repeat a target")
    labels: dict[StrictStr, LabelCount] = Field({}, description="keep only so many labels of a task")
    metrics: dict[StrictStr, Metrics] = Field({}, description="metrics by task; gains are measured in the first")
    methods: dict[StrictStr, dict[StrictStr, Any]] | Literal["auto"] = Field(
        AUTO, description="auto, a list, or method: {parameter: value}"
    )
    splits: StrictStr = Field("5x2", description="folds x repeats")
    trials: int = Field(10, strict=True, ge=1, le=10_000, description="configurations tried for every method")
    on_nan: Annotated[StrictStr, _one_of("on_nan", ("drop", "stop"))] = Field(
        "drop",
        description="networks: leave a task whose loss is not finite out of the step (drop), or stop",
    )
    seed: int = Field(0, strict=True, ge=0, lt=2**31, description="same seed, same result")
    jobs: int | None = Field(
        None, strict=True, ge=0, le=1024, description="processes; one per processor by default, 0 for none"
    )
    out: StrictStr | None = Field(None, description="run folder")

    _origin: Origin = PrivateAttr(default_factory=Origin)

    @field_validator("methods", mode="before")
    @classmethod
    def _methods(cls, value: Any) -> Any:
        names = _as_list(value)
        if names == [AUTO]:
            return AUTO
        if isinstance(names, list):
            for name in names:
                if not isinstance(name, str):
                    raise ValueError(f"write method names, or method: {{parameter: value}}; got {name!r}")
            names = {name: {} for name in names}
        if isinstance(names, dict):
            for name in names:
                if name not in learner_names():
                    why = unknown("method", str(name), [AUTO, *learner_names()])
                    raise PydanticCustomError("unknown", "{why}", {"why": why, "place": name})
            return {name: {} if fixed is None else fixed for name, fixed in names.items()}
        return names

    @field_validator("splits")
    @classmethod
    def _splits(cls, value: str) -> str:
        found = re.fullmatch(r"\s*(\d{1,4})\s*(?:[x×*]\s*(\d{1,4})\s*)?", value)
        if found is None or int(found[1]) < 2 or int(found[2] or 1) < 1:
            raise ValueError(f'"{value}" is not folds x repeats; write for example 5x2')
        return f"{int(found[1])}x{int(found[2] or 1)}"

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.data is not None and self.dataset is not None:
            raise ValueError(f'data "{self.data}" and dataset "{self.dataset}" exclude each other; give one of them')
        if (self.target is None) != (self.task is None):
            raise ValueError("target and task belong together (one row per task and case); give both, or use targets")
        if self.targets and self.target is not None:
            raise ValueError("targets (one column per task) and target + task (one row per task) exclude each other")
        if self.group is not None and self.time is not None:
            raise ValueError("group and time exclude each other; give one of them")
        return self

    def where(self, *place: str | int) -> str:
        """Return where a setting was written, to begin a message with."""
        return self._origin.where(place)

    def is_flag(self, key: str) -> bool:
        """Return whether a setting was given as a flag."""
        return key in self._origin.flags

    @property
    def origin_path(self) -> str:
        """The settings file, or an empty text."""
        return self._origin.path

    def changed(self, **values: Any) -> Settings:
        """Return a copy with other values, not checked again."""
        return self.model_copy(update=values)

    def fixed(self, method: str) -> dict[str, Any]:
        """Return the fixed parameters of a method."""
        return dict(self.methods.get(method, {})) if isinstance(self.methods, dict) else {}

    def to_yaml(self, *, comments: Mapping[str, str] | None = None, always: Iterable[str] = ()) -> str:
        """Write the settings that differ from their defaults, in order, as YAML.

        Parameters
        ----------
        comments
            Key → text above it; written with the key, or with the keys of ``always``.
        always
            Keys to mention also where they have their default.
        """
        plain = self.model_dump(mode="json", exclude_defaults=True)
        full = self.model_dump(mode="json")
        notes, mentioned = comments or {}, set(always)
        parts = []
        for key in type(self).model_fields:
            if key not in plain and key not in mentioned:
                continue
            parts += [f"# {line}".rstrip() for line in notes.get(key, "").splitlines()]
            if key in plain or full[key] not in (None, {}, []):
                parts.append(_entry(key, full[key]))
        return "\n".join(parts) + "\n"

    def exact(self) -> str:
        """Return as YAML everything that determines results: not the folder, nor the number of processes."""
        return self.changed(out=None, jobs=None).to_yaml(always=("methods", "splits", "trials", "seed"))


def _entry(key: str, value: Any) -> str:
    """Write one key: a short list on its line, anything longer one item a line."""
    short = isinstance(value, list) and len(str(value)) < 90
    body = yaml.safe_dump(value if short else {key: value}, sort_keys=False, allow_unicode=True, width=10_000,
                          default_flow_style=short).rstrip("\n")  # fmt: skip
    return f"{key}: {body}" if short else body


def load_settings(path: str | Path | None = None, **flags: Any) -> Settings:
    """Read settings from a YAML file and flags; a flag that is not None overrides the file.

    Raises
    ------
    InputError
        Unknown or repeated key, wrong value, or a file that is not plain YAML; the message names
        file, line and key and gives the nearest right one.
    """
    plain, lines = ({}, {}) if path is None else read_yaml(Path(path))
    given = {key: value for key, value in flags.items() if value is not None}
    if {"data", "dataset"} & set(given):
        plain = {key: value for key, value in plain.items() if key not in {"data", "dataset"}}
    if "targets" in given:
        plain = {key: value for key, value in plain.items() if key not in {"target", "task"}}
    if {"target", "task"} & set(given):
        plain = {key: value for key, value in plain.items() if key != "targets"}
    origin = Origin("" if path is None else str(path), lines, frozenset(given))
    try:
        settings = Settings.model_validate({**plain, **given})
    except ValidationError as error:
        raise InputError(_first(error, origin)) from error
    settings._origin = origin
    return settings


def _first(error: ValidationError, origin: Origin) -> str:
    """Write the first error in the words of this program; unknown keys go first."""
    found = min(
        error.errors(),
        key=lambda item: (
            ("extra_forbidden", "unknown").index(item["type"]) if item["type"] in ("extra_forbidden", "unknown") else 2
        ),
    )
    place = tuple(part for part in found["loc"] if not (isinstance(part, str) and part.startswith("dict[")))
    if "place" in found.get("ctx", {}):
        place = (*place, found["ctx"]["place"])
    where = origin.where(place)
    start = f"{where}: " if where else ""
    if found["type"] == "extra_forbidden":
        hit = nearest(str(place[-1]), Settings.model_fields)
        guess = f"Did you mean '{hit}'?" if hit else "Keys: " + ", ".join(Settings.model_fields)
        return f"{start}unknown key. {guess}"
    message = found["msg"].removeprefix("Value error, ")
    if found["type"] == "string_type" and isinstance(found["input"], bool | int | float):
        message = f"expected text but YAML reads {str(found['input']).lower()} here; put it in quotes"
    elif found["type"] not in {"value_error", "unknown"}:
        message = f"{message[0].lower()}{message[1:]}, got {str(found['input'])[:60]!r}"
    more = f"  (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return start + message + more


# -- YAML ---------------------------------------------------------------------------------------


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[Place, int]]:
    """Read a YAML file of plain data; return it with the line of each key and list item.

    Raises
    ------
    InputError
        No such file, not UTF-8, not YAML, a tag or anchor, or a key given twice.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > _MOST_BYTES:
        raise InputError(f"{path}: {len(data):,} bytes are too many for settings")
    try:
        text = data.decode("utf-8-sig")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            _check_event(event, depth, path)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        lines = {} if root is None else dict(_lines(root, (), path))
        plain = yaml.safe_load(text)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}{_mark(error)}: not valid YAML: {_problem(error)}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML: {str(error)[:100]}") from error
    if plain is None:
        return {}, {}
    if not isinstance(plain, dict):
        raise InputError(f"{path}:1 expected settings such as 'targets: [a, b]', found {str(plain)[:40]!r}")
    for key in plain:
        if not isinstance(key, str):
            raise InputError(f"{path}:{lines.get((str(key),), 1)} the key {key!r} is not text; put it in quotes")
    return plain, lines


def _check_event(event: Any, depth: int, path: Path) -> None:
    line = event.start_mark.line + 1
    if depth > 8:
        raise InputError(f"{path}:{line} settings are nested too deeply; no key needs that")
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        raise InputError(f"{path}:{line} anchors (&) and aliases (*) are not used in settings; write the value out")
    tag = getattr(event, "tag", None)
    if tag is not None:
        raise InputError(f"{path}:{line} the tag {tag[:60]} is refused; settings are plain text, numbers and lists")


def _lines(node: yaml.Node, place: Place, path: Path) -> Iterator[tuple[Place, int]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise InputError(f"{path}:{line} {'.'.join(map(str, (*place, name)))}: this key is given twice")
            seen.add(name)
            yield (*place, name), line
            yield from _lines(value, (*place, name), path)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield (*place, number), value.start_mark.line + 1
            yield from _lines(value, (*place, number), path)


def _mark(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}" if mark is not None else ""


def _problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0][:120]
