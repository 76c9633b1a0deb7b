"""Whole commands in processes of their own: from a table to a verdict, a model, predictions; kills and Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.killing import session_members

from polytask import cli
from polytask.core.results import Results
from polytask.jobs.modelling import best_methods
from polytask.sources import TableEncoder, read_table
from polytask.storage import load_model

TARGETS = ("--targets", "price,rent,sold")
SETTINGS = (*TARGETS, "--methods", "ridge,block-sparse", "--splits", "3", "--trials", "2")
RUN = Path("runs/houses")
PATIENCE = 120.0


def write_table(folder: Path, n: int = 120) -> None:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(n, 3))
    lines = ["a,b,c,city,price,rent,sold"]
    for i, (a, b, c) in enumerate(X):
        rent = "" if i % 4 == 0 else f"{a - b + 0.5 * rng.normal():.4f}"
        sold = "yes" if a + b + rng.logistic() > 0 else "no"
        lines.append(f"{a:.4f},{b:.4f},{c:.4f},{('Oslo', 'Bergen', '')[i % 3]},{100 + 10 * a + c:.3f},{rent},{sold}")
    (folder / "houses.csv").write_text("\n".join(lines) + "\n")


def start(folder: Path, *arguments: object, modules: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "polytask", *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"} | ({} if modules is None else {"PYTHONPATH": str(modules)}),
    )


def call(folder: Path, *arguments: object, modules: Path | None = None) -> tuple[int, str, str]:
    process = start(folder, *arguments, modules=modules)
    said, errors = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in errors
    return process.returncode, said, errors


def results(folder: Path) -> dict[str, object]:
    plain = json.loads((folder / RUN / "results.json").read_text())
    plain.pop("timing")
    return plain


def stored(folder: Path) -> dict[tuple[str, int], tuple[float, str]]:
    """(method, split) → seconds and run of every finished run in the store."""
    path = folder / RUN / "runs.sqlite"
    if not path.exists():
        return {}
    with contextlib.closing(sqlite3.connect(path)) as connection:
        try:
            rows = connection.execute("select method, split, seconds, run from runs where status = 'done'").fetchall()
        except sqlite3.OperationalError:  # killed before the table was made
            return {}
    return {(method, split): (seconds, run) for method, split, seconds, run in rows}


def events(folder: Path) -> list[str]:
    path = folder / RUN / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["event"] for line in lines if line.endswith("}")]


def wait_for_progress(process: subprocess.Popen[str], folder: Path, *, more: int) -> None:
    """Return when ``more`` further runs are finished, or when the process has ended."""
    before = events(folder).count("progress")
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and events(folder).count("progress") < before + more:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted comparison, a trained model and predictions, each by a process of its own."""
    folder = tmp_path_factory.mktemp("whole")
    write_table(folder)
    code, said, errors = call(folder, "compare", "houses.csv", *SETTINGS, "--jobs", "1")
    assert code == 0, errors
    assert call(folder, "train", "--from", RUN, "--seed", "3")[0] == 0
    assert call(folder, "predict", RUN / "model", "houses.csv", "-o", "pred.csv")[0] == 0
    return folder, said


def test_a_comparison_says_what_it_read_planned_and_found(whole):
    folder, said = whole
    for words in ("Read    houses.csv  120 rows", "rent   regression", "(25% missing)", "6 runs", "block-sparse",
                  "Saved   runs/houses/", "price"):  # fmt: skip
        assert words in said
    for name in ("report.html", "report.md", "results.json", "config.yaml", "runs.sqlite", "events.jsonl"):
        assert (folder / RUN / name).stat().st_size > 0
    assert events(folder)[-1] == "finished"


def test_predictions_of_a_saved_model_in_a_new_process_are_those_of_the_fitted_one(whole):
    folder, _ = whole
    loaded = load_model(folder / RUN / "model")
    table = read_table(folder / "houses.csv", targets=["price", "rent", "sold"])
    encoder = TableEncoder.from_state(loaded.encoder_state)
    again = TableEncoder().fit(table.data)
    np.testing.assert_allclose(
        encoder.transform(table.data).inputs["numeric"], again.transform(table.data).inputs["numeric"], atol=1e-12
    )
    scores = loaded.model.predict(encoder.transform(table.data))
    written = [line.split(",") for line in (folder / "pred.csv").read_text().splitlines()]
    head, rows = written[0], written[1:]
    assert len(rows) == 120
    for name in ("price", "rent"):
        values = [float(row[head.index(name)]) for row in rows]
        np.testing.assert_allclose(values, scores[name][:, 0], atol=1e-6)
    chances = [float(row[head.index("P(sold=yes)")]) for row in rows]
    np.testing.assert_allclose(chances, table.data.task("sold").probabilities(scores["sold"])[:, 1], atol=1e-6)


def test_the_model_gives_each_task_its_best_method_and_remembers_how_it_was_made(whole):
    folder, _ = whole
    found = Results.from_json((folder / RUN / "results.json").read_text())
    meta = load_model(folder / RUN / "model").meta
    assert meta["methods"] == best_methods(found, ("price", "rent", "sold"))
    assert meta["seed"] == 3
    assert "block-sparse" in meta["settings"]
    assert meta["labels"] == {"price": 120, "rent": 90, "sold": 120}


def test_training_again_gives_the_same_bytes(whole):
    folder, _ = whole
    model = folder / RUN / "model"
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    assert call(folder, "train", "--from", RUN, "--seed", "3")[0] == 0
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


def test_a_tampered_model_is_refused_by_name_of_the_file(whole, tmp_path):
    folder, _ = whole
    shutil.copytree(folder / RUN / "model", tmp_path / "model")
    shutil.copy(folder / "houses.csv", tmp_path / "new.csv")
    path = tmp_path / "model" / "encoder.json"
    path.write_text(path.read_text().replace("Bergen", "Norway"))
    code, _, errors = call(tmp_path, "predict", "model", "new.csv")
    assert code == 3
    assert "encoder.json" in errors
    assert "sha256" in errors
    assert not (tmp_path / "pred.csv").exists()


def test_two_workers_find_what_one_finds(whole, tmp_path):
    folder, _ = whole
    write_table(tmp_path)
    assert call(tmp_path, "compare", "houses.csv", *SETTINGS, "--jobs", "2")[0] == 0
    assert (tmp_path / RUN / "config.yaml").read_bytes() == (folder / RUN / "config.yaml").read_bytes()
    assert results(tmp_path) == results(folder)


def test_killed_again_and_again_it_finds_the_same_and_repeats_no_finished_run(whole, tmp_path):
    folder, _ = whole
    write_table(tmp_path)
    rng = np.random.default_rng(5)
    finished: dict[tuple[str, int], tuple[float, str]] = {}
    kills = 0
    for _ in range(12):
        process = start(tmp_path, "compare", "houses.csv", *SETTINGS, "--jobs", "0")
        wait_for_progress(process, tmp_path, more=int(rng.integers(2, 4)))
        time.sleep(float(rng.uniform(0, 0.05)))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        now = stored(tmp_path)
        assert {key: now[key] for key in finished} == finished
        finished = now
        if process.returncode == 0:
            break
    assert kills >= 2
    assert call(tmp_path, "compare", "houses.csv", *SETTINGS, "--jobs", "0")[0] == 0
    assert {key: stored(tmp_path)[key] for key in finished} == finished
    assert results(tmp_path) == results(folder)
    assert not [path.name for path in (tmp_path / RUN).iterdir() if "tmp" in path.name]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to look for orphans")
def test_ctrl_c_keeps_finished_runs_reports_them_and_says_how_to_go_on(tmp_path):
    write_table(tmp_path)
    settings = (*SETTINGS[:-1], "40")
    process = start(tmp_path, "compare", "houses.csv", *settings, "--jobs", "1")
    wait_for_progress(process, tmp_path, more=2)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "Stopped after" in said
    assert "polytask compare --resume runs/houses" in said
    assert events(tmp_path)[-1] == "stopped"
    assert len(results(tmp_path)["runs"]) >= 2
    assert (tmp_path / RUN / "report.html").exists()
    deadline = time.monotonic() + 10
    while session_members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert session_members(process.pid) == []
    before = stored(tmp_path)
    process = start(tmp_path, "compare", "--resume", RUN, "--jobs", "1")
    wait_for_progress(process, tmp_path, more=1)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    process.communicate()
    assert {key: stored(tmp_path)[key] for key in before} == before


def test_a_second_ctrl_c_ends_at_once_but_one_signal_sent_twice_does_not():
    code = """
import os, signal, sys, time
from polytask.cli import _interruptible
with _interruptible():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        print("first", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.7)
        print("second", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 130
    assert done.stdout == "first\nsecond\n"


def test_a_run_that_fails_gives_exit_1_and_the_others_are_judged(tmp_path, monkeypatch, capsys):
    from polytask.linear.learners import BlockSparseLearner

    write_table(tmp_path)
    monkeypatch.chdir(tmp_path)

    def broken(*_, **__):
        raise FloatingPointError("the numbers ran away")

    monkeypatch.setattr(BlockSparseLearner, "fit", broken)
    code = cli.run(["compare", "houses.csv", *SETTINGS, "--jobs", "0"])
    said = capsys.readouterr().out
    assert code == 1
    assert "Failed  block-sparse, split 1: FloatingPointError: the numbers ran away" in said
    assert sum(run["status"] == "done" for run in results(tmp_path)["runs"]) == 3
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert cli.run(["compare", "--resume", str(RUN), "--jobs", "0"]) == 0
    assert "3 of 6 runs were finished before; 3 new" in capsys.readouterr().out


STRUCK = """
# Python runs this file in every process that finds it on its path; workers are struck in two methods.
import os, resource, signal, sys

if "--process-name" in sys.orig_argv:
    from pathlib import Path
    import numpy
    from polytask.linear.learners import BlockSparseLearner, MeanRegularisedLearner

    def killed(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def limited(*_, **__):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**26, resource.RLIM_INFINITY))
        numpy.ones(2**26)

    BlockSparseLearner.fit, MeanRegularisedLearner.fit = killed, limited
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to know how much memory a process has")
def test_a_killed_worker_and_a_memory_limit_fail_their_runs_only_and_resume_repeats_only_those(tmp_path):
    write_table(tmp_path)
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(STRUCK)
    methods = "block-sparse,mean-regularised,ridge"
    settings = (*TARGETS, "--methods", methods, "--splits", "2", "--trials", "1", "--jobs", "2")
    code, said, errors = call(tmp_path, "compare", "houses.csv", *settings, modules=modules)
    assert code == 1, errors
    reasons = {
        "block-sparse": "the worker process was killed by signal 9, as when memory runs out",
        "mean-regularised": "ran out of memory",
    }
    report = (tmp_path / RUN / "report.md").read_text().partition("## Failed runs")[2]
    for method, reason in reasons.items():
        assert f"Failed  {method}, split 1: {reason}" in said
        assert report.count(reason) == 2
    before = stored(tmp_path)
    assert set(before) == {("ridge", 0), ("ridge", 1)}
    code, said, errors = call(tmp_path, "compare", "--resume", RUN)
    assert code == 0, errors
    assert "2 of 6 runs were finished before; 4 new" in said
    after = stored(tmp_path)
    assert len(after) == 6
    assert {key: after[key] for key in before} == before


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to know how much memory a process has")
def test_a_hundred_thousand_categories_need_less_than_two_gigabytes(tmp_path):
    rng = np.random.default_rng(0)
    city = np.concatenate([np.arange(100_000), rng.integers(0, 100_000, 50_000)])
    x, noise = rng.normal(size=150_000), rng.normal(size=150_000)
    lines = [f"city {c},{a:.3f},{a + b:.3f}" for c, a, b in zip(city, x, noise, strict=True)]
    (tmp_path / "many.csv").write_text("\n".join(["city,x,y", *lines]) + "\n")
    code = """
from pathlib import Path
from polytask.cli import run
arguments = "compare many.csv --targets y --methods ridge,block-sparse --splits 2 --trials 1 --jobs 1".split()
assert run(arguments) == 0
status = Path("/proc/self/status").read_text()  # ru_maxrss would count what the process that started this one had
peak = int(status.split("VmHWM:")[1].split()[0])  # in kB
assert peak < 2 * 2**20, peak
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_number_of_threads_of_the_linear_algebra_changes_nothing(tmp_path):
    found = []
    for threads in ("1", "2"):
        folder = tmp_path / threads
        folder.mkdir()
        write_table(folder, n=600)
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        methods = "ridge,lasso,block-sparse,mean-regularised,single-task-network,hard-sharing"
        arguments = (*TARGETS, "--methods", methods, "--splits", "2", "--trials", "1", "--jobs", "1")
        subprocess.run(
            [sys.executable, "-m", "polytask", "compare", "houses.csv", *arguments],
            cwd=folder,
            env={**os.environ, **dict.fromkeys(names, threads)},
            capture_output=True,
            check=True,
        )
        runs = Results.from_json((folder / RUN / "results.json").read_text()).runs
        scores = [run.scores[task][metric] for run in runs for task in run.scores for metric in run.scores[task]]
        found.append(np.array(scores))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9)
