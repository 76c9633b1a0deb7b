"""The published tables made again: splits that do not leak, scores and their influences, search, store, report."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from polytask.core.data import TaskData
from polytask.core.errors import InputError
from polytask.core.search import Choice, LogUniform, Uniform
from polytask.core.task import Regression

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def module(name: str):
    """Import a script of the benchmarks folder under its own name, which the other script imports it by."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


lp = module("linear_protocols")
reproduction = module("reproduction")
rl = module("reproduce_linear")

PROTOCOLS = lp.protocols()


@pytest.fixture
def quick(monkeypatch):
    """Four configurations only."""
    monkeypatch.setattr(rl, "ROUNDS", (2, 1, 1))
    monkeypatch.setattr(rl, "TRIALS", 4)


def long_data(seed=0, sizes=(9, 20, 7)):
    rng = np.random.default_rng(seed)
    task = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    X = rng.normal(5.0, 3.0, size=(len(task), 4))
    y = X @ [1.0, 2.0, 0.0, -1.0] + task + rng.normal(size=len(task))
    inputs = {f"x{j}": X[:, j] for j in range(4)}
    return TaskData.from_stacked([Regression(f"t{t}") for t in range(len(sizes))], inputs, task, y)


def wide_data(n=24):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(n, 3))
    inputs = {f"x{j}": X[:, j] for j in range(3)}
    return TaskData.from_columns([Regression("a"), Regression("b")], inputs, X[:, :2] + rng.normal(size=(n, 2)))


class Small(lp.Protocol):
    name, title, metrics, n_splits = "small", "Small: made up", ("mean task RMSE", "pooled RMSE"), 3

    def data(self):
        return long_data(2, (20, 16, 18))

    def pairs(self):
        return [lp.split_within_tasks(self.data(), 0.75, seed) for seed in range(3)]


# -- splits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
def test_no_test_row_is_among_the_training_rows_and_folds_cover_only_training_rows(protocol):
    if protocol.missing():
        pytest.skip(f"{protocol.missing()}")
    assert protocol.n_splits >= 10
    if not isinstance(protocol, lp.Synthetic):
        pairs, n_rows = protocol.pairs(), protocol.data().n_rows
        assert len(pairs) == protocol.n_splits
        for train, test in pairs:
            assert len(np.intersect1d(train, test)) == 0
            assert len(np.unique(train)) == len(train) > 0
            assert len(np.unique(test)) == len(test) > 0
            assert max(train.max(), test.max()) < n_rows
        assert any((pairs[0][1][:50] != test[:50]).any() for _, test in pairs[1:])
    case = protocol.case(1, 3)
    held_out = np.concatenate([valid for _, valid in case.folds])
    assert len(np.unique(held_out)) == len(held_out)
    for train, valid in case.folds:
        assert len(np.intersect1d(train, valid)) == 0
        assert max(train.max(), valid.max()) < case.train.n_rows
        for part in (train, valid):
            rows = case.train.rows(part)
            assert all(len(rows.labels[name]) for name in rows.names)


def test_synthetic_test_rows_are_other_rows_of_the_same_tasks():
    protocol = next(protocol for protocol in PROTOCOLS if protocol.name == "synthetic-clusters")
    first, again, second = protocol.case(0, 3), protocol.case(0, 3), protocol.case(1, 3)
    seen, unseen = first.train.inputs["numeric"], first.test.inputs["numeric"]
    assert len(np.unique(np.concatenate([seen, unseen]), axis=0)) == len(seen) + len(unseen)
    np.testing.assert_array_equal(seen, again.train.inputs["numeric"])
    assert len(np.intersect1d(first.test_rows, second.test_rows)) == 0
    W = protocol.weights(0)
    for t, name in enumerate(first.test.names):
        labels = first.test.labels[name]
        residuals = labels.values - unseen[labels.rows] @ W[t]
        assert 0.8 < residuals.std() < 1.2
    centres = np.array([W[t::3].mean(axis=0) for t in range(3)])
    assert np.square(W - centres[np.arange(30) % 3]).mean() < 0.12 < np.square(W - W.mean(axis=0)).mean()


def test_a_split_within_tasks_takes_the_share_of_every_task_and_loses_no_row():
    data = long_data()
    train, test = lp.split_within_tasks(data, 0.75, 3)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(data.n_rows))
    assert [len(data.rows(train).labels[name]) for name in data.names] == [7, 15, 5]
    other, _ = lp.split_within_tasks(data, 0.75, 4)
    assert (train != other).any()


def test_inner_folds_hold_out_every_label_once_with_a_share_of_every_task():
    for data in (long_data(), wide_data()):
        folds = lp.inner_folds(data, 3, 0)
        np.testing.assert_array_equal(np.sort(np.concatenate([valid for _, valid in folds])), np.arange(data.n_rows))
        for train, valid in folds:
            np.testing.assert_array_equal(np.sort(np.concatenate([train, valid])), np.arange(data.n_rows))
            counts = [(len(data.rows(valid).labels[n]), len(data.labels[n])) for n in data.names]
            assert all(abs(held - total / 3) < 1 for held, total in counts)


def test_scaling_is_learned_from_the_first_part_only():
    data = long_data()
    train, test = lp.split_within_tasks(data, 0.75, 0)
    shifted = {name: values.copy() for name, values in data.inputs.items()}
    for values in shifted.values():
        values[test] += 1000.0
    odd = TaskData(data.tasks, shifted, data.labels)
    (before, _), (after, far) = (lp.encoded(d.rows(train), d.rows(test)) for d in (data, odd))
    np.testing.assert_array_equal(before.inputs["numeric"], after.inputs["numeric"])
    np.testing.assert_allclose(before.inputs["numeric"].mean(axis=0), 0.0, atol=1e-12)
    assert (far.inputs["numeric"] > 100).all()


def test_test_labels_do_not_reach_the_predictions(quick):
    """A cell's predictions are the same when every test label is changed."""

    class Changed(Small):
        def case(self, split, n_folds):
            case = super().case(split, n_folds)
            labels = {
                name: type(part)(part.rows, -100.0 * part.values + 7.0) for name, part in case.test.labels.items()
            }
            test = TaskData(case.test.tasks, case.test.inputs, labels)
            return lp.Case(case.train, test, case.test_rows, case.folds)

    for method in ("ridge", "mean-regularised"):
        found = [rl._tuned(kind(), kind().case(0, 3), method, 0) for kind in (Small, Changed)]
        assert found[0][0] == found[1][0]
        np.testing.assert_array_equal(found[0][1], found[1][1])


def test_school_splits_are_the_published_ones():
    protocol = lp.School()
    if protocol.missing():
        pytest.skip(f"{protocol.missing()}")
    data, (train, test) = protocol.data(), protocol.pairs()[0]
    assert (len(data.tasks), data.n_rows) == (139, 15362)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(15362))
    part = data.rows(train)
    shares = [len(part.labels[name]) / len(data.labels[name]) for name in data.names]
    assert 0.7 < min(shares) <= max(shares) < 0.8


def test_the_other_score_of_a_patient_is_not_an_input():
    protocol = lp.Parkinsons()
    if protocol.missing():
        pytest.skip(f"{protocol.missing()}")
    data = protocol.data()
    assert (len(data.tasks), data.n_rows, len(data.inputs)) == (42, 5875, 19)
    assert not any("UPDRS" in name for name in data.inputs)


def test_every_person_keeps_fifteen_of_twenty_ratings():
    protocol = lp.ComputerSurvey()
    if protocol.missing():
        pytest.skip(f"{protocol.missing()}")
    data = protocol.data()
    assert (len(data.tasks), data.n_rows, len(data.inputs)) == (190, 3800, 13)
    assert set(np.unique(np.column_stack(list(data.inputs.values())))) == {-1.0, 1.0}
    for train, _ in protocol.pairs()[:3]:
        assert {len(labels) for labels in data.rows(train).labels.values()} == {15}


def test_absent_data_are_said_to_be_absent(monkeypatch, tmp_path):
    monkeypatch.setitem(os.environ, "POLYTASK_DATA", str(tmp_path))
    for protocol in (lp.School(), lp.Parkinsons(), lp.ComputerSurvey()):
        assert protocol.missing()
        with pytest.raises(InputError):
            protocol.data()
    monkeypatch.delenv("POLYTASK_DATA")
    assert "POLYTASK_DATA" in lp.Parkinsons().missing()


# -- scores ------------------------------------------------------------------------------------


def outcome(seed=0):
    rng = np.random.default_rng(seed)
    task = np.repeat([0, 1, 2], [5, 9, 6])
    target = rng.normal(3.0 * task, 2.0)
    return lp.Outcome(task, np.arange(20), target, target + rng.normal(size=20), np.array([0.1, 2.8, 6.3]))


def test_scores_are_their_formulas():
    found = outcome()
    parts = [(found.target[found.task == t], found.prediction[found.task == t]) for t in range(3)]
    e2 = [np.square(y - p) for y, p in parts]
    sse, y = np.concatenate(e2).sum(), found.target
    around_own = sum(np.square(y - y.mean()).sum() for y, _ in parts)
    expected = {
        "mean task RMSE": np.mean([np.sqrt(e.mean()) for e in e2]),
        "pooled RMSE": np.sqrt(sse / 20),
        "MSE": np.mean([e.mean() for e in e2]),
        "explained variance, global mean": 100 * (1 - sse / np.square(y - y.mean()).sum()),
        "explained variance, task means": 100 * (1 - sse / around_own),
        "nMSE": np.mean([e.mean() / y.var() for e, (y, _) in zip(e2, parts, strict=True)]),
        "aRRMSE": np.mean(
            [
                np.sqrt(e.sum() / np.square(y - m).sum())
                for e, (y, _), m in zip(e2, parts, found.train_mean, strict=True)
            ]
        ),
    }
    assert set(expected) == set(lp.METRICS)
    for name, value in expected.items():
        assert lp.METRICS[name](found)[0] == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("name", sorted(lp.METRICS))
def test_influences_are_derivatives_by_the_weight_of_a_label(name):
    """With 400 copies of every label, one more changes the score by its influence over their number, nearly."""
    found, times = outcome(1), 400
    value, influences = lp.METRICS[name](found)
    assert influences.mean() == pytest.approx(0.0, abs=1e-9)
    repeated = np.repeat(np.arange(20), times)
    for label in (0, 7, 19):
        index = np.append(repeated, label)
        more = lp.Outcome(
            found.task[index], found.row[index], found.target[index], found.prediction[index], found.train_mean
        )
        change = (lp.METRICS[name](more)[0] - value) * len(repeated)
        assert change == pytest.approx(influences[label], rel=0.05, abs=0.02 * abs(influences).max())


def test_a_target_without_variance_counts_as_not_predicted():
    task = np.repeat([0, 1], 4)
    target = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0, 5.0])
    found = lp.Outcome(task, np.arange(8), target, target, np.array([2.5, 5.0]))
    value, influences = lp.arrmse(found)
    assert value == 0.5
    assert np.isfinite(influences).all()


# -- union support -----------------------------------------------------------------------------


@pytest.mark.parametrize(("overlap", "union"), [(0.0, 24), (0.5, 18), (1.0, 12)])
def test_supports_overlap_as_told(overlap, union):
    problem = lp.union_support(2.0, overlap, 0)
    assert problem.used.sum() == union
    assert problem.X.shape == (2 * round(24 * np.log(128 - (2 - overlap) * 12)), 128)
    for t in range(2):
        rows = problem.task == t
        W = np.linalg.lstsq(problem.X[rows][:, problem.used], problem.y[rows], rcond=None)[0]
        assert (np.abs(W) > 0.5).sum() == 12
        np.testing.assert_allclose(np.abs(W[np.abs(W) > 0.5]), 1.0, atol=0.1)


def test_every_penalty_has_the_same_number_of_settings():
    assert {len(rl._support_models(method)) for method in rl.SUPPORT_METHODS} == {12}


# -- search, store, report ----------------------------------------------------------------------


def test_search_closes_in_on_the_best_configuration_with_the_same_budget_for_all():
    space = {"a": LogUniform(1e-4, 10.0), "b": Uniform(0.0, 1.0), "kind": Choice(("x", "y"))}
    tried = []

    def criterion(values):
        tried.append(values)
        return np.log(values["a"] / 0.02) ** 2 + (values["b"] - 0.7) ** 2 + 3 * (values["kind"] == "x")

    found = rl.search(space, criterion)
    assert len(tried) == found.tried == rl.TRIALS
    assert found.values in tried
    assert found.score == min([criterion(values) for values in list(tried)])
    assert found.values["kind"] == "y"
    assert abs(np.log(found.values["a"] / 0.02)) < 1.0
    assert all(1e-4 <= values["a"] <= 10.0001 and 0 <= values["b"] <= 1 for values in tried)
    assert rl.search(space, criterion) == found


def test_configurations_that_fail_lose_and_a_method_that_always_fails_is_refused(quick, monkeypatch):
    def criterion(values):
        return np.inf if values["a"] < 0.1 else values["a"]

    found = rl.search({"a": Uniform(0.0, 1.0)}, criterion)
    assert 0.1 <= found.values["a"] <= 0.5
    monkeypatch.setattr(rl, "protocol_named", lambda name: Small())

    class Never(rl.registry.learner_class("ridge")):
        def fit(self, train, **rest):
            raise InputError("too many rows for it")

    monkeypatch.setattr(rl.registry, "learner_class", lambda name: Never)
    facts, predicted = rl.run_cell("small", "never", 0)
    assert facts["refused"] == "too many rows for it"
    assert predicted == b""


def test_cells_are_stored_run_once_and_reported(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rl.lp, "protocols", lambda: (Small(),))
    monkeypatch.setattr(rl, "methods", lambda: ("ridge", "pooled", "mean-regularised"))
    store = rl.Store(tmp_path, rl.BUDGET)
    keys = rl.planned(["small"], [], None)
    assert len(keys) == 9
    for key in keys:
        store.put(*rl.run_key(key))
    assert rl.Store(tmp_path, rl.BUDGET).finished() == set(keys)
    rl.run_all(keys, store, 1, rl.run_key)  # nothing is left
    assert "0 cells to run" in capsys.readouterr().out
    rows = rl.table(Small(), store, "mean task RMSE")
    assert list(rows) == ["ridge", "pooled", "mean-regularised", rl.BY_FOLDS]
    assert rows["ridge"].against is None
    gap = rows["pooled"].against
    assert gap.low < gap.value < gap.high
    assert gap.value == pytest.approx((rows["pooled"].values - rows["ridge"].values).mean())
    stored = store.read("small")[("pooled", 1)][0]["scores"]["mean task RMSE"]
    assert stored == pytest.approx(rows["pooled"].values[1])
    text = "\n".join(rl.protocol_lines(Small(), store))
    assert "| mean-regularised |" in text
    page = tmp_path / "page.md"
    page.write_text(f"above\n{reproduction.BEGIN}\nstale figures\n{reproduction.END}\nbelow\n")
    rl.write_between(page, text)
    assert page.read_text().startswith(f"above\n{reproduction.BEGIN}\n\n### Small: made up")
    assert page.read_text().endswith(f"{reproduction.END}\nbelow\n")
    assert "stale figures" not in page.read_text()


def test_tasks_of_the_synthetic_tables_have_their_own_intercepts(quick):
    """A shared intercept helps unrelated tasks and would hide what sharing coefficients costs them."""
    for method, field in (("mean-regularised", "intercepts"), ("pooled", "task_intercepts")):
        assert field in rl.registry.learner_class(method).search_space()
        facts, _ = rl.run_cell("synthetic-unrelated", method, 0)
        assert facts["chosen"]
        assert field not in facts["chosen"]


def test_methods_that_run_on_some_protocols_are_named_as_both_are(monkeypatch):
    assert set(rl.RUNS_ON) <= set(rl.methods())
    prefixes = {prefix for prefixes in rl.RUNS_ON.values() for prefix in prefixes}
    assert all(any(protocol.name.startswith(prefix) for protocol in PROTOCOLS) for prefix in prefixes)
    monkeypatch.setattr(rl.lp, "protocols", lambda: (Small(),))
    monkeypatch.setattr(rl, "methods", lambda: ("ridge", "pooled"))
    monkeypatch.setattr(rl, "RUNS_ON", {"pooled": ("synthetic",)})
    assert {method for _, method, _ in rl.planned(["small"], [], None)} == {"ridge"}


def test_the_method_chosen_by_folds_never_reads_a_test_score(tmp_path, monkeypatch):
    monkeypatch.setattr(rl.lp, "protocols", lambda: (Small(),))
    monkeypatch.setattr(rl, "methods", lambda: ("ridge", "pooled"))
    store, protocol = rl.Store(tmp_path, rl.BUDGET), Small()
    for split in range(3):
        target = protocol.case(split, 3).test.stacked()[2]
        store.put(("small", "ridge", split), {"inner": 1.0, "seconds": 0.0}, (target + 5.0).tobytes())
        store.put(("small", "pooled", split), {"inner": 2.0, "seconds": 0.0}, (target + 0.1).tobytes())
    rows = rl.table(protocol, store, "mean task RMSE")
    np.testing.assert_allclose(rows[rl.BY_FOLDS].values, 5.0)  # the better inner score, not the better test score
    np.testing.assert_allclose(rows["pooled"].values, 0.1)
    assert rows["pooled"].mark("x") == "**x**"
