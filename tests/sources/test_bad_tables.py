"""R8 to R13: every bad table gives one short sentence that names place and remedy, or a documented reading."""

from __future__ import annotations

import bz2
import gzip
import lzma
from typing import Any

import numpy as np
import pytest

from polytask.core.errors import InputError
from polytask.sources import read_features, read_table

GOOD = "".join(f"{i % 7},{'abc'[i % 3]},{(i * i) % 11}.5\n" for i in range(30))
HEAD = "x,c,y\n"


def table(text: str) -> bytes:
    return text.encode()


def with_row(row: str) -> bytes:
    """Thirty good rows with one more as row 31 (line 32)."""
    return table(HEAD + GOOD + row + "\n")


REFUSED: dict[str, tuple[bytes, dict[str, Any], list[str]]] = {
    "empty file": (b"", {}, ["t.csv is empty", "export the table again"]),
    "blank file": (b"\n\n  \n", {}, ["t.csv is empty"]),
    "header only": (table(HEAD), {}, ["header but no rows", "at least 1 row"]),
    "NUL byte": (table(HEAD + "1,a\x00,2\n"), {}, ["line 2", "NUL byte", "export it again"]),
    "unclosed quote": (table(HEAD + '1,a,2\n1,"a,2\n' + GOOD), {}, ["line 3", "never closed", "close or double"]),
    "text after a quote": (table(HEAD + '1,"a"b,2\n'), {}, ["line 2", "closing quotation mark", "double"]),
    "mostly ragged": (table(HEAD + "1,a\n" * 5 + GOOD), {}, ["5 of 35 rows", "line 2", "2 cells", "separator"]),
    "duplicate names": (table("x,y,x\n1,2,3\n"), {}, ["columns 1 and 3", 'both called "x"', "rename"]),
    "names equal after trimming": (table("x,y, x \n1,2,3\n"), {}, ["columns 1 and 3", 'both called "x"']),
    "confusable names": (
        table("sсore,y,score\n1,2,3\n"),
        {},
        ["columns 1 and 3 look alike", r"s\u0441ore", "rename"],
    ),
    "ligature names": (table("ﬁt,y,fit\n1,2,3\n"), {}, ["columns 1 and 3 look alike", "rename"]),
    "infinite number": (with_row("inf,a,1"), {}, ['column "x", row 31 (line 32)', "inf is infinite", "missing"]),
    "negative infinity": (with_row("-Infinity,a,1"), {}, ['column "x", row 31', "-Infinity is infinite"]),
    "huge number": (with_row("1e308,a,1"), {}, ['column "x", row 31 (line 32)', "1e308", "correct it"]),
    "number beyond float": (with_row("1e999,a,1"), {}, ['column "x", row 31', "1e999"]),
    "text among numbers": (with_row("oops,a,1"), {}, ['column "x", row 31 (line 32)', '"oops"', "kinds="]),
    "text in a numeric target": (with_row("1,a,oops"), {}, ['column "y", row 31 (line 32)', '"oops"', "missing"]),
    "infinite target": (with_row("1,a,inf"), {}, ['column "y", row 31', "infinite"]),
    "date among numbers": (with_row("2024-01-02,a,1"), {}, ['column "x", row 31', '"2024-01-02" is not a number']),
    "text among dates": (
        table("d,y\n" + "".join(f"2024-01-{i + 1:02d},{i}\n" for i in range(20)) + "soon,1\n"),
        {},
        ['column "d", row 21 (line 22)', '"soon" is not a date', "missing"],
    ),
    "dates as target": (
        table("x,y\n" + "".join(f"{i},2024-01-{i + 1:02d}\n" for i in range(20))),
        {},
        ['target "y" holds dates', "give a number"],
    ),
    "text as target": (
        table("x,y\n" + "".join(f"{i % 5},name {i}\n" for i in range(80))),
        {},
        ['target "y" has 80 different texts', "kinds"],
    ),
    "misspelt target": (table("x,price\n1,2\n"), {"targets": ["pirce"]}, ['"pirce"', 'Did you mean "price"']),
    "misspelt kind": (with_row("1,a,1"), {"kinds": {"y": "regresion"}}, ['Did you mean "regression"']),
    "level not given": (
        with_row("1,d,1"),
        {"targets": ["c"], "kinds": {"c": ("a", "b", "c")}},
        ['column "c", row 31 (line 32)', '"d" is not among the levels'],
    ),
    "ordinal without order": (
        with_row("1,a,1"),
        {"targets": ["c"], "kinds": {"c": "ordinal"}},
        ["the order of a, b, c is not known", "low < medium < high"],
    ),
    "no target without labels": (table("x,y\n" + "1,\n" * 20), {}, ["no target can be learned", "no labels"]),
    "no inputs": (table("y\n1\n2\n"), {}, ["no input columns"]),
    "copy of a target": (
        table("x,k,y\n" + "".join(f"{i % 5},{2 * i + 1},{i}.0\n" for i in range(30))),
        {},
        ['column "k" repeats target "y"', "r = 1.0000", 'allow_leak=["k"]'],
    ),
    "renamed classes of a target": (
        table("x,k,y\n" + "".join(f"{i % 5},{'pqr'[i % 3]},{'abc'[i % 3]}\n" for i in range(30))),
        {},
        ['column "k" repeats target "y"', "one to one"],
    ),
    "workbook": (b"PK\x03\x04" + bytes(40), {}, ["workbook", "save the sheet as CSV"]),
    "damaged gzip": (gzip.compress(table(HEAD + GOOD))[:-12], {}, ["compressed but damaged", "copy it again"]),
    "damaged bzip2": (bz2.compress(table(HEAD + GOOD))[:-12], {}, ["compressed but damaged", "copy it again"]),
    "damaged xz": (lzma.compress(table(HEAD + GOOD))[:-12], {}, ["compressed but damaged", "copy it again"]),
    "damaged Parquet": (b"PAR1" + bytes(40), {}, ["damaged Parquet file", "write it again"]),
    "wrong encoding told": (table("x,y\né,1\n"), {"encoding": "ascii"}, ["not ascii", "UTF-8"]),
    "unknown encoding": (table(HEAD + GOOD), {"encoding": "utf-9"}, ["unknown encoding", 'Did you mean "utf-8"']),
    "long separator": (table(HEAD + GOOD), {"separator": "||"}, ["separator must be one character"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_table_is_refused_with_place_and_remedy(case, tmp_path):
    raw, options, said = REFUSED[case]
    path = tmp_path / "t.csv"
    path.write_bytes(raw)
    with pytest.raises(InputError) as caught:
        read_table(path, **{"targets": ["y"], **options})
    message = str(caught.value)
    assert message.count("\n") <= 2
    assert len(message) < 600
    for part in said:
        assert part in message


ACCEPTED: dict[str, tuple[bytes, int, list[str]]] = {
    "one row": (table(HEAD + "1,a,2\n"), 1, ["only 1 label"]),
    "utf-8 mark": (b"\xef\xbb\xbf" + table(HEAD + GOOD), 30, []),
    "utf-16 with mark": ((HEAD + GOOD).encode("utf-16"), 30, []),
    "utf-16 without mark": ((HEAD + GOOD).encode("utf-16-le"), 30, ["utf-16-le"]),
    "utf-32": ((HEAD + GOOD).encode("utf-32"), 30, []),
    "latin-1": ((HEAD + GOOD + "1,é,2\n").encode("latin-1"), 31, ["line 32", "cp1252"]),
    "semicolons and decimal commas": (
        table((HEAD + GOOD).replace(",", ";").replace(".", ",")),
        30,
        ['column "y": comma read as the decimal sign'],
    ),
    "tabs": (table((HEAD + GOOD).replace(",", "\t")), 30, []),
    "bars": (table((HEAD + GOOD).replace(",", "|")), 30, []),
    "sep= line": (table("sep=;\n" + (HEAD + GOOD).replace(",", ";")), 30, ["sep="]),
    "carriage returns": (table((HEAD + GOOD).replace("\n", "\r\n")), 30, []),
    "old line ends": (table((HEAD + GOOD).replace("\n", "\r")), 30, []),
    "no last line end": (table((HEAD + GOOD).rstrip("\n")), 30, []),
    "quoted line ends": (table(HEAD + GOOD + '1,"a\nb",2\n'), 31, []),
    "gzip": (gzip.compress(table(HEAD + GOOD)), 30, []),
    "bzip2": (bz2.compress(table(HEAD + GOOD)), 30, []),
    "name like a file mark": (table("PAR1,BZh,y\n" + GOOD), 30, []),
    "xz": (lzma.compress(table(HEAD + GOOD)), 30, []),
    "one ragged row": (with_row("1,2,3,4"), 30, ["1 row refused: line 32 has 4 cells, the header has 3"]),
    "one short row": (with_row("1"), 30, ["1 row refused: line 32 has 1 cell"]),
    "blank row of commas": (with_row(",,"), 30, ["1 row refused: line 32 is blank"]),
    "trailing commas": (with_row("1,a,2,,"), 31, ["1 row had extra empty cells"]),
    "empty column at the end": (table((HEAD + GOOD).replace("\n", ",\n")), 30, ["column 4 has no name and no values"]),
    "nameless column": (
        table("x,,y\n" + GOOD.replace("a", "q")),
        30,
        ['column 2 has no name: called "column 2"'],
    ),
    "very long name": (table("x," + "n" * 10_000 + ",y\n" + GOOD), 30, ["10,000 characters"]),
    "spaces around names": (table(" x ,c,y\n" + GOOD), 30, ['renamed to "x"']),
    "zero-width characters in names": (table("x\u200b,c,y\n" + GOOD), 30, ['renamed to "x"']),
    "rows without label": (with_row("1,a,"), 30, ["1 row without any label left out"]),
    "missing codes among numbers": (with_row("NA,a,1"), 31, ['column "x": "NA" read as missing (1 cell)']),
    "few labels": (table(HEAD + "1,a,2\n2,b,3\n"), 2, ["only 2 labels"]),
    "constant target": (table("x,c,y\n" + "".join(f"{i},a,5\n" for i in range(2, 30))), 28, ["constant (5)"]),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_odd_but_readable_table_is_read_and_what_was_done_is_said(case, tmp_path):
    raw, rows, said = ACCEPTED[case]
    path = tmp_path / "t.csv"
    path.write_bytes(raw)
    found = read_table(path, targets=["y"])
    assert found.data.n_rows == rows
    assert found.data.names == ("y",)
    notes = "\n".join(found.notes)
    for part in said:
        assert part in notes
    unlabelled = sum(int(note.split()[0]) for note in found.notes if "without any label" in note)
    assert found.rows_read == found.data.n_rows + len(found.refused) + unlabelled


def test_equal_content_in_every_encoding_and_separator_gives_equal_data(tmp_path):
    plain = HEAD + GOOD
    shapes = [
        plain.encode(),
        plain.encode("utf-16"),
        plain.replace(",", ";").replace(".", ",").encode("utf-8-sig"),
        plain.replace(",", "\t").encode("utf-16-be"),
        lzma.compress(plain.replace("\n", "\r\n").encode()),
    ]
    read = []
    for number, raw in enumerate(shapes):
        path = tmp_path / f"{number}.csv"
        path.write_bytes(raw)
        read.append(read_table(path, targets=["y"]).data)
    for data in read[1:]:
        np.testing.assert_array_equal(data.inputs["x"], read[0].inputs["x"])
        assert data.inputs["c"].tolist() == read[0].inputs["c"].tolist()
        np.testing.assert_array_equal(data.labels["y"].values, read[0].labels["y"].values)


@pytest.mark.parametrize("word", ["NA", "null", "None", "nan"])
def test_literal_missing_words_stay_categories_unless_told(word, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(HEAD + GOOD + f"1,{word},2\n")
    kept = read_table(path, targets=["y"])
    assert kept.data.inputs["c"][-1] == word
    assert any(f'"{word}" kept as a category' in note for note in kept.notes)
    for missing in ([word], {"c": [word]}, {"*": [word]}, word):
        assert read_table(path, targets=["y"], missing=missing).data.inputs["c"][-1] is None


def test_missing_codes_of_one_column_do_not_touch_another(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x,z,y\n" + "".join(f"{i % 4},{i % 4},{i % 9}.5\n" for i in range(30)))
    data = read_table(path, targets=["y"], missing={"x": ["3"]}).data
    assert int(np.isnan(data.inputs["x"]).sum()) == 7
    assert not np.isnan(data.inputs["z"]).any()


def test_allowed_leak_is_kept(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x,k,y\n" + "".join(f"{i % 5},{2 * i},{i}.0\n" for i in range(30)))
    assert "k" in read_table(path, targets=["y"], allow_leak=["k"]).data.inputs


def test_leak_is_found_among_missing_values_and_with_small_noise(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.normal(size=300)
    copy = y + 0.01 * rng.normal(size=300)
    copy[:100] = np.nan
    with pytest.raises(InputError, match='column "copy" repeats target "y"'):
        read_table({"x": rng.normal(size=300), "copy": copy, "y": y}, targets=["y"])
    near = y + 0.3 * rng.normal(size=300)
    assert "near" in read_table({"near": near, "y": y}, targets=["y"]).data.inputs


def test_leak_is_found_in_the_long_form_and_in_sorted_classes():
    n = 12_000
    y = np.repeat(["a", "b"], n // 2).astype(object)
    twin = np.repeat(["p", "q"], n // 2).astype(object)
    x = np.arange(n) % 13 * 1.0
    with pytest.raises(InputError, match='column "twin" repeats'):
        read_table({"x": x, "twin": twin, "y": y}, targets=["y"])
    score = np.sin(np.arange(n))
    task = np.array(["s", "t"], dtype=object)[np.arange(n) % 2]
    with pytest.raises(InputError, match='column "double" repeats target "score"'):
        read_table({"x": x, "double": 2 * score, "t": task, "score": score}, task_column="t", target="score")


# -- prediction: no row may disappear ----------------------------------------------------------


@pytest.fixture
def schema(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text(HEAD + GOOD)
    return read_table(path, targets=["y"]).schema()


def test_prediction_needs_no_target_columns_and_ignores_extra_ones(schema, tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("extra,c,x\n9,a,1\n9,z,\n9,,3\n")
    found = read_features(path, schema)
    assert found.data.n_rows == 3
    np.testing.assert_array_equal(found.data.inputs["x"], [1.0, np.nan, 3.0])
    assert found.data.inputs["c"].tolist() == ["a", "z", None]
    assert list(found.data.inputs) == ["x", "c"]
    assert any("not used as input" in note and '"extra"' in note for note in found.notes)


def test_prediction_without_an_input_column_names_it_and_the_nearest(schema, tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("xx,c\n1,a\n")
    with pytest.raises(InputError, match=r'"x".*Did you mean "xx"'):
        read_features(path, schema)


def test_prediction_refuses_a_ragged_file_instead_of_losing_a_row(schema, tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("x,c\n1,a\n2\n3,b\n")
    with pytest.raises(InputError, match="line 3 has 1 cell"):
        read_features(path, schema)


def test_prediction_keeps_rows_of_empty_cells(schema, tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("x,c\n1,a\n,\n3,b\n")
    assert read_features(path, schema).data.n_rows == 3


def test_prediction_refuses_text_in_a_number_column(schema, tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("x,c\n1,a\nhello,b\n")
    with pytest.raises(InputError, match=r'column "x", row 2 \(line 3\): "hello" is not a number'):
        read_features(path, schema)


def test_prediction_reads_a_column_of_digits_as_the_category_it_was(tmp_path):
    train = {"c": np.array(["a", "1"] * 15, dtype=object), "x": np.arange(30.0) % 4, "y": np.sin(np.arange(30))}
    schema = read_table(train, targets=["y"]).schema()
    found = read_features({"c": np.array([1, 2]), "x": np.array([0.5, 1.0])}, schema)
    assert found.data.inputs["c"].tolist() == ["1", "2"]
