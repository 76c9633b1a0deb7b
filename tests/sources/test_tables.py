from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytask.core.errors import DiskError, InputError, MissingExtraError
from polytask.core.task import Binary, Multiclass, Ordinal, Regression
from polytask.sources import Schema, read_features, read_table, write_csv
from polytask.sources.preflight import read_cells

N = 40


def objects(values):
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


@pytest.fixture
def columns():
    index = np.arange(N)
    return {
        "x": np.sin(index),
        "c": objects([["red", "green", "blue"][(i * i + i // 4) % 3] for i in index]),
        "flag": objects([["no", "yes"][i % 2 if i % 5 else 1] for i in index]),
        "when": objects([f"2024-02-{i % 28 + 1:02d}" for i in index]),
        "price": np.where(index % 4 == 0, np.nan, np.cos(index) * 10),
        "sold": objects([["no", "yes", None][i % 3] for i in index]),
        "health": objects([["Good", "Fair", "Very good", "Poor"][(i * i) % 4 if i % 3 else i % 4] for i in index]),
        "colour": objects([["q", "r", "s"][(i // 2) % 3] for i in index]),
    }


TARGETS = ["price", "sold", "health", "colour"]


def same(a, b):
    assert a.data.names == b.data.names
    assert a.data.tasks == b.data.tasks
    assert list(a.data.inputs) == list(b.data.inputs)
    for name, values in a.data.inputs.items():
        if values.dtype == object:
            assert values.tolist() == b.data.inputs[name].tolist()
        else:
            np.testing.assert_array_equal(values, b.data.inputs[name])
    for name, labels in a.data.labels.items():
        np.testing.assert_array_equal(labels.rows, b.data.labels[name].rows)
        np.testing.assert_array_equal(labels.values, b.data.labels[name].values)


def test_kinds_of_targets_and_inputs_are_recognised(columns):
    found = read_table(columns, targets=TARGETS)
    assert found.data.tasks == (
        Regression("price"),
        Binary("sold", (), ("no", "yes")),
        Ordinal("health", (), ("Poor", "Fair", "Good", "Very good")),
        Multiclass("colour", (), ("q", "r", "s")),
    )
    assert dict(found.schema().columns) == {"x": "numeric", "c": "categorical", "flag": "boolean", "when": "date"}
    assert len(found.data.labels["price"]) == 30
    assert set(found.data.inputs["flag"].tolist()) == {0.0, 1.0}
    assert found.data.inputs["when"][0] == (pd.Timestamp("2024-02-01") - pd.Timestamp("1970-01-01")).days


def test_file_pandas_polars_arrow_and_parquet_give_the_same_table(columns, tmp_path):
    reference = read_table(columns, targets=TARGETS)
    write_csv(tmp_path / "t.csv", columns)
    write_csv(tmp_path / "t.csv.gz", columns)
    pandas = pd.DataFrame(columns)
    polars = pl.DataFrame({name: list(values) for name, values in columns.items()}, strict=False).with_columns(
        pl.col("price").fill_nan(None)
    )
    polars.write_parquet(tmp_path / "t.parquet")
    for source in (
        *(tmp_path / "t.csv", tmp_path / "t.csv.gz", str(tmp_path / "t.csv")),
        *(tmp_path / "t.parquet", pandas, polars, polars.to_arrow()),
    ):
        same(read_table(source, targets=TARGETS), reference)


def test_parquet_without_pyarrow_says_which_extra_to_install(columns, tmp_path, monkeypatch):
    pl.DataFrame({"x": [1.0, 2.0], "y": [1.0, 2.0]}).write_parquet(tmp_path / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"polytask\[parquet\]"):
        read_table(tmp_path / "t.parquet", targets=["y"])


def test_frame_types_become_the_kinds_they_are():
    frame = pd.DataFrame(
        {
            "i": pd.array([1, None] * 15, dtype="Int64"),
            "b": [True, False, False] * 10,
            "t": pd.date_range("2024-01-01", periods=30, tz="Europe/Paris"),
            "span": pd.to_timedelta(np.arange(30) % 4 * 12, unit="h"),
            "k": pd.Categorical(["u", None, "w"] * 10),
            "y": np.sin(np.arange(30)),
        }
    )
    found = read_table(frame, targets=["y"])
    assert dict(found.schema().columns) == {
        "i": "numeric",
        "b": "boolean",
        "t": "date",
        "span": "numeric",
        "k": "categorical",
    }
    assert np.isnan(found.data.inputs["i"]).sum() == 15
    assert found.data.inputs["k"][1] is None
    assert found.data.inputs["span"][3] == 1.5  # days
    assert found.data.inputs["t"][0] == pytest.approx(19722 + 23 / 24)  # midnight in Paris is 23:00 UTC the day before


def test_frame_with_duplicate_or_number_names():
    with pytest.raises(InputError, match='both called "x"'):
        read_table(pd.DataFrame(np.ones((3, 2)), columns=["x", "x"]), targets=["x"])
    frame = pd.DataFrame({0: np.sin(np.arange(30)), 1: np.cos(np.arange(30))})
    assert read_table(frame, targets=["1"]).data.names == ("1",)


def test_cells_that_are_lists_and_unknown_objects_are_refused():
    with pytest.raises(InputError, match="holds a list in a cell"):
        read_table(pd.DataFrame({"x": [[1], [2]], "y": [1.0, 2.0]}), targets=["y"])
    with pytest.raises(InputError, match="complex numbers"):
        read_table({"x": np.ones(3) * 1j, "y": np.ones(3)}, targets=["y"])
    with pytest.raises(InputError, match="cannot read a table from int"):
        read_table(3, targets=["y"])


def test_users_kinds_win_over_guesses(columns):
    levels = ("Very good", "Good", "Fair", "Poor")
    found = read_table(
        columns,
        targets=TARGETS,
        kinds={"health": levels, "colour": "ordinal: s < q < r", "sold": "multiclass", "flag": "categorical"},
    )
    assert found.data.task("health") == Ordinal("health", (), levels)
    assert found.data.task("colour").labels == ("s", "q", "r")
    assert found.data.task("sold").kind == "multiclass"
    assert found.data.inputs["flag"].dtype == object


def test_numeric_levels_sort_as_numbers(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x,y\n" + "".join(f"{i % 7}.5,{[2, 10, 1, 9][i % 4]}\n" for i in range(40)))
    guessed = read_table(path, targets=["y"])
    assert guessed.data.task("y").kind == "regression"
    assert any("4 different whole numbers" in note for note in guessed.notes)
    assert read_table(path, targets=["y"], kinds={"y": "ordinal"}).data.task("y").labels == ("1", "2", "9", "10")


def test_metrics_are_passed_to_the_tasks(columns):
    found = read_table(columns, targets=TARGETS, metrics={"price": ["r2"], "sold": ["auc", "accuracy"]})
    assert found.data.task("price").metrics == ("r2",)
    assert found.data.task("sold").metric == "auc"


def test_long_form_makes_one_task_per_value_in_natural_order():
    index = np.arange(60)
    found = read_table(
        {
            "school": index % 12 + 1,
            "x": np.sin(index),
            "score": np.where(index % 12 == 3, np.nan, np.cos(index)),
        },
        task_column="school",
        target="score",
    )
    assert found.form == "long"
    assert found.data.names[:3] == ("school 1", "school 2", "school 3")
    assert found.data.names[-1] == "school 12"
    assert "school 4" not in found.data.names
    assert found.data.one_task_per_row
    assert "school" not in found.data.inputs
    assert found.data.n_rows == 55
    assert any("1 task (school 4) has no labels" in note for note in found.notes)
    assert any("5 rows without any label" in note for note in found.notes)
    for name, labels in found.data.labels.items():
        assert set(found.data.keys["school"][labels.rows]) == {name}


def test_wide_and_long_forms_of_one_table_hold_the_same_labels():
    rng = np.random.default_rng(3)
    wide = {"x": rng.normal(size=50), "a": rng.normal(size=50), "b": rng.normal(size=50)}
    long = {
        "x": np.tile(wide["x"], 2),
        "task": objects(["a"] * 50 + ["b"] * 50),
        "y": np.concatenate([wide["a"], wide["b"]]),
    }
    one = read_table(wide, targets=["a", "b"]).data
    other = read_table(long, task_column="task", target="y").data
    for name in ("a", "b"):
        np.testing.assert_array_equal(one.labels[name].values, other.labels[name].values)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give targets"),
        ({"targets": []}, "targets is empty"),
        ({"targets": ["price", "price"]}, "twice"),
        ({"task_column": "c"}, "needs both"),
        ({"task_column": "c", "target": "c"}, "two columns"),
        ({"targets": ["price"], "task_column": "c", "target": "sold"}, "give targets"),
        ({"targets": ["price"], "group": "price"}, "also a target"),
        ({"targets": ["price"], "drop": ["xx"]}, 'Did you mean "x"'),
        ({"targets": ["price"], "kinds": {"x": "ordinal"}}, "kind of input"),
        ({"targets": ["price"], "decimal": "'"}, "decimal must be"),
    ],
)
def test_impossible_options_are_refused(columns, options, said):
    with pytest.raises(InputError, match=said):
        read_table(columns, **options)


def test_keys_are_carried_and_are_not_inputs(columns):
    found = read_table(columns, targets=["price"], group="c", time="when", drop=["health", "colour", "sold"])
    assert list(found.data.inputs) == ["x", "flag"]
    assert found.data.keys["c"][0] is not None
    assert found.data.keys["when"].dtype == np.float64
    parts = found.data.split((0.5, 0.5), seed=0, time="when")
    assert parts[0].keys["when"].max() < parts[1].keys["when"].min()


def test_row_identifiers_are_left_out_with_a_note_and_kept_on_request():
    n = 30
    source = {
        "name": objects([f"person {i}" for i in range(n)]),
        "row": np.arange(n),
        "patient_id": np.arange(n)[::-1] * 7,
        "x": np.sin(np.arange(n)),
        "y": np.cos(np.arange(n)),
    }
    found = read_table(source, targets=["y"])
    assert list(found.data.inputs) == ["x"]
    assert found.data.keys["name"][3] == "person 3"
    assert sum("not used as input" in note for note in found.notes) == 3
    assert "row" in read_table(source, targets=["y"], kinds={"row": "numeric"}).data.inputs


def test_targets_without_labels_or_with_one_class_are_left_out_and_the_others_stay(columns):
    columns["none"] = np.full(N, np.nan)
    columns["same"] = objects(["a"] * N)
    found = read_table(columns, targets=["price", "none", "same"])
    assert found.data.names == ("price",)
    assert any('"none" has no labels' in note for note in found.notes)
    assert any('"same" has one class only' in note for note in found.notes)


def test_summary_is_plain_json_and_counts_add_up(columns):
    found = read_table(columns, targets=TARGETS)
    facts = json.loads(json.dumps(found.summary(), allow_nan=False))
    assert facts["form"] == "wide"
    assert [feature["name"] for feature in facts["features"]] == ["x", "c", "flag", "when"]
    for task in facts["tasks"]:
        assert task["n_labels"] + task["missing"] == facts["rows"]
        assert (task["kind"] == "regression") == ("mean" in task)
        assert "shares" not in task or sum(task["shares"]) == pytest.approx(1.0)
    text = found.describe_tasks().splitlines()
    assert len(text) == 4
    assert "ordinal" in text[2]
    assert "Poor < Fair < Good < Very good" in text[2]


def test_schema_survives_json(columns):
    schema = read_table(columns, targets=TARGETS, group="c", missing={"x": ["-9"]}).schema()
    again = Schema.from_state(json.loads(json.dumps(schema.state())))
    assert again == schema
    with pytest.raises(InputError, match="format"):
        Schema.from_state({**schema.state(), "format": 99})


def test_training_rows_read_for_prediction_give_the_same_inputs(columns, tmp_path):
    write_csv(tmp_path / "t.csv", columns)
    trained = read_table(tmp_path / "t.csv", targets=TARGETS)
    again = read_features(tmp_path / "t.csv", trained.schema())
    for name, values in trained.data.inputs.items():
        if values.dtype == object:
            assert values.tolist() == again.data.inputs[name].tolist()
        else:
            np.testing.assert_array_equal(values, again.data.inputs[name])
    assert all(len(labels) == 0 for labels in again.data.labels.values())


@pytest.mark.parametrize(
    ("written", "kind", "first"),
    [
        (["1,5", "2,25"], "numeric", 1.5),
        (["1.234,5", "2,25"], "numeric", 1234.5),
        (["1,234", "5,678"], "numeric", 1234.0),
        (["1,234.5", "5,678"], "numeric", 1234.5),
        ([" 1 ", "2"], "numeric", 1.0),
        (["+1e-3", ".5"], "numeric", 0.001),
        (["ja", "nein"], "boolean", 1.0),
        (["TRUE", "False"], "boolean", 1.0),
        (["31.12.2024", "01.02.2023"], "date", 20088.0),
        (["12/31/2024", "02/01/2023"], "date", 20088.0),
        (["31-Dec-2024", "01-Feb-2023"], "date", 20088.0),
        (["2024-12-31 12:00:00", "2023-02-01 00:00:00"], "date", 20088.5),
        (["31/12/2024 18:00", "01/02/2023 00:00"], "date", 20088.75),
        (["01234", "99999"], "categorical", "01234"),
        (["1_000", "2_000"], "categorical", "1_000"),
    ],
)
def test_ways_of_writing_numbers_dates_and_truth(written, kind, first):
    values = objects([written[i % 2] for i in range(30)])
    found = read_table({"v": values, "y": np.sin(np.arange(30))}, targets=["y"])
    assert found.schema().columns["v"] == kind
    assert found.data.inputs["v"][0] == first


def test_months_and_days_that_cannot_be_told_apart_are_said_so():
    values = objects([["01/02/2024", "03/04/2024"][i % 2] for i in range(30)])
    found = read_table({"v": values, "y": np.sin(np.arange(30))}, targets=["y"])
    assert any("cannot be told apart" in note for note in found.notes)


def test_thousands_sign_needs_no_guess_when_decimal_is_told(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x;y\n" + "1,234;2\n5,678;3\n1,000;2\n5,000;9\n" * 10)
    assert read_table(path, targets=["y"]).data.inputs["x"][0] == 1.234
    assert read_table(path, targets=["y"], decimal=".").data.inputs["x"][0] == 1234.0


# -- writing: R20 and round trips ---------------------------------------------------------------

DANGEROUS = ["=1+1", "+1", "-cmd", "@SUM(A1)", "\tx", "\rx", "'=x", "''=x", "'plain", "=", "-5"]


def test_texts_that_spreadsheets_would_run_get_an_apostrophe_and_come_back_exact(tmp_path):
    path = tmp_path / "t.csv"
    write_csv(path, {"=name": objects(DANGEROUS), "number": np.linspace(-5, 5, len(DANGEROUS))})
    text = path.read_bytes().decode()
    assert not any(
        cell.startswith(("=", "+", "@", "\t", "\r"))
        for line in text.split("\n")
        for cell in line.split(",")
        if '"' not in line
    )
    assert "\n'-5,5.0" in text
    assert ",-5.0" in text
    cells = read_cells(path)
    assert cells.names == ("=name", "number")
    assert cells.columns[0] == DANGEROUS
    assert [float(cell) for cell in cells.columns[1]] == np.linspace(-5, 5, len(DANGEROUS)).tolist()


def test_numbers_of_every_type_are_written_bare(tmp_path):
    path = tmp_path / "t.csv"
    write_csv(path, {"mixed": [-1, -2.5, np.float64(-3.25), np.int64(-4), None, float("nan"), True, "-6"]})
    assert path.read_text() == 'mixed\n-1\n-2.5\n-3.25\n-4\n""\n""\ntrue\n\'-6\n'


texts = st.text(
    alphabet=st.characters(codec="utf-8", exclude_characters="\x00"),
    min_size=1,
    max_size=12,
)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.tuples(texts, numbers), min_size=1, max_size=20))
def test_cells_written_and_read_back_are_exact(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("round") / "t.csv"
    write_csv(path, {"text": objects([text for text, _ in rows]), "number": np.array([number for _, number in rows])})
    cells = read_cells(path, separator=",", keep_all_rows=True)
    assert cells.columns[0] == [text for text, _ in rows]
    assert [float(cell) for cell in cells.columns[1]] == [number for _, number in rows]


@settings(max_examples=60, deadline=None)
@given(
    raw=st.one_of(st.binary(max_size=200), st.text(alphabet='xy,;\t\n\r"19.-eNA =', max_size=80).map(str.encode)),
    header=st.sampled_from([b"", b"x,y\n", b"\xff\xfe", b"x;y\n1;2\n"]),
)
def test_any_bytes_are_read_or_refused_with_a_sentence(raw, header, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "t.csv"
    path.write_bytes(header + raw)
    said = ""
    try:
        found = read_table(path, targets=["y"])
    except InputError as error:
        said = str(error)
        found = None
    assert found.data.n_rows >= 1 if found else 10 < len(said) < 1000


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.one_of(st.none(), st.floats(-1e9, 1e9)), min_size=25, max_size=40),
    seed=st.integers(0, 99),
)
def test_numbers_with_gaps_survive_writing_and_reading(values, seed, tmp_path_factory):
    path = tmp_path_factory.mktemp("gaps") / "t.csv"
    column = np.array([np.nan if value is None else value for value in values])
    rng = np.random.default_rng(seed)
    source = {"x": column, "anchor": rng.normal(size=len(values)), "y": rng.normal(size=len(values))}
    write_csv(path, source)
    found = read_table(path, targets=["y"], kinds={"x": "numeric", "anchor": "numeric"}, allow_leak=["x", "anchor"])
    if np.isnan(column).all():
        assert "x" not in found.data.inputs
    else:
        np.testing.assert_array_equal(found.data.inputs["x"], column)


def test_writing_where_it_cannot_be_done_is_a_disk_error_and_leaves_nothing(tmp_path):
    with pytest.raises(DiskError, match="cannot write"):
        write_csv(tmp_path / "absent" / "t.csv", {"x": np.ones(2)})
    with pytest.raises(InputError, match="same number of rows"):
        write_csv(tmp_path / "t.csv", {"x": np.ones(2), "y": np.ones(3)})
    assert list(tmp_path.iterdir()) == []


def test_missing_file_suggests_the_nearest_name(tmp_path):
    Path(tmp_path / "houses.csv").write_text("x,y\n1,2\n")
    with pytest.raises(InputError, match=r'Did you mean "houses\.csv"'):
        read_table(tmp_path / "house.csv", targets=["y"])
    with pytest.raises(InputError, match="is a folder"):
        read_table(tmp_path, targets=["y"])
