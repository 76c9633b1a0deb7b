"""What each of two processes does in test_parallel.py: python -m tests.train.together MODE FOLDER."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tests.train.examples import wide
from tests.train.test_growth import pairs

from polytask.balance import CAGrad, Equal, NashMTL, PCGrad, Uncertainty, UPGrad
from polytask.deep import AdaptiveSharing, HardSharing, mlp
from polytask.train import TrainSettings, fit, join_processes

SETTINGS = TrainSettings(max_epochs=5, batch_size=32, device="cpu", learning_rate=1e-2, checkpoint_seconds=1e6)
BALANCERS = {
    "equal": lambda data: Equal(4),
    "uncertainty": lambda data: Uncertainty([task.kind for task in data.tasks], init="auto"),
    "pcgrad": lambda data: PCGrad(4, seed=1),
    "upgrad": lambda data: UPGrad(4),
    "upgrad, one pass per task": lambda data: UPGrad(4, level="tasks"),
    "upgrad, features": lambda data: UPGrad(4, level="features"),
    "cagrad": lambda data: CAGrad(4),
    "nash-mtl": lambda data: NashMTL(4),
}
CASES = (*BALANCERS, "growing", "own rows")


def sparse(seed=0, n=300):
    """Few labels, so that many a task has labels in one process's rows and none in the other's."""
    data = wide(n, seed=seed, missing=0.3)
    return data.thinned({data.names[0]: 25, data.names[3]: 40}, seed=seed)


def case(name, processes=None):
    """Fit one case in float64 for 50 steps."""
    if name == "growing":
        data, valid = pairs(), pairs(seed=1)
        network = AdaptiveSharing(data.tasks, mlp(5, (8, 6), seed=0), alpha=8.0, phase_epochs=2)
    else:
        data, valid = sparse(), sparse(seed=1)
        network = HardSharing(data.tasks, mlp(5, (8, 6), seed=0))
    balancer = BALANCERS.get(name, BALANCERS["pcgrad"])(data)
    settings = replace(SETTINGS, sampling="round", batch_size=8) if name == "own rows" else SETTINGS
    return fit(network.double(), balancer.double(), data, valid, settings=settings, seed=2, processes=processes)


def plain(fitted):
    found = {f"network {name}": value.numpy() for name, value in fitted.network.state_dict().items()}
    return found | {"train": fitted.train_curve, "valid": fitted.valid_curve, "best": fitted.best_epoch}


class Struck(PCGrad):
    """Process 1 is struck in its 25th step."""

    blow = staticmethod(lambda: None)
    calls = 0

    def backward(self, *args, **options):
        Struck.calls += 1
        if Struck.calls == 25:
            Struck.blow()
        return super().backward(*args, **options)


def noisy(folder, processes, blow=None, seed=0):
    """Fit a network that draws dropout masks and has batch norm, with checkpoints."""
    data, valid = sparse(seed), sparse(seed=1)
    network = HardSharing(data.tasks, mlp(5, (8, 6), dropout=0.3, norm="batch", seed=0))
    if blow is not None:
        Struck.blow = staticmethod(blow)
    Struck.__name__ = "PCGrad"
    settings = replace(SETTINGS, checkpoint_seconds=0.0)
    return fit(network, Struck(4), data, valid, settings=settings, seed=2, processes=processes, checkpoint=folder)


def main(mode, folder):
    torch.set_num_threads(1)
    with join_processes(time_out=3 if mode == "hang" else 60) as processes:
        rank = processes.rank
        if mode == "cases":
            for number, name in enumerate(CASES):
                np.savez(folder / f"{number}-{rank}.npz", **plain(case(name, processes)))
        elif mode == "kill":
            noisy(folder / "run", processes, (lambda: os.kill(os.getpid(), signal.SIGKILL)) if rank else None)
        elif mode == "hang":
            noisy(folder / "run", processes, (lambda: time.sleep(600)) if rank else None)
        elif mode == "run":
            np.savez(folder / f"whole-{rank}.npz", **plain(noisy(folder / "other", processes)))
            np.savez(folder / f"resumed-{rank}.npz", **plain(noisy(folder / "run", processes)))
        elif mode == "different data":
            noisy(folder / "run", processes, seed=rank)
        elif mode == "drift":
            noisy(folder / "run", processes, drift if rank else None)


def drift():
    """Change one weight of this process alone: the optimiser's step is what all do, so it stays changed."""
    import gc

    for found in gc.get_objects():
        if isinstance(found, HardSharing):
            with torch.no_grad():
                found.heads.linear.weights["bias"][0] += 1e-7


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
