"""TaskData: views, smaller copies, splits, thinning, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytask import Binary, InputError, Labels, Regression, TaskData
from polytask.core.scaling import TargetScaler
from polytask.core.splits import fold_rows, split_rows

A, B = Regression("a"), Binary("b", classes=("no", "yes"))


def wide(n: int = 12, seed: int = 0) -> TaskData:
    rng = np.random.default_rng(seed)
    targets = np.column_stack([rng.normal(size=n), rng.integers(0, 2, n).astype(float)])
    targets[rng.random((n, 2)) < 0.3] = np.nan
    return TaskData.from_columns((A, B), {"x": np.arange(n, dtype=float)}, targets, keys={"who": np.arange(n) // 3})


def long(counts=(7, 1, 30), seed: int = 0) -> TaskData:
    number = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    tasks = tuple(Regression(f"school {k}") for k in range(len(counts)))
    n = len(number)
    return TaskData.from_stacked(tasks, np.arange(2.0 * n).reshape(n, 2), number, np.arange(n, dtype=float))


def test_the_views_hold_the_same_labels():
    data = wide()
    matrix = data.columns()
    rows, numbers, values = data.stacked()
    np.testing.assert_array_equal(matrix[rows, numbers], values)
    assert len(values) == np.isfinite(matrix).sum()
    for k, name in enumerate(data.names):
        np.testing.assert_array_equal(data.present[name], np.isfinite(matrix[:, k]))
        np.testing.assert_array_equal(data.targets[name], np.nan_to_num(matrix[:, k]))


def test_stacked_and_column_construction_agree():
    data = long()
    again = TaskData.from_columns(data.tasks, data.inputs, data.columns())
    np.testing.assert_array_equal(data.columns(), again.columns())
    assert data.one_task_per_row
    assert not wide().one_task_per_row


@given(st.lists(st.integers(0, 11), max_size=30))
def test_rows_are_taken_in_the_order_asked_for_even_repeated(index):
    data = wide()
    part = data.rows(np.array(index, dtype=int))
    np.testing.assert_array_equal(part.columns(), data.columns()[index])
    np.testing.assert_array_equal(part.inputs["x"], data.inputs["x"][index])
    np.testing.assert_array_equal(part.keys["who"], data.keys["who"][index])


def test_a_mask_takes_the_rows_it_marks():
    data = wide()
    np.testing.assert_array_equal(data.rows(data.inputs["x"] > 5).inputs["x"], [6, 7, 8, 9, 10, 11])


def test_only_keeps_the_rows_and_the_order_asked_for():
    data = wide().only(["b", "a"])
    assert data.names == ("b", "a")
    np.testing.assert_array_equal(data.columns(), wide().columns()[:, ::-1])


@given(st.integers(0, 1000), st.integers(2, 60))
def test_a_split_puts_every_row_in_exactly_one_part(seed, n):
    parts = split_rows(wide(n), (0.5, 0.5), seed=seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))


def test_same_seed_same_split_and_other_seed_another():
    one, again, other = (split_rows(wide(50), (0.7, 0.3), seed=s)[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert one.tolist() != other.tolist()


def test_the_long_form_is_split_within_tasks_and_every_task_keeps_training_rows():
    counts = np.full(40, 20)
    data = long(tuple(counts))
    train, test = data.split((0.75, 0.25), seed=3)
    assert all(14 <= len(train.labels[name]) <= 16 for name in data.names)
    tiny, rest = long((1, 1, 2, 40)).split((0.5, 0.5), seed=0)
    assert all(len(tiny.labels[name]) >= 1 for name in tiny.names)
    assert tiny.n_rows + rest.n_rows == 44
    assert test.n_rows == pytest.approx(200, abs=20)


def test_rows_of_one_group_stay_together():
    data = wide(60)
    parts = split_rows(data, (0.6, 0.2, 0.2), seed=0, group="who")
    found = [set(data.keys["who"][part]) for part in parts]
    assert not (found[0] & found[1])
    assert not (found[0] & found[2])
    assert not (found[1] & found[2])
    assert [len(part) for part in parts] == [36, 12, 12]


def test_no_part_is_empty_when_one_group_is_huge():
    groups = np.array([0] * 50 + [1, 2])
    data = TaskData.from_columns((A,), np.zeros((52, 1)), np.zeros((52, 1)), keys={"g": groups})
    for seed in range(20):
        assert all(len(part) for part in split_rows(data, (0.5, 0.25, 0.25), seed=seed, group="g"))


def test_earlier_rows_fill_earlier_parts_and_equal_times_stay_together():
    times = np.array(["2020-03", "2020-01", "2020-02", "2020-02", "2020-01", "2020-04"], dtype=object)
    data = TaskData.from_columns((A,), np.zeros((6, 1)), np.zeros((6, 1)), keys={"t": times})
    first, second = split_rows(data, (0.6, 0.4), seed=0, time="t")
    assert times[first].max() < times[second].min()
    assert len(first) == 4


def test_folds_cover_the_rows_once():
    parts = fold_rows(wide(23), 5, seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(23))
    assert {len(part) for part in parts} <= {4, 5}


def test_thinning_keeps_the_number_asked_for_and_only_of_that_task():
    data = wide(100)
    thin = data.thinned({"a": 9}, seed=4)
    assert len(thin.labels["a"]) == 9
    assert set(thin.labels["a"].rows) <= set(data.labels["a"].rows)
    assert len(thin.labels["b"]) == len(data.labels["b"])
    np.testing.assert_array_equal(thin.labels["a"].rows, data.thinned({"a": 9}, seed=4).labels["a"].rows)


def test_target_scaling_uses_labelled_rows_only_and_undoes_itself():
    data = wide(40)
    scaler = TargetScaler.fit(data)
    values = data.labels["a"].values
    assert scaler.mean[0] == pytest.approx(values.mean())
    assert (scaler.mean[1], scaler.scale[1]) == (0.0, 1.0)
    np.testing.assert_allclose(scaler.undo(0, scaler.apply(0, values)), values)


def test_a_constant_target_is_not_scaled():
    data = TaskData.from_columns((A,), np.zeros((5, 1)), np.full((5, 1), 1e9))
    assert TargetScaler.fit(data).scale[0] == 1.0


def labels(rows, values):
    return Labels(np.array(rows, dtype=np.int64), np.array(values, dtype=float))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TaskData((A, A), {"x": np.zeros(3)}, {"a": labels([0], [1])}), 'two tasks are called "a"'),
        (lambda: TaskData((A,), {"x": np.zeros(3)}, {}), "one entry of labels per task"),
        (lambda: TaskData((A,), {}, {"a": labels([0], [1])}), "inputs is empty"),
        (lambda: TaskData((A,), {"x": np.zeros(3), "z": np.zeros(4)}, {"a": labels([0], [1])}), "same number of rows"),
        (lambda: TaskData((A,), {"x": np.zeros(3)}, {"a": labels([1, 0], [1, 1])}), "rows must increase"),
        (lambda: TaskData((A,), {"x": np.zeros(3)}, {"a": labels([3], [1])}), r"0 … 2"),
        (lambda: TaskData((A,), {"x": np.zeros(3)}, {"a": labels([2], [np.inf])}), "not finite in row 2"),
        (lambda: TaskData((B,), {"x": np.zeros(3)}, {"b": labels([1], [2])}), "row 1 has class code 2"),
        (lambda: TaskData((B,), {"x": np.zeros(3)}, {"b": labels([1], [0.5])}), "class code 0.5"),
        (lambda: TaskData.from_columns((A,), np.zeros((3, 1)), np.zeros((3, 2))), "one column for each of the 1"),
        (lambda: wide().split((0.5, 0.6), seed=0), "add up to 1"),
        (lambda: wide().split((0.5, 0.5), seed=0, group="whom"), 'Did you mean "who"'),
        (lambda: wide().only(["c"]), 'unknown task "c"'),
        (lambda: wide().thinned({"a": 0}, seed=0), "at least 1"),
        (lambda: fold_rows(wide(3), 4, seed=0), "2 … 3"),
    ],
)
def test_bad_data_is_refused_with_a_name_a_value_and_a_remedy(make, message):
    with pytest.raises(InputError, match=message):
        make()
