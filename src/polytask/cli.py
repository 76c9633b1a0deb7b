"""The command line: parses, prints, and turns errors into exit codes; the work is in ``polytask.jobs``.

Exit codes: 0 done · 1 some runs failed · 2 bad input or settings · 3 model refused · 74 disk · 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polytask import __version__
from polytask.core.errors import InputError, PolytaskError, nearest

if TYPE_CHECKING:
    from types import FrameType

    from polytask.core.learner import Progress
    from polytask.core.results import Results
    from polytask.settings import Settings

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_MOST_LINES = 3
_NOTES = 6
_SAME_SIGNAL = 0.5

app = typer.Typer(
    name="polytask",
    help="Multi-task learning from a table: which tasks gain from being learned together, and which are hurt.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

# -- options that several commands have -----------------------------------------------------------

TableArgument = Annotated[Path | None, typer.Argument(metavar="[TABLE]", help="CSV, TSV or Parquet file")]
Config = Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="settings file (polytask init)")]
Dataset = Annotated[str | None, typer.Option(metavar="NAME", help="a named data set (polytask datasets)")]
Targets = Annotated[str | None, typer.Option(metavar="A,B", help="columns to predict, one task each")]
Target = Annotated[str | None, typer.Option(metavar="COLUMN", help="long form: column with every task's target")]
TaskColumn = Annotated[str | None, typer.Option("--task", metavar="COLUMN", help="long form: column naming the task")]
Kinds = Annotated[
    list[str] | None, typer.Option("--kind", metavar="COLUMN=KIND", help='as in "health=ordinal: poor < good"')
]
Missing = Annotated[list[str] | None, typer.Option(metavar="COLUMN=CODE", help="code that means missing")]
Drop = Annotated[str | None, typer.Option(metavar="A,B", help="columns to leave out")]
Group = Annotated[str | None, typer.Option(metavar="COLUMN", help="keep rows of one group together")]
Time = Annotated[str | None, typer.Option(metavar="COLUMN", help="train on earlier rows, test on later ones")]
RowId = Annotated[str | None, typer.Option("--id", metavar="COLUMN", help="column that names the rows")]
Metrics = Annotated[list[str] | None, typer.Option("--metric", metavar="TASK=NAME", help="metric to measure gains in")]
AllowLeak = Annotated[str | None, typer.Option(metavar="A,B", help="inputs that may repeat a target")]
Labels = Annotated[list[str] | None, typer.Option(metavar="TASK=N", help="keep only N training labels of a task")]
Methods = Annotated[str | None, typer.Option(metavar="auto|A,B", help="methods to compare (polytask methods)")]
Splits = Annotated[str | None, typer.Option(metavar="FxR", help="folds x repeats, 5x2 by default")]
Trials = Annotated[int | None, typer.Option(metavar="N", help="configurations tried per method, 10 by default")]
OnNan = Annotated[
    str | None,
    typer.Option(metavar="drop|stop", help="networks: leave out a task whose loss is not finite, or stop"),
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="same seed, same result")]
Jobs = Annotated[int | None, typer.Option(metavar="N", help="processes at the same time, one per processor by default")]
Title = Annotated[str | None, typer.Option(metavar="TEXT", help="name shown in the report")]


def _settings(config: Path | None, table: Path | None, **flags: Any) -> Settings:
    """Return the settings of the file, overridden by what was given as flags."""
    from polytask.settings import load_settings

    kinds = flags.pop("kinds", None)
    flags["kinds"] = dict(_pair("--kind", text) for text in kinds) if kinds else None
    missing: dict[str, list[str]] = {}
    for text in flags.pop("missing", None) or []:
        column, code = _pair("--missing", text)
        missing.setdefault(column, []).append(code)
    flags["missing"] = missing or None
    metrics: dict[str, list[str]] = {}
    for text in flags.pop("metrics", None) or []:
        task, names = _pair("--metric", text)
        metrics.setdefault(task, []).extend(name.strip() for name in names.split(","))
    flags["metrics"] = metrics or None
    labels = [part for text in flags.pop("labels", None) or [] for part in text.split(",")]
    flags["labels"] = dict(_count("--labels", text) for text in labels) if labels else None
    return load_settings(config, data=None if table is None else str(table), **flags)


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name.strip() or not value.strip():
        raise InputError(f'{flag} "{text}": write it as name=value')
    return name.strip(), value.strip()


def _count(flag: str, text: str) -> tuple[str, int]:
    name, value = _pair(flag, text)
    if not value.isdecimal() or len(value) > 12:
        raise InputError(f'{flag} "{text}": {value} is not a number of labels')
    return name, int(value)


# -- commands -------------------------------------------------------------------------------------


@app.command(short_help="write polytask.yaml from a table")
def init(
    table: Annotated[Path, typer.Argument(help="CSV, TSV or Parquet file")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="where to write")] = Path("polytask.yaml"),
    targets: Targets = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite the file")] = False,
) -> None:
    """Write polytask.yaml from a table: guessed targets, kinds and missing codes, to check."""
    from polytask.jobs import write_settings

    names = tuple(name.strip() for name in targets.split(",")) if targets else ()
    for line in write_settings(table, out, targets=names, overwrite=force):
        _say("Guess", line)
    _say("Wrote", f"{out}   check it, then: polytask check --config {out}")


@app.command(short_help="check data and settings, estimate cost; trains nothing")
def check(
    table: TableArgument = None,
    config: Config = None,
    dataset: Dataset = None,
    targets: Targets = None,
    target: Target = None,
    task: TaskColumn = None,
    kind: Kinds = None,
    missing: Missing = None,
    drop: Drop = None,
    group: Group = None,
    time: Time = None,
    row_id: RowId = None,
    metric: Metrics = None,
    allow_leak: AllowLeak = None,
    labels: Labels = None,
    methods: Methods = None,
    splits: Splits = None,
    trials: Trials = None,
    on_nan: OnNan = None,
    seed: Seed = None,
    jobs: Jobs = None,
) -> None:
    """Check data and settings and estimate the cost; trains nothing, writes nothing."""
    from polytask.jobs import prepare

    settings = _settings(
        config, table, dataset=dataset, targets=targets, target=target, task=task, kinds=kind, missing=missing,
        drop=drop, group=group, time=time, id=row_id, metrics=metric, allow_leak=allow_leak, labels=labels,
        methods=methods, splits=splits, trials=trials, on_nan=on_nan, seed=seed, jobs=jobs,
    )  # fmt: skip
    for heading, line in prepare(settings).lines():
        _say(heading, line)
    _say("Fine", "Nothing was trained or written. Run the same with: polytask compare")


@app.command(short_help="single-task baselines vs sharing methods, verdict per task")
def compare(
    table: TableArgument = None,
    config: Config = None,
    dataset: Dataset = None,
    demo: Annotated[bool, typer.Option("--demo", help="a quick look at the data set in the package")] = False,
    targets: Targets = None,
    target: Target = None,
    task: TaskColumn = None,
    kind: Kinds = None,
    missing: Missing = None,
    drop: Drop = None,
    group: Group = None,
    time: Time = None,
    row_id: RowId = None,
    metric: Metrics = None,
    allow_leak: AllowLeak = None,
    labels: Labels = None,
    methods: Methods = None,
    splits: Splits = None,
    trials: Trials = None,
    on_nan: OnNan = None,
    seed: Seed = None,
    jobs: Jobs = None,
    title: Title = None,
    published: Annotated[
        str | None, typer.Option(metavar="NAME", help="show the published scores of that named data set beside")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FOLDER", help="run folder, runs/… by default")
    ] = None,
    resume: Annotated[Path | None, typer.Option(metavar="FOLDER", help="go on with the run in this folder")] = None,
) -> None:
    """Compare single-task baselines with methods that share; a verdict for each task."""
    if resume is not None:
        config, out = _resumed(resume, config), str(resume)
    given: dict[str, Any] = {
        "dataset": dataset, "targets": targets, "target": target, "task": task, "kinds": kind, "missing": missing,
        "drop": drop, "group": group, "time": time, "id": row_id, "metrics": metric, "allow_leak": allow_leak,
        "labels": labels, "methods": methods, "splits": splits, "trials": trials, "on_nan": on_nan,
        "seed": seed, "jobs": jobs,
        "title": title, "published": published, "out": out,
    }  # fmt: skip
    if not demo:
        raise typer.Exit(_compare(_settings(config, table, **given)))
    from polytask.jobs.demonstration import questions

    codes = []
    for question, settings in questions({name: value for name, value in given.items() if value is not None}):
        _say("Demo", question)
        codes.append(_compare(_settings(config, table, **settings)))
        typer.echo()
        if codes[-1] == 130:  # by Ctrl-C
            break
    raise typer.Exit(max(codes))


def _compare(settings: Settings) -> int:
    """Run one comparison and show it; return the exit code."""
    from polytask.jobs import prepare
    from polytask.jobs.demonstration import answers

    comparing = prepare(settings)
    lines = comparing.lines()
    notes = [line for line in lines if line[0] == "Note"]
    for heading, line in lines:
        if heading != "Note" or notes.index((heading, line)) < _NOTES:
            _say(heading, line)
    if len(notes) > _NOTES:
        _say("Note", f"{len(notes) - _NOTES} more notes are in the report")
    with _interruptible(), _progress() as progress:
        outcome = comparing.run(progress)
    _verdicts(outcome.results)
    before = outcome.results.timing.get("done_before", 0)
    if outcome.stopped:
        _say("Stopped", f"after {outcome.n_done} of {outcome.planned} runs. Finished runs are kept: go on with:")
        typer.echo(f"  {comparing.command()}")
    elif before:
        _say("Done", f"{before} of {outcome.planned} runs were finished before; {outcome.planned - before} new")
    for line in outcome.failed[:_MOST_LINES]:
        _say("Failed", line)
    if len(outcome.failed) > _MOST_LINES:
        _say("Failed", f"{len(outcome.failed)} runs in all; see {outcome.folder / 'report.md'}")
    for line in answers(outcome.results, settings.labels):
        _say("Answer", line)
    _say("Saved", f"{outcome.folder}/  report.html  report.md  results.json  config.yaml  runs.sqlite  events.jsonl")
    return outcome.exit_code


def _resumed(folder: Path, config: Path | None) -> Path:
    if config is not None:
        raise InputError("--resume uses the settings of the run; leave --config out")
    path = folder / "config.yaml"
    if not path.is_file():
        near = nearest(folder.name, [p.name for p in folder.parent.iterdir()]) if folder.parent.is_dir() else None
        guess = f" Did you mean {folder.parent / near}?" if near and near != folder.name else ""
        raise InputError(f"{folder} holds no run to go on with (no config.yaml).{guess}")
    return path


@app.command(short_help="fit the best method on all rows and save the model")
def train(
    table: TableArgument = None,
    config: Config = None,
    dataset: Dataset = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="RUN", help="run folder: each task gets its best method")
    ] = None,
    method: Annotated[str | None, typer.Option(metavar="NAME", help="or one method for all tasks")] = None,
    model: Annotated[
        Path | None, typer.Option("--model", "-o", metavar="FOLDER", help="model folder, RUN/model by default")
    ] = None,
    targets: Targets = None,
    target: Target = None,
    task: TaskColumn = None,
    kind: Kinds = None,
    missing: Missing = None,
    drop: Drop = None,
    group: Group = None,
    time: Time = None,
    row_id: RowId = None,
    allow_leak: AllowLeak = None,
    trials: Trials = None,
    on_nan: OnNan = None,
    seed: Seed = None,
) -> None:
    """Tune and fit the best method on all rows and save the model."""
    from polytask import jobs
    from polytask.jobs.comparing import read_results

    results = None
    if source is not None:
        results, run = read_results(source)
        model = model or run / "model"
        if config is None and (run / "config.yaml").is_file():
            config = run / "config.yaml"
    settings = _settings(
        config, table, dataset=dataset, targets=targets, target=target, task=task, kinds=kind, missing=missing,
        drop=drop, group=group, time=time, id=row_id, allow_leak=allow_leak, trials=trials, on_nan=on_nan, seed=seed,
    )  # fmt: skip
    with _interruptible(), _progress() as progress:
        done = jobs.train(
            settings, model or Path("model"), method=method, results=None if method else results, progress=progress
        )
    width = max(len(name) for name in done.methods)
    for name, chosen in done.methods.items():
        _say("Task", f"{name:<{width}}  {chosen}")
    _say("Saved", f"{done.folder}/  fitted on {done.rows:,} rows; use it with:")
    typer.echo(f"  polytask predict {done.folder} new.csv -o pred.csv")


@app.command(short_help="predict new rows with a saved model")
def predict(
    model: Annotated[Path, typer.Argument(help="model folder that polytask train saved")],
    table: Annotated[Path, typer.Argument(help="rows to predict; target columns are not needed")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="CSV to write")] = Path("pred.csv"),
) -> None:
    """Predict new rows with a saved model."""
    from polytask import jobs

    done = jobs.predict(model, table, out)
    for note in done.notes:
        _say("Note", note)
    for column, count in done.unseen.items():
        rows = "row" if count == 1 else "rows"
        typer.echo(f"{count:,} {rows} had an unseen level in '{column}' (treated as other).")
    tasks = "task" if done.tasks == 1 else "tasks"
    _say("Wrote", f"{done.rows:,} rows x {done.tasks} {tasks} to {done.path}")


@app.command(short_help="write the reports of a run anew")
def report(
    run: Annotated[Path, typer.Argument(help="run folder or results.json")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="beside the results by default")
    ] = None,
) -> None:
    """Write report.html and report.md anew from saved results, and show the verdicts."""
    from polytask.jobs.comparing import read_results, write_pages

    results, folder = read_results(run)
    goal = out or folder
    write_pages(results, goal)
    _verdicts(results)
    _say("Saved", f"{goal / 'report.html'}  {goal / 'report.md'}")


@app.command(short_help="list the methods")
def methods() -> None:
    """List the methods: name, what is shared, what it does, which kinds of task it refuses."""
    from polytask.jobs import telling

    lines = telling.methods()
    rows = [(line.name, line.sharing, line.summary, ", ".join(line.refuses), line.needs) for line in lines]
    _table(("method", "sharing", "what it does", "refuses", "needs"), rows)


@app.command(short_help="list the named data sets")
def datasets() -> None:
    """List the named data sets: rows, tasks, licence, and whether their files are here."""
    from polytask.jobs import telling

    rows = [
        (line.name, f"{line.rows:,}", str(line.tasks), line.form, line.where, line.licence, line.title)
        for line in telling.datasets()
    ]
    _table(("name", "rows", "tasks", "form", "files", "licence", "what it is"), rows)
    typer.echo("Files that are absent are read from the folder that POLYTASK_DATA names.")


@app.command(short_help="versions, extras, threads, device, folders")
def doctor() -> None:
    """Print versions, extras, threads, device and which folders can be written."""
    from polytask.jobs import telling

    found = telling.doctor()
    for what, finding, fine in found:
        typer.echo(f"{' ' if fine else '!'} {what:<17} {finding}")
    if not all(fine for _, _, fine in found):
        raise typer.Exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"polytask {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


# -- printing -------------------------------------------------------------------------------------


def _say(heading: str, line: str) -> None:
    typer.echo(f"{heading:<8}{_printable(line)}")


def _printable(text: str) -> str:
    """Return text that cannot move the cursor or reorder the line."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[number]) for row in (heads, *rows)) for number in range(len(heads))]
    for row in (heads, *rows):
        typer.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _verdicts(results: Results) -> None:
    from rich.console import Console

    from polytask.report import to_terminal

    width = None if sys.stdout.isatty() else 100
    typer.echo("")
    Console(width=width, highlight=False).print(to_terminal(results))
    typer.echo("")


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show progress as a bar on a terminal, as a line now and then elsewhere."""
    if not sys.stderr.isatty():
        yield _plain_progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn(), TimeRemainingColumn(),
               TextColumn("{task.description}", markup=False))  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        number = bar.add_task("starting", total=1.0)
        yield lambda text, share: bar.update(number, completed=share, description=_printable(text))


def _plain_progress() -> Progress:
    state = {"time": 0.0, "share": -1.0}

    def told(text: str, share: float) -> None:
        now = time.monotonic()
        if now - state["time"] >= 10.0 or share >= 1.0 > state["share"]:
            typer.echo(f"  {share:4.0%}  {_printable(text)}", err=True)
            state.update(time=now, share=share)

    return told


# -- errors and signals ---------------------------------------------------------------------------


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let the first Ctrl-C (or SIGTERM) end the work in order, and the second at once.

    Signals that follow within half a second are taken for the same one: some senders signal the
    process and then its group. Workers end by themselves when this process is gone.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    first: list[float] = []

    def stop(_number: int, _frame: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            raise KeyboardInterrupt
        if time.monotonic() - first[0] > _SAME_SIGNAL:
            os._exit(130)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors a user can mend are at most three lines."""
    wrong_usage: type[BaseException] = next(
        kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
    )  # the module it is in differs between versions of typer
    try:
        code = app(args=list(sys.argv[1:] if arguments is None else arguments), standalone_mode=False)
        return int(code or 0)
    except PolytaskError as error:
        return _complain(str(error), error.exit_code)
    except wrong_usage as error:
        return _complain(_usage(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("Stopped.", err=True)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno in DISK_FULL or isinstance(error, PermissionError):
            return _complain(f"cannot write {error.filename or 'a file'}: {error.strerror}", 74)
        raise


def _usage(error: BaseException) -> str:
    message = getattr(error, "format_message", lambda: str(error))()
    end = "" if message.endswith((".", "?", ")")) else "."
    return f"{message}{end} See: polytask --help"


def _complain(message: str, code: int) -> int:
    lines = [_printable(line)[:600] for line in message.splitlines() if line.strip()][:_MOST_LINES]
    typer.echo("Error: " + "\n".join(lines), err=True)
    return code


def main() -> None:
    """Entry point of the ``polytask`` command."""
    sys.exit(run())
