from __future__ import annotations

import json

import numpy as np
import pytest

from polytask.core import InputError, Regression, TaskData
from polytask.sources import TableEncoder, read_table

N = 200


def objects(values):
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(5, 3, N)
    x[rng.random(N) < 0.2] = np.nan
    few = rng.normal(size=N)
    few[3] = np.nan
    levels = rng.choice(["a", "b", "c", "d"], N, p=[0.5, 0.3, 0.19, 0.01]).astype(object)
    levels[:4] = [None, "d", "a", "b"]
    inputs = {
        "x": x,
        "c": levels,
        "few": few,
        "constant": np.full(N, 7.0),
        "empty": np.full(N, np.nan),
        "flag": (rng.random(N) < 0.3).astype(float),
        "k": objects([f"rare {i}" for i in range(N)]),
    }
    return TaskData.from_columns([Regression("y")], inputs, rng.normal(size=(N, 1)), keys={"id": np.arange(N)})


def test_encoded_training_rows_are_finite_centred_and_of_unit_variance(data):
    encoded = TableEncoder().fit(data).transform(data)
    numeric = encoded.inputs["numeric"]
    assert encoded.features["numeric"] == ("x", "few", "flag", "x missing")
    assert encoded.features["categorical"] == ("c", "k")
    np.testing.assert_allclose(numeric.mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(numeric.std(axis=0), 1.0, atol=1e-12)
    assert encoded.inputs["categorical"].dtype == np.int64
    assert encoded.keys["id"][5] == 5
    assert encoded.labels["y"] is data.labels["y"]


def test_encoding_equals_the_scikit_learn_pipeline(data):
    from sklearn.compose import make_column_transformer
    from sklearn.impute import MissingIndicator, SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder, StandardScaler

    fresh = data.rows(np.arange(N)[::-1][:50])
    encoder = TableEncoder(min_rows=5).fit(data)
    encoded = encoder.transform(fresh)
    names = ["x", "few", "flag"]

    def matrix(part):
        return np.column_stack([part.inputs[name] for name in names])

    twin = make_column_transformer(
        (make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), [0, 1, 2]),
        (make_pipeline(MissingIndicator(features="all"), StandardScaler()), [0]),
    ).fit(matrix(data))
    np.testing.assert_allclose(encoded.inputs["numeric"], twin.transform(matrix(fresh)), atol=1e-12)
    known = np.array([[cell] for cell in data.inputs["c"] if cell is not None], dtype=object)
    levels = OrdinalEncoder(min_frequency=5).fit(known)
    frequent = ["a", "b", "c"]
    expected = [frequent.index(c) + 1 if c in frequent else 0 for c in fresh.inputs["c"]]
    assert encoded.inputs["categorical"][:, 0].tolist() == expected
    assert levels.infrequent_categories_[0].tolist() == ["d"]


def test_encoder_knows_training_rows_only(data):
    train, test = data.rows(np.arange(150)), data.rows(np.arange(150, N))
    changed = {name: values.copy() for name, values in test.inputs.items()}
    changed["x"] += 1e6
    changed["c"][:] = "a"
    fitted = TableEncoder().fit(train)
    before = fitted.state()
    fitted.transform(TaskData.from_columns([Regression("y")], changed, np.zeros((50, 1))))
    assert fitted.state() == before == TableEncoder().fit(train).state()
    assert fitted.state() != TableEncoder().fit(data).state()
    numeric = before["numeric"]["x"]
    assert numeric["median"] == np.nanmedian(train.inputs["x"])


def test_state_survives_json_and_encodes_the_same(data):
    encoder = TableEncoder(max_levels=3, min_rows=2).fit(data)
    again = TableEncoder.from_state(json.loads(json.dumps(encoder.state(), allow_nan=False)))
    one, other = encoder.transform(data), again.transform(data)
    np.testing.assert_allclose(one.inputs["numeric"], other.inputs["numeric"], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(one.inputs["categorical"], other.inputs["categorical"])
    assert one.features == other.features
    assert one.cardinalities == other.cardinalities
    with pytest.raises(InputError, match="format"):
        TableEncoder.from_state({**encoder.state(), "format": 7})


def test_missing_rare_and_unseen_categories_share_code_zero_and_unseen_ones_are_counted(data):
    encoder = TableEncoder().fit(data)
    cells = objects(["a", None, "d", "never", "never", "b"])
    fresh = data.rows(np.arange(6))
    fresh = TaskData(fresh.tasks, {**fresh.inputs, "c": cells}, fresh.labels)
    codes = encoder.transform(fresh).inputs["categorical"][:, 0]
    assert codes.tolist() == [1, 0, 0, 0, 0, 2]
    assert encoder.unseen(fresh) == {"c": 2}
    assert encoder.unseen(data) == {}


def test_only_the_most_frequent_levels_get_codes():
    rng = np.random.default_rng(1)
    levels = [f"level {i}" for i in range(200)]
    cells = objects([levels[i] for i in np.minimum(rng.geometric(0.02, 5000) - 1, 199)])
    data = TaskData.from_columns([Regression("y")], {"k": cells}, np.zeros((5000, 1)))
    encoded = TableEncoder(max_levels=20).fit(data).transform(data)
    codes = encoded.inputs["categorical"][:, 0]
    assert encoded.cardinalities == (21,)
    assert set(codes.tolist()) == set(range(21))
    counts = {level: (cells == level).sum() for level in levels}
    coded = {cell for cell, code in zip(cells, codes, strict=True) if code}
    assert min(counts[level] for level in coded) >= max(counts[level] for level in set(levels) - coded)


def test_columns_missing_together_share_one_indicator_and_rare_gaps_have_none():
    rng = np.random.default_rng(2)
    a, b, c = rng.normal(size=(3, 100))
    a[:30] = b[:30] = np.nan
    c[:3] = np.nan
    data = TaskData.from_columns([Regression("y")], {"a": a, "b": b, "c": c}, np.zeros((100, 1)))
    assert TableEncoder().fit(data).features["numeric"] == ("a", "b", "c", "a missing")
    assert TableEncoder(min_missing=3).fit(data).features["numeric"] == ("a", "b", "c", "a missing", "c missing")


def test_table_without_numbers_has_a_numeric_input_of_no_columns():
    data = TaskData.from_columns([Regression("y")], {"c": objects(["a", "b"] * 10)}, np.zeros((20, 1)))
    encoded = TableEncoder().fit(data).transform(data)
    assert encoded.inputs["numeric"].shape == (20, 0)
    assert encoded.cardinalities == (3,)


def test_table_without_categories_has_no_categorical_input():
    data = TaskData.from_columns([Regression("y")], {"x": np.arange(20.0)}, np.zeros((20, 1)))
    encoded = TableEncoder().fit(data).transform(data)
    assert set(encoded.inputs) == {"numeric"}
    assert encoded.cardinalities == ()


def test_wrong_use_is_answered(data):
    encoder = TableEncoder().fit(data)
    with pytest.raises(InputError, match="not been fitted"):
        TableEncoder().transform(data)
    with pytest.raises(InputError, match="encoded already"):
        TableEncoder().fit(encoder.transform(data))
    without = {name: values for name, values in data.inputs.items() if name != "few"}
    with pytest.raises(InputError, match='"few"'):
        encoder.transform(TaskData(data.tasks, without, data.labels))
    with pytest.raises(InputError, match='"x" held numbers'):
        encoder.transform(TaskData(data.tasks, {**data.inputs, "x": objects(["1"] * N)}, data.labels))
    with pytest.raises(InputError, match="max_levels must be at least 1"):
        TableEncoder(max_levels=0)


def test_a_hundred_thousand_levels_fit_in_the_cap(tmp_path):
    rng = np.random.default_rng(0)
    count = 150_000
    city = objects(
        [f"city {i}" for i in np.concatenate([np.arange(100_000), rng.integers(0, 100_000, count - 100_000)])]
    )
    found = read_table({"city": city, "x": rng.normal(size=count), "y": rng.normal(size=count)}, targets=["y"])
    encoder = TableEncoder(min_rows=1).fit(found.data)
    assert encoder.transform(found.data).cardinalities == (51,)
    assert encoder.unseen(found.data) == {}
