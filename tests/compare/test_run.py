import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.killing import session_members

from polytask.compare import MethodSpec, Plan, SplitPlan, run
from polytask.compare.store import FILE
from polytask.compare.workers import WorkerStartError
from polytask.core.data import Labels, TaskData
from polytask.core.errors import InputError
from polytask.core.results import Results
from polytask.core.task import Binary, Regression

from .learners import AloneLearner, BadLearner, CommonLearner, HeldLearner

SCRIPT = Path(__file__).parent / "killed.py"
ALONE = MethodSpec("alone", learner=AloneLearner)
COMMON = MethodSpec("common", learner=CommonLearner)


def here(*methods, **options):
    return Plan((ALONE, *methods), SplitPlan(3, 1), trials=3, n_jobs=0, **options)


def start(folder, n_jobs, *kinds):
    command = [sys.executable, "-W", "error", str(SCRIPT), str(folder), str(n_jobs), ",".join(kinds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def finish(folder, n_jobs, *kinds):
    process = start(folder, n_jobs, *kinds)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    return out.strip().split("|")


def wait_for(path):
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def n_stored(folder):
    connection = sqlite3.connect(folder / "runs" / FILE)
    try:
        return connection.execute("select count(*) from runs where status = 'done'").fetchone()[0]
    finally:
        connection.close()


# -- results ----------------------------------------------------------------------------------


def test_results_hold_every_run_with_scores_counts_and_choices(table, tmp_path):
    held = MethodSpec("held", learner=HeldLearner)
    results = run(here(COMMON, held), table, folder=tmp_path)
    assert [(r.method, r.split) for r in results.runs] == [
        (m, k) for m in ("alone", "common", "held") for k in range(3)
    ]
    first = results.runs[0]
    assert first.counts["a"] == {"train": 60, "valid": 60, "test": 30}
    assert set(first.scores["a"]) == {"rmse", "r2", "explained_variance"}
    assert set(first.chosen) == {"a", "b", "c"}
    assert set(results.runs[3].chosen) == {"all"}
    assert results.runs[6].counts["a"] == {"train": 48, "valid": 12, "test": 30}
    assert results.data["tasks"][1]["missing"] == 90 - len(table.labels["b"])
    text = results.to_json()
    assert Results.from_json(text).to_json() == text


def test_scores_by_hand(table, tmp_path):
    fixed = MethodSpec("alone", {"alpha": 2.0}, learner=AloneLearner)
    plan = Plan((fixed,), SplitPlan(3, 1), trials=1, n_jobs=0)
    results = run(plan, table, folder=tmp_path)
    train, test = plan.splits.pairs(table, seed=0)[1]
    model = AloneLearner(2.0).fit(table.rows(train))
    labels = table.rows(test).labels["b"]
    errors = model.predict(table.rows(test))["b"][labels.rows, 0] - labels.values
    assert results.runs[1].scores["b"]["rmse"] == pytest.approx(np.sqrt(np.square(errors).mean()), rel=1e-12)


def test_test_labels_never_reach_a_learner(table, tmp_path):
    plan = here(COMMON)
    one = run(plan, table, folder=tmp_path / "1")
    _, test = plan.splits.pairs(table, seed=0)[0]
    columns = table.columns()
    columns[test] *= 100.0
    other = run(plan, TaskData.from_columns(table.tasks, table.inputs, columns), folder=tmp_path / "2")
    assert one.runs[0].chosen == other.runs[0].chosen
    assert one.runs[0].valid == other.runs[0].valid


def test_thinning_keeps_that_many_training_labels_and_all_test_labels(table, tmp_path):
    results = run(here(COMMON, thin={"a": 12}), table, folder=tmp_path)
    for found in results.runs:
        assert found.counts["a"]["train"] == 12
        assert found.counts["a"]["test"] == 30
        assert found.counts["c"]["train"] == 60


def test_several_seeds_are_averaged_within_a_split(table, tmp_path):
    results = run(here(COMMON, seeds=(0, 1)), table, folder=tmp_path)
    assert len(results.runs) == 12
    found = results.comparisons[0]
    assert found.n_splits == 3
    scores = [r.scores["a"]["rmse"] for r in results.runs if r.method == "common"]
    assert found.score == pytest.approx(np.mean(scores))


def test_refused_tasks_are_reported_and_the_others_compared(with_binary, tmp_path):
    results = run(here(COMMON), with_binary, folder=tmp_path)
    assert results.methods[1].refused == {"yes": "regression only"}
    found = {item.task: item for item in results.comparisons}
    assert found["yes"].verdict == "not measurable"
    assert found["yes"].reason == "regression only"
    assert found["a"].low is not None


def test_tasks_without_enough_labels_and_constant_targets_are_left_out_with_a_note(table, tmp_path):
    few = Labels(np.arange(19), np.random.default_rng(0).normal(size=19))
    none = Labels(np.zeros(0, dtype=np.int64), np.zeros(0))
    flat, one = Labels(np.arange(90), np.full(90, 0.1)), Labels(np.arange(90), np.ones(90))
    tasks = (*table.tasks, Regression("few"), Regression("none"), Regression("flat"), Binary("one", (), ("n", "y")))
    labels = {**table.labels, "few": few, "none": none, "flat": flat, "one": one}
    results = run(here(COMMON), TaskData(tasks, table.inputs, labels), folder=tmp_path)
    plain = run(here(COMMON), table, folder=tmp_path)
    assert [found.scores for found in results.runs] == [found.scores for found in plain.runs]
    verdicts = {verdict.task: verdict for verdict in results.verdicts}
    for name, says in (("few", "19 labels"), ("none", "0 labels"), ("flat", "constant"), ("one", "one class")):
        assert verdicts[name].verdict == "not measurable"
        assert verdicts[name].low is None
        assert says in verdicts[name].advice
        assert any(name in note and says in note for note in results.data["notes"])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_missing_labels_are_normal_and_counted(share, tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3))
    Y = X @ rng.normal(size=(3, 2)) + rng.normal(size=(300, 2))
    Y[rng.random(300) < share, 1] = np.nan
    data = TaskData.from_columns([Regression("a"), Regression("b")], X, Y)
    results = run(here(COMMON), data, folder=tmp_path)
    for found in results.runs:
        assert found.counts["b"]["train"] + found.counts["b"]["test"] == np.isfinite(Y[:, 1]).sum()
    assert results.comparisons[1].low is not None


def test_a_test_part_without_a_label_of_a_task_is_left_out_and_the_rest_is_judged(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 3))
    Y = X @ rng.normal(size=(3, 2)) + rng.normal(size=(90, 2))
    who = np.repeat(np.arange(9), 10)
    Y[who > 3, 1] = np.nan
    data = TaskData.from_columns([Regression("a"), Regression("b")], X, Y, keys={"who": who})
    plan = Plan((ALONE, COMMON), SplitPlan(9, 1, group="who"), trials=2, n_jobs=0)
    results = run(plan, data, folder=tmp_path)
    assert results.comparisons[1].n_splits == 4
    assert results.comparisons[0].n_splits == 9
    results.to_json()


def test_a_failed_method_is_marked_with_its_sentence_and_the_others_complete(table, tmp_path):
    bad = MethodSpec("bad", learner=BadLearner)
    short = [MethodSpec("bad", {"what": what}, what, BadLearner) for what in ("memory", "torch", "library")]
    results = run(here(bad, *short, COMMON), table, folder=tmp_path)
    errors = {found.method: found.error for found in results.runs if found.status == "failed"}
    assert errors.pop("bad") == "FloatingPointError: the loss is not finite"
    assert errors == dict.fromkeys(("memory", "torch", "library"), "ran out of memory")
    reasons = {item.method: item.reason for item in results.comparisons if item.task == "a"}
    assert "the loss is not finite" in reasons["bad"]
    assert reasons["common"] == ""


@dataclass(frozen=True)
class MistakenLearner(CommonLearner):
    """Has a mistake in its program."""

    def fit(self, train, **options):
        return train.no_such_attribute


def test_a_mistake_in_a_program_is_not_hidden(table, tmp_path):
    with pytest.raises(AttributeError, match="no_such_attribute"):
        run(here(MethodSpec("mistaken", learner=MistakenLearner)), table, folder=tmp_path)
    with pytest.raises(ImportError, match="no module named such"):
        run(here(MethodSpec("bad", {"what": "missing"}, learner=BadLearner)), table, folder=tmp_path)


def test_a_finished_comparison_repeats_nothing_and_a_new_method_adds_only_its_own(table, tmp_path):
    one = run(here(), table, folder=tmp_path)
    assert (one.timing["done_before"], one.timing["done_now"]) == (0, 3)
    again = run(here(), table, folder=tmp_path)
    assert (again.timing["done_before"], again.timing["done_now"]) == (3, 0)
    assert again.without_timing().to_json() == one.without_timing().to_json()
    more = run(here(COMMON), table, folder=tmp_path)
    assert (more.timing["done_before"], more.timing["done_now"]) == (3, 3)
    changed = run(here(COMMON), table.rows(np.arange(89)), folder=tmp_path)
    assert changed.timing["done_before"] == 0


def test_only_finished_judges_what_is_there_and_runs_nothing(table, tmp_path):
    run(here(), table, folder=tmp_path)
    found = run(here(COMMON), table, folder=tmp_path, only_finished=True)
    assert [(item.method, item.split) for item in found.runs] == [("alone", 0), ("alone", 1), ("alone", 2)]
    assert (found.timing["done_before"], found.timing["done_now"]) == (3, 0)
    assert {item.verdict for item in found.comparisons} == {"not measurable"}
    found.to_json()


def test_progress_counts_the_runs_done_before(table, tmp_path):
    seen = []
    run(here(), table, folder=tmp_path)
    run(here(COMMON), table, folder=tmp_path, progress=lambda text, share: seen.append((text, share)))
    assert seen[0] == ("3 of 6 runs were done before", 0.5)
    assert [share for _, share in seen] == [3 / 6, 4 / 6, 5 / 6, 1.0]
    assert seen[-1][0] == "common, split 3 of 3"


def test_an_impossible_plan_leaves_no_folder_behind(table, tmp_path):
    with pytest.raises(InputError):
        run(Plan((COMMON,)), table, folder=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


# -- processes --------------------------------------------------------------------------------


def test_kill_and_resume_gives_the_same_bytes_for_any_number_of_workers_and_repeats_nothing(tmp_path):
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "slow").touch()
    process = start(slow, 2, "slow")
    wait_for(slow / "begun")
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = n_stored(slow)
    assert 1 <= before < 6
    for _ in range(200):  # workers follow their parent
        if not session_members(process.pid):
            break
        time.sleep(0.05)
    assert session_members(process.pid) == []
    (slow / "slow").unlink()
    assert finish(slow, 2, "slow") == [str(before), str(6 - before)]
    resumed = (slow / "results.json").read_text()
    slow.rename(tmp_path / "resumed")  # and uninterrupted, in a folder of the same name
    slow.mkdir()
    assert finish(slow, 1, "slow") == ["0", "6"]
    assert (slow / "results.json").read_text() == resumed
    (slow / "runs" / FILE).unlink()
    assert finish(slow, 0, "slow") == ["0", "6"]  # in the process itself
    assert (slow / "results.json").read_text() == resumed


def test_a_killed_worker_fails_its_cell_only_and_resume_repeats_only_that(tmp_path):
    (tmp_path / "bad").touch()
    kinds = ("kill", "abort", "exit", "limit")
    done, now, *failed = finish(tmp_path, 2, *kinds)
    assert (done, now) == ("0", "12")
    assert failed == [
        "abort:the worker process was killed by signal 6, as when memory runs out",
        "exit:the worker process ended with exit code 3",
        "kill:the worker process was killed by signal 9, as when memory runs out",
        "limit:ran out of memory",
    ]
    (tmp_path / "bad").unlink()
    assert finish(tmp_path, 0, *kinds) == ["4", "8"]


def test_a_worker_that_cannot_be_started_is_told_in_one_sentence(table, tmp_path, monkeypatch):
    from joblib.externals.loky.backend.popen_loky_posix import Popen

    def broken(*_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(Popen, "_launch", broken)
    with pytest.raises(WorkerStartError, match=r"no worker process could be started \(Broken pipe\); free memory"):
        run(here(), table, folder=tmp_path, n_jobs=1)


def test_ctrl_c_keeps_finished_cells_and_leaves_no_orphan(tmp_path):
    (tmp_path / "slow").touch()
    process = start(tmp_path, 2, "slow")
    wait_for(tmp_path / "begun")
    time.sleep(0.3)
    stored = n_stored(tmp_path)
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=30)
    assert process.returncode == -signal.SIGINT
    process.stdout.close()
    while session_members(process.pid) and time.monotonic() - begun < 10:
        time.sleep(0.1)
    assert session_members(process.pid) == []
    assert n_stored(tmp_path) == stored >= 1
