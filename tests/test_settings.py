"""Settings: typos are answered, wrong values are placed, YAML is plain data, flags win."""

from __future__ import annotations

import contextlib
import string

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from polytask.core.errors import InputError
from polytask.core.metrics import METRICS
from polytask.core.task import KINDS
from polytask.registry import learner_names
from polytask.settings import Settings, load_settings

GOOD = {
    "data": "houses.csv",
    "targets": "[price, rent]",
    "kinds": "{price: regression}",
    "metrics": "{price: [rmse]}",
    "methods": "[ridge]",
    "splits": "5x2",
}


def written(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problem(tmp_path, text, **flags):
    with pytest.raises(InputError) as caught:
        load_settings(written(tmp_path, text), **flags)
    message = str(caught.value)
    assert message.count("\n") < 3
    return message


def single_edits(word):
    letters = string.ascii_lowercase + "_"
    for place in range(len(word) + 1):
        if place < len(word):
            yield word[:place] + word[place + 1 :]
            yield from (word[:place] + letter + word[place + 1 :] for letter in letters)
        if place + 1 < len(word):
            yield word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        yield from (word[:place] + letter + word[place:] for letter in letters)


def typos(words):
    """Every word one edit away from a right one, with the right ones it may have been meant as."""
    words = list(words)
    meant = {}
    for word in words:
        for edit in single_edits(word):
            if edit and edit not in words:
                meant.setdefault(edit, set()).add(word)
    return meant


def answered(words, ask):
    """Return the share of typos whose answer names the right word; every one of them must fail."""
    cases = typos(words)
    right = 0
    for typo, meant in cases.items():
        with pytest.raises(InputError) as caught:
            ask(typo)
        right += any(f"'{word}'" in str(caught.value) or f'"{word}"' in str(caught.value) for word in meant)
    return right / len(cases)


def test_typos_of_every_key_fail_and_name_the_right_key():
    assert answered(Settings.model_fields, lambda typo: load_settings(**{typo: "x"})) >= 0.95


@pytest.mark.parametrize(
    ("words", "ask"),
    [
        (KINDS, lambda typo: load_settings(kinds={"price": typo})),
        (METRICS, lambda typo: load_settings(metrics={"price": [typo]})),
        (["auto", *learner_names()], lambda typo: load_settings(methods=typo)),
    ],
    ids=["kinds", "metrics", "methods"],
)
def test_typos_of_every_choice_fail_and_name_the_right_one(words, ask):
    assert answered(words, ask) >= 0.95


def test_an_unknown_key_is_placed_by_file_and_line(tmp_path):
    message = problem(tmp_path, "data: a.csv\n\n# note\ntrails: 5\n")
    assert message.endswith("c.yaml:4 trails: unknown key. Did you mean 'trials'?")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("trials: many\n", 1, "trials"),
        ("trials: 0\n", 1, "greater than or equal to 1"),
        ("trials: yes\n", 1, "trials"),
        ("seed: 1\nsplits: five\n", 2, "5x2"),
        ("splits: 1x5\n", 1, "5x2"),
        ("kinds:\n  price: regression\n  sold: binery\n", 3, 'Did you mean "binary"'),
        ("methods:\n  ridge:\n  hard-sharng:\n", 3, 'Did you mean "hard-sharing"'),
        ("targets:\n  - price\n  - no\n", 3, "quotes"),
        ("drop: [1]\n", 1, "quotes"),
        ("labels: {rent: 0}\n", 1, "labels.rent"),
        ("labels: {rent: few}\n", 1, "labels.rent"),
        ("data: a.csv\ndata: b.csv\n", 2, "twice"),
        ("kinds: {price: regression,\n  price: binary}\n", 2, "kinds.price"),
        ("data: !!python/object/apply:os.system ['touch x']\n", 1, "refused"),
        ("data: !!python/name:os.system\n", 1, "refused"),
        ("seed: &x 3\n", 1, "anchors"),
        ("data: [\n", 2, "not valid YAML"),
        ("data: 'a\n", 2, "not valid YAML"),
        ("- a\n- b\n", 1, "expected settings"),
        ("just words\n", 1, "expected settings"),
    ],
)
def test_a_wrong_value_is_placed_by_file_and_line(tmp_path, text, line, words):
    message = problem(tmp_path, text)
    assert f"c.yaml:{line}" in message
    assert words in message


@pytest.mark.parametrize(
    "text",
    [
        "data: a.csv\ndataset: nhanes\n",
        "target: score\n",
        "target: score\ntask: school\ntargets: [a]\n",
        "group: a\ntime: b\n",
        "yes: 1\n",
        "3: 1\n",
        "[" * 3000,
        "a: " + "{b: " * 3000,
        "\x00",
    ],
    ids=["two tables", "no task", "both forms", "two orders", "bool key", "number key", "deep", "deep map", "NUL"],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, text):
    problem(tmp_path, text)


def test_files_that_are_not_text_are_refused(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(b"data: \xff\xfe\n")
    with pytest.raises(InputError, match="UTF-8"):
        load_settings(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_settings(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_settings(tmp_path)


@hypothesis_settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read_or_answered(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with contextlib.suppress(InputError):
        load_settings(path)


def test_flags_override_the_file(tmp_path):
    path = written(tmp_path, "data: a.csv\ntrials: 5\nseed: 3\ntargets: [a, b]\n")
    found = load_settings(path, trials=7, dataset="nhanes", targets=None)
    assert (found.trials, found.seed, found.data, found.dataset, found.targets) == (7, 3, None, "nhanes", ("a", "b"))
    long = load_settings(path, target="score", task="school")
    assert (long.targets, long.target) == ((), "score")


def test_a_wrong_flag_is_named_as_a_flag(tmp_path):
    assert problem(tmp_path, "trials: 5\n", splits="x").startswith("--splits:")
    assert problem(tmp_path, "trials: 5\n", labels={"a": 0}).startswith("--labels")


def test_words_stand_for_lists_and_methods_for_their_defaults():
    found = load_settings(targets="a, b", methods="ridge,lasso")
    assert found.targets == ("a", "b")
    assert found.methods == {"ridge": {}, "lasso": {}}
    assert load_settings(methods="auto").methods == "auto"
    assert load_settings(methods={"ridge": {"alpha": 2.0}, "lasso": None}).fixed("ridge") == {"alpha": 2.0}


def test_settings_written_as_yaml_are_read_back_equal(tmp_path):
    first = load_settings(
        data="häuser & co.csv",
        targets=["a: b", "no", "1", "# c", "x" * 200, "it's"],
        kinds={"no": "binary", "a: b": "ordinal: low < high < off", "1": ["no", "yes"], "x": "date"},
        missing={"1": [-9, 99.5, "n/a", "no"]},
        labels={"1": 40},
        methods={"ridge": {"alpha": 1e-7}, "lasso": {}},
        splits="3x2",
        trials=4,
    )
    assert load_settings(written(tmp_path, first.to_yaml())) == first


def test_comments_of_a_written_file_do_not_change_it(tmp_path):
    first = load_settings(data="a.csv", targets=["a"])
    text = first.to_yaml(comments={"data": "a table\nof houses", "seed": "same seed, same result"})
    assert "# a table\n# of houses\ndata: a.csv" in text
    assert load_settings(written(tmp_path, text)) == first
