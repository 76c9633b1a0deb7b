"""Balancers compared by programs: budgets, fixed weights, changes with their intervals, store, tables."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from polytask.balance import Fixed
from polytask.compare.metrics import score_task
from polytask.core import Binary, Multiclass, Regression, TaskData
from polytask.core.data import Labels
from polytask.core.errors import InputError
from polytask.train.balancers import BALANCERS

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import deep_cells
import deep_protocols as dp
import reproduce_balance as rb
import reproduction

N_TASKS = 3


def table(n=240):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 4))
    Y = X @ rng.normal(size=(4, N_TASKS)) + 0.3 * rng.normal(size=(n, N_TASKS))
    Y[:, 0] = Y[:, 0] > 0
    Y[rng.random(Y.shape) < 0.2] = np.nan
    tasks = [Binary("a", ("accuracy",), ("no", "yes")), Regression("b"), Regression("c")]
    return TaskData.from_columns(tasks, {"numeric": X}, Y)


class Small(dp.Protocol):
    name, title, metric = "tox21", "Small: made up", "mean metric"
    network = {"widths": "8", "max_epochs": 2, "batch_size": 16, "learning_rate": 1e-2}  # noqa: RUF012
    wide = {"widths": "16"}  # noqa: RUF012
    wide_note = "twice as wide"

    def data(self):
        return table()

    def pair(self, split):
        rows = np.arange(240)
        return dp.blocks(rows[60:], 36, split, seed=0), rows[:60]


FEW = tuple(
    method for method in rb.METHODS if method.label in (rb.SINGLE, rb.SCALARISATION, rb.EQUAL, "uncertainty", "pcgrad")
)


@pytest.fixture
def small(monkeypatch):
    """One small protocol and five methods."""
    protocol = Small()
    monkeypatch.setattr(dp, "PROTOCOLS", (protocol,))
    monkeypatch.setattr(rb, "METHODS", FEW)
    return protocol


def random_scores(case, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(len(case.test.labels[name]), 1)) for name in case.test.names}


def as_measured(protocol, seed, shift=0.0):
    """What a method would have stored that predicts at random, plus a share of the truth."""
    metrics, influences, values = [], [], []
    for split in range(dp.N_SPLITS):
        case = protocol.case(split)
        scores = random_scores(case, seed * 10 + split)
        for task in case.test.tasks:
            scores[task.name][:, 0] += shift * case.test.labels[task.name].values
        (value, influence), metric = rb.signed_logs(protocol, case, scores)
        values.append(value)
        metrics.append(metric)
        influences.append(influence)
    return rb.Measured(np.array(values), np.array(metrics), influences, np.ones(dp.N_SPLITS), {})


# -- methods and budgets -----------------------------------------------------------------------


def test_all_balancers_and_single_task_networks_choose_among_the_same_learning_rates():
    methods = {method.label: method for method in rb.METHODS}
    assert set(BALANCERS) <= set(methods)
    for name in (*BALANCERS, rb.SINGLE):
        assert methods[name].grid == rb.RATES
    assert all(methods[name].fixed == {"balancer": name} for name in BALANCERS)
    assert {setting["learning_rate"] for setting in methods[rb.SCALARISATION].grid} == {
        setting["learning_rate"] for setting in rb.RATES
    }
    assert len({method.key for method in rb.METHODS}) == len(rb.METHODS)


def test_protocols_are_multimnist_tox21_and_school():
    assert {protocol.name for protocol in rb.protocols()} == {"multi-mnist", "tox21", "school"}


def test_only_graddrop_needs_rows_that_tasks_share():
    assert [(method.label, *method.left_out) for method in rb.METHODS if method.left_out] == [("graddrop", "school")]


def test_fixed_weights_follow_the_labels_of_the_rarer_class():
    rows = np.arange(40)
    few = Labels(rows, (rows < 4).astype(float))
    many = Labels(rows[:36], (rows[:36] % 2).astype(float))
    data = TaskData(
        [Binary(name, classes=("no", "yes")) for name in ("few", "many")],
        {"numeric": np.eye(40)},
        {"few": few, "many": many},
    )
    np.testing.assert_allclose(rb.tilted(data, 1.0), [4 / 22, 18 / 22])
    np.testing.assert_allclose(rb.tilted(data, 0.5), np.sqrt([4, 18]) / np.sqrt([4, 18]).sum())
    np.testing.assert_allclose(rb.tilted(data, 0.0), [0.5, 0.5])


def test_fixed_weights_favour_the_first_task_where_all_have_as_many_labels():
    rows = np.arange(30)
    tasks = [Multiclass(name, classes=("0", "1", "2")) for name in ("left", "right")]
    labels = {name: Labels(rows, (rows % 3).astype(float)) for name in ("left", "right")}
    data = TaskData(tasks, {"numeric": np.eye(30)}, labels)
    np.testing.assert_allclose(rb.tilted(data, 0.5), [2 / 3, 1 / 3])
    np.testing.assert_allclose(rb.tilted(data, -0.5), [1 / 3, 2 / 3])


def test_linear_scalarisation_trains_with_its_weights_and_without_a_tilt_as_equal_weighting():
    case = Small().case(0)
    methods = {method.label: method for method in FEW}
    rate = {"learning_rate": 1e-2}
    plain = deep_cells.fitted(Small(), methods[rb.EQUAL], rate, case, seed=0)
    level, tilted = (
        deep_cells.fitted(Small(), methods[rb.SCALARISATION], {**rate, "tilt": tilt}, case, seed=0)
        for tilt in (0.0, 1.0)
    )
    expected = deep_cells.scores_of(plain, case.test)
    for name, values in deep_cells.scores_of(level, case.test).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-5)
    assert any(np.abs(v - expected[n]).max() > 1e-3 for n, v in deep_cells.scores_of(tilted, case.test).items())
    made = rb.LinearScalarisation(weights=(0.2, 0.3, 0.5))._balancer(case.train.tasks, 0)
    assert isinstance(made, Fixed)
    np.testing.assert_allclose(made.fixed, [0.2, 0.3, 0.5])


# -- changes -----------------------------------------------------------------------------------


def test_delta_m_is_the_mean_log_ratio_and_positive_where_every_task_is_better():
    protocol = Small()
    base, better = as_measured(protocol, 1), as_measured(protocol, 1, shift=0.5)
    change = rb.Changes(protocol).between(better, base)
    ratios = np.log(better.metrics / base.metrics) * [1, -1, -1]  # accuracy, RMSE, RMSE
    np.testing.assert_allclose([task.value for task in change.tasks], 100 * ratios.mean(axis=0))
    assert change.mean.value == pytest.approx(100 * ratios.mean())
    assert change.mean.value > 0
    back = rb.Changes(protocol).between(base, better).mean
    assert (back.value, back.low) == pytest.approx((-change.mean.value, -change.mean.high))
    assert change.better == pytest.approx((ratios > 0).mean())
    assert change.hurt == (ratios.mean(axis=0) < 0).sum()


def test_influences_are_derivatives_of_the_signed_log():
    protocol = Small()
    case = protocol.case(0)
    scores = random_scores(case, 3)
    (_, influences), metrics = rb.signed_logs(protocol, case, scores)
    ends = np.cumsum([len(case.test.labels[name]) for name in case.test.names])
    for place, (task, part) in enumerate(zip(case.test.tasks, np.split(influences, ends[:-1]), strict=True)):
        targets, sign = case.test.labels[task.name].values, 1 if place == 0 else -1
        n = len(targets)
        for label in (0, 5):
            twice = np.append(np.repeat(np.arange(n), 200), np.full(200, label))  # one label counts twice
            value = score_task(task, scores[task.name][twice], targets[twice])[0][task.metric]
            moved = 100 * sign * np.log(value / metrics[place])
            assert moved * n == pytest.approx(part[label], rel=0.15)


def test_changes_do_not_depend_on_units():
    class Scaled(Small):
        def data(self):
            data = table()
            labels = {
                name: Labels(part.rows, part.values * (1 if name == "a" else 1000))
                for name, part in data.labels.items()
            }
            return TaskData(data.tasks, data.inputs, labels)

    def changed(protocol, factor):
        found = []
        for seed in (1, 2):
            stored = [
                rb.signed_logs(
                    protocol,
                    case,
                    {n: v * (1 if n == "a" else factor) for n, v in random_scores(case, 10 * seed + split).items()},
                )
                for split in range(dp.N_SPLITS)
                for case in [protocol.case(split)]
            ]
            influences = [one[0][1] for one in stored]
            found.append(rb.Measured(np.zeros(5), np.array([one[1] for one in stored]), influences, np.ones(5), {}))
        return rb.Changes(protocol).between(*found)

    plain, scaled = changed(Small(), 1), changed(Scaled(), 1000)
    for one, other in zip([plain.mean, *plain.tasks], [scaled.mean, *scaled.tasks], strict=True):
        assert (one.value, one.low, one.p) == pytest.approx((other.value, other.low, other.p), abs=1e-9)


def test_a_method_has_no_change_against_itself():
    one = as_measured(Small(), 1)
    change = rb.Changes(Small()).between(one, one)
    assert change.mean.low <= 0 <= change.mean.high
    assert change.p_tasks == [1.0] * N_TASKS
    assert (change.hurt, change.surely(1), change.surely(-1), change.better) == (0, 0, 0, 0.5)


def test_tasks_are_surely_changed_only_after_holms_adjustment():
    change = rb.Changes(Small()).between(as_measured(Small(), 1, shift=0.5), as_measured(Small(), 1))
    p_values = np.array([task.p for task in change.tasks])
    order = np.argsort(p_values)
    raised = np.maximum.accumulate(p_values[order] * [3, 2, 1]).clip(max=1)
    np.testing.assert_allclose(np.array(change.p_tasks)[order], raised)
    assert change.surely(1) == (raised < 0.05).sum()


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Metrics of equally good models: independent test rows and training sets, 95 % of intervals hold 0."""
    rng = np.random.default_rng(0)
    changes = rb.Changes(Small())
    ends = changes.ends[0]
    held = 0
    for _ in range(300):
        shared = rng.normal(size=ends[-1])  # what test labels add to the difference, in all splits
        noise = [shared - np.repeat([part.mean() for part in np.split(shared, ends[:-1])], np.diff([0, *ends]))] * 5
        by_row = np.array([part.mean() for part in np.split(shared, ends[:-1])])
        logs = by_row + 0.1 * rng.normal(size=(5, N_TASKS))
        one = rb.Measured(np.zeros(5), np.exp(changes.signs * logs / 100), noise, np.ones(5), {})
        other = rb.Measured(np.zeros(5), np.ones((5, N_TASKS)), [0 * noise[0]] * 5, np.ones(5), {})
        found = changes.between(one, other).mean
        held += found.low <= 0 <= found.high
    assert 0.92 <= held / 300 <= 0.985


def test_a_metric_of_zero_is_refused_with_what_to_do():
    protocol = Small()
    case = protocol.case(0)
    scores = random_scores(case, 0)
    scores["b"][:, 0] = case.test.labels["b"].values
    with pytest.raises(InputError, match=r"rmse of task b is 0.*compare differences"):
        rb.signed_logs(protocol, case, scores)


def test_school_has_a_metric_of_every_school():
    protocol = next(protocol for protocol in rb.protocols() if protocol.name == "school")
    if protocol.missing():
        pytest.skip(f"{protocol.missing()}")
    case = protocol.case(0)
    rng = np.random.default_rng(0)
    scores = {name: 20 + rng.normal(size=(len(case.test.labels[name]), 1)) for name in case.test.names}
    (value, influences), metrics = rb.signed_logs(protocol, case, scores)
    assert len(metrics) == 139
    assert (metrics > 0).all()
    assert len(influences) == sum(map(len, case.test.labels.values()))
    assert value == protocol.score(case, scores)[0][0]


# -- store and tables --------------------------------------------------------------------------


def test_cells_are_chosen_run_stored_and_reported(small, tmp_path, capsys):
    store = reproduction.Store(tmp_path, rb.BUDGET)
    keys = rb.planned([], [])
    assert len(keys) == len(FEW) * (1 + dp.N_SPLITS)
    assert {key[1] for key in rb.planned([], ["pcgrad"])} == {FEW[-1].key}
    assert "Not run yet." in rb.report(store)
    for key in keys:
        store.put(*rb.run_key(tmp_path, key))
    reproduction.run_all(keys, store, 1, partial(rb.run_key, tmp_path))
    assert "0 cells to run" in capsys.readouterr().out
    found = rb.measured(small, store)
    assert list(found) == [method.label for method in FEW]
    assert found["pcgrad"].setting["learning_rate"] in {setting["learning_rate"] for setting in rb.RATES}
    text = rb.report(store)
    change = rb.Changes(small).between(found["pcgrad"], found[rb.SINGLE])
    row = next(row for row in text.splitlines() if row.startswith(("| pcgrad", "| **pcgrad", "| *pcgrad")))
    assert f"{change.mean.value:+.2f} [{change.mean.low:+.2f}, {change.mean.high:+.2f}]" in row
    assert f"{change.hurt} ({change.surely(-1)})" in row
    assert "Δ of every task" in text
    page = tmp_path / "page.md"
    page.write_text(f"before\n{reproduction.BEGIN}\nbefore the run\n{reproduction.END}\nafter\n", encoding="utf-8")
    rb.main(["--folder", str(tmp_path), "--report", str(page)])
    assert page.read_text(encoding="utf-8").startswith("before\n")
    assert text in page.read_text(encoding="utf-8")
    assert "before the run" not in page.read_text(encoding="utf-8")


def test_a_balancer_that_fails_on_a_split_is_left_out_with_its_reason(small, tmp_path, monkeypatch):
    def fails(protocol, method, setting, case, seed):
        if method.label == "pcgrad" and seed == 3:
            raise InputError("the loss is not finite")
        return trained(protocol, method, setting, case, seed)

    trained = deep_cells.fitted
    monkeypatch.setattr(deep_cells, "fitted", fails)
    monkeypatch.setattr(rb, "METHODS", (FEW[0], FEW[-1]))
    store = reproduction.Store(tmp_path, rb.BUDGET)
    for key in rb.planned([], []):
        store.put(*rb.run_key(tmp_path, key))
    text = "\n".join(rb.protocol_lines(small, store))
    assert "Left out: pcgrad (the loss is not finite)." in text
    assert "| pcgrad |" not in text


def test_the_page_says_where_the_tables_go():
    page = (Path(__file__).parents[1] / "docs" / "balance.md").read_text(encoding="utf-8")
    assert page.count(reproduction.BEGIN) == page.count(reproduction.END) == 1
    assert page.index(reproduction.BEGIN) < page.index(reproduction.END)
