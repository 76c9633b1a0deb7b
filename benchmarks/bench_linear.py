"""Row-sparse regression on one design that all tasks share, against the fastest Python solvers.

The problem is ||Y - X W^T||² / 2n + alpha sum_j ||w^j|| without intercepts; X is Toeplitz (0.9 in MEG-like
data, else 0.5), W has a few rows that are not zero, the signal-to-noise ratio is 3. alpha_max is where all is zero.
Everybody goes to a duality gap of 1e-6 ||Y||²/n: scikit-learn and celer stop on it themselves, and skglm, which stops
on something else, has the loosest tolerance that reaches it, found once and not timed. All times are CPU seconds of
one thread; compiled loops are loaded before.

    path       100 alphas from alpha_max to 0.01 alpha_max; ratio: the fastest peer / own
    single     one alpha; the same ratio, its geometric mean over the shapes, and on tall data own / floor: the least
               anybody could do who certifies: the Gram matrix of the features in use, X^T Y and one X^T residual
    cv         5 folds x 100 alphas, with intercepts: scikit-learn's MultiTaskLassoCV / own, and both alphas
    first      importing and a first fit in a fresh process, compiled loops from the cache

Every peer runs once or, where that takes less than 2 s, twice, and is stopped when it takes longer than the
fastest one yet ("> s"). A run of the fastest of more than 20 s is not repeated; others alternate with the own runs, and
the ratio is the median of those to the own runs around. adelie is not among the peers because its releases ask
for numpy < 2, and glmnet because it is not on the index of Python packages. The exit code is 1 while a row
misses its goal.

    python benchmarks/bench_linear.py [rounds] [part ...]     parts: path single cv first
"""

from __future__ import annotations

import itertools
import platform
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from celer.homotopy import mtl_path
from skglm import MultiTaskLasso as SkglmLasso
from sklearn.linear_model import MultiTaskLasso, MultiTaskLassoCV, lasso_path
from threadpoolctl import threadpool_limits

from bench_linear_tasks import Table, spent
from polytask.core.task import Floats
from polytask.linear import BlockSparse, BlockSparseCV

GAP = 1e-6  # in ||Y||² / n
SHORT, LONG = 2.0, 20.0  # seconds
SHARES = (0.1, 0.05, 0.01)
N_ALPHAS, EPS = 100, 0.01


@dataclass(frozen=True)
class Shape:
    """Sizes of a problem, its correlation, the rows of W in use, and the goal of the path."""

    n: int
    d: int
    tasks: int
    rho: float
    used: int
    goal: float


SHAPES = {
    "MEG-like": Shape(300, 7500, 50, 0.9, 20, 10.0),
    "tall": Shape(10_000, 1000, 10, 0.5, 100, 40.0),
    "mid": Shape(2000, 500, 20, 0.5, 50, 20.0),
    "wide": Shape(200, 20_000, 5, 0.5, 50, 3.0),
}


@dataclass(frozen=True)
class Problem:
    """Data; every solver gets X in the order of memory that it works on."""

    rows: Floats
    columns: Floats
    Y: Floats

    @classmethod
    def of(cls, shape: Shape) -> Problem:
        """Draw data."""
        rng = np.random.default_rng(0)
        X = rng.standard_normal((shape.n, shape.d))
        for j in range(1, shape.d):
            X[:, j] = shape.rho * X[:, j - 1] + np.sqrt(1.0 - shape.rho**2) * X[:, j]
        W = np.zeros((shape.tasks, shape.d))
        W[:, rng.choice(shape.d, shape.used, replace=False)] = rng.standard_normal((shape.tasks, shape.used))
        signal_part, noise = X @ W.T, rng.standard_normal((shape.n, shape.tasks))
        Y = signal_part + noise * (np.linalg.norm(signal_part) / np.linalg.norm(noise) / 3.0)
        return cls(X, np.asfortranarray(X), np.asfortranarray(Y))

    @property
    def alpha_max(self) -> float:
        """The smallest alpha at which all coefficients are 0."""
        return float(np.linalg.norm(self.columns.T @ self.Y, axis=1).max() / len(self.Y))

    def gap(self, W: Floats, alpha: float) -> float:
        """Return the duality gap of W ``(T, d)`` at the scaled residual, in ||Y||² / n."""
        R = self.Y - self.columns @ W.T
        top = float(np.linalg.norm(R.T @ self.columns, axis=0).max()) / len(self.Y)
        s = min(1.0, alpha / top)
        primal = 0.5 * np.vdot(R, R) + len(self.Y) * alpha * np.linalg.norm(W, axis=0).sum()
        dual = s * np.vdot(R, self.Y) - 0.5 * s**2 * np.vdot(R, R)
        return float((primal - dual) / np.vdot(self.Y, self.Y))

    def worst(self, coefs: Floats, alphas: Floats) -> float:
        """Return the largest gap of coefficients ``(m, T, d)``."""
        return max(self.gap(W, alpha) for W, alpha in zip(coefs, alphas.tolist(), strict=True))


Solve = Callable[[Problem, Floats, float], Floats]  # alphas in descending order, tolerance -> coefficients (m, T, d)


def own(problem: Problem, alphas: Floats, tol: float = 2 * GAP) -> Floats:
    """Solve with this library, whose tolerance is in ||Y||² / 2n."""
    if len(alphas) == 1:
        return BlockSparse(alphas[0], fit_intercept=False, tol=tol).fit(problem.rows, problem.Y).coef_[None]
    return BlockSparse(fit_intercept=False, tol=tol).path(problem.rows, problem.Y, alphas=alphas)[1]


def scikit_learn(problem: Problem, alphas: Floats, tol: float) -> Floats:
    """Solve with scikit-learn."""
    if len(alphas) == 1:
        model = MultiTaskLasso(alphas[0], fit_intercept=False, tol=tol, max_iter=10**6)
        return np.asarray(model.fit(problem.columns, problem.Y).coef_)[None]
    return np.moveaxis(lasso_path(problem.columns, problem.Y, alphas=alphas, tol=tol, max_iter=10**6)[1], 2, 0)


def celer(problem: Problem, alphas: Floats, tol: float) -> Floats:
    """Solve with celer."""
    found = mtl_path(problem.columns, problem.Y, alphas=alphas, tol=tol, max_iter=1000, max_epochs=10**6)[1]
    return np.moveaxis(found, 2, 0)


def skglm(problem: Problem, alphas: Floats, tol: float) -> Floats:
    """Solve with skglm, whose tolerance is of the optimality conditions."""
    model = SkglmLasso(alphas[0], fit_intercept=False, tol=tol, max_iter=1000, max_epochs=10**6)
    if len(alphas) == 1:
        return np.asarray(model.fit(problem.columns, problem.Y).coef_)[None]
    return np.moveaxis(model.path(problem.columns, problem.Y, alphas=alphas)[1], 2, 0)


PEERS: dict[str, Solve] = {"celer": celer, "scikit-learn": scikit_learn, "skglm": skglm}


def tolerances(name: str, problem: Problem) -> Floats:
    """Return the tolerances to try, the loosest first."""
    return problem.alpha_max * 10.0 ** np.arange(-2.0, -7.0, -0.5) if name == "skglm" else np.array([GAP])


# -- measuring ----------------------------------------------------------------------------------------


class StoppedError(Exception):
    """A run took too long."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Stop a run after so many CPU seconds, where it comes back to Python."""

    def stop(*_: Any) -> None:
        raise StoppedError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds if np.isfinite(seconds) else 0.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def first_run(name: str, problem: Problem, alphas: Floats, limit: float) -> tuple[float, float]:
    """Return the seconds of a peer, inf where it takes more than ``limit``, and its loosest tolerance."""
    solve, few = PEERS[name], alphas[24::25] if len(alphas) > 1 else alphas
    for tol in tolerances(name, problem).tolist():
        try:
            with at_most(limit):
                if name == "skglm" and problem.worst(solve(problem, few, tol), few) > GAP:
                    continue
            start = time.process_time()
            with at_most(limit):
                coefs = solve(problem, alphas, tol)
            seconds = time.process_time() - start
        except StoppedError:
            break
        if name != "skglm" or problem.worst(coefs, alphas) <= GAP:
            again = spent(lambda tol=tol: solve(problem, alphas, tol)) if seconds < SHORT else seconds
            return min(seconds, again), tol
    return np.inf, 0.0


def ratio_of(peer: Callable[[], object], mine: Callable[[], object], first: float, rounds: int) -> tuple[float, float]:
    """Return the median ratio of a peer to the own runs around it, and the median own seconds."""
    mine()
    ratios, owns = [], [spent(mine)]
    for _ in range(1 if first > LONG else rounds):
        theirs = first if first > LONG else spent(peer)
        owns.append(spent(mine))
        ratios.append(2.0 * theirs / (owns[-2] + owns[-1]))
    return statistics.median(ratios), statistics.median(owns)


def against_peers(table: Table, what: str, problem: Problem, alphas: Floats, goal: float, rounds: int) -> float:
    """Print the row of a problem and return its ratio."""
    seconds: dict[str, float] = {}
    best, fastest, tol = np.inf, "", 0.0
    for name in PEERS:
        seconds[name], reached = first_run(name, problem, alphas, 1.2 * best + 0.01)
        if seconds[name] < best:
            best, fastest, tol = seconds[name], name, reached
    ratio, mean = ratio_of(
        lambda: PEERS[fastest](problem, alphas, tol), lambda: own(problem, alphas), best, rounds
    )  # fmt: skip
    times = ", ".join(f"{name} {s:.3g}" if np.isfinite(s) else f"{name} > {best:.3g}" for name, s in seconds.items())
    gap = problem.worst(own(problem, alphas), alphas)
    table.row(what, ratio, goal, "x", f"{times} s, own {mean:.3g} s, gap {gap:.1e}", least=True)
    if gap > 1.01 * GAP:
        table.row("  the gap was not reached", 1.0, 0.0)
    return ratio


def path(table: Table, rounds: int) -> None:
    """Print the paths."""
    for name, shape in SHAPES.items():
        problem = Problem.of(shape)
        alphas = problem.alpha_max * np.geomspace(1.0, EPS, N_ALPHAS)
        against_peers(table, f"path, {name}", problem, alphas, shape.goal, rounds)


def single(table: Table, rounds: int) -> None:
    """Print single alphas."""
    ratios = []
    for name, shape in SHAPES.items():
        problem = Problem.of(shape)
        for share in SHARES:
            alphas = np.array([share * problem.alpha_max])
            ratios.append(against_peers(table, f"alpha {share:g}, {name}", problem, alphas, 1.0, rounds))
            if name == "tall":
                above_floor(table, f"  own / floor, alpha {share:g}", problem, alphas, rounds)
    table.row("geometric mean of single alphas", statistics.geometric_mean(ratios), 3.0, "x", least=True)


def above_floor(table: Table, what: str, problem: Problem, alphas: Floats, rounds: int) -> None:
    """Print the ratio of a run to products that nobody can do without."""
    X, Y = problem.rows, problem.Y
    used = np.flatnonzero(own(problem, alphas)[0].any(axis=0))
    some = problem.columns[:, used]

    def floor() -> object:
        return some.T @ some, X.T @ Y, X.T @ Y

    ratio, seconds = ratio_of(lambda: own(problem, alphas), floor, 0.0, max(rounds, 3))
    table.row(what, ratio, 2.0, "", f"floor {seconds:.3g} s, Gram of {len(used)} features")


def cv(table: Table, rounds: int) -> None:
    """Print cross-validation."""
    problem = Problem.of(SHAPES["tall"])
    theirs = MultiTaskLassoCV(alphas=N_ALPHAS, eps=EPS, cv=5, tol=GAP, max_iter=10**6)
    mine = BlockSparseCV(n_alphas=N_ALPHAS, eps=EPS, cv=5, tol=2 * GAP)
    first = spent(lambda: theirs.fit(problem.columns, problem.Y))
    ratio, seconds = ratio_of(lambda: theirs, lambda: mine.fit(problem.rows, problem.Y), first, max(rounds, 3))
    table.row(
        "5 folds x 100 alphas, tall", ratio, 50.0, "x", f"scikit-learn {first:.3g} s, own {seconds:.3g} s", least=True
    )
    table.row("  relative difference of alpha_", abs(mine.alpha_ / theirs.alpha_ - 1.0), 1e-9)
    apart = np.abs(mine.mse_path_ / theirs.mse_path_ - 1.0).max()
    table.row("  relative difference of errors", apart, None, "", "both to their gap")


FIRST = """
import time
import numpy as np
X = np.random.default_rng(0).standard_normal((100, 20))
Y = X[:, :3] + 0.1
start = time.process_time()
import sklearn.base, sklearn.utils.validation
theirs = time.process_time()
from polytask.linear import BlockSparse
after = time.process_time()
BlockSparse(0.01).fit(X, Y)
print(theirs - start, after - theirs, time.process_time() - after)
"""


def first(table: Table, rounds: int) -> None:
    """Print the cost of importing and of the first fit of a process."""
    runs = []
    for _ in range(max(rounds, 3) + 1):
        shown = subprocess.run([sys.executable, "-c", FIRST], check=True, capture_output=True, text=True).stdout
        runs.append([float(part) for part in shown.split()])
    theirs, load, fit = np.median(runs[1:], axis=0)  # the first filled the cache
    note = f"scikit-learn's own import, the floor of any estimator, {theirs:.2f} s; own {load:.2f} s, fit {fit:.2f} s"
    table.row("import and first fit", theirs + load + fit, 1.0, "s", note)


PARTS = {part.__name__: part for part in (path, single, cv, first)}


def main(rounds: int, parts: Sequence[str]) -> int:
    """Print the rows and return the exit code."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "scikit-learn", "celer", "skglm"))
    print(f"{platform.processor() or platform.machine()}, one thread, {libraries}, {rounds} rounds, "
          f"{time.strftime('%Y-%m-%d')}")  # fmt: skip
    print(f"{'what':34} {'measured':>13} {'goal':>9}")
    for share, width in itertools.product((0.3, 0.003), (20, 100)):  # compiles every loop
        small = Problem.of(Shape(60, width, 3, 0.5, 10, 0.0))
        for solve in (own, *PEERS.values()):
            solve(small, small.alpha_max * np.array([1.0, 0.5, share]), GAP)
            solve(small, small.alpha_max * np.array([share]), GAP)
    table = Table()
    for part in parts:
        PARTS[part](table, rounds)
    print(f"{table.missed} rows short of their goal")
    return int(table.missed > 0)


if __name__ == "__main__":
    threadpool_limits(1)
    warnings.simplefilter("ignore")  # gaps are measured
    numbers = [argument for argument in sys.argv[1:] if argument.isdigit()]
    chosen = [argument for argument in sys.argv[1:] if argument in PARTS]
    sys.exit(main(int(numbers[0]) if numbers else 3, chosen or list(PARTS)))
