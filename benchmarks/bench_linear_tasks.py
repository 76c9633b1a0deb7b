"""What linear models cost when every task has rows of its own, in passes over the data, and how that grows.

P is one statistics pass: X_t^T X_t and X_t^T y_t of every task, as NumPy does them task by task on rows
that lie ready. A fit is from the arrays to the coefficients: checking, sorting, statistics, solving and the
certificate. All figures are CPU times of one thread; every fit stands between two passes, a round's
ratio is taken there and the figure is the median over rounds. First fits, which compile or load
compiled loops, are printed apart.

    school   139 schools, 15362 pupils, 28 columns, standardised: fits to a certified gap of 1e-8 of the
             objective at 0. The suboptimality is against a fit to 1e-12. Strengths are shares of the
             least one at which all coefficients are 0. In brackets: what a peer needs to 1e-6 of the
             optimum, of 2026-08 on another day of the same kind of machine, in passes of that day (MALSAR on
             Octave, mutar padded with zeros, RMTL at its default stop); not measured here
    rows     Parquet files of 10^3 … 10^7 rows, 50 columns of float32, 100 tasks in random order: CPU time
             and peak memory of a process that gathers their moments and fits
    tasks    10 … 10^4 tasks with 100 rows and 20 columns each, from arrays
    dask     moments gathered by a cluster of two processes against those of one: largest relative difference

An exponent is the slope of log time over log size in the two largest decades. The exit code is 1 while
a row with a goal misses it.

    POLYTASK_DATA=… python benchmarks/bench_linear_tasks.py [rounds] [part ...]     parts: school rows tasks dask
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat
from threadpoolctl import threadpool_limits

from polytask.core.task import Floats
from polytask.linear import BlockSparse, ClusteredTasks, MeanRegularised, RobustMultiTask, TraceNorm
from polytask.linear.estimator import TaskEstimator
from polytask.linear.gathering import gather_dask, gather_table
from polytask.linear.moments import Moments

TOL = 1e-8
MOST_MEMORY = 2000  # MB
FEATURES = 50
ROWS_OF_A_FILE = 250_000
PEERS = {
    "block-sparse 0.1": "MALSAR 116, mutar 62, RMTL 170",
    "block-sparse 0.01": "MALSAR 416, mutar 165, RMTL 290",
    "mean-regularised": "MALSAR 4700",
    "trace norm 0.1": "MALSAR 110, RMTL 160",
    "trace norm 0.01": "MALSAR 650, RMTL 330",
    "clustered 0.1": "MALSAR not in 31000, RMTL 1700",
    "robust 0.1": "MALSAR 870",
    "logistic block-sparse 0.1": "MALSAR 320",
}


@dataclass
class Table:
    """Rows as they are measured."""

    missed: int = 0

    def row(
        self, what: str, figure: float, goal: float | None, unit: str = "", note: str = "", *, least: bool = False
    ) -> None:
        """Print a row; ``goal`` is the most the figure may be, or (``least``) the least."""
        verdict = ""
        if goal is not None:
            verdict = "ok" if (figure >= goal if least else figure <= goal) else "short"
            self.missed += verdict == "short"
        aim = "" if goal is None else f"{'>=' if least else '<='} {goal:g}"
        print(f"{what:34} {figure:9.3g} {unit:3} {aim:>9}  {verdict:5} {note}", flush=True)


def spent(call: Callable[[], object]) -> float:
    """Return the CPU seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def in_passes(fit: Callable[[], object], one_pass: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return the median ratio of a fit to the passes around it, and the median pass in seconds."""
    ratios, passes = [], []
    for _ in range(rounds):
        before, own, after = spent(one_pass), spent(fit), spent(one_pass)
        passes += [before, after]
        ratios.append(2.0 * own / (before + after))
    return statistics.median(ratios), statistics.median(passes)


# -- school ---------------------------------------------------------------------------------------


def read_school() -> tuple[Floats, Floats, Any]:
    """Return standardised inputs, standardised scores and the school of every pupil."""
    root = os.environ.get("POLYTASK_DATA", "")
    raw = loadmat(Path(root) / "school" / "school.mat")
    parts = [np.asarray(part, dtype=np.float64) for part in raw["X"].ravel()]
    X, y = np.concatenate(parts), np.concatenate([np.ravel(part) for part in raw["Y"].ravel()]).astype(np.float64)
    spread = X.std(axis=0)
    X = np.where(spread > 0, (X - X.mean(axis=0)) / np.where(spread > 0, spread, 1.0), 0.0)
    return np.ascontiguousarray(X), (y - y.mean()) / y.std(), np.repeat(np.arange(len(parts)), [len(p) for p in parts])


def objective(model: TaskEstimator, X: Floats, y: Floats, tasks: Any) -> float:
    """Return the mean losses plus the penalty of a fitted model, by the definition."""
    W, b = model.coef_, model.intercept_
    z = np.einsum("nd,nd->n", X, W[tasks]) + b[tasks]
    losses = np.logaddexp(0.0, z) - y * z if model.loss == "logistic" else 0.5 * np.square(y - z)
    value = float((losses / np.bincount(tasks)[tasks]).sum())
    if isinstance(model, MeanRegularised):
        own = W - model.common_
        strength = 0.5 * model.alpha * (1.0 + model.mu)
        return value + strength * float(np.square(model.common_).sum() + np.square(own).sum() / model.mu)
    if isinstance(model, BlockSparse):
        return value + model.alpha * float(np.linalg.norm(W, axis=0).sum())
    parts = [model.shared_coef_, model.own_coef_] if isinstance(model, RobustMultiTask) else [W]
    return value + sum(p.value(part) for p, part in zip(model._penalties(*W.shape), parts, strict=True))


def cases(X: Floats, y: Floats, high: Floats, tasks: Any) -> dict[str, tuple[TaskEstimator, Floats, float]]:
    """Return estimators with their targets and goals."""
    block, trace = (kind().alpha_max(X, y, tasks) for kind in (BlockSparse, TraceNorm))
    logistic = BlockSparse(loss="logistic").alpha_max(X, high, tasks)
    found: dict[str, tuple[TaskEstimator, Floats, float]] = {
        "mean-regularised": (MeanRegularised(alpha=0.1, mu=0.1, tol=TOL), y, 6.0)
    }
    for share in (0.1, 0.01):
        found |= {
            f"block-sparse {share:g}": (BlockSparse(alpha=share * block, tol=TOL), y, 4.0),
            f"trace norm {share:g}": (TraceNorm(alpha=share * trace, tol=TOL), y, 15.0),
            f"clustered {share:g}": (ClusteredTasks(alpha=share, n_clusters=5, tol=TOL), y, 15.0),
            f"robust {share:g}": (RobustMultiTask(alpha=share * trace, outlier=share * trace, tol=TOL), y, 30.0),
            f"logistic block-sparse {share:g}": (
                BlockSparse(alpha=share * logistic, loss="logistic", tol=TOL), high, 15.0
            ),
        }  # fmt: skip
    return found


def school(table: Table, rounds: int) -> None:
    """Print the passes of every model on School, and what of a fit is not solving."""
    X, y, tasks = read_school()
    high = (y > np.median(y)).astype(np.float64)
    bounds = np.searchsorted(tasks, np.arange(tasks[-1] + 2))
    parts = [(X[start:end], y[start:end]) for start, end in pairwise(bounds.tolist())]

    def one_pass() -> list[tuple[Floats, Floats]]:
        return [(rows.T @ rows, rows.T @ targets) for rows, targets in parts]

    first = spent(lambda: BlockSparse(alpha=0.1).fit(X, y, tasks))
    table.row("first fit of the process", first, None, "s", "compiled loops from the cache, or compiled")
    for name, (model, target, goal) in cases(X, y, high, tasks).items():
        model.fit(X, target, tasks)
        gap = getattr(model, "dual_gap_", float("nan"))
        best = type(model)(**{**model.get_params(), "tol": 1e-12, "max_iter": 100_000}).fit(X, target, tasks)
        optimum = objective(best, X, target, tasks)
        left = objective(model, X, target, tasks) / optimum - 1.0
        ratio, _ = in_passes(partial(model.fit, X, target, tasks), one_pass, rounds)
        zero = objective(_at_zero(model, target, tasks), X, target, tasks)
        note = f"suboptimality {left:.0e}, gap {gap / zero:.0e}, {model.n_iter_} steps"
        table.row(name, ratio, goal, "P", note + (f"   [{PEERS[name]}]" if name in PEERS else ""))
        if left > 1e-6 or gap / zero > 1.01 * TOL:
            table.row(f"  {name} did not reach its precision", 1.0, 0.0)
    ratio, seconds = in_passes(lambda: Moments.stacked(X, y, tasks), one_pass, rounds)
    table.row("the floor: moments from arrays", ratio, None, "P", f"P = {1e3 * seconds:.2f} ms")
    model = TraceNorm(alpha=1e9)
    ratio, _ = in_passes(lambda: model.fit(X, y, tasks), one_pass, rounds)
    table.row("a fit with nothing to solve", ratio, None, "P")


def _at_zero(model: TaskEstimator, y: Floats, tasks: Any) -> TaskEstimator:
    """Return a model of the same kind with coefficients 0 and the best intercepts."""
    zero = type(model)(**model.get_params())
    mean = np.bincount(tasks, weights=y) / np.bincount(tasks)
    zero.coef_ = np.zeros_like(model.coef_)
    zero.intercept_ = np.log(mean / (1.0 - mean)) if model.loss == "logistic" else mean
    zero.common_ = np.zeros(zero.coef_.shape[1])
    zero.shared_coef_ = zero.own_coef_ = zero.coef_
    return zero


# -- growth ---------------------------------------------------------------------------------------


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the slope of log seconds over log sizes in the two largest decades."""
    few = [k for k, size in enumerate(sizes) if size >= sizes[-1] / 100]
    return float(np.polyfit(np.log([sizes[k] for k in few]), np.log([seconds[k] for k in few]), 1)[0])


def write_rows(folder: Path, n: int) -> None:
    """Write ``n`` rows of 50 inputs, a task and a target to Parquet files."""
    import polars as pl

    rng = np.random.default_rng(n)
    W = rng.normal(size=(100, FEATURES))
    for number, start in enumerate(range(0, n, ROWS_OF_A_FILE)):
        m = min(ROWS_OF_A_FILE, n - start)
        task = rng.integers(100, size=m)
        X = rng.standard_normal(size=(m, FEATURES), dtype=np.float32) + 3.0
        y = np.einsum("nd,nd->n", X, W[task])
        columns = {f"x{j}": X[:, j] for j in range(FEATURES)}
        frame = pl.DataFrame({**columns, "task": task, "y": y + rng.normal(size=m)})
        frame.write_parquet(folder / f"{number:03}.parquet", row_group_size=100_000)


def gather_rows(folder: str) -> None:
    """Gather the moments of a folder and fit; print CPU seconds and peak memory as JSON."""
    gathered: list[Moments] = []
    seconds = spent(lambda: gathered.append(gather_table(folder, "y", "task")))
    fit = spent(lambda: MeanRegularised(alpha=0.01).fit_moments(gathered[0]))
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(json.dumps({"gather": seconds, "fit": fit, "peak": peak / 1024, "n": float(gathered[0].n.sum())}))


def rows(table: Table, rounds: int) -> None:
    """Print time and memory of gathering against the number of rows."""
    sizes = [10**k for k in range(3, 8)]
    seconds, peaks = [], []
    for n in sizes:
        with tempfile.TemporaryDirectory(prefix="bench-rows-") as folder:
            write_rows(Path(folder), n)
            runs = []
            for _ in range(min(rounds, 3) if n < 10**7 else 1):
                command = [sys.executable, __file__, "--gather", folder]
                runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            bytes_on_disk = sum(path.stat().st_size for path in Path(folder).iterdir())
        if any(run["n"] != n for run in runs):
            raise RuntimeError(f"{n} rows were written but others gathered")
        seconds.append(statistics.median(run["gather"] for run in runs))
        peaks.append(max(run["peak"] for run in runs))
        fit = statistics.median(run["fit"] for run in runs)
        note = f"{bytes_on_disk / 1e6:.0f} MB of Parquet, peak {peaks[-1]:.0f} MB, fit of the moments {fit:.3f} s"
        table.row(f"gather {n:.0e} rows", seconds[-1], None, "s", note)
    table.row("exponent in rows", exponent(sizes, seconds), 1.1)
    table.row("peak memory at the most rows", max(peaks), MOST_MEMORY, "MB")


def tasks(table: Table, rounds: int) -> None:
    """Print time of fits against the number of tasks."""
    sizes = [10, 100, 1000, 10_000]
    kinds: dict[str, Callable[[], TaskEstimator]] = {
        "mean-regularised": lambda: MeanRegularised(alpha=0.1),
        "block-sparse": lambda: BlockSparse(alpha=1.0, tol=1e-6),
        "trace norm": lambda: TraceNorm(alpha=1.0, tol=1e-6),
        "clustered": lambda: ClusteredTasks(alpha=0.1, n_clusters=3, tol=1e-6),
        "robust": lambda: RobustMultiTask(alpha=1.0, outlier=0.5, tol=1e-6),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for T in sizes:
        rng = np.random.default_rng(T)
        task = np.repeat(np.arange(T), 100)
        X = rng.normal(size=(len(task), 20))
        W = rng.normal(size=(3, 20))[np.arange(T) % 3] + 0.3 * rng.normal(size=(T, 20))
        y = np.einsum("nd,nd->n", X, W[task]) + rng.normal(size=len(task))
        for name, kind in kinds.items():
            scale = np.sqrt(T)  # a row norm or singular value over all tasks grows like this
            model = kind()
            if name in ("block-sparse", "trace norm", "robust"):
                model.set_params(alpha=0.05 * scale)
            if name == "robust":
                model.set_params(outlier=0.3)
            model.fit(X, y, task)
            count = min(rounds, 5) if T < 10_000 else 1
            seconds[name].append(statistics.median(spent(partial(model.fit, X, y, task)) for _ in range(count)))
            table.row(f"{name}, {T} tasks", seconds[name][-1], None, "s", f"{model.n_iter_} steps")
    for name, found in seconds.items():
        table.row(f"exponent in tasks, {name}", exponent(sizes, found), 1.1)


def dask(table: Table, rounds: int) -> None:  # noqa: ARG001 - one difference, not a time
    """Print how far the moments of a cluster are from those of one process."""
    import dask.array as da
    from dask.distributed import Client, LocalCluster

    rng = np.random.default_rng(0)
    X, task = rng.normal(size=(100_000, 20)) + 5.0, rng.integers(50, size=100_000)
    y = X @ rng.normal(size=20) + task
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        many = gather_dask(da.from_array(X, chunks=(9000, 20)), da.from_array(y, chunks=9000), da.from_array(task))
    one = Moments.stacked(X, y, task)
    size = np.sqrt(np.einsum("tjj->tj", one.gram))
    gram = np.abs(many.gram[many.pattern] - one.gram) / (size[:, :, None] * size[:, None, :])
    cross = np.abs(many.cross - one.cross) / (size * np.sqrt(one.yy)[:, None])
    table.row("Dask cluster against one process", float(max(gram.max(), cross.max())), 1e-10)


PARTS = {part.__name__: part for part in (school, rows, tasks, dask)}


def main(rounds: int, parts: Sequence[str]) -> int:
    """Print the rows and return the exit code."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "scikit-learn", "numba"))
    print(f"{platform.processor() or platform.machine()}, one thread, {libraries}, {rounds} rounds, "
          f"{time.strftime('%Y-%m-%d')}")  # fmt: skip
    print(f"{'what':34} {'measured':>13} {'goal':>9}")
    table = Table()
    for part in parts:
        PARTS[part](table, rounds)
    print(f"{table.missed} rows short of their goal")
    return int(table.missed > 0)


if __name__ == "__main__":
    threadpool_limits(1)
    if sys.argv[1:2] == ["--gather"]:
        gather_rows(sys.argv[2])
        sys.exit()
    warnings.simplefilter("ignore")  # a fit that did not converge has a row of its own
    numbers = [argument for argument in sys.argv[1:] if argument.isdigit()]
    chosen = [argument for argument in sys.argv[1:] if argument in PARTS]
    sys.exit(main(int(numbers[0]) if numbers else 15, chosen or list(PARTS)))
