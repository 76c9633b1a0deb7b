"""Stacked branches against a Python loop over separate networks, and the price of the soft-sharing penalty.

Each step is a full training step (forward, loss, backward, fused Adam on both sides) on one thread, in
float32. The two sides of a row take turns in every round; a round's ratio is of CPU times and the figure
is the median over rounds, with quartiles. The penalty is timed inside the step it belongs to: time with
it over time without it. The exit code is 1 while a row misses its goal.

    python benchmarks/bench_deep.py [rounds]
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polytask.core.task import Regression
from polytask.deep import HardSharing, MultiTaskLoss, SharingNetwork, SingleTask, SoftSharing, mlp

Step = Callable[[], float]
"""Does one training step and returns the CPU seconds that its penalty took."""

LEARNING_RATE = 1e-3


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

    def loop(self) -> Step:
        """Step one plain network per task, one after the other."""
        x, y = self.data()
        networks = [self._plain() for _ in range(self.tasks)]
        optimiser = _adam([parameter for network in networks for parameter in network.parameters()])

        def step() -> float:
            optimiser.zero_grad()
            losses = [nn.functional.mse_loss(network(x)[:, 0], y[t]) for t, network in enumerate(networks)]
            torch.stack(losses).sum().backward()
            optimiser.step()
            return 0.0

        return step

    def _plain(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        width = self.p
        for wider in self.widths:
            layers += [nn.Linear(width, wider), nn.ReLU()]
            width = wider
        return nn.Sequential(*layers, nn.Linear(width, 1))

    def loop_of_heads(self) -> Step:
        """Step one trunk and its heads, one head after the other."""
        x, y = self.data()
        trunk, heads = self._plain()[:-1], [nn.Linear(self.widths[-1], 1) for _ in range(self.tasks)]
        optimiser = _adam([*trunk.parameters(), *(parameter for head in heads for parameter in head.parameters())])

        def step() -> float:
            optimiser.zero_grad()
            features = trunk(x)
            losses = [nn.functional.mse_loss(head(features)[:, 0], y[t]) for t, head in enumerate(heads)]
            torch.stack(losses).sum().backward()
            optimiser.step()
            return 0.0

        return step

    def network(self, build: Callable[..., SharingNetwork], *, own_rows: bool = False, **options: object) -> Step:
        """Step a network of the package."""
        x, y = self.data()
        tasks = [Regression(f"task{t}") for t in range(self.tasks)]
        network, loss = build(tasks, mlp(self.p, self.widths), **options), MultiTaskLoss(tasks)
        inputs = {"numeric": x.repeat(self.tasks, 1, 1) if own_rows else x}
        present = torch.ones_like(y, dtype=torch.bool)
        optimiser = _adam(list(network.parameters()))

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


def _adam(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)


def _spent(step: Step, count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        step()
    return time.process_time() - start


def speed_ups(slow: Step, quick: Step, rounds: int) -> list[float]:
    """Return CPU time of ``slow`` over that of ``quick``, one figure per round; the first of a round alternates."""
    _spent(slow, 2)
    count = max(1, round(0.03 / (_spent(quick, 3) / 3)))
    found = []
    for number in range(rounds):
        before = _spent(quick, count) if number % 2 else None
        whole = _spent(slow, 1)
        found.append(whole * count / (_spent(quick, count) if before is None else before))
    return found


def penalty_costs(step: Step, rounds: int) -> list[float]:
    """Return CPU time of a step over the same step's without its penalty, one figure per round."""
    count = max(2, round(0.03 / (_spent(step, 3) / 3)))
    found = []
    for _ in range(rounds):
        start = time.process_time()
        penalty = sum(step() for _ in range(count))
        whole = time.process_time() - start
        found.append(whole / (whole - penalty))
    return found


def main(rounds: int) -> int:
    """Print the rows and return the exit code."""
    torch.set_num_threads(1)
    narrow, schools = Towers(50, 28, (32, 32), 32), Towers(139, 28, (32, 32), 32)
    wide = Towers(50, 64, (256, 256, 256), 128)
    soft = {"build": SoftSharing, "strength": 0.1}
    rows: list[tuple[str, list[float], str, float]] = []

    def row(what: str, found: list[float], sense: str, goal: float) -> None:
        rows.append((what, found, sense, goal))
        low, middle, high = statistics.quantiles(found, n=4)
        verdict = "ok" if _reached(rows[-1]) else "short"
        print(f"{what:52} {middle:6.2f} [{low:5.2f}, {high:5.2f}]  {sense} {goal:<5g} {verdict}", flush=True)

    print(f"# {time.strftime('%Y-%m-%d')} {platform.machine()} Python {platform.python_version()} {torch.__version__}")
    row(
        "loop / single, 50 × 28-32-32-1, batch 32",
        speed_ups(narrow.loop(), narrow.network(SingleTask), rounds),
        ">=",
        10,
    )
    row("  the same, own rows", speed_ups(narrow.loop(), narrow.network(SingleTask, own_rows=True), rounds), ">=", 10)
    row(
        "loop / single, 139 × 28-32-32-1, batch 32",
        speed_ups(schools.loop(), schools.network(SingleTask), rounds),
        ">=",
        15,
    )
    row("loop / soft, the same", speed_ups(schools.loop(), schools.network(**soft), rounds), ">=", 15)
    row(
        "loop / single, 50 × 64-256-256-256-1, batch 128",
        speed_ups(wide.loop(), wide.network(SingleTask), rounds),
        ">=",
        1,
    )
    row(
        "loop of heads / hard, 50 heads on one such trunk",
        speed_ups(wide.loop_of_heads(), wide.network(HardSharing), rounds),
        ">=",
        2,
    )
    row("penalty, 139 narrow", penalty_costs(schools.network(**soft), rounds), "<=", 1.08)
    row("penalty, 50 wide", penalty_costs(wide.network(**soft), rounds), "<=", 1.08)
    return int(not all(map(_reached, rows)))


def _reached(row: tuple[str, list[float], str, float]) -> bool:
    _, found, sense, goal = row
    middle = statistics.median(found)
    return middle >= goal if sense == ">=" else middle <= goal


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 25))
