"""Deep architectures compared on one protocol: splits, equal budgets, scores and influences, store, claims."""

from __future__ import annotations

import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from polytask.compare.statistics import Interval
from polytask.core import Binary, Regression, TaskData
from polytask.core.data import Labels

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import deep_cells
import deep_protocols as dp
import linear_protocols as lp
import reproduce_deep as rd
import reproduction


def table(own=False, n=240):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 4))
    tasks = [Binary(name, ("accuracy", "log_loss"), ("no", "yes")) for name in ("a", "b", "c")]
    Y = (X @ rng.normal(size=(4, 3)) > 0).astype(float)
    if own:
        number = rng.permutation(np.arange(n) % 3)
        return TaskData.from_stacked(tasks, {"numeric": X}, number, Y[np.arange(n), number])
    Y[rng.random(Y.shape) < 0.2] = np.nan
    return TaskData.from_columns(tasks, {"numeric": X}, Y)


class Small(dp.Protocol):
    name, title, metric = "small", "Small: made up", "mean accuracy"
    network = {"widths": "8", "max_epochs": 3, "batch_size": 16, "learning_rate": 1e-2}  # noqa: RUF012
    wide = {"widths": "16"}  # noqa: RUF012
    wide_note = "twice as wide"

    def __init__(self, own=False):
        self.own = own

    def data(self):
        return table(self.own)

    def pair(self, split):
        rows = np.arange(240)
        return dp.blocks(rows[60:], 36, split, seed=0), rows[:60]


METHODS = (
    deep_cells.Method(rd.SINGLE, "single-task-network"),
    deep_cells.Method(rd.HARD, "hard-sharing"),
    deep_cells.Method(rd.WIDE, "hard-sharing", wide=True),
    deep_cells.Method(
        rd.CROSS_STITCH, "soft-sharing", grid=deep_cells.grid("strength", 0.1, 1.0), left_out={"other": "too large"}
    ),
)


@pytest.fixture
def small(monkeypatch):
    """One small protocol and four methods, the last of which goes by another's name."""
    protocol = Small()
    monkeypatch.setattr(dp, "PROTOCOLS", (protocol,))
    monkeypatch.setattr(rd, "METHODS", METHODS)
    return protocol


# -- protocols ---------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", dp.PROTOCOLS, ids=lambda protocol: protocol.name)
def test_no_test_row_is_trained_on_and_training_sets_overlap_only_where_the_interval_knows(protocol):
    if protocol.missing():
        pytest.skip(f"{protocol.missing()}")
    pairs = [protocol.pair(split) for split in range(dp.N_SPLITS)]
    for train, test in pairs:
        assert len(np.intersect1d(train, test)) == 0
        assert len(np.unique(train)) == len(train) > 0
    overlap = any(len(np.intersect1d(one, other)) for (one, _), (other, _) in pairwise(pairs))
    assert overlap == (protocol.test_to_train > 0)
    if overlap:
        ratios = [len(test) / len(train) for train, test in pairs]
        assert np.mean(ratios) == pytest.approx(protocol.test_to_train, rel=0.05)
    else:
        assert all(np.array_equal(test, pairs[0][1]) for _, test in pairs)


def test_few_drawings_of_twenty_alphabets_are_learned_and_other_persons_are_tested():
    protocol = next(protocol for protocol in dp.PROTOCOLS if protocol.name == "omniglot")
    if protocol.missing():
        pytest.skip(f"{protocol.missing()}")
    case = protocol.case(1)
    assert len(case.train.tasks) == 20
    for task in case.train.tasks:
        counts = [np.bincount(part.labels[task.name].values.astype(int)) for part in (case.train, case.test)]
        assert set(counts[0]) == {3}
        assert set(counts[1]) == {5}
    assert not set(case.train.keys["drawer"]) & set(case.test.keys["drawer"])


@pytest.mark.parametrize("own", [False, True])
def test_settings_are_chosen_within_the_training_rows_of_the_first_split(own):
    protocol = Small(own)
    train, _ = protocol.pair(0)
    case = protocol.tuning_case()
    assert set(case.test_rows) < set(train)
    assert case.train.n_rows + case.test.n_rows == len(train)
    assert case.test.n_rows == pytest.approx(len(train) / 4, abs=2)


def test_other_settings_are_other_cells():
    class Longer(Small):
        network = {**Small.network, "max_epochs": 4}  # noqa: RUF012

    assert Small().key != Longer().key
    assert deep_cells.Method("a", "mmoe").key != deep_cells.Method("a", "mmoe", {"n_experts": 2}).key


# -- scores ------------------------------------------------------------------------------------


def test_a_score_is_the_mean_over_tasks_and_influences_are_its_derivatives():
    protocol = Small(own=True)
    case = protocol.case(0)
    rng = np.random.default_rng(1)
    scores = {name: rng.normal(size=(len(case.test.labels[name]), 1)) for name in case.test.names}
    (value, influences), tasks = protocol.score(case, scores)
    right = [(scores[n][:, 0] > 0) == (case.test.labels[n].values > 0) for n in case.test.names]
    np.testing.assert_allclose(tasks, [part.mean() for part in right])
    assert value == pytest.approx(np.mean([part.mean() for part in right]))
    assert influences.mean() == pytest.approx(0, abs=1e-12)
    # one label of the first task counted once more moves the score by influence / number of labels, nearly
    first, total, rest = right[0], len(influences), np.mean([part.mean() for part in right[1:]])
    for label in (0, 1):
        moved = (np.append(first, first[label]).mean() + 2 * rest) / 3 - value
        assert moved * total == pytest.approx(influences[label], rel=0.1)
    assert len(protocol.places(case)) == total


@pytest.mark.parametrize("own", [False, True])
def test_scores_of_own_rows_are_those_of_the_model(own):
    protocol = Small(own)
    case = protocol.case(0)
    model = deep_cells.fitted(protocol, METHODS[0], {"weight_decay": 1e-2}, case, seed=0)
    every, some = model.predict(case.test), deep_cells.scores_of(model, case.test)
    for name in case.test.names:
        np.testing.assert_allclose(some[name], every[name][case.test.labels[name].rows], atol=1e-6)


def test_regression_protocols_undo_the_scale_of_targets():
    data = TaskData.from_stacked(
        [Regression("a"), Regression("b")], {"numeric": np.eye(40)}, np.arange(40) % 2, np.arange(40.0) + 1000
    )
    case = lp.Case(data, data, np.arange(40), ())
    model = deep_cells.fitted(Small(True), METHODS[0], {}, case, seed=0)
    scores = deep_cells.scores_of(model, data)
    assert all(abs(values.mean() - 1020) < 50 for values in scores.values())


def test_every_method_trains_all_its_epochs_and_never_reads_test_labels():
    protocol = Small()
    case = protocol.case(0)
    model = deep_cells.fitted(protocol, METHODS[1], {}, case, seed=0)
    assert len(model.history()["epoch"]) == Small.network["max_epochs"]
    labels = {name: Labels(part.rows, 1 - part.values) for name, part in case.test.labels.items()}
    other = TaskData(case.test.tasks, case.test.inputs, labels)
    again = deep_cells.fitted(protocol, METHODS[1], {}, lp.Case(case.train, other, case.test_rows, ()), seed=0)
    for name, values in deep_cells.scores_of(model, case.test).items():
        np.testing.assert_array_equal(values, deep_cells.scores_of(again, case.test)[name])


# -- store and report --------------------------------------------------------------------------


def test_cells_are_chosen_run_stored_and_reported(small, tmp_path, capsys):
    store = reproduction.Store(tmp_path, rd.BUDGET)
    keys = rd.planned([], [])
    assert len(keys) == len(METHODS) * (1 + dp.N_SPLITS)
    assert [key[2] for key in keys[: len(METHODS)]] == [deep_cells.TUNING] * len(METHODS)
    assert rd.planned(["other"], []) == []
    assert {key[1] for key in rd.planned([], ["hard-sharing"])} == {METHODS[1].key, METHODS[2].key}
    for key in keys:
        store.put(*rd.run_key(tmp_path, key))
    reproduction.run_all(keys, store, 1, partial(rd.run_key, tmp_path))
    assert "0 cells to run" in capsys.readouterr().out
    found = rd.measured(small, store)
    assert list(found) == [rd.SINGLE, rd.HARD, rd.WIDE, rd.CROSS_STITCH]
    assert found[rd.HARD].parameters < found[rd.WIDE].parameters
    assert found[rd.CROSS_STITCH].setting["strength"] in (0.1, 1.0)
    gap = rd.against(small, found[rd.HARD], found[rd.SINGLE])
    expected = np.mean([a[0] - b[0] for a, b in zip(found[rd.HARD].scored, found[rd.SINGLE].scored, strict=True)])
    assert gap.value == pytest.approx(expected)
    assert gap.low < gap.value < gap.high
    text = rd.report(store)
    assert "### Small: made up" in text
    assert "| hard sharing, wide |" in text
    assert "cross-stitch is as good as the better of" in text


def test_a_method_that_fails_with_every_setting_is_left_out_with_its_reason(small, tmp_path, monkeypatch):
    monkeypatch.setattr(rd, "METHODS", (*METHODS[:2], deep_cells.Method("odd", "hard-sharing", {"channels": "none"})))
    store = reproduction.Store(tmp_path, rd.BUDGET)
    for key in rd.planned([], []):
        store.put(*rd.run_key(tmp_path, key))
    text = "\n".join(rd.protocol_lines(small, store))
    assert 'Left out: odd (channels is "none"' in text
    assert "| odd |" not in text


def test_claims_are_answered_by_the_interval():
    better, worse, open_ = (Interval(*gap, 0.01) for gap in ((0.1, 0.05, 0.15), (-0.1, -0.2, -0.05), (0.1, -0.1, 0.3)))
    protocol = Small()
    assert rd._answer(better, protocol).startswith("yes")
    assert rd._answer(worse, protocol).startswith("no, ")
    assert rd._answer(open_, protocol).startswith("not sure")
    protocol.higher_is_better = False
    assert rd._answer(worse, protocol).startswith("yes")
