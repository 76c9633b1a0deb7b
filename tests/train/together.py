"""What each of two processes does in test_parallel.py: python -m tests.train.together MODE FOLDER."""

import os
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torchjd.aggregation as weightings
import torchjd.scalarization as scalarizers
from tests.train.examples import wide
from tests.train.test_growth import pairs
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from polytask.balance import (
    FAMO,
    CAGrad,
    Equal,
    NashMTL,
    PCGrad,
    TorchJDScalarizer,
    TorchJDWeighting,
    Uncertainty,
    UPGrad,
)
from polytask.deep import AdaptiveSharing, HardSharing, mlp
from polytask.train import TrainSettings, fit, join_processes
from polytask.train.parallel import Processes
from polytask.train.sharding import spread_network

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
SOME = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
WEIGHTINGS = {  # what makes weights of a Gram matrix, or of the number of tasks alone
    "AlignedMTLWeighting": weightings.AlignedMTLWeighting,
    "CAGradWeighting": lambda: weightings.CAGradWeighting(c=0.5),
    "ConstantWeighting": lambda: weightings.ConstantWeighting(SOME),
    "CRMOGMWeighting": lambda: weightings.CRMOGMWeighting(weightings.UPGradWeighting()),
    "DualProjWeighting": weightings.DualProjWeighting,
    "FairGradWeighting": lambda: weightings.FairGradWeighting(alpha=1.0),
    "GradVacWeighting": weightings.GradVacWeighting,
    "IMTLGWeighting": weightings.IMTLGWeighting,
    "KrumWeighting": lambda: weightings.KrumWeighting(n_byzantine=1, n_selected=2),
    "MeanWeighting": weightings.MeanWeighting,
    "MGDAWeighting": weightings.MGDAWeighting,
    "PCDWeighting": weightings.PCDWeighting,
    "PCGradWeighting": weightings.PCGradWeighting,
    "RandomWeighting": weightings.RandomWeighting,
    "SumWeighting": weightings.SumWeighting,
    "UPGradWeighting": weightings.UPGradWeighting,
}
SCALARIZERS = {
    "Constant": lambda: scalarizers.Constant(SOME),
    "COSMOS": lambda: scalarizers.COSMOS(1.0, SOME),
    "DWA": scalarizers.DWA,
    "FAMO": lambda: scalarizers.FAMO(4),
    "GeometricMean": scalarizers.GeometricMean,
    "IMTLL": lambda: scalarizers.IMTLL(4),
    "Mean": scalarizers.Mean,
    "PBI": lambda: scalarizers.PBI(2.0, SOME),
    "Random": scalarizers.Random,
    "STCH": lambda: scalarizers.STCH(0.5),
    "Sum": scalarizers.Sum,
    "UW": lambda: scalarizers.UW(4),
}
THEIRS = {f"TorchJD {name}": lambda make=make: TorchJDWeighting(make(), 4, seed=1) for name, make in WEIGHTINGS.items()}
THEIRS |= {f"TorchJD {name}": lambda make=make: TorchJDScalarizer(make(), seed=1) for name, make in SCALARIZERS.items()}
OPTIONS = {
    "own rows": {"sampling": "round", "batch_size": 8},
    "balanced": {"sampling": "balanced", "groups": "health"},
    "uncertainty in parts": {"accumulate": 2},
}
CASES = (*BALANCERS, "growing", *OPTIONS, *THEIRS)


def sparse(seed=0, n=300):
    """Few labels, so that many a task has labels in one process's rows and none in the other's."""
    data = wide(n, seed=seed, missing=0.3)
    return data.thinned({data.names[0]: 25, data.names[3]: 40}, seed=seed)


def whole_batches():
    """Labels so sparse that one process may have none of a task; the joint batch has some, as many an object needs."""
    data = wide(160, seed=4)
    return data.thinned({data.names[0]: 35, data.names[3]: 40}, seed=2)


def case(name, processes=None):
    """Fit one case in float64, for 50 steps or more (20 with an object of TorchJD), and note the update of each."""
    if name in THEIRS:
        data, valid = whole_batches(), sparse(seed=1)
        network = HardSharing(data.tasks, mlp(5, (8, 6), seed=0))
    elif name == "growing":
        data, valid = pairs(), pairs(seed=1)
        network = AdaptiveSharing(data.tasks, mlp(5, (8, 6), seed=0), alpha=8.0, phase_epochs=2)
    else:
        data, valid = sparse(), sparse(seed=1)
        network = HardSharing(data.tasks, mlp(5, (8, 6), seed=0))
    ours = BALANCERS.get(name.removesuffix(" in parts"), BALANCERS["pcgrad"])
    balancer = THEIRS[name]() if name in THEIRS else ours(data)
    settings = replace(SETTINGS, **({"max_epochs": 2, "batch_size": 16} if name in THEIRS else OPTIONS.get(name, {})))
    with updates() as seen:
        fitted = fit(network.double(), balancer.double(), data, valid, settings=settings, seed=2, processes=processes)
    return plain(fitted) | {f"update {step}": value.numpy() for step, value in enumerate(seen)}


@contextmanager
def updates():
    """Note by how much each step of an optimiser changes its parameters, as one vector."""
    seen = []

    def parameters(optimiser):
        return torch.cat([value.detach().flatten() for group in optimiser.param_groups for value in group["params"]])

    def before(optimiser, *_):
        seen.append(parameters(optimiser))

    def after(optimiser, *_):
        seen[-1] = parameters(optimiser) - seen[-1]

    hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def plain(fitted):
    found = {f"network {name}": value.numpy() for name, value in fitted.network.state_dict().items()}
    found |= {f"balancer {name}": value.numpy() for name, value in fitted.balancer.state_dict().items()}
    return found | {"train": fitted.train_curve, "valid": fitted.valid_curve, "best": fitted.best_epoch}


SPREAD = {
    "equal": (lambda data: Equal(4), {}),
    "uncertainty, clipped": (BALANCERS["uncertainty"], {"clip": 0.1, "weight_decay": 0.1}),
    "famo": (lambda data: FAMO(4), {}),
    "uncertainty, in parts": (BALANCERS["uncertainty"], {"accumulate": 2}),
    "own rows": (lambda data: Equal(4), {"sampling": "round", "batch_size": 8}),
}


def spread_case(name, processes=None, folder=None, blow=None):
    """Fit one case in float64 for 20 steps, with weights spread over the processes where there are two."""
    make, options = SPREAD[name]
    data, valid = sparse(), sparse(seed=1)
    network = HardSharing(data.tasks, mlp(5, (8, 6), norm="layer", seed=0)).double()
    balancer = make(data).double()
    settings = replace(SETTINGS, max_epochs=2, checkpoint_seconds=0.0, **options)
    with struck(type(balancer), blow, 13):
        fitted = fit(network, balancer, data, valid, settings=settings, seed=2, processes=processes, checkpoint=folder)
    assert fitted.network is network
    return plain(fitted)


def held(processes):
    """Return which share of the weights this process holds between steps."""
    network = HardSharing(sparse().tasks, mlp(5, (8, 6), seed=0))
    values = list(spread_network(network, torch.device("cpu"), processes.size).parameters())
    return sum(value.to_local().numel() for value in values) / sum(value.numel() for value in values)


class StopError(Exception):
    pass


def stop():
    raise StopError


def spread_cases(processes, folder):
    processes = Processes(processes.rank, processes.size, sharded=True)
    for number, name in enumerate(SPREAD):
        np.savez(folder / f"spread-{number}-{processes.rank}.npz", **spread_case(name, processes))
    try:
        spread_case("uncertainty, clipped", processes, folder / "spread", stop)
    except StopError:
        shutil.copytree(folder / "spread", folder / f"spread at 12, {processes.rank}")
    resumed = spread_case("uncertainty, clipped", processes, folder / "spread")
    np.savez(folder / f"spread-resumed-{processes.rank}.npz", **resumed, held=held(processes))


@contextmanager
def struck(kind, blow, step):
    """Let a balancer's n-th backward pass begin with a blow."""
    usual, calls = kind.backward, [0]

    def backward(self, *args, **options):
        calls[0] += 1
        if calls[0] == step and blow is not None:
            blow()
        return usual(self, *args, **options)

    kind.backward = backward
    try:
        yield
    finally:
        kind.backward = usual


def noisy(folder, processes, blow=None, seed=0, balancer=None):
    """Fit a network that draws dropout masks and has batch norm, with checkpoints; a process is struck in step 25."""
    data, valid = sparse(seed), sparse(seed=1)
    network = HardSharing(data.tasks, mlp(5, (8, 6), dropout=0.3, norm="batch", seed=0))
    balancer = balancer or PCGrad(4)
    settings = replace(SETTINGS, checkpoint_seconds=0.0)
    with struck(type(balancer), blow, 25):
        return fit(network, balancer, data, valid, settings=settings, seed=2, processes=processes, checkpoint=folder)


def main(mode, folder):
    torch.set_num_threads(1)
    with join_processes(time_out=3 if mode == "hang" else 60) as processes:
        rank = processes.rank
        (folder / f"pid-{rank}").write_text(str(os.getpid()))
        if mode == "cases":
            for number, name in enumerate(CASES):
                np.savez(folder / f"{number}-{rank}.npz", **case(name, processes))
            spread_cases(processes, folder)
        elif mode == "kill":
            noisy(folder / "run", processes, kill if rank else None)
        elif mode == "kill, spread":
            processes = Processes(rank, 2, sharded=True)
            noisy(folder / "run", processes, kill if rank else None, balancer=Equal(4))
        elif mode == "hang":
            noisy(folder / "run", processes, (lambda: hang(folder)) if rank else None)
        elif mode == "run":
            np.savez(folder / f"whole-{rank}.npz", **plain(noisy(folder / "other", processes)))
            np.savez(folder / f"resumed-{rank}.npz", **plain(noisy(folder / "run", processes)))
        elif mode == "different data":
            noisy(folder / "run", processes, seed=rank)
        elif mode == "drift":
            noisy(folder / "run", processes, drift if rank else None)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def hang(folder):
    (folder / "struck").touch()
    time.sleep(600)


def drift():
    """Change one weight of this process alone: the optimiser's step is what all do, so it stays changed."""
    import gc

    for found in gc.get_objects():
        if isinstance(found, HardSharing):
            with torch.no_grad():
                found.heads.linear.weights["bias"][0] += 1e-7


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
