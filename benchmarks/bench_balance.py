"""What balancing costs: steps against a plain PyTorch step, weight solvers and memory against TorchJD.

P is one plain training step (forward, sum of losses, backward, Adam) of the same trunk with stacked heads,
on one thread, in float32. Every measured step stands between two of its base; a round's ratio is of CPU
times and the figure is the median over rounds. Batch and labels are fixed and random. Memory is the peak over the
start of a process of its own, in units of one Jacobian (tasks × shared parameters, float32).

    mlp: 64-256-256-256, batch 128, one linear output per task
    cnn: three 3×3 convolutions (16, 32, 64 channels) with pooling on 28×28, batch 64, ten classes per task

The exit code is 1 while a row with a goal misses it. TorchJD's figures are of the same run; those of LibMTL
in brackets are of 2026-08, on another day of the same kind of machine.

    python benchmarks/bench_balance.py [rounds] [part ...]      parts: scalar features exact solvers memory batches
"""

from __future__ import annotations

import contextlib
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import cycle
from pathlib import Path

import torch
import torchjd.aggregation as jd
from torch import Tensor, nn
from torch.nn import functional
from torchjd.autojac import jac_to_grad, mtl_backward

import polytask.balance as room
from polytask.balance import Balancer, LinearHeads
from polytask.balance.solvers import minimum_norm

Step = Callable[[], object]
GRADIENT = ("MGDA", "PCGrad", "UPGrad", "NashMTL", "CAGrad", "IMTLG", "AlignedMTL", "FairGrad")
LIBMTL = {("scalar", 50): "3.4", ("features", 2): "1.5", ("features", 10): "15", ("features", 50): "89"}
LIBMTL |= {("exact", 2): "2.2", ("exact", 10): "10", ("exact", 50): "78"}


class Model:
    """A trunk, stacked linear heads, a batch and Adam."""

    def __init__(self, kind: str, n_tasks: int, width: int = 256) -> None:
        torch.manual_seed(0)
        self.n_tasks, self.outputs = n_tasks, 1 if kind == "mlp" else 10
        if kind == "mlp":
            layers = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)]
            self.trunk, n_features = nn.Sequential(*layers, nn.ReLU()), width
            self.x, self.y = torch.randn(128, 64), torch.randn(n_tasks, 128)
        else:
            layers, channels = [], 1
            for wider in (16, 32, 64):
                layers += [nn.Conv2d(channels, wider, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
                channels = wider
            self.trunk, n_features = nn.Sequential(*layers, nn.Flatten()), 64 * 9
            self.x, self.y = torch.randn(64, 1, 28, 28), torch.randint(10, (n_tasks, 64))
        self.heads = nn.Linear(n_features, n_tasks * self.outputs)
        self.shared, self.private = list(self.trunk.parameters()), list(self.heads.parameters())
        self.optimiser = torch.optim.Adam([*self.shared, *self.private])

    def forward(self) -> tuple[Tensor, LinearHeads]:
        """Return the losses (T,) and the representation."""
        z = self.trunk(self.x)
        scores = self.heads(z).view(len(z), self.n_tasks, self.outputs).transpose(0, 1)
        if self.outputs == 1:
            losses = (scores[:, :, 0] - self.y).square().mean(1)
        else:
            losses = functional.cross_entropy(scores.flatten(0, 1), self.y.flatten(), reduction="none")
            losses = losses.view(self.n_tasks, -1).mean(1)
        weight = self.heads.weight.view(self.n_tasks, self.outputs, -1).transpose(1, 2)
        return losses, LinearHeads(z, scores, weight)

    def plain(self) -> None:
        """Do the step that everything is measured in."""
        self.optimiser.zero_grad()
        self.forward()[0].sum().backward()
        self.optimiser.step()

    def balanced(self, balancer: Balancer) -> Step:
        """Return the step of a balancer."""
        optimiser = torch.optim.Adam([*self.shared, *self.private, *balancer.parameters()])

        def step() -> None:
            optimiser.zero_grad()
            losses, features = self.forward()
            balancer.backward(losses, self.shared, self.private, features=features)
            optimiser.step()
            if balancer.needs_second_look:
                with torch.no_grad():
                    balancer.after_step(self.forward()[0])

        return step

    def torchjd(self, aggregator: nn.Module) -> Step:
        """Step TorchJD with separate heads, as it wants its losses."""
        heads = [nn.Linear(self.heads.in_features, self.outputs) for _ in range(self.n_tasks)]
        optimiser = torch.optim.Adam([*self.shared, *(p for head in heads for p in head.parameters())])

        def step() -> None:
            optimiser.zero_grad()
            z = self.trunk(self.x)
            losses = [
                (head(z)[:, 0] - y).square().mean() if self.outputs == 1 else functional.cross_entropy(head(z), y)
                for head, y in zip(heads, self.y, strict=True)
            ]
            mtl_backward(losses, features=z)
            jac_to_grad(self.shared, aggregator)
            optimiser.step()

        return step


@dataclass
class Table:
    """Rows as they are measured."""

    missed: int = 0

    def row(self, what: str, figure: float, goal: str, *, unit: str = "", note: str = "") -> None:
        """Print a row; a goal is "<= x", ">= x" or empty."""
        verdict = ""
        if goal:
            bound = float(goal.split()[1])
            kept = figure <= bound if goal.startswith("<=") else figure >= bound
            verdict = "ok" if kept else "short"
            self.missed += not kept
        print(f"{what:46} {figure:9.3g}{unit:2} {goal:>9}  {verdict:5} {note}", flush=True)


def spent(step: Step, count: int = 1) -> float:
    """Return the CPU seconds of some steps."""
    start = time.process_time()
    for _ in range(count):
        step()
    return time.process_time() - start


def ratios(steps: Sequence[Step], base: Step, rounds: int) -> list[float]:
    """Return each step's CPU time over the base's just before and after it: medians over rounds."""
    for step in (base, *steps):
        spent(step, 2)
    count = max(1, round(0.05 / (spent(base, 5) / 5)))
    counts = [max(1, round(0.05 / spent(step, 1))) for step in steps]
    found: list[list[float]] = [[] for _ in steps]
    for number in range(rounds):
        order = list(range(len(steps)))
        if number % 2:
            order.reverse()
        before = spent(base, count) / count
        for place in order:
            whole = spent(steps[place], counts[place]) / counts[place]
            after = spent(base, count) / count
            found[place].append(2 * whole / (before + after))
            before = after
    return [statistics.median(each) for each in found]


def scalar(table: Table, rounds: int) -> None:
    """Measure loss weightings."""
    for n_tasks in (2, 10, 50):
        model = Model("mlp", n_tasks)
        balancers = {
            "Equal": room.Equal(n_tasks), "Uncertainty": room.Uncertainty(["regression"] * n_tasks),
            "DWA": room.DWA(n_tasks), "RLW": room.RLW(n_tasks), "GLS": room.GLS(), "STCH": room.STCH(n_tasks),
            "IMTLL": room.IMTLL(n_tasks), "UWSO": room.UWSO(),
            "ScaleNormalisation": room.ScaleNormalisation(n_tasks, beta=0.1), "FAMO": room.FAMO(n_tasks),
        }  # fmt: skip
        found = ratios([model.balanced(each) for each in balancers.values()], model.plain, rounds)
        for name, figure in zip(balancers, found, strict=True):
            peer = LIBMTL.get(("scalar", n_tasks), "")
            note = f"(LibMTL, equal weights {peer})" if name == "Equal" and peer else ""
            table.row(
                f"mlp T={n_tasks:2} {name}", figure, "<= 1.45" if name == "FAMO" else "<= 1.10", unit=" P", note=note
            )


def made(name: str, n_tasks: int, level: str) -> Balancer:
    """Make a gradient method."""
    balancer: Balancer = getattr(room, name)(n_tasks, level=level)
    return balancer


def features(table: Table, rounds: int) -> None:
    """Measure gradient methods at the representation."""
    for kind, sizes in (("mlp", (2, 10, 50)), ("cnn", (2, 10))):
        for n_tasks in sizes:
            model = Model(kind, n_tasks)
            steps = [model.balanced(made(name, n_tasks, "features")) for name in GRADIENT]
            names = list(GRADIENT)
            if kind == "mlp":
                names.append("GradDrop")
                steps.append(model.balanced(room.GradDrop(n_tasks)))
            for name, figure in zip(names, ratios(steps, model.plain, rounds), strict=True):
                peer = LIBMTL.get(("features", n_tasks), "") if kind == "mlp" and name == "MGDA" else ""
                table.row(f"{kind} T={n_tasks:2} {name} at features", figure, "<= 1.5", unit=" P",
                          note=f"(LibMTL {peer})" if peer else "")  # fmt: skip


def exact(table: Table, rounds: int) -> None:
    """Measure gradient methods with respect to all shared parameters."""
    goals = {2: "<= 2.0", 10: "<= 5.0", 50: "<= 21"}
    for kind, sizes in (("mlp", (2, 10, 50)), ("cnn", (2, 10))):
        for n_tasks in sizes:
            model = Model(kind, n_tasks)
            steps = [model.balanced(made(name, n_tasks, "exact")) for name in GRADIENT]
            peers = {"UPGrad": jd.UPGrad(), "PCGrad": jd.PCGrad(), "MGDA": jd.MGDA()}
            steps += [model.torchjd(peer) for peer in peers.values()]
            found = ratios(steps, model.plain, max(3, rounds // (1 if n_tasks < 50 else 3)))
            theirs = dict(zip(peers, found[len(GRADIENT) :], strict=True))
            for name, figure in zip(GRADIENT, found, strict=False):
                note = f"TorchJD {theirs[name]:.3g}" if name in theirs else ""
                if name == "PCGrad" and kind == "mlp":
                    note += f" (LibMTL {LIBMTL['exact', n_tasks]} and more)"
                table.row(f"{kind} T={n_tasks:2} {name} exact", figure, goals[n_tasks] if kind == "mlp" else "",
                          unit=" P", note=note)  # fmt: skip


def over(matrices: Sequence[Tensor], solve: Callable[[Tensor], object]) -> Step:
    """Return a step that solves the next matrix each time, so that a warm start has work to do."""
    each = cycle(matrices)
    return lambda: solve(next(each))


def solvers(table: Table, rounds: int) -> None:
    """Measure weights from a Gram matrix."""
    n_tasks = 50
    model = Model("mlp", n_tasks)
    draws = torch.Generator().manual_seed(0)
    jacobians = [
        torch.randn(n_tasks, 200, generator=draws) * torch.randn(n_tasks, 1, generator=draws).mul(0.5).exp()
        for _ in range(8)
    ]
    grams32 = [J @ J.T for J in jacobians]
    grams = [gram.double() for gram in grams32]
    losses = torch.ones(n_tasks, dtype=torch.float64)
    balancers = {name: made(name, n_tasks, "exact") for name in GRADIENT}
    ours: dict[str, Step] = {
        name: over(grams, lambda gram, b=b: b.gram_weights(gram, losses)) for name, b in balancers.items()
    }
    peers = {
        "MGDA": jd.MGDAWeighting(), "UPGrad": jd.UPGradWeighting(), "CAGrad": jd.CAGradWeighting(c=0.5),
        "IMTLG": jd.IMTLGWeighting(), "AlignedMTL": jd.AlignedMTLWeighting(),
        "FairGrad": jd.FairGradWeighting(alpha=1.0), "PCGrad": jd.PCGradWeighting(),
    }  # fmt: skip
    theirs: dict[str, Step] = {name: over(grams32, weighting) for name, weighting in peers.items()}
    theirs["NashMTL"] = over(jacobians, jd.NashMTL(n_tasks).weighting)
    goals = {"NashMTL": ">= 100", "PCGrad": ">= 25", "UPGrad": ">= 5"}
    few = max(3, rounds // 3)
    for name, step in ours.items():
        in_p = ratios([step], model.plain, rounds)[0]
        table.row(f"solver T={n_tasks} {name}", in_p, "<= 1", unit=" P")
        [faster] = ratios([theirs[name]], step, few)
        table.row(f"solver T={n_tasks} {name}: TorchJD / ours", faster, goals.get(name, ""), unit=" x")
    gaps, excess = [], []
    for gram in grams:
        w, peer = minimum_norm(gram), peers["MGDA"](gram)
        gaps.append(float((w @ gram @ w - (gram @ w).min()) / (w @ gram @ w)))
        excess.append(float(peer @ gram @ peer / (w @ gram @ w)))
    table.row(f"minimum norm T={n_tasks}: largest gap", max(gaps), "<= 1e-6")
    table.row(f"minimum norm T={n_tasks}: TorchJD's / optimum", statistics.median(excess), "")


def batches(table: Table, rounds: int) -> None:
    """Measure a batch of its own for every task."""
    for n_tasks, goal in ((2, ""), (10, ""), (50, "<= 3")):
        model = Model("mlp", n_tasks)
        heads = [nn.Linear(256, 1) for _ in range(n_tasks)]
        x = torch.randn(n_tasks, 128, 64)
        private = [parameter for head in heads for parameter in head.parameters()]
        optimiser = torch.optim.Adam([*model.shared, *private])

        def step(balancer, heads=heads, x=x, private=private, optimiser=optimiser, model=model) -> None:
            optimiser.zero_grad()
            losses = [
                (head(model.trunk(rows))[:, 0] - y).square().mean()
                for head, rows, y in zip(heads, x, model.y, strict=True)
            ]
            balancer.backward(losses, model.shared, private)
            optimiser.step()

        equal, pcgrad = room.Equal(n_tasks), room.PCGrad(n_tasks)
        figure = ratios([lambda b=pcgrad: step(b)], lambda b=equal: step(b), max(3, rounds // 3))[0]
        table.row(f"one batch per task T={n_tasks:2} PCGrad / Equal", figure, goal, unit=" x")


def memory(table: Table, rounds: int) -> None:  # noqa: ARG001  # one run says it
    """Measure peak memory."""
    cases = {"plain": "", "features": "<= 0.15", "exact": "<= 0.7", "torchjd": ""}
    for case, goal in cases.items():
        done = subprocess.run([sys.executable, __file__, "--peak", case], capture_output=True, text=True, check=True)
        table.row(f"memory T=50, 2.2 M shared: {case}", float(done.stdout), goal, unit=" J")


def peak(case: str) -> None:
    """Print the peak memory of two steps over the start, in Jacobians."""
    model = Model("mlp", 50, width=1024)
    jacobian = 50 * sum(parameter.numel() for parameter in model.shared) * 4
    step: Step = model.plain
    if case == "torchjd":
        step = model.torchjd(jd.UPGrad())
    elif case != "plain":
        step = model.balanced(made("UPGrad", 50, case))
    Model("mlp", 2).plain()  # libraries loaded
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts at what is in use now
    start = _memory("VmRSS")
    for _ in range(2):
        step()
    print((_memory("VmHWM") - start) * 1024 / jacobian)


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


PARTS = {part.__name__: part for part in (scalar, features, exact, solvers, batches, memory)}


def main(rounds: int, parts: Sequence[str]) -> int:
    """Print the rows and return the exit code."""
    print(f"{platform.processor() or platform.machine()}, one thread, torch {torch.__version__}, "
          f"torchjd {version('torchjd')}, {rounds} rounds, {time.strftime('%Y-%m-%d')}")  # fmt: skip
    print(f"{'what':46} {'measured':>11} {'goal':>9}")
    table = Table()
    for part in parts:
        PARTS[part](table, rounds)
    print(f"{table.missed} rows short of their goal")
    return int(table.missed > 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # the peer's solvers warn about themselves
        if sys.argv[1:2] == ["--peak"]:
            peak(sys.argv[2])
            sys.exit()
        numbers = [argument for argument in sys.argv[1:] if argument.isdigit()]
        chosen = [argument for argument in sys.argv[1:] if argument in PARTS]
        sys.exit(main(int(numbers[0]) if numbers else 15, chosen or list(PARTS)))
