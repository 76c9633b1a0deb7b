"""Training survives what ends it: kills at any moment, also while a checkpoint is written, full disks, bad bytes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from polytask.core.errors import ModelRefusedError
from polytask.train.checkpoint import read, write

ROOT = str(Path(__file__).parents[2])
LAUNCHER = """
import os, random, resource, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from tests import killing
from tests.train.examples import wide
from tests.train.test_checkpoint import OFTEN, everything, run
from polytask.core.errors import DiskError

torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # what it imports, once for all children
folder, mode = Path(sys.argv[1]), sys.argv[3]
data, valid = wide(150, missing=0.3), wide(60, seed=1)
rng = random.Random(7)
place = folder / "checkpoint"

def fit(checkpoint=None):
    return everything(run("hard", data, valid, checkpoint))

def child(target, before):
    def act():
        try:
            np.savez(target, **fit(place))
        except DiskError as error:
            (folder / "told").write_text(str(error))
            os._exit(74)
    return killing.child(act, before=before)

def kill_at(number):
    # SIGKILL in a step or in the writing of a checkpoint
    calls = (os, "fsync"), (Path, "replace"), (Path, "open"), (torch.optim.AdamW, "step")
    return lambda: killing.kill_at(number, *calls)

def full_disk():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

whole = fit()
ends = []
if mode == "small disk":
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
if mode == "kills":
    for _ in range(20):
        ends.append(child(folder / "resumed.npz", kill_at(rng.randrange(1, 36))))
    kills = sum(os.WIFSIGNALED(end) for end in ends)
else:
    ends.append(child(folder / "resumed.npz", kill_at(40)))
    filler = place / "filler"
    if mode == "small disk":
        space = os.statvfs(place)
        filler.write_bytes(bytes(space.f_bavail * space.f_frsize))
    ends.append(child(folder / "resumed.npz", full_disk if mode == "small files" else lambda: None))
    assert os.waitstatus_to_exitcode(ends[1]) == 74, ends
    filler.unlink(missing_ok=True)
    kills = 1
last = child(folder / "resumed.npz", lambda: None)
resumed = np.load(folder / "resumed.npz")
same = sorted(whole) == sorted(resumed.files) and all(whole[n].tobytes() == resumed[n].tobytes() for n in whole)
print(kills, os.waitstatus_to_exitcode(last), same, len(list(place.glob(".fit-*.tmp-*"))))
"""


OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")
"""Before a command that may mount a file system of its own, which ends with it."""


def launch(mode, folder, prefix=()):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*prefix, sys.executable, "-c", LAUNCHER, str(folder), ROOT, mode]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_twenty_kills_at_random_moments_of_steps_and_writes_end_with_the_bits_of_an_uninterrupted_run(tmp_path):
    kills, last, same, leftovers = launch("kills", tmp_path)
    assert (kills, last, same, leftovers) == ("20", "0", "True", "0")


def test_where_no_file_can_grow_the_run_says_so_and_goes_on_from_its_checkpoint_when_there_is_room(tmp_path):
    _, last, same, leftovers = launch("small files", tmp_path)
    assert (last, same, leftovers) == ("0", "True", "0")
    assert "File too large (" in (tmp_path / "told").read_text()


def test_on_a_full_disk_the_run_says_so_and_goes_on_from_its_checkpoint_when_there_is_room(tmp_path):
    if shutil.which("unshare") is None or subprocess.run([*OWN_MOUNTS, "true"], capture_output=True).returncode:
        pytest.skip("this system lets no user mount a small disk")
    _, last, same, leftovers = launch("small disk", tmp_path, OWN_MOUNTS)
    assert (last, same, leftovers) == ("0", "True", "0")
    assert "No space left on device (0 bytes free there)" in (tmp_path / "told").read_text()


def tensors():
    return {"a": torch.arange(40.0), "b": torch.tensor([True, False]), "c": torch.zeros(0), "d": torch.arange(3)}


def outcome(path):
    """Return None where a file is refused, else what it holds."""
    try:
        found = read(path)
    except ModelRefusedError as error:
        told = str(error)
        return None if str(path) in told and "delete it to start afresh" in told else told
    assert found is not None
    return {name: value.numpy().tobytes() for name, value in found[0].items()}, found[1]


def test_any_truncated_checkpoint_is_refused(tmp_path):
    path = tmp_path / "one.safetensors"
    write(path, tensors(), {"epoch": 3})
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        assert outcome(path) is None, length


@pytest.mark.parametrize("flips", [1, 2, 5])
def test_a_checkpoint_with_flipped_bits_is_refused_or_means_the_same(flips, tmp_path):
    """Bits of the header's padding mean nothing; all others are noticed."""
    path = tmp_path / "one.safetensors"
    write(path, tensors(), {"epoch": 3})
    whole, raw = outcome(path), path.read_bytes()
    rng, refused = np.random.default_rng(flips), 0
    for _ in range(1500):
        damaged = np.frombuffer(raw, dtype=np.uint8).copy()
        places = rng.choice(len(raw) * 8, size=flips, replace=False)
        np.bitwise_xor.at(damaged, places // 8, (1 << (places % 8)).astype(np.uint8))
        path.write_bytes(damaged.tobytes())
        found = outcome(path)
        assert found is None or found == whole
        refused += found is None
    assert refused > 1400
