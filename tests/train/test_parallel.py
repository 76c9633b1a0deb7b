import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchjd
from tests.killing import session_members
from tests.train.examples import wide
from tests.train.together import (
    CASES,
    SCALARIZERS,
    SPREAD,
    THEIRS,
    WEIGHTINGS,
    case,
    sparse,
    spread_case,
    whole_batches,
)

from polytask.balance import Equal, PCGrad, UPGrad
from polytask.core.errors import InputError
from polytask.core.scaling import TargetScaler
from polytask.deep import HardSharing, SingleTask, SoftSharing, mlp
from polytask.train import TrainSettings, fit, join_processes
from polytask.train.batches import Placed, Sampler, Share
from polytask.train.checkpoint import read, under
from polytask.train.parallel import Processes

pytestmark = pytest.mark.xdist_group("processes")  # the fixture's runs are started once

ROOT = str(Path(__file__).parents[2])


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def launcher(mode, folder):
    """Return the command that starts two processes by PyTorch's launcher."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return [*command, "--master-port", str(free_port()), "-m", "tests.train.together", mode, str(folder)]


def start(mode, folder):
    """Start two processes as a launcher would, each in a session of its own."""
    port = str(free_port())
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.together", mode, str(folder)],
            start_new_session=True,
            env={
                **environment(),
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def end(children, seconds=120):
    """Wait for all; return (exit codes, what they said)."""
    said = [child.communicate(timeout=seconds)[1] for child in children]
    return [child.returncode for child in children], said


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """All cases on two processes, started by PyTorch's launcher."""
    folder = tmp_path_factory.mktemp("spread")
    command = launcher("cases", folder)
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", CASES)
def test_each_step_on_two_processes_is_that_of_one_process_on_the_joint_batch(name, spread):
    """In float64: after every step two processes hold the same bits, and differ from one process by rounding."""
    first, second = (dict(np.load(spread / f"{CASES.index(name)}-{rank}.npz")) for rank in range(2))
    alone = case(name)
    assert alone["train"].shape[0] == (2 if name in THEIRS else 5)
    assert sum(key.startswith("update") for key in alone) >= (20 if name in THEIRS else 50)
    assert alone.keys() == first.keys() == second.keys()
    for key, value in alone.items():
        assert first[key].tobytes() == second[key].tobytes(), key
        assert key.partition(" ")[0] != "update" or np.abs(value).max() > 1e-4
        np.testing.assert_allclose(first[key], value, rtol=1e-6, atol=1e-6, err_msg=key)
    if name == "growing":
        assert len(np.unique(first["network tree"])) > 1


def test_every_object_of_torchjd_that_the_adapter_takes_is_among_these_cases():
    """Three weightings need the gradients themselves."""
    need_gradients = {"ExcessMTLWeighting", "MoDoWeighting", "SDMGradWeighting"}
    found = {name for name in torchjd.aggregation.__all__ if name.endswith("Weighting")} - need_gradients
    assert set(WEIGHTINGS) == found - {"Weighting"}
    assert set(SCALARIZERS) == set(torchjd.scalarization.__all__) - {"Scalarizer"}


@pytest.mark.parametrize(("data", "batch_size", "epochs"), [(sparse(), 32, 5), (whole_batches(), 16, 2)])
def test_in_these_cases_some_task_has_labels_in_one_process_and_none_in_the_other(data, batch_size, epochs):
    placed = Placed(data, TargetScaler.fit(data), torch.device("cpu"))
    sampler = Sampler(placed, batch_size=batch_size, own_rows=False, seed=2)
    apart, nowhere = 0, 0
    for epoch in range(epochs):
        sampler.start(epoch)
        for step in range(sampler.steps):
            first, second = (sampler.batch(step, Share(rank, 2)).present.any(1) for rank in range(2))
            apart += int((first != second).sum())
            nowhere += int((~first & ~second).sum())
    assert apart >= 3
    assert (nowhere == 0) == (batch_size == 16)


@pytest.mark.parametrize("name", SPREAD)
def test_twenty_steps_with_weights_spread_over_two_processes_are_those_of_one(name, spread):
    number = list(SPREAD).index(name)
    first, second = (dict(np.load(spread / f"spread-{number}-{rank}.npz")) for rank in range(2))
    alone = spread_case(name)
    assert alone["train"].shape == (2, 4)
    assert alone.keys() == first.keys() == second.keys()
    for key, value in alone.items():
        assert first[key].tobytes() == second[key].tobytes(), key
        np.testing.assert_allclose(first[key], value, rtol=1e-6, atol=1e-6, err_msg=key)


def test_each_of_two_processes_holds_half_of_the_weights_that_are_spread(spread):
    assert [float(np.load(spread / f"spread-resumed-{rank}.npz")["held"]) for rank in range(2)] == [0.5, 0.5]


def test_a_checkpoint_of_spread_weights_is_whole_and_the_fit_goes_on_from_it_with_the_same_bits(spread):
    (path,) = (spread / "spread at 12, 0").glob("*.safetensors")
    tensors, facts = read(path)
    assert facts["epoch"] * 10 + facts["step"] == 12
    network = HardSharing(sparse().tasks, mlp(5, (8, 6), norm="layer")).double()
    for part in ("network", "best"):
        network.load_state_dict(under(part, tensors, torch.device("cpu")))
    shapes = {value.shape for value in network.parameters()}
    assert {tensors[name].shape for name in tensors if name.endswith("/exp_avg")} >= shapes
    number = list(SPREAD).index("uncertainty, clipped")
    for rank in range(2):
        whole, resumed = (np.load(spread / f"spread-{which}-{rank}.npz") for which in (number, "resumed"))
        for key in whole.files:
            assert whole[key].tobytes() == resumed[key].tobytes(), key


@pytest.mark.parametrize(
    ("make", "balancer", "options", "told"),
    [
        (HardSharing, PCGrad(4), {}, "PCGrad compares gradients.*use a loss weighting"),
        (HardSharing, UPGrad(4, level="features"), {}, "UPGrad compares gradients.*use a loss weighting"),
        (SingleTask, Equal(4), {}, "SingleTask cannot be trained.*its tasks stop one by one"),
        (partial(SoftSharing, strength=0.1), Equal(4), {}, "SoftSharing cannot be trained.*needs its weights whole"),
        (HardSharing, Equal(4), {"average": 0.9}, "average is 0.9, which"),
        (HardSharing, Equal(4), {"precision": "float16"}, "precision is float16, which"),
    ],
)
def test_what_needs_weights_whole_is_refused_before_the_first_step(make, balancer, options, told):
    data = wide(100)
    network, processes = make(data.tasks, mlp(5, (4,))), Processes(0, 2, sharded=True)
    with pytest.raises(InputError, match=told):
        fit(network, balancer, data, settings=TrainSettings(**options), processes=processes)


@pytest.mark.parametrize("own_rows", [False, True])
def test_the_shares_of_a_batch_are_the_batch(own_rows):
    data = wide(101)
    sampler = Sampler(
        Placed(data, TargetScaler.fit(data), torch.device("cpu")), batch_size=16, own_rows=own_rows, seed=3
    )
    sampler.start(1)
    whole = sampler.batch(2)
    shares = [sampler.batch(2, Share(number, 3)) for number in range(3)]
    for part, share in enumerate(shares):
        assert share.targets.equal(whole.targets[:, part::3])
        expected = whole.inputs["numeric"][:, part::3] if own_rows else whole.inputs["numeric"][part::3]
        assert share.inputs["numeric"].equal(expected)


def test_a_killed_process_ends_the_other_with_a_message_and_all_go_on_from_the_checkpoint(tmp_path):
    children = start("kill", tmp_path)
    children[1].wait(timeout=120)
    died = time.monotonic()
    codes, said = end(children)
    assert time.monotonic() - died < 15
    assert codes[0] not in (0, None)
    assert codes[1] == -signal.SIGKILL
    assert "ProcessLostError: process 0 of 2 lost the others" in said[0]
    assert [session_members(child.pid) for child in children] == [[], []]
    (path,) = (tmp_path / "run").glob("*.safetensors")
    assert read(path)[1] == {"epoch": 2, "step": 4, "phase": 0}
    codes, said = end(start("run", tmp_path))
    assert codes == [0, 0], said
    whole, resumed, other = (np.load(tmp_path / f"{name}.npz") for name in ("whole-0", "resumed-0", "resumed-1"))
    for key in whole.files:
        assert whole[key].tobytes() == resumed[key].tobytes() == other[key].tobytes(), key


def test_a_killed_process_ends_one_that_shares_its_weights_too(tmp_path):
    children = start("kill, spread", tmp_path)
    children[1].wait(timeout=120)
    died = time.monotonic()
    codes, said = end(children)
    assert time.monotonic() - died < 15
    assert codes[0] not in (0, None)
    assert "ProcessLostError: process 0 of 2 lost the others" in said[0]


def test_a_hung_process_is_given_up_after_the_time_out_and_the_launcher_leaves_none(tmp_path):
    process = subprocess.Popen(
        launcher("hang", tmp_path), env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    _, said = process.communicate(timeout=150)
    assert time.time() - (tmp_path / "struck").stat().st_mtime < 3 + 15
    assert process.returncode not in (0, None)
    assert "ProcessLostError: process 0 of 2 lost the others" in said
    started = [int((tmp_path / f"pid-{rank}").read_text()) for rank in range(2)]
    assert [session_members(number) for number in (process.pid, *started)] == [[], [], []]
    assert not [number for number in started if Path(f"/proc/{number}").exists()]
    (path,) = (tmp_path / "run").glob("*.safetensors")
    assert read(path)[1]["epoch"] == 2


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("different data", 'before the first step the processes hold different values of "data, settings or seed"'),
        ("drift", r'after epoch 3 the processes hold different values of "heads.linear'),
    ],
)
def test_processes_that_do_not_hold_the_same_are_told_so(mode, told, tmp_path):
    codes, said = end(start(mode, tmp_path))
    assert all(codes)
    assert any(told in text for text in said), said


def test_without_a_launcher_the_way_to_start_is_told(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match=r"RANK is not in the environment.*torchrun"), join_processes():
        pass
    with pytest.raises(InputError, match="time_out is 0"), join_processes(time_out=0):
        pass


def test_batches_too_small_for_the_processes_are_refused_before_the_first_step():
    class Many(Processes):
        def check_same(self, tensors, when):
            pass

    data = wide(100)
    with pytest.raises(InputError, match="some batch has 10 rows, too few for 8 processes"):
        fit(HardSharing(data.tasks, mlp(5, (4,))), Equal(4), data, settings=TrainSettings(), processes=Many(0, 8))
