import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from tests.train.examples import wide
from tests.train.test_checkpoint import StopError, encoder

from polytask.balance import PCGrad, Uncertainty
from polytask.core.errors import DiskError, MissingExtraError
from polytask.deep import HardSharing
from polytask.train import EventsFile, MLflow, TensorBoard, TrainSettings, fit
from polytask.train.record import scalars

SETTINGS = TrainSettings(max_epochs=3, batch_size=32, device="cpu", checkpoint_seconds=0.0)


class Kept:
    def __init__(self):
        self.events = []

    def write(self, event):
        self.events.append(event)


def train(record, balancer=None, **options):
    data, valid = wide(150), wide(60, seed=1)
    return fit(
        HardSharing(data.tasks, encoder(data)), balancer or PCGrad(4), data, valid,
        settings=SETTINGS, seed=3, record=record, **options,
    )  # fmt: skip


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_epoch_is_noted_with_losses_weights_and_cosines(tmp_path):
    kept, path = Kept(), tmp_path / "deep" / "events.jsonl"
    fitted = train([kept, EventsFile(path)])
    events = lines(path)
    assert events == json.loads(json.dumps(kept.events))
    assert [event["event"] for event in events] == ["start", "epoch", "epoch", "epoch", "end"]
    for number, event in enumerate(events[1:-1]):
        assert (event["epoch"], event["step"]) == (number + 1, 10 * (number + 1))
        assert list(event["train"].values()) == fitted.train_curve[number].tolist()
        assert list(event["valid"].values()) == fitted.valid_curve[number].tolist()
        assert len(event["cosines"]) == 6
        assert all(-1.0001 <= cosine <= 1.0001 for cosine in event["cosines"].values())
        assert all(value <= 1 for value in event["explained"].values())
        assert event["learning_rate"] == pytest.approx(3e-3)


def test_weights_are_the_mean_of_what_the_balancer_used_in_the_epoch():
    used = []

    class Watch(Uncertainty):
        def backward(self, *args, **options):
            used.append(super().backward(*args, **options))
            return used[-1]

    kept = Kept()
    train(kept, Watch([task.kind for task in wide(20).tasks]))
    for number, event in enumerate(kept.events[1:-1]):
        expected = torch.stack(used[10 * number : 10 * number + 10]).mean(0)
        np.testing.assert_allclose(list(event["weights"].values()), expected.numpy(), rtol=1e-5)
        assert "cosines" not in event


def test_recording_changes_nothing_that_is_learned():
    plain, noted = train(None), train(Kept())
    for first, second in zip(plain.network.parameters(), noted.network.parameters(), strict=True):
        assert first.equal(second)


def test_a_fit_that_goes_on_notes_from_where_it_went_on(tmp_path):
    class Stops(Kept):
        def write(self, event):
            super().write(event)
            if event["epoch"] == 2:
                raise StopError

    first, second, whole = Stops(), Kept(), Kept()
    with pytest.raises(StopError):
        train(first, checkpoint=tmp_path)
    train(second, checkpoint=tmp_path)
    train(whole)
    assert second.events[0]["epoch"] == 1
    again, once = ([{**event, "seconds": 0} for event in found] for found in (second.events[1:-1], whole.events[2:-1]))
    assert again == once


def test_half_a_line_left_by_a_kill_is_removed(tmp_path):
    path = tmp_path / "events.jsonl"
    EventsFile(path).write({"event": "start", "epoch": 0})
    with path.open("a") as file:
        file.write('{"event": "epo')
    EventsFile(path).write({"event": "start", "epoch": 1})
    assert [event["epoch"] for event in lines(path)] == [0, 1]


def test_a_file_that_cannot_be_written_is_told_by_name(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"cannot write .*events\.jsonl.*bytes free"):
        EventsFile(tmp_path / "file" / "events.jsonl").write({"event": "start", "epoch": 0})


EVENT = {"event": "epoch", "epoch": 2, "learning_rate": 0.1, "train": {"a": 1.5}, "weights": {"a(b)": 2.0}}


def test_scalars_name_every_number_of_an_epoch():
    assert scalars(EVENT) == {"learning_rate": 0.1, "train/a": 1.5, "weights/a(b)": 2.0}
    assert scalars({"event": "end", "epoch": 2}) == {}


def test_tensorboard_gets_the_numbers_of_an_epoch(monkeypatch, tmp_path):
    calls = []

    class SummaryWriter:
        def __init__(self, folder):
            calls.append(folder)

        def add_scalar(self, *args):
            calls.append(args)

        def flush(self):
            calls.append("flush")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    TensorBoard(tmp_path).write(EVENT)
    assert calls == [str(tmp_path), ("learning_rate", 0.1, 2), ("train/a", 1.5, 2), ("weights/a(b)", 2.0, 2), "flush"]


def test_mlflow_gets_the_numbers_of_an_epoch_under_names_that_it_takes(monkeypatch):
    calls = []

    class MlflowClient:
        def __init__(self, tracking_uri):
            calls.append(tracking_uri)

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            calls.append(name)
            return "1"

        def create_run(self, number, run_name):
            return SimpleNamespace(info=SimpleNamespace(run_id=f"run {number} {run_name}"))

        def log_batch(self, run, metrics):
            calls.append((run, metrics))

        def set_terminated(self, run):
            calls.append(("end", run))

    module = ModuleType("mlflow")
    module.MlflowClient = MlflowClient
    module.entities = SimpleNamespace(Metric=lambda key, value, timestamp, step: (key, value, timestamp > 0, step))
    monkeypatch.setitem(sys.modules, "mlflow", module)
    recorder = MLflow("sqlite:///x.db", run="r")
    recorder.write(EVENT)
    recorder.write({**EVENT, "weights": {str(number): 1.0 for number in range(1500)}})
    recorder.write({"event": "end", "epoch": 2})
    assert calls[:2] == ["sqlite:///x.db", "polytask"]
    epoch = [("learning_rate", 0.1, True, 2), ("train/a", 1.5, True, 2), ("weights/a_b_", 2.0, True, 2)]
    assert calls[2] == ("run 1 r", epoch)
    assert [len(metrics) for _, metrics in calls[3:5]] == [1000, 502]
    assert calls[5:] == [("end", "run 1 r")]


@pytest.mark.parametrize("recorder", [TensorBoard, MLflow])
def test_without_its_extra_a_recorder_says_how_to_install_it(recorder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'polytask\[(tensorboard|mlflow)\]'"):
        recorder("x")
