"""What is noted while training: one event per epoch, to a file, TensorBoard or MLflow.

    fit(…, record=EventsFile("run/events.jsonl"))
    fit(…, record=[EventsFile("run/events.jsonl"), TensorBoard("run/board"), MLflow("sqlite:///run/mlflow.db")])

An event is a mapping of plain values:

    {"event": "epoch", "epoch": 3, "step": 30, "seconds": 1.7, "learning_rate": 0.003,
     "train": {task: loss}, "valid": {task: loss}, "explained": {task: 1 - loss / that of the best constant},
     "weights": {task: mean weight in the epoch}, "cosines": {"task | task": cosine of their gradients},
     "left_out": {task: steps whose loss was not finite}}
    {"event": "left out", "epoch": 3, "step": 7, "task": task, "rows": first row numbers, "n_rows": 32, "seconds": 1.6}

Losses are of standardised targets. Weights are those that the balancer says it used; cosines are of the epoch's last
step, where the balancer looked at gradients. The first step in which a task's loss is not finite is noted by itself,
with the rows of its batch that carry the task's label. What is not known is left out. The first event of a fit is
``{"event": "start", "epoch": e}``, e > 0 where it went on from a checkpoint: epochs after e that were noted before are
then noted again, with the same values.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from polytask.core.errors import MissingExtraError
from polytask.core.files import writing

_MOST_METRICS = 1000
"""MLflow takes so many at once; one at a time costs it a transaction each, minutes for an epoch of many tasks."""

_SERIES = ("train", "valid", "explained", "weights", "cosines", "left_out")


class Recorder(Protocol):
    """Whatever notes events."""

    def write(self, event: Mapping[str, Any]) -> None:
        """Note one event."""


class EventsFile:
    """Events as lines of JSON, appended and flushed one by one; half a line left by a kill is removed.

    Parameters
    ----------
    path
        The file; its folder is made.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def write(self, event: Mapping[str, Any]) -> None:
        """Append one line.

        Raises
        ------
        DiskError
            When the file cannot be written.
        """
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                file.seek(0)
                content = file.read() if event.get("event") == "start" else b"\n"
                if content and not content.endswith(b"\n"):
                    file.truncate(content.rfind(b"\n") + 1)
                file.write(json.dumps(event).encode() + b"\n")


class TensorBoard:
    """Events as scalars for TensorBoard, named ``train/task`` and so on (extra: tensorboard).

    Parameters
    ----------
    folder
        Where TensorBoard looks.
    """

    def __init__(self, folder: str | Path) -> None:
        module = _extra("torch.utils.tensorboard", "tensorboard")
        self.writer = module.SummaryWriter(str(folder))

    def write(self, event: Mapping[str, Any]) -> None:
        """Note the numbers of an epoch."""
        for name, value in scalars(event).items():
            self.writer.add_scalar(name, value, int(event["epoch"]))
        self.writer.flush()


class MLflow:
    """Events as metrics of one MLflow run, named ``train/task`` and so on (extra: mlflow).

    Parameters
    ----------
    store
        Address of the store, such as ``"sqlite:///mlflow.db"``.
    experiment
        Name of the experiment; made where there is none.
    run
        Name of the run.
    """

    def __init__(self, store: str, *, experiment: str = "polytask", run: str | None = None) -> None:
        module = _extra("mlflow", "mlflow")
        self.metric = module.entities.Metric
        self.client = module.MlflowClient(tracking_uri=store)
        found = self.client.get_experiment_by_name(experiment)
        number = self.client.create_experiment(experiment) if found is None else found.experiment_id
        self.run = self.client.create_run(number, run_name=run).info.run_id

    def write(self, event: Mapping[str, Any]) -> None:
        """Note the numbers of an epoch; the last event ends the run."""
        now, epoch = int(1000 * time.time()), int(event["epoch"])
        metrics = [self.metric(_allowed(name), value, now, epoch) for name, value in scalars(event).items()]
        for start in range(0, len(metrics), _MOST_METRICS):
            self.client.log_batch(self.run, metrics=metrics[start : start + _MOST_METRICS])
        if event["event"] == "end":
            self.client.set_terminated(self.run)


class Several:
    """Hands each event to several recorders."""

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        self.recorders = list(recorders)

    def write(self, event: Mapping[str, Any]) -> None:
        """Note one event everywhere."""
        for recorder in self.recorders:
            recorder.write(event)


def scalars(event: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of an epoch by name: ``learning_rate``, ``train/task``, …; empty for other events."""
    if event["event"] != "epoch":
        return {}
    found = {"learning_rate": float(event["learning_rate"])}
    for series in _SERIES:
        found |= {f"{series}/{name}": float(value) for name, value in event.get(series, {}).items()}
    return found


def _allowed(name: str) -> str:
    """Replace what MLflow refuses in names of metrics."""
    return "".join(letter if letter.isalnum() or letter in "/_-. " else "_" for letter in name)


def _extra(module: str, extra: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{extra} is not installed; install it with: pip install 'polytask[{extra}]'"
        ) from error
