"""Stacked branches against Python loops over separate networks and against LibMTL, and what sharing costs.

Each step is a full training step (forward, loss, backward, penalty, fused Adam on both sides) on one thread, in
float32. The two sides of a row take turns in every round; a round's ratio is of CPU times and the figure
is the median over rounds, with quartiles. The L2 penalty is timed inside the step it belongs to: time with
it over time without it. Rows with a goal make the exit code 1 while they miss it; the others state a fact.

    python benchmarks/bench_deep.py [plain] [mixing] [experts] [images] [costs] [--seconds 5]

``plain``    separate networks, heads and the L2 penalty
``mixing``   cross-stitch and sluice: over the same towers unshared, a loop, LibMTL
``experts``  mixtures of experts: over one trunk, a loop, LibMTL
``images``   a small convolutional network, 10 tasks, in every architecture that LibMTL has without a ResNet
``costs``    every other architecture over the same towers unshared, 10, 50 and 139 tasks

Without names all parts run. ``--seconds`` is about the CPU time of one row.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import libmtl_peer
from polytask.core.task import Multiclass, Regression, Task
from polytask.deep import (
    MTAN,
    PLE,
    AdaptiveSharing,
    CrossStitch,
    DSelectK,
    Encoder,
    HardSharing,
    JointManyTask,
    LowSupervision,
    MMoE,
    MultiTaskLoss,
    RelationshipNetwork,
    SharingNetwork,
    SingleTask,
    Sluice,
    SoftSharing,
    TensorFactorisation,
    TraceNormSharing,
    convnet,
    mlp,
)
from polytask.deep.factorisation import Form

Step = Callable[[], float]
"""Does one training step and returns the CPU seconds that its penalty took."""

LEARNING_RATE = 1e-3
COUNTS = (10, 50, 139)


def stepping(network: SharingNetwork, inputs: dict[str, Tensor], y: Tensor, *, own_rows: bool = False) -> Step:
    """Step a network of the package on targets ``(T, B)``."""
    loss, present = MultiTaskLoss(network.tasks), torch.ones_like(y, dtype=torch.bool)
    optimiser = _adam(list(network.parameters()))
    network.train()

    def step() -> float:
        optimiser.zero_grad()
        loss(network.all_scores(inputs, own_rows), y, present).sum().backward()
        start = time.process_time()
        network.penalty_gradient()
        middle = time.process_time()
        optimiser.step()
        end = time.process_time()
        network.after_step(LEARNING_RATE)
        return time.process_time() - end + middle - start

    return step


@dataclass(frozen=True)
class Towers:
    """T networks ``p - widths - 1`` on one batch."""

    tasks: int
    p: int
    widths: tuple[int, ...]
    batch: int

    def data(self) -> tuple[Tensor, Tensor]:
        """Return inputs (batch, p) and targets (tasks, batch)."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, self.p, generator=generator)
        return x, torch.randn(self.tasks, self.batch, generator=generator)

    def network(self, build: Callable[..., SharingNetwork], *, own_rows: bool = False, **options: object) -> Step:
        """Step a network of the package."""
        x, y = self.data()
        tasks = [Regression(f"task{t}") for t in range(self.tasks)]
        network = build(tasks, mlp(self.p, self.widths), **options)
        return stepping(network, {"numeric": x.repeat(self.tasks, 1, 1) if own_rows else x}, y, own_rows=own_rows)

    def layers(self) -> list[nn.Module]:
        """Return the hidden layers of one plain network."""
        sizes = [self.p, *self.widths]
        return [nn.Sequential(nn.Linear(n, m), nn.ReLU()) for n, m in itertools.pairwise(sizes)]

    def _looping(self, modules: Sequence[nn.Module], scores: Callable[[Tensor], list[Tensor]]) -> Step:
        x, y = self.data()
        optimiser = _adam([parameter for module in modules for parameter in module.parameters()])

        def step() -> float:
            optimiser.zero_grad()
            losses = [nn.functional.mse_loss(each[:, 0], y[t]) for t, each in enumerate(scores(x))]
            torch.stack(losses).sum().backward()
            optimiser.step()
            return 0.0

        return step

    def _heads(self) -> list[nn.Linear]:
        return [nn.Linear(self.widths[-1], 1) for _ in range(self.tasks)]

    def loop(self) -> Step:
        """Step one plain network per task, one after the other."""
        networks = [nn.Sequential(*self.layers(), head) for head in self._heads()]
        return self._looping(networks, lambda x: [network(x) for network in networks])

    def loop_of_heads(self) -> Step:
        """Step one trunk and its heads, one head after the other."""
        trunk, heads = nn.Sequential(*self.layers()), self._heads()
        return self._looping([trunk, *heads], lambda x: _each(heads, trunk(x)))

    def loop_of_cross_stitch(self) -> Step:
        """Step towers and units one pair of towers after the other."""
        towers, heads = [self.layers() for _ in range(self.tasks)], self._heads()
        units = [nn.Linear(self.tasks, self.tasks, bias=False) for _ in self.widths]

        def scores(x: Tensor) -> list[Tensor]:
            said = [x] * self.tasks
            for depth, unit in enumerate(units):
                said = [tower[depth](each) for tower, each in zip(towers, said, strict=True)]
                alpha = unit.weight
                said = [sum(alpha[t, s] * each for s, each in enumerate(said)) for t in range(self.tasks)]
            return [head(each) for head, each in zip(heads, said, strict=True)]

        return self._looping([layer for tower in towers for layer in tower] + heads + units, scores)

    def loop_of_experts(self, n: int) -> Step:
        """Step experts, gates and heads one after the other."""
        experts, heads = [nn.Sequential(*self.layers()) for _ in range(n)], self._heads()
        gates = [nn.Linear(self.p, n, bias=False) for _ in range(self.tasks)]

        def scores(x: Tensor) -> list[Tensor]:
            said = torch.stack([expert(x) for expert in experts])
            mixed = [torch.einsum("ebh,be->bh", said, gate(x).softmax(-1)) for gate in gates]
            return [head(each) for head, each in zip(heads, mixed, strict=True)]

        return self._looping([*experts, *heads, *gates], scores)

    def libmtl(self, architecture: str, **options: object) -> Step:
        """Step LibMTL."""
        x, y = self.data()
        return libmtl_peer.step(
            architecture, lambda: libmtl_peer.ResNetShaped(*self.layers()), self._heads(), x, y, **options
        )


def _each(heads: Sequence[nn.Module], features: Tensor) -> list[Tensor]:
    return [head(features) for head in heads]


@dataclass(frozen=True)
class Pictures:
    """T tasks with ten classes on one batch of 28 × 28 pictures; three convolutions and a layer of 64."""

    tasks: int
    batch: int
    channels: tuple[int, ...] = (16, 32, 64)

    def data(self) -> tuple[Tensor, Tensor]:
        """Return pictures (batch, 1, 28, 28) and class codes (tasks, batch)."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, 1, 28, 28, generator=generator)
        return x, torch.randint(0, 10, (self.tasks, self.batch), generator=generator)

    def network(self, build: Callable[..., SharingNetwork], **options: object) -> Step:
        """Step a network of the package."""
        x, y = self.data()
        classes = tuple("0123456789")
        tasks: list[Task] = [Multiclass(f"task{t}", classes=classes) for t in range(self.tasks)]
        encoder: Encoder = convnet((1, 28, 28), self.channels, widths=(64,))
        return stepping(build(tasks, encoder, **options), {"image": x}, y.float())

    def _plain(self) -> nn.Module:
        sizes = [1, *self.channels]
        convolutions: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(n, m, 3, padding=1), nn.MaxPool2d(2), nn.ReLU())
            for n, m in itertools.pairwise(sizes)
        ]
        last = nn.Sequential(nn.Flatten(), nn.Linear(9 * sizes[-1], 64), nn.ReLU())
        return libmtl_peer.ResNetShaped(*convolutions, last)

    def libmtl(self, architecture: str, **options: object) -> Step:
        """Step LibMTL."""
        heads: list[nn.Module] = [nn.Linear(64, 10) for _ in range(self.tasks)]
        return libmtl_peer.step(architecture, self._plain, heads, *self.data(), **options)


def _adam(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)


def _spent(step: Step, count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        step()
    return time.process_time() - start


def ratios(numerator: Step, denominator: Step, seconds: float) -> list[float]:
    """Return CPU time of one step over that of another, one figure per round; the first of a round alternates."""
    _spent(numerator, 2)
    _spent(denominator, 2)
    counts = [max(1, round(0.03 / _spent(step, 1))) for step in (numerator, denominator)]
    found: list[float] = []
    start = time.process_time()
    while len(found) < 5 or (time.process_time() - start < seconds and len(found) < 41):
        first = _spent(denominator, counts[1]) if len(found) % 2 else None
        whole = _spent(numerator, counts[0]) / counts[0]
        found.append(whole / ((first or _spent(denominator, counts[1])) / counts[1]))
    return found


def penalty_costs(step: Step, seconds: float) -> list[float]:
    """Return CPU time of a step over the same step's without its penalty, one figure per round."""
    _spent(step, 3)
    count = max(2, round(0.03 / (_spent(step, 3) / 3)))
    found: list[float] = []
    begin = time.process_time()
    while len(found) < 5 or (time.process_time() - begin < seconds and len(found) < 41):
        start = time.process_time()
        penalty = sum(step() for _ in range(count))
        whole = time.process_time() - start
        found.append(whole / (whole - penalty))
    return found


class Bench:
    """Prints rows and remembers whether one is short of its goal."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.short = seconds, False

    def row(self, what: str, found: list[float], sense: str = "", goal: float = 0.0) -> None:
        """Print a row; ``sense`` is ``>=``, ``<=`` or, without a goal, empty."""
        low, middle, high = statistics.quantiles(found, n=4)
        verdict = ""
        if sense:
            reached = middle >= goal if sense == ">=" else middle <= goal
            self.short |= not reached
            verdict = f"{sense} {goal:<5g} {'ok' if reached else 'short'}"
        print(f"{what:66} {middle:7.2f} [{low:6.2f}, {high:6.2f}]  {verdict}", flush=True)

    def ratio(self, what: str, numerator: Step, denominator: Step, sense: str = "", goal: float = 0.0) -> None:
        """Time two steps in turn and print their ratio."""
        self.row(what, ratios(numerator, denominator, self.seconds), sense, goal)
        gc.collect()


def narrow(tasks: int) -> Towers:
    """Return networks of the size that a small table asks for."""
    return Towers(tasks, 28, (32, 32), 32)


def wide(tasks: int) -> Towers:
    """Return networks that are bound by arithmetic."""
    return Towers(tasks, 64, (256, 256, 256), 128)


def plain(bench: Bench) -> None:
    """Separate networks, heads and the L2 penalty."""
    few, many, big, soft = narrow(50), narrow(139), wide(50), {"build": SoftSharing, "strength": 0.1}
    bench.ratio("loop / single, 50 × 28-32-32-1, batch 32", few.loop(), few.network(SingleTask), ">=", 10)
    bench.ratio("  the same, own rows", few.loop(), few.network(SingleTask, own_rows=True), ">=", 10)
    bench.ratio("loop / single, 139 × 28-32-32-1, batch 32", many.loop(), many.network(SingleTask), ">=", 15)
    bench.ratio("loop / soft, the same", many.loop(), many.network(**soft), ">=", 15)
    bench.ratio("loop / single, 50 × 64-256-256-256-1, batch 128", big.loop(), big.network(SingleTask), ">=", 1)
    bench.ratio("loop of heads / hard, 50 on one such trunk", big.loop_of_heads(), big.network(HardSharing), ">=", 2)
    bench.row("L2 penalty, with / without, 139 narrow", penalty_costs(many.network(**soft), bench.seconds), "<=", 1.08)
    bench.row("L2 penalty, with / without, 50 wide", penalty_costs(big.network(**soft), bench.seconds), "<=", 1.08)


def mixing(bench: Bench) -> None:
    """Cross-stitch and sluice: over the same towers unshared, a loop, LibMTL."""
    for tasks in COUNTS:
        for build, goals in ((CrossStitch, (1.3, 1.8)), (Sluice, (1.5, 2.3))):
            name = build.__name__
            bench.ratio(
                f"{name} / single, {tasks} wide",
                wide(tasks).network(build),
                wide(tasks).network(SingleTask),
                "<=",
                goals[tasks > 50],
            )
            bench.ratio(
                f"{name} / single, {tasks} narrow", narrow(tasks).network(build), narrow(tasks).network(SingleTask)
            )
    for name, towers, goal in (("wide", wide(50), 6), ("narrow", narrow(50), 80)):
        bench.ratio(
            f"loop / CrossStitch, 50 {name}", towers.loop_of_cross_stitch(), towers.network(CrossStitch), ">=", goal
        )
    if libmtl_peer.INSTALLED:
        big = wide(50)
        bench.ratio(
            "LibMTL Cross_stitch / CrossStitch, 50 wide", big.libmtl("Cross_stitch"), big.network(CrossStitch), ">=", 7
        )


def experts(bench: Bench) -> None:
    """Mixtures of experts: over one trunk, a loop, LibMTL."""
    big, options = wide(50), {"img_size": [64], "num_experts": [4]}
    bench.ratio("loop / MMoE, 4 experts, 50 wide", big.loop_of_experts(4), big.network(MMoE))
    if libmtl_peer.INSTALLED:
        bench.ratio(
            "LibMTL MMoE / MMoE, 4 experts, 50 wide", big.libmtl("MMoE", **options), big.network(MMoE), ">=", 3.5
        )
        bench.ratio(
            "LibMTL DSelect_k / DSelectK, 2 of 4 experts, 50 wide",
            big.libmtl("DSelect_k", **options, num_nonzeros=2, kgamma=1.0),
            big.network(DSelectK, per_example=True),
        )
        bench.ratio(
            "LibMTL CGC / PLE, one level, 2 shared, 1 private, 50 wide",
            big.libmtl("CGC", img_size=[64], num_experts=[2, *[1] * 50]),
            big.network(PLE, levels=1, n_shared=2),
        )
    bench.ratio("MMoE, 4 experts / hard, 50 wide", big.network(MMoE), big.network(HardSharing))


def images(bench: Bench) -> None:
    """Time a small convolutional network in every architecture that LibMTL has without a ResNet."""
    if not libmtl_peer.INSTALLED:
        print("images: LibMTL is not installed")
        return
    pictures, size = Pictures(10, 64), {"img_size": [1, 28, 28]}
    for name, peer, mine in (
        ("HPS", {}, (HardSharing, {})),
        ("Cross_stitch", {}, (CrossStitch, {"stages": ("conv1", "conv2", "conv3")})),
        ("MMoE", {**size, "num_experts": [4]}, (MMoE, {"grid": 28})),
        ("DSelect_k", {**size, "num_experts": [4], "num_nonzeros": 2, "kgamma": 1.0},
         (DSelectK, {"grid": 28, "per_example": True})),
        ("CGC", {**size, "num_experts": [2, *[1] * 10]}, (PLE, {"grid": 28, "levels": 1, "n_shared": 2})),
    ):  # fmt: skip
        build, options = mine
        bench.ratio(
            f"LibMTL {name} / {build.__name__}, small convnet, 10 tasks",
            pictures.libmtl(name, **peer),
            pictures.network(build, **options),
            ">=",
            1,
        )


def costs(bench: Bench) -> None:
    """Every other architecture over the same towers unshared: 10, 50 and 139 tasks, narrow and wide."""
    for what, build in _OTHERS.items():
        for size in (narrow, wide):
            figures = []
            for tasks in COUNTS:
                towers = size(tasks)
                found = ratios(towers.network(build), towers.network(SingleTask), 0.4 * bench.seconds)
                figures.append(statistics.median(found))
                gc.collect()
            shown = "  ".join(f"{figure:7.2f}" for figure in figures)
            print(f"{what + ' / single, 10, 50, 139 ' + size.__name__:66} {shown}", flush=True)


def _spread(tasks: Sequence[Task], encoder: Encoder) -> dict[str, str]:
    stages = encoder.names[1:]
    return {task.name: stages[number * len(stages) // len(tasks)] for number, task in enumerate(tasks)}


def _factorised(tasks: Sequence[Task], encoder: Encoder, form: Form) -> SharingNetwork:
    return TensorFactorisation(tasks, encoder, ranks=max(2, len(tasks) // 4), form=form)


_OTHERS: dict[str, Callable[..., SharingNetwork]] = {
    "trace norm": lambda tasks, encoder: TraceNormSharing(tasks, encoder, strength=0.1),
    "relationship network": RelationshipNetwork,
    "factorisation, LAF, T/4": lambda tasks, encoder: _factorised(tasks, encoder, "laf"),
    "factorisation, Tucker, T/4": lambda tasks, encoder: _factorised(tasks, encoder, "tucker"),
    "factorisation, tensor train, T/4": lambda tasks, encoder: _factorised(tasks, encoder, "tt"),
    "adaptive, before it grows": AdaptiveSharing,
    "low supervision": lambda tasks, encoder: LowSupervision(tasks, encoder, levels=_spread(tasks, encoder)),
    "joint many-task": lambda tasks, encoder: JointManyTask(
        tasks, encoder, levels=_spread(tasks, encoder), order="together"
    ),
    "MMoE, 4 experts": MMoE,
    "DSelect-k, 2 of 4": DSelectK,
    "CGC, 1 shared, 1 private": lambda tasks, encoder: PLE(tasks, encoder, levels=1),
    "PLE, 2 levels": PLE,
    "MTAN": MTAN,
}
_PARTS = {"plain": plain, "mixing": mixing, "experts": experts, "images": images, "costs": costs}


def main(arguments: Sequence[str]) -> int:
    """Run the parts asked for and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(_PARTS))
    parser.add_argument("--seconds", type=float, default=5.0, help="CPU time of one row, about")
    asked = parser.parse_args(arguments)
    if wrong := [part for part in asked.parts if part not in _PARTS]:
        parser.error(f"unknown part {wrong[0]}; there are {', '.join(_PARTS)}")
    torch.set_num_threads(1)
    print(f"# {time.strftime('%Y-%m-%d')} {platform.machine()} Python {platform.python_version()} {torch.__version__}")
    if not libmtl_peer.INSTALLED:
        print("# LibMTL is not installed; its rows are left out")
    bench = Bench(asked.seconds)
    for name in asked.parts or _PARTS:
        _PARTS[name](bench)
    return int(bench.short)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
