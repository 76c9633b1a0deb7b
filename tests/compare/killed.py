"""Runs a small comparison in the folder given, slowly; a script for the tests that kill or interrupt it."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polytask.compare import MethodSpec, Plan, SplitPlan, run
from polytask.core.data import TaskData
from polytask.core.task import Regression

sys.path.insert(0, str(Path(__file__).parent))
from learners import AloneLearner, BadLearner, CommonLearner


@dataclass(frozen=True)
class SlowLearner(CommonLearner):
    """Takes its time, unless the run folder says not to."""

    folder: str = ""

    def fit(self, train, **options):
        (Path(self.folder) / "begun").touch()
        while (Path(self.folder) / "slow").exists():
            time.sleep(0.05)
        return super().fit(train, **options)


def main():
    folder, n_jobs = Path(sys.argv[1]), int(sys.argv[2])
    kinds = sys.argv[3].split(",")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    Y = X @ rng.normal(size=(4, 2)) + rng.normal(size=(60, 2))
    data = TaskData.from_columns([Regression("a"), Regression("b")], X, Y)
    methods = [MethodSpec("alone", learner=AloneLearner)]
    marker = str(folder / "bad")
    for kind in kinds:
        if kind == "slow":
            methods.append(MethodSpec("slow", {"folder": str(folder)}, "slow", SlowLearner))
        else:
            methods.append(MethodSpec("bad", {"what": kind, "marker": marker}, kind, BadLearner))
    methods.append(MethodSpec("common", learner=CommonLearner))
    results = run(Plan(tuple(methods), SplitPlan(2, 1), trials=2), data, folder=folder / "runs", n_jobs=n_jobs)
    (folder / "results.json").write_text(results.without_timing().to_json())
    timing = results.timing
    failed = [f"{r.method}:{r.error}" for r in results.runs if r.status == "failed"]
    print(timing["done_before"], timing["done_now"], *sorted(set(failed)), sep="|", flush=True)


if __name__ == "__main__":
    main()
