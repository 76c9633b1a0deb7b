import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.killing import full_disk
from tests.train.examples import schools, wide

from polytask.balance import Equal, Uncertainty
from polytask.core.errors import DiskError, ModelRefusedError
from polytask.deep import (
    AdaptiveSharing,
    HardSharing,
    JointManyTask,
    LearnedBranching,
    SingleTask,
    SoftSharing,
    mlp,
)
from polytask.train import TrainSettings, fit
from polytask.train.checkpoint import read, write

OFTEN = TrainSettings(max_epochs=5, batch_size=32, device="cpu", learning_rate=1e-2, checkpoint_seconds=0.0, patience=2)
NETWORKS = {
    "hard": lambda data: HardSharing(data.tasks, encoder(data)),
    "single": lambda data: SingleTask(data.tasks, encoder(data)),
    "soft": lambda data: SoftSharing(data.tasks, encoder(data), strength=0.3),
    "adaptive": lambda data: AdaptiveSharing(data.tasks, encoder(data, (8, 6)), alpha=50.0, phase_epochs=2),
    "joint": lambda data: JointManyTask(data.tasks, encoder(data, (8, 6)), levels=levels(data)),
    "branching": lambda data: LearnedBranching(data.tasks, encoder(data, (8, 6)), anneal_epochs=4),
}


def encoder(data, widths=(8,)):
    return mlp(data.inputs["numeric"].shape[1], widths, dropout=0.3, norm="batch", seed=0)


def levels(data):
    """The first task at the first layer, the others at the second."""
    return {name: 1 if number == 0 else 2 for number, name in enumerate(data.names)}


class StopError(Exception):
    pass


def run(kind, data, valid, folder=None, *, progress=None, balancer=None, settings=OFTEN):
    balancer = balancer or Uncertainty([task.kind for task in data.tasks], init="auto")
    network = NETWORKS[kind](data)
    return fit(network, balancer, data, valid, settings=settings, seed=3, checkpoint=folder, progress=progress)


def everything(fitted):
    found = {f"network {name}": value.numpy() for name, value in fitted.network.state_dict().items()}
    found |= {f"balancer {name}": value.numpy() for name, value in fitted.balancer.state_dict().items()}
    return found | {"train": fitted.train_curve, "valid": fitted.valid_curve, "best": fitted.best_epoch}


def assert_same_bits(first, second):
    first, second = everything(first), everything(second)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.tobytes() == second[name].tobytes(), name


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(
    ("data", "valid"), [(wide(150, missing=0.3), wide(60, seed=1)), (schools(), schools(seed=1))], ids=["wide", "long"]
)
def test_a_fit_broken_off_after_any_epoch_and_resumed_ends_with_the_same_bits(kind, data, valid, tmp_path):
    whole = run(kind, data, valid)
    for epoch in (1, 3):
        folder = tmp_path / str(epoch)

        def stop(text, share, at=epoch):
            if share >= at / OFTEN.max_epochs:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(kind, data, valid, folder, progress=stop)
        assert_same_bits(whole, run(kind, data, valid, folder))


def test_the_network_that_grows_in_these_tests_does_grow_and_its_tasks_do_not_all_share():
    fitted = run("adaptive", wide(150, missing=0.3), wide(60, seed=1))
    assert [branches.n for branches in fitted.network.trunk.stages.values()] == [1, 4, 4]


@pytest.mark.parametrize(
    ("kind", "at", "error"),
    [
        ("hard", 1, StopError),
        ("hard", 13, StopError),
        ("hard", 7, KeyboardInterrupt),
        ("adaptive", 23, StopError),
        ("adaptive", 42, StopError),
        ("joint", 17, StopError),
    ],
)
def test_a_fit_broken_off_within_a_step_and_resumed_ends_with_the_same_bits(kind, at, error, tmp_path):
    data, valid = wide(150, missing=0.3), wide(60, seed=1)
    whole = run(kind, data, valid)

    class Breaks(Uncertainty):
        calls = 0

        def backward(self, *args, **options):
            Breaks.calls += 1
            if Breaks.calls == at + 1:
                raise error  # half-way through a step: the checkpoint of the step before must do
            return super().backward(*args, **options)

    Breaks.__name__ = "Uncertainty"
    kinds = [task.kind for task in data.tasks]
    with pytest.raises(error):
        run(kind, data, valid, tmp_path, balancer=Breaks(kinds, init="auto"))
    (path,) = tmp_path.iterdir()
    facts = read(path)[1]
    assert facts["epoch"] * 10 + facts["step"] == at
    assert_same_bits(whole, run(kind, data, valid, tmp_path))


def test_ctrl_c_finishes_the_step_leaves_a_checkpoint_and_raises(tmp_path):
    data, valid = wide(150), wide(60, seed=1)

    class Interrupted(Equal):
        calls = 0

        def backward(self, *args, **options):
            Interrupted.calls += 1
            if Interrupted.calls == 14:
                os.kill(os.getpid(), signal.SIGINT)
            return super().backward(*args, **options)

    Interrupted.__name__ = "Equal"
    rarely = TrainSettings(**{**OFTEN.__dict__, "checkpoint_seconds": 1e6})
    with pytest.raises(KeyboardInterrupt):
        run("hard", data, valid, tmp_path, balancer=Interrupted(4), settings=rarely)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    (path,) = tmp_path.iterdir()
    assert read(path)[1] == {"epoch": 1, "step": 4, "phase": 0}
    whole = run("hard", data, valid, balancer=Equal(4))
    assert_same_bits(whole, run("hard", data, valid, tmp_path, balancer=Equal(4), settings=rarely))


def test_a_finished_fit_is_read_back_without_training(tmp_path):
    data, valid = wide(150), wide(60, seed=1)
    whole = run("hard", data, valid, tmp_path)

    class Never(Uncertainty):
        def backward(self, *args, **options):
            raise AssertionError("trained again")

    Never.__name__ = "Uncertainty"
    kinds = [task.kind for task in data.tasks]
    assert_same_bits(whole, run("hard", data, valid, tmp_path, balancer=Never(kinds, init="auto")))


def test_a_checkpoint_of_another_fit_is_left_alone(tmp_path):
    data, valid = wide(150), wide(60, seed=1)
    run("hard", data, valid, tmp_path)
    other = wide(150, seed=9)
    assert_same_bits(run("hard", other, valid), run("hard", other, valid, tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_quick_fit_writes_no_checkpoint(tmp_path):
    settings = TrainSettings(**{**OFTEN.__dict__, "checkpoint_seconds": 1e6})
    run("hard", wide(100), None, tmp_path, settings=settings)
    assert list(tmp_path.iterdir()) == []


LAUNCHER = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from tests.train.test_checkpoint import everything, run
from tests.train.examples import wide

torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # what it imports, once for all children
folder, kind = Path(sys.argv[1]), sys.argv[3]
data, valid = wide(150, missing=0.3), wide(60, seed=1)

def child(target, checkpoint):
    pid = os.fork()
    if pid == 0:
        np.savez(target, **everything(run(kind, data, valid, checkpoint)))
        os._exit(0)
    return pid

os.waitpid(child(folder / "whole.npz", None), 0)
random.seed(int(sys.argv[4]))
place, kills, seen = folder / "checkpoint", 0, []
while True:
    stamp = lambda: [(p.name, p.stat().st_mtime_ns) for p in place.glob("*.safetensors")]
    before = stamp()
    pid = child(folder / "resumed.npz", place)
    while stamp() == before and os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    time.sleep(random.uniform(0.0, 0.15))
    try:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        break
    if os.WIFEXITED(status):
        break
    kills += 1
whole, resumed = np.load(folder / "whole.npz"), np.load(folder / "resumed.npz")
same = whole.files == resumed.files and all(whole[n].tobytes() == resumed[n].tobytes() for n in whole.files)
print(kills, same, len(list(place.glob(".*.tmp-*"))))
"""


@pytest.mark.parametrize("kind", ["hard", "single", "adaptive"])
def test_killing_at_random_moments_and_resuming_ends_with_the_same_bits(kind, tmp_path):
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LAUNCHER, str(tmp_path), root, kind, "0"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    kills, same, leftovers = done.stdout.split()
    assert int(kills) >= 1  # the clock decides how many; test_kills.py counts moments
    assert same == "True"
    assert leftovers == "0"


def test_a_checkpoint_holds_tensors_and_facts_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "one.safetensors"
    write(path, {"a": torch.arange(3), "b/c": torch.ones(2, 2).T}, {"epoch": 4, "rate": 0.1})
    tensors, facts = read(path)
    assert facts == {"epoch": 4, "rate": 0.1}
    assert torch.equal(tensors["a"], torch.arange(3))
    assert [item.name for item in path.parent.iterdir()] == ["one.safetensors"]
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert set(header) == {"__metadata__", "a", "b/c"}


def test_leftovers_of_killed_writes_are_removed_at_the_next_start(tmp_path):
    path = tmp_path / "one.safetensors"
    write(path, {"a": torch.arange(3)}, {})
    leftover = tmp_path / ".one.safetensors.tmp-99999999"
    leftover.write_bytes(b"half")
    read(path)
    assert not leftover.exists()


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: b"", lambda raw: raw[:-9] + b"x" + raw[-8:]])
def test_a_damaged_checkpoint_is_refused_by_name(damage, tmp_path):
    path = tmp_path / "one.safetensors"
    write(path, {"a": torch.arange(3)}, {"epoch": 1})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelRefusedError, match=r"one\.safetensors is damaged.*delete it"):
        read(path)


def test_a_full_disk_is_told_with_path_and_free_bytes_and_the_old_checkpoint_stays(tmp_path):
    path = tmp_path / "one.safetensors"
    write(path, {"a": torch.arange(3)}, {"epoch": 1})
    with (
        full_disk(4096),
        pytest.raises(DiskError, match=r"one\.safetensors: File too large \([\d,]+ bytes free there\)"),
    ):
        write(path, {"a": torch.zeros(10_000)}, {"epoch": 2})
    assert read(path)[1] == {"epoch": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["one.safetensors"]


def test_curves_and_best_epochs_survive_a_resume_exactly(tmp_path):
    data, valid = wide(150), wide(60, seed=1)
    first = run("single", data, valid, tmp_path)
    again = run("single", data, valid, tmp_path)
    np.testing.assert_array_equal(first.valid_curve, again.valid_curve)
    np.testing.assert_array_equal(first.best_epoch, again.best_epoch)
