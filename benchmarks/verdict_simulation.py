"""Is the verdict right? Simulated problems whose truth is known, through the code that users run.

    python benchmarks/verdict_simulation.py                 everything, about 25 minutes on one core
    python benchmarks/verdict_simulation.py null power      some parts: null, coverage, power, conflict
    python benchmarks/verdict_simulation.py coverage --case pooled-conflict --problems 50

Prints one table (row, measured, goal, ok or short) and exits with 1 while a goal is missed.

null      Two methods equal in distribution (ridge on random Fourier features, each with its own draws)
          on problems with 4 tasks. Told apart on any task in at most 5 % of them (+ 2 standard errors),
          with one single-task baseline and with three.
coverage  How often the 95 % interval of a gain holds the truth: the expected relative gain of training on
          as many fresh rows, from many fresh tables. Next to it the naive s²/J interval and the corrected
          resampled t-test on the same runs. The goals are for all cases together;
          single cases are shown, and the lowest.
power     Tasks that share their relevant features (n = 150, 40 features, 6 tasks): block-sparse against
          ridge, both tuned, is found to gain on most tasks.
conflict  Tasks with opposite signs: pooling, and a real hard-sharing network, are found to hurt.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from polytask.compare import MethodSpec, Plan, SplitPlan
from polytask.compare.cell import Cell, Work, run_cell
from polytask.compare.statistics import Judgement, corrected_error, interval, judge
from polytask.compare.store import Stored
from polytask.core.data import TaskData
from polytask.core.learner import Model
from polytask.core.results import MethodInfo
from polytask.core.search import LogUniform
from polytask.core.task import Binary, Regression, Task

# -- quick learners ---------------------------------------------------------------------------


class QuickModel(Model):
    """Scores linear in a map of the inputs."""

    def __init__(self, tasks: tuple[Task, ...], weights: np.ndarray, intercepts: np.ndarray, embed: Callable) -> None:
        super().__init__(tasks)
        self.weights, self.intercepts, self.embed = weights, intercepts, embed

    def predict(self, data: TaskData) -> dict[str, np.ndarray]:
        scores = self.embed(data.inputs["numeric"]) @ self.weights + self.intercepts
        return {task.name: scores[:, [number]] for number, task in enumerate(self.tasks)}

    def state(self) -> Any:
        raise NotImplementedError

    @classmethod
    def from_state(cls, tasks: Any, description: Any, arrays: Any) -> Any:
        raise NotImplementedError


def ridge(X: np.ndarray, y: np.ndarray, alpha: float, *, towards: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """Return (w, b) of min |y - Xw - b|² + alpha n |w - towards|²."""
    centre, mean = X.mean(0), y.mean()
    Z = X - centre
    start = np.zeros(X.shape[1]) if towards is None else towards
    gram = Z.T @ Z + alpha * len(y) * np.eye(X.shape[1])
    w = start + np.linalg.solve(gram, Z.T @ (y - mean - Z @ start))
    return w, float(mean - centre @ w)


@dataclass(frozen=True)
class Alone:
    """Ridge for each task; for a binary task a linear discriminant with ridge."""

    alpha: float = 0.03
    stream: int = 0

    sharing: ClassVar[str] = "single"
    summary: ClassVar[str] = "ridge for each task"
    inner_folds: ClassVar[int] = 3
    refits: ClassVar[bool] = True

    @classmethod
    def search_space(cls) -> dict[str, Any]:
        return {"alpha": LogUniform(1e-3, 1.0)}

    def refuses(self, task: Task) -> str | None:  # noqa: ARG002 - the contract's signature
        return None

    def fit(self, train: TaskData, *, seed: int = 0, **_: Any) -> Model:
        rng = np.random.default_rng([seed, self.stream])
        embed = self.embed(train.inputs["numeric"].shape[1], rng)
        F = embed(train.inputs["numeric"])
        rows = [train.labels[task.name].rows for task in train.tasks]
        values = [train.labels[task.name].values for task in train.tasks]
        weights, intercepts = self.solve([F[r] for r in rows], values)
        for number, task in enumerate(train.tasks):
            if isinstance(task, Binary):
                weights[:, number], intercepts[number] = discriminant(
                    F[rows[number]], values[number], weights[:, number]
                )
        return QuickModel(train.tasks, weights, intercepts, embed)

    def embed(self, width: int, rng: np.random.Generator) -> Callable:  # noqa: ARG002 - others use them
        return lambda X: X

    def solve(self, X: list[np.ndarray], y: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        pairs = [ridge(x, v, self.alpha) for x, v in zip(X, y, strict=True)]
        return np.column_stack([w for w, _ in pairs]), np.array([b for _, b in pairs])


def discriminant(X: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, float]:
    """Turn a direction into a logit: normal classes with one variance along it."""
    z = X @ w
    m0, m1 = z[y == 0].mean(), z[y == 1].mean()
    variance = np.concatenate([z[y == 0] - m0, z[y == 1] - m1]).var() + 1e-12
    slope = (m1 - m0) / variance
    return slope * w, float(-slope * (m0 + m1) / 2 + np.log(max(1, (y == 1).sum()) / max(1, (y == 0).sum())))


@dataclass(frozen=True)
class Random(Alone):
    """Ridge on 30 random Fourier features: with another stream it is the same method, with other draws."""

    def embed(self, width: int, rng: np.random.Generator) -> Callable:
        F, phase = rng.normal(size=(width, 30)) / np.sqrt(width), rng.uniform(0, 2 * np.pi, 30)
        return lambda X: np.cos(X @ F + phase)


@dataclass(frozen=True)
class RandomShared(Random):
    """The same, called sharing, so that it is compared."""

    sharing: ClassVar[str] = "shared"


@dataclass(frozen=True)
class Pooled(Alone):
    """One weight vector, own intercepts."""

    sharing: ClassVar[str] = "pooled"

    def solve(self, X: list[np.ndarray], y: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        w, _ = ridge(np.concatenate([x - x.mean(0) for x in X]), np.concatenate([v - v.mean() for v in y]), self.alpha)
        return np.tile(w[:, None], len(y)), np.array([v.mean() - x.mean(0) @ w for x, v in zip(X, y, strict=True)])


@dataclass(frozen=True)
class Mean(Pooled):
    """Ridge towards the pooled weights."""

    sharing: ClassVar[str] = "shared"

    def solve(self, X: list[np.ndarray], y: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        centre = super().solve(X, y)[0][:, 0]
        pairs = [ridge(x, v, self.alpha, towards=centre) for x, v in zip(X, y, strict=True)]
        return np.column_stack([w for w, _ in pairs]), np.array([b for _, b in pairs])


@dataclass(frozen=True)
class Support(Alone):
    """Ridge on features scaled by the norm of their weights over all tasks: features are shared."""

    sharing: ClassVar[str] = "shared"

    def solve(self, X: list[np.ndarray], y: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        first, _ = super().solve(X, y)
        scale = np.sqrt(np.square(first).sum(1))
        scale = scale / scale.max()
        weights, intercepts = super().solve([x * scale for x in X], y)
        return weights * scale[:, None], intercepts


# -- problems ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A distribution of tables, and the two methods that are compared on them."""

    name: str
    n: int
    base: type
    method: type
    truth: str
    n_features: int = 12
    n_tasks: int = 4
    noise: str = "normal"
    form: str = "wide"
    metric: str = "rmse"

    def weights(self) -> np.ndarray:
        rng = np.random.default_rng(7)
        p, T = self.n_features, self.n_tasks
        common, own = rng.normal(size=(p, 1)), rng.normal(size=(p, T))
        W = {
            "shared": np.where(np.arange(p)[:, None] < 3, 1.5 * own, 0.0),
            "related": common + 0.4 * own,
            "unrelated": own,
            "conflict": common * np.where(np.arange(T) < T - 1, 1.0, -1.0),
        }[self.truth]
        return W / np.sqrt(np.square(W).sum(0))

    def draw(self, n: int, rng: np.random.Generator) -> TaskData:
        X, W = rng.normal(size=(n, self.n_features)), self.weights()
        noise = (
            rng.standard_t(3, size=(n, self.n_tasks)) if self.noise == "heavy" else rng.normal(size=(n, self.n_tasks))
        )
        Y = X @ W + noise
        names = [f"t{number}" for number in range(self.n_tasks)]
        if self.metric != "rmse":
            tasks: list[Task] = [Binary(name, (self.metric,), ("no", "yes")) for name in names]
            return TaskData.from_columns(tasks, X, (2.0 * (X @ W) + rng.logistic(size=Y.shape) > 0).astype(float))
        tasks = [Regression(name, ("rmse",)) for name in names]
        if self.form == "long":
            number = np.arange(n) % self.n_tasks
            return TaskData.from_stacked(tasks, X, number, Y[np.arange(n), number])
        return TaskData.from_columns(tasks, X, Y)


CASES = [
    Case("same-method-100", 100, Random, RandomShared, "unrelated"),
    Case("same-method-300", 300, Random, RandomShared, "unrelated"),
    Case("support-shared-100", 100, Alone, Support, "shared"),
    Case("support-shared-300", 300, Alone, Support, "shared"),
    Case("support-unrelated", 200, Alone, Support, "unrelated"),
    Case("mean-related", 150, Alone, Mean, "related"),
    Case("pooled-conflict", 150, Alone, Pooled, "conflict"),
    Case("pooled-related-long", 240, Alone, Pooled, "related", form="long", n_tasks=6),
    Case("support-heavy-tails", 200, Alone, Support, "shared", noise="heavy"),
    Case("pooled-log-loss", 200, Alone, Pooled, "related", metric="log_loss"),
    Case("pooled-auc", 200, Alone, Pooled, "related", metric="auc"),
]


def plan_of(case: Case, trials: int = 4) -> Plan:
    """Return the plan of a case: its two methods, 5 folds twice."""
    methods = (
        MethodSpec("base", {"stream": 1}, "base", case.base),
        MethodSpec("method", {"stream": 2}, "method", case.method),
    )
    return Plan(methods, SplitPlan(5, 2), trials=trials)


def compare(plan: Plan, data: TaskData, encoder: Any = None) -> tuple[list[Stored], Judgement]:
    """Run every cell of a plan here and judge, as ``polytask.compare.run`` does, without storing."""
    pairs = plan.splits.pairs(data, seed=plan.seeds[0])
    work = Work(plan, data, pairs, encoder)
    stored = [
        run_cell(work, Cell(number, split, plan.seeds[0]))
        for number in range(len(plan.methods))
        for split in range(len(pairs))
    ]
    failed = [item.run.error for item in stored if item.run.status == "failed"]
    if failed:
        raise RuntimeError(failed[0])
    infos = [MethodInfo(spec.label, spec.learner_class().sharing, "") for spec in plan.methods]
    return stored, judge(plan, data.tasks, {}, infos, stored, pairs=pairs)


def true_gains(case: Case, tables: int) -> np.ndarray:
    """Return the expected relative gain of each task from fresh tables of a split's sizes."""
    if case.base is Random and case.method is RandomShared:
        return np.zeros(case.n_tasks)
    plan = plan_of(case)
    scores = np.zeros((2, case.n_tasks))
    for number in range(tables):
        rng = np.random.default_rng([1, case.n, number])
        data = case.draw(case.n, rng)
        pairs = plan.splits.pairs(data, seed=number)[:1]
        work = Work(plan, data, pairs, None)
        for method in range(2):
            found = run_cell(work, Cell(method, 0, number)).run.scores
            scores[method] += [found[name][case.metric] for name in data.names]
    base, method_ = scores
    return np.asarray((method_ - base) / base * (-1.0 if case.metric in ("rmse", "log_loss") else 1.0))


# -- parts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    measured: str
    goal: str
    ok: bool | None


def null_part(problems: int, _: Sequence[str]) -> list[Row]:
    """Compare a method with itself, against one baseline and against the best of three."""
    case = CASES[0]
    more = tuple(MethodSpec("base", {"stream": stream}, f"base {stream}", case.base) for stream in (3, 4))
    rows = []
    for extra, of in ((), "one baseline"), (more, "the best of three baselines"):
        apart = 0
        for number in range(problems):
            data = case.draw(case.n, np.random.default_rng([2, number]))
            plan = plan_of(case)
            plan = Plan((*plan.methods, *extra), plan.splits, seeds=(number,), trials=plan.trials)
            _, answer = compare(plan, data)
            apart += any(verdict.verdict in ("gains", "hurt") for verdict in answer.verdicts)
        share, bound = apart / problems, 0.05 + 2 * np.sqrt(0.05 * 0.95 / problems)
        rows.append(
            Row(
                f"equal methods told apart, {of} ({problems} problems x 4 tasks)",
                f"{100 * share:.1f} %",
                f"<= {100 * bound:.1f} %",
                share <= bound,
            )
        )
    return rows


def splits_of(stored: Sequence[Stored], task: str, metric: str) -> np.ndarray:
    """Return what each split adds to the gain, for the textbook intervals."""
    base, method = (
        np.array([item.run.scores[task][metric] for item in stored if item.run.method == label])
        for label in ("base", "method")
    )
    return np.asarray((method - method.mean() / base.mean() * base) / base.mean())


def coverage_part(problems: int, only: Sequence[str]) -> list[Row]:
    """Count how often intervals hold the truth."""
    rows, everything, of_means = [], [], []
    noise = np.zeros(2)  # variance of the two coverages below, from the spread between problems
    for case in CASES:
        if only and case.name not in only:
            continue
        truth = true_gains(case, 600)
        hits, bound_hits, sure = [], [], []
        for number in range(problems):
            data = case.draw(case.n, np.random.default_rng([3, number]))
            plan = plan_of(case)
            plan = Plan(plan.methods, plan.splits, seeds=(number,), trials=plan.trials)
            stored, answer = compare(plan, data)
            for item, true in zip(answer.comparisons, [*truth, truth.mean()], strict=True):
                hit = item.low <= true <= item.high
                if item.task is None:
                    bound_hits.append(hit)
                    continue
                parts = splits_of(stored, item.task, case.metric)
                naive = interval(item.gain, parts.std(ddof=1) / np.sqrt(len(parts)), len(parts) - 1)
                wide = interval(item.gain, corrected_error(parts, 0.25), len(parts) - 1)
                hits.append([hit, naive.low <= true <= naive.high, wide.low <= true <= wide.high])
            sure.append(any(verdict.verdict != "cannot tell" for verdict in answer.verdicts))
        of_problem = np.array(hits)[:, 0].reshape(problems, -1).mean(axis=1)
        noise += [of_problem.var() / problems, np.var(bound_hits) / problems]
        everything.append(np.mean(hits, axis=0))
        of_means.append(100 * float(np.mean(bound_hits)))
        ours, naive_, wide_ = 100 * everything[-1]
        gains = ", ".join(f"{100 * true:.1f}" for true in truth)
        rows.append(
            Row(
                f"coverage, {case.name} (n={case.n}, true gains {gains} %)",
                f"{ours:.1f} % (mean over tasks: {100 * np.mean(bound_hits):.1f}; s²/J {naive_:.1f}; "
                f"corrected t {wide_:.1f}); sure in {100 * np.mean(sure):.0f} %",
                "shown",
                None,
            )
        )
        print(rows[-1].name, rows[-1].measured, flush=True)
    if not only:
        ours, naive_, wide_ = 100 * np.mean(everything, axis=0)
        mean = float(np.mean(of_means))
        text = f"{ours:.1f} % (s²/J {naive_:.1f}; corrected t {wide_:.1f})"
        names = ("coverage of 95 % intervals, all cases", "coverage of the mean gain, all cases")
        for name, found, said, error in zip(
            names, (ours, mean), (text, f"{mean:.1f} %"), 100 * np.sqrt(noise) / len(everything), strict=True
        ):
            ok = bool(93 - 2 * error <= found <= 97 + 2 * error)
            rows.append(Row(name, said, f"93-97 %, give or take 2 standard errors of {error:.2f}", ok))
        lowest = f"{100 * np.min(everything, axis=0)[0]:.1f} %; of the mean gain {min(of_means):.1f} %"
        rows.append(Row("lowest coverage of a single case", lowest, "shown", None))
    return rows


def power_part(problems: int, _: Sequence[str]) -> list[Row]:
    """Count related tasks that are found to gain."""
    from polytask.sources import related

    found = []
    for number in range(problems):
        made = related(150, 40, 6, n_relevant=4, similarity=0.0, noise=1.0, seed=number)
        plan = Plan((MethodSpec("ridge"), MethodSpec("block-sparse")), trials=8, seeds=(number,))
        _, answer = compare(plan, made.data)
        found += [verdict.verdict == "gains" for verdict in answer.verdicts]
    share = float(np.mean(found))
    name = f"related tasks found to gain (n=150, 40 features, 6 tasks, {problems} problems)"
    return [Row(name, f"{100 * share:.1f} %", ">= 80 %", share >= 0.8)]


def conflict_part(problems: int, _: Sequence[str]) -> list[Row]:
    """Count conflicting tasks that are found to be hurt."""
    from polytask.sources import conflicting

    rows, found = [], []
    for number in range(problems):
        made = conflicting(200, 10, 4, way="sign", noise=0.5, seed=number)
        plan = Plan((MethodSpec("ridge"), MethodSpec("pooled")), trials=4, seeds=(number,))
        _, answer = compare(plan, made.data)
        found += ["pooled" in verdict.hurt_by for verdict in answer.verdicts]
    share = float(np.mean(found))
    rows.append(
        Row(f"conflicting tasks hurt by pooling ({problems} problems)", f"{100 * share:.1f} %", ">= 80 %", share >= 0.8)
    )
    return rows + hard_sharing_rows(max(3, problems * 2 // 5))


def hard_sharing_rows(problems: int) -> list[Row]:
    """Return what a real hard-sharing network with one shared unit does to tasks that need one each.

    The unit can serve one task, so at least T - 1 of the T tasks are truly hurt.
    """
    from polytask.sources import conflicting

    found, gains = [], []
    for number in range(problems):
        made = conflicting(300, 12, 4, way="support", n_relevant=3, noise=0.5, seed=number)
        fixed = {"widths": "1"}
        plan = Plan(
            (MethodSpec("single-task-network", fixed, "alone"), MethodSpec("hard-sharing", fixed, "hard-sharing")),
            SplitPlan(5, 1),
            trials=1,
            seeds=(number,),
        )
        _, answer = compare(plan, made.data)
        found.append(sum("hard-sharing" in verdict.hurt_by for verdict in answer.verdicts))
        gains += [item.gain for item in answer.comparisons if item.task]
    share = float(np.mean([count >= 3 for count in found]))
    name = f"3 or 4 of 4 conflicting tasks flagged as hurt by a hard-sharing network with 1 unit ({problems} problems)"
    measured = f"{100 * share:.0f} % (flagged: {found}; mean gain {100 * np.mean(gains):.0f} %)"
    return [Row(name, measured, ">= 80 %", share >= 0.8)]


PARTS: dict[str, tuple[Callable[[int, Sequence[str]], list[Row]], int]] = {
    "null": (null_part, 300),
    "coverage": (coverage_part, 100),
    "power": (power_part, 30),
    "conflict": (conflict_part, 20),
}


def main() -> int:
    """Run the parts asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which parts; all by default")
    parser.add_argument("--problems", type=int, default=0, help="simulated problems per part or case")
    parser.add_argument("--case", action="append", default=[], help="coverage: this case only (may be repeated)")
    options = parser.parse_args()
    rows: list[Row] = []
    for part in options.parts or PARTS:
        started = time.perf_counter()
        function, usual = PARTS[part]
        rows += function(options.problems or usual, options.case)
        print(f"[{part}: {time.perf_counter() - started:.0f} s]", flush=True)
    width = max(len(row.name) for row in rows)
    print(f"\n{'row':{width}}  measured | goal | verdict")
    for row in rows:
        print(
            f"{row.name:{width}}  {row.measured} | {row.goal} | {'' if row.ok is None else 'ok' if row.ok else 'short'}"
        )
    return 1 if any(row.ok is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
