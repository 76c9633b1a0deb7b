"""From settings to a verdict: prepare a plan, run it in a run folder, write everything down."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytask.core.errors import InputError, unknown
from polytask.core.files import write_file
from polytask.core.learner import Progress
from polytask.core.results import Results
from polytask.jobs.folders import Events, check_run_folder, locked, run_folder
from polytask.jobs.tables import advice_in_flags, open_table, read_line, title_of
from polytask.registry import learner_class, learner_names
from polytask.settings import AUTO, Settings

if TYPE_CHECKING:
    from polytask.compare import Plan
    from polytask.compare.plan import Estimate
    from polytask.sources import Table, TableEncoder

COMMAND = "polytask compare --config config.yaml"
NEEDS_TORCH = "polytask.train."
_MOST_TASKS = 30  # lines about tasks; with more tasks the first few stand for all
_SOME_TASKS = 5
AUTO_METHODS = (
    "ridge",
    "lasso",
    "single-task-network",
    "pooled",
    "block-sparse",
    "mean-regularised",
    "hard-sharing",
    "soft-sharing",
)
"""What ``methods: auto`` means: baselines, and one method of each way to share."""
Say = Callable[[str, str], None]
"""Called with a heading and a line of text."""


@dataclass(frozen=True)
class Comparing:
    """A comparison that is checked and ready to run.

    Attributes
    ----------
    settings
        With the methods spelled out.
    table, plan, encoder
        What is compared, and how.
    folder
        Run folder; nothing is written into it before :meth:`run`.
    notes
        What the user should know besides the notes of the table.
    """

    settings: Settings
    table: Table
    plan: Plan
    encoder: TableEncoder
    folder: Path
    title: str
    notes: tuple[str, ...]

    def lines(self) -> list[tuple[str, str]]:
        """Return (heading, text) for what was read and what is planned."""
        name = self.settings.dataset or Path(self.settings.data or "").name
        found = [("Read", read_line(self.table, name))]
        found += [("Note", note) for note in self.table_notes()]
        heading = "Tasks"
        described = self.table.describe_tasks().splitlines()
        for line in described if len(described) <= _MOST_TASKS else described[:_SOME_TASKS]:
            found.append((heading, line))
            heading = ""
        if len(described) > _MOST_TASKS:
            counts = [len(labels) for labels in self.table.data.labels.values()]
            left = len(described) - _SOME_TASKS
            found.append(("", f"… {left} more tasks; {min(counts):,} to {max(counts):,} labels each"))
        found += [("Note", note) for note in self.notes]
        found.append(("Plan", self.plan_line()))
        return found

    def table_notes(self) -> list[str]:
        """Return what reading the table changed or guessed, in the words of the command line."""
        from polytask.jobs.tables import in_flags

        return [in_flags(note) for note in self.table.notes]

    def estimate(self) -> Estimate:
        """Return what the plan costs, without what is stored already."""
        from polytask.compare.plan import estimate

        return estimate(self.plan, self.table.data)

    def plan_line(self) -> str:
        """Say how many runs and fits the plan has, and about how long they take."""
        from polytask.jobs.costs import duration, seconds

        sharing = [spec.learner_class().sharing for spec in self.plan.methods]
        single = sharing.count("single")
        cost = self.estimate()
        trials = self.plan.trials
        thin = "".join(f", {name} with {count} labels" for name, count in self.plan.thin.items())
        about = duration(seconds(self.plan, self.table.data, cost.fits_by_method) / max(1, self.plan.n_jobs))
        return (
            f"{single} single-task + {len(sharing) - single} sharing methods x {self.plan.splits.n_splits} splits, "
            f"{trials} trial{'s' if trials > 1 else ''} of tuning each{thin}: {cost.runs:,} runs, {cost.fits:,} fits, "
            f"roughly {about} on {max(1, self.plan.n_jobs)} core{'s' if self.plan.n_jobs > 1 else ''}"
        )

    def command(self) -> str:
        """Return the command that goes on with this run."""
        return shlex.join(["polytask", "compare", "--resume", str(self.folder)])

    def run(self, progress: Progress | None = None) -> Outcome:
        """Run what is not done yet, judge, and write results and reports into the run folder.

        A :class:`KeyboardInterrupt` ends it early: finished runs are kept and reported.
        """
        check_run_folder(self.folder)
        with locked(self.folder):
            write_file(self.folder / "config.yaml", self.settings.exact())
            self._write_refused()
            events = Events(self.folder / "events.jsonl")
            events.add("started", runs=self.estimate().runs, jobs=self.plan.n_jobs)

            def told(text: str, share: float) -> None:
                events.add("progress", text=text, share=round(share, 6))
                if progress is not None:
                    progress(text, share)

            try:
                results, stopped = self._results(told, only_finished=False), False
            except KeyboardInterrupt:
                results, stopped = self._results(None, only_finished=True), True
            write_reports(results, self.folder)
            failed = sum(run.status == "failed" for run in results.runs)
            events.add("stopped" if stopped else "finished", runs=len(results.runs), failed=failed)
        return Outcome(results, self.folder, stopped, self.estimate().runs)

    def _results(self, progress: Progress | None, *, only_finished: bool) -> Results:
        from polytask.compare import run

        return run(
            self.plan,
            self.table.data,
            encoder=self.encoder,
            folder=self.folder,
            progress=progress,
            summary=self.table.summary(),
            setup={"command": COMMAND, "yaml": self.settings.exact(), "published": published(self.settings)},
            title=self.title,
            only_finished=only_finished,
        )

    def _write_refused(self) -> None:
        if self.table.refused:
            from polytask.sources import write_csv

            write_csv(
                self.folder / "refused.csv",
                {
                    "line": [row.line for row in self.table.refused],
                    "reason": [row.reason for row in self.table.refused],
                },
            )


@dataclass(frozen=True)
class Outcome:
    """What a comparison found, where it is written, and whether it was stopped early."""

    results: Results
    folder: Path
    stopped: bool
    planned: int

    @property
    def n_done(self) -> int:
        """Number of runs in the results that worked."""
        return sum(run.status == "done" for run in self.results.runs)

    @property
    def failed(self) -> list[str]:
        """One line for each run that failed."""
        return [
            f"{run.method}, split {run.split + 1}: {run.error}" for run in self.results.runs if run.status == "failed"
        ]

    @property
    def exit_code(self) -> int:
        """130 when stopped, 1 when some runs failed, else 0."""
        return 130 if self.stopped else 1 if self.failed else 0


def prepare(settings: Settings) -> Comparing:
    """Read the table and make a plan that can run; writes nothing.

    Raises
    ------
    InputError
        Anything that would go wrong later: unknown columns, methods or parameters, no baseline, …
    """
    table = open_table(settings)
    settings, notes = spelled_out(settings, long_form=table.form == "long")
    published(settings)  # an unknown name is answered now
    plan = plan_of(settings)
    notes += without_fair_baseline(tuple(settings.methods))
    with advice_in_flags():
        from polytask.compare.plan import validate
        from polytask.sources import TableEncoder

        validate(plan, table.data)
    folder = run_folder(settings.out, title_of(settings), typed=settings.is_flag("out"))
    check_run_folder(folder)
    return Comparing(settings, table, plan, TableEncoder(), folder, title_of(settings), notes)


def published(settings: Settings) -> list[dict[str, Any]]:
    """Return the published scores to show beside the results: of the data set named, if the catalogue has some.

    Raises
    ------
    InputError
        ``published`` names no data set of the catalogue.
    """
    from polytask.sources.catalog import DATASETS

    name = settings.published or settings.dataset
    if name is None:
        return []
    if name not in DATASETS:
        raise InputError(f"{settings.where('published')}: " + unknown("data set", name, DATASETS))
    return [dict(entry) for entry in DATASETS[name].published]


def plan_of(settings: Settings) -> Plan:
    """Return the plan that settings with spelled-out methods describe."""
    from polytask.compare import MethodSpec, Plan, SplitPlan

    assert settings.methods != AUTO
    return Plan(
        methods=tuple(MethodSpec(name, fixed_parameters(settings, name), label=name) for name in settings.methods),
        splits=SplitPlan.parse(settings.splits, group=settings.group, time=settings.time),
        seeds=(settings.seed,),
        trials=settings.trials,
        thin=settings.labels,
        n_jobs=processors() if settings.jobs is None else settings.jobs,
    )


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_torch() -> bool:
    """Return whether torch is installed, without importing it."""
    try:
        return find_spec("torch") is not None
    except (ImportError, ValueError):  # hidden from the import system
        return False


def spelled_out(settings: Settings, *, long_form: bool) -> tuple[Settings, tuple[str, ...]]:
    """Replace ``methods: auto`` by a broad few that can run here; return notes about those that cannot.

    One model for all tasks (``pooled``) makes sense where all tasks measure the same thing, so it is
    part of ``auto`` in the long form only.
    """
    if settings.methods != AUTO:
        return settings, ()
    modules = {name: learner_names()[name][0] for name in AUTO_METHODS if long_form or name != "pooled"}
    left = sorted(name for name, module in modules.items() if module.startswith(NEEDS_TORCH) and not has_torch())
    usable = [name for name in modules if name not in left]
    notes = (
        (f'left out because torch is not installed: {", ".join(left)} (pip install "polytask[torch]")',) if left else ()
    )
    return settings.changed(methods={name: {} for name in usable}), notes


def without_fair_baseline(methods: Sequence[str]) -> tuple[str, ...]:
    """Return a note where networks share but no network learns each task alone.

    Against linear baselines only, a gain may come from bending and not from sharing.
    """
    networks = [name for name in methods if learner_names()[name][0].startswith(NEEDS_TORCH)]
    sharing = [name for name in networks if learner_class(name).sharing != "single"]
    if not sharing or len(sharing) < len(networks):
        return ()
    share = "shares and is a network" if len(sharing) == 1 else "share and are networks"
    return (
        f"{', '.join(sharing)} {share}, but every single-task method is linear: a gain may come from the network "
        "and not from sharing; add single-task-network to the methods to tell",
    )


def fixed_parameters(settings: Settings, method: str) -> dict[str, Any]:
    """Return the fixed parameters of a method, checked against its fields.

    Raises
    ------
    InputError
        Unknown parameter or a value of the wrong type; names file and line.
    """
    learner = learner_class(method)
    fields = {field.name: field for field in dataclasses.fields(learner)}  # type: ignore[arg-type]  # all are dataclasses
    found = for_networks(settings, method)
    for name, value in settings.fixed(method).items():
        where = settings.where("methods", method, name)
        if name not in fields:
            raise InputError(f"{where}: " + unknown("parameter", name, fields))
        found[name] = _fitting(where, value, fields[name].default)
    try:
        learner(**found)
    except (InputError, TypeError) as error:
        raise InputError(f"{settings.where('methods', method)}: {error}") from error
    return found


def for_networks(settings: Settings, method: str) -> dict[str, Any]:
    """Return the parameters that the settings give to every network; none for other methods."""
    default = type(settings).model_fields["on_nan"].default
    network = learner_names()[method][0].startswith(NEEDS_TORCH)
    return {"on_nonfinite": settings.on_nan} if network and settings.on_nan != default else {}


def _fitting(where: str, value: Any, default: Any) -> Any:
    """Return ``value`` as the type of the parameter's default; ``1e-3`` is a text to YAML."""
    if isinstance(default, float) and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: {value!r} is not a number (the default is {default})") from error
    if default is not None and type(value) is not type(default) and default is not dataclasses.MISSING:
        raise InputError(f"{where}: {value!r} should be like the default, {default!r}")
    return value


def write_reports(results: Results, folder: Path) -> None:
    """Write ``results.json``, ``report.md`` and ``report.html``, each whole or not at all."""
    write_file(folder / "results.json", results.to_json() + "\n")
    write_pages(results, folder)


def write_pages(results: Results, folder: Path) -> None:
    """Write ``report.md`` and ``report.html``."""
    from polytask.report import to_markdown, write_html

    write_file(folder / "report.md", to_markdown(results))
    write_html(results, folder / "report.html")


def read_results(path: Path) -> tuple[Results, Path]:
    """Read the results of a run folder or file; return them with their folder.

    Raises
    ------
    InputError
        There are none, or they cannot be read.
    """
    file = path / "results.json" if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise InputError(f"{file} cannot be read ({why}); give a run folder or its results.json") from error
    try:
        return Results.from_json(text), file.parent
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} is damaged: {str(error)[:120]}") from error
