import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from polytask.core.relation import Relation
from polytask.core.results import MethodInfo, Results, Run
from polytask.report import collect
from polytask.report.background import _published
from polytask.report.sharing import dendrogram, similar_together


def by_name(rows, name, key="task"):
    return next(row for row in rows if row[key] == name)


def test_facts_are_plain_json_without_nan(wide_facts, long_facts, empty):
    for facts in (wide_facts, long_facts, collect(empty)):
        assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_facts_are_the_same_for_results_read_back_from_json(wide, example):
    for results in (wide, example.make_long(30, 3)):
        assert json.dumps(collect(results)) == json.dumps(collect(Results.from_json(results.to_json())))


def test_headline_counts_every_task_once(wide, long):
    for results in (wide, long):
        counts = collect(results)["headline"]["counts"]
        assert sum(counts.values()) == len(results.tasks)
        for verdict, n in counts.items():
            assert n == sum(item.verdict == verdict for item in results.verdicts)


def test_headline_says_the_counts_in_words(wide_facts):
    facts = wide_facts
    counts = facts["headline"]["counts"]
    sentence = facts["headline"]["sentence"]
    assert sentence.startswith(f"{counts['gains']} of 12 tasks gain")
    assert f"{counts['hurt']} are hurt" in sentence
    assert "cannot be measured" in sentence


@pytest.mark.parametrize(
    ("verdicts", "sentence"),
    [
        (("gains",), "The one task gains from learning together."),
        (("hurt",), "The one task does not surely gain from learning together; 1 is hurt."),
        (("gains", "gains"), "All 2 tasks gain from learning together."),
        (("gains", "hurt"), "1 of 2 tasks gains from learning together; 1 is hurt."),
        (("cannot tell", "hurt"), "None of 2 tasks surely gains from learning together; 1 is hurt and for 1 the data "
         "cannot tell."),
    ],
)  # fmt: skip
def test_headline_grammar(wide, verdicts, sentence):
    tasks = wide.tasks[: len(verdicts)]
    items = tuple(
        dataclasses.replace(wide.verdicts[k], verdict=verdict, task=tasks[k]["name"])
        for k, verdict in enumerate(verdicts)
    )
    facts = collect(dataclasses.replace(wide, tasks=tasks, verdicts=items))
    assert facts["headline"]["sentence"] == sentence


def test_verdict_rows_come_surest_first(wide_facts):
    rows = wide_facts["verdicts"]
    order = ["gains", "hurt", "cannot tell", "not measurable"]
    places = [order.index(row["verdict"]) for row in rows]
    assert places == sorted(places)
    gains = [row["gain"] for row in rows if row["verdict"] == "gains"]
    assert gains == sorted(gains, reverse=True)
    losses = [row["gain"] for row in rows if row["verdict"] == "hurt"]
    assert losses == sorted(losses)


def test_verdict_row_repeats_the_comparison_it_speaks_of(wide, wide_facts):
    for row in wide_facts["verdicts"]:
        if row["verdict"] in ("gains", "hurt"):
            found = next(c for c in wide.comparisons if (c.task, c.method) == (row["task"], row["method"]))
            assert row["baseline"] == found.baseline
            assert row["score"] == pytest.approx(found.score, rel=1e-5)
            assert row["baseline_score"] == pytest.approx(found.baseline_score, rel=1e-5)
            assert (row["low"], row["high"]) == pytest.approx((found.low, found.high), rel=1e-4)
            assert row["n_labels"] == by_name(wide.data["tasks"], row["task"], "name")["n_labels"]


def test_hurting_methods_are_named_also_where_another_gains(wide, wide_facts):
    for row in wide_facts["verdicts"]:
        hurt = {c.method for c in wide.comparisons if c.task == row["task"] and c.verdict == "hurt"}
        assert set(row["hurt_by"]) == hurt


def test_a_task_that_is_not_measurable_says_why(wide_facts):
    row = by_name(wide_facts["verdicts"], "rare_condition")
    assert row["verdict"] == "not measurable"
    assert row["gain"] is None
    assert row["reason"] == "one class only in the test rows of 8 of 10 splits"


def test_a_refused_task_is_na_with_the_methods_reason(wide_facts):
    facts = wide_facts
    column = facts["gains"]["methods"].index("block-sparse")
    cell = by_name(facts["gains"]["tasks"], "diabetes")["cells"][column]
    assert cell == {"status": "n/a", "reason": "binary: the method is for regression"}
    assert by_name(facts["methods"], "block-sparse", "method")["n_refused"] == 6


def test_scores_are_mean_and_standard_deviation_over_splits(wide, wide_facts):
    facts = wide_facts
    row = next(r for r in facts["metrics"]["rows"] if (r["task"], r["metric"]) == ("bmi", "r2"))
    for method, cell in zip(facts["metrics"]["methods"], row["cells"], strict=True):
        values = [r.scores["bmi"]["r2"] for r in wide.runs if r.method == method and r.status == "done"]
        assert cell["mean"] == pytest.approx(np.mean(values), rel=1e-5)
        assert cell["sd"] == pytest.approx(np.std(values, ddof=1), rel=1e-4)
        assert cell["n"] == len(values)


def test_seeds_of_a_split_are_averaged_before_the_spread_is_taken():
    runs = tuple(
        Run("ridge", split, seed, scores={"a": {"rmse": value}})
        for (split, seed), value in {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 2.0, (1, 1): 2.0}.items()
    )
    task = {"name": "a", "kind": "regression", "metrics": ["rmse"], "labels": []}
    results = Results("t", {}, {}, (task,), (MethodInfo("ridge", "single", ""),), runs)
    cell = collect(results)["metrics"]["rows"][0]["cells"][0]
    assert (cell["mean"], cell["sd"], cell["n"]) == (2.0, 0.0, 2)


def test_best_score_is_the_smallest_error_and_the_largest_agreement(wide_facts):
    for row in wide_facts["metrics"]["rows"]:
        known = [cell for cell in row["cells"] if cell["mean"] is not None]
        if known:
            pick = max if row["higher_is_better"] else min
            assert pick(known, key=lambda cell: cell["mean"])["best"]


def test_failed_runs_are_listed_with_their_reason(wide_facts):
    facts = wide_facts
    assert facts["failed"]["n"] == facts["n_failed"] == 1
    assert facts["failed"]["rows"] == [
        {"method": "soft-sharing", "split": 8, "seed": 7, "error": "the loss became infinite in epoch 3 (task hdl)"}
    ]
    assert "1 of 80 runs failed" in " ".join(facts["headline"]["sentences"])


def test_results_without_a_finished_run_still_give_facts(empty):
    facts = collect(empty)
    assert facts["headline"]["sentence"] == "No run has finished, so there is no verdict yet."
    assert {row["verdict"] for row in facts["verdicts"]} == {"not measurable"}
    assert {cell["status"] for row in facts["gains"]["tasks"] for cell in row["cells"]} == {"failed", "n/a"}


def test_results_with_nothing_at_all_give_facts():
    facts = collect(Results("", {}, {}, (), (), ()))
    assert facts["title"] == "Comparison"
    assert facts["verdicts"] == []


def test_both_definitions_of_explained_variance_stand_beside_published_ranges(long_facts):
    first, second = long_facts["overall"]["metrics"]
    assert [first["name"], second["name"]] == ["explained_variance_global", "explained_variance_per_task"]
    assert first["rows"][0]["mean"] == pytest.approx(0.33)
    assert [(p["low"], p["high"]) for p in first["published"]] == [(0.23, 0.24), (0.26, 0.27), (0.299, 0.299)]
    assert all(p["approximate"] for p in first["published"])
    assert second["published"] == []


@pytest.mark.parametrize(
    ("plain", "low", "high", "note"),
    [
        ({"MTL": [0.1, 0.2]}, 0.1, 0.2, ""),
        ({"MTL": 0.3}, 0.3, 0.3, ""),
        ({"MTL": "about a third"}, None, None, "about a third"),
        ([{"what": "MTL", "metric": "explained_variance_global", "low": 26, "high": 27}], 0.26, 0.27, ""),
    ],
)
def test_published_ranges_may_be_given_in_several_forms(plain, low, high, note):
    (entry,) = _published(plain)
    assert (entry["what"], entry["low"], entry["high"], entry["note"]) == ("MTL", low, high, note)


def test_curves_of_many_tasks_become_bands_and_of_few_stay_single(wide_facts, long_facts):
    few, many = wide_facts["curves"], long_facts["curves"]
    assert [entry["method"] for entry in few] == ["single-task-network", "hard-sharing", "soft-sharing"]
    assert len(few[0]["tasks"]) == 12
    band = many[0]["band"]["valid"]
    assert all(a <= b <= c for a, b, c in zip(band["low"], band["middle"], band["high"], strict=True))
    assert many[0]["n_tasks"] == 139


def test_long_curves_are_thinned_but_keep_first_and_last_epoch(wide):
    history = {"epoch": list(range(1, 1001)), "train": {"bmi": [1.0 / e for e in range(1, 1001)]}, "valid": {}}
    run = dataclasses.replace(wide.runs[2], history=history)
    (entry,) = collect(dataclasses.replace(wide, runs=(run,)))["curves"]
    assert len(entry["epoch"]) <= 120
    assert (entry["epoch"][0], entry["epoch"][-1]) == (1, 1000)
    assert entry["tasks"][0]["train"][-1] == pytest.approx(0.001)


def test_coefficient_table_has_the_largest_rows_and_counts_used_features(wide, wide_facts):
    entry = by_name(wide_facts["relations"], "block-sparse", "method")
    table = by_name(entry["tables"], "coefficients", "name")
    full = next(r for r in wide.runs if r.method == "block-sparse").relations["coefficients"]
    size = np.abs(full.values).max(axis=1)
    assert table["n_used"] == int((size > 0).sum())
    assert table["rows"] == [full.rows[k] for k in np.argsort(-size)[: len(table["rows"])]]


def test_closest_pair_of_tasks_is_the_largest_entry_off_the_diagonal(wide, wide_facts):
    entry = by_name(wide_facts["relations"], "block-sparse", "method")
    table = by_name(entry["tables"], "coefficient_correlation", "name")
    full = next(r for r in wide.runs if r.method == "block-sparse").relations["coefficient_correlation"]
    off = full.values - 10 * np.eye(len(full.rows))
    i, j = np.unravel_index(off.argmax(), off.shape)
    assert {table["closest"][0]["first"], table["closest"][0]["second"]} == {full.rows[i], full.rows[j]}
    assert sorted(table["rows"]) == sorted(full.rows)


def test_ordering_puts_shuffled_blocks_together():
    rng = np.random.default_rng(0)
    block = rng.permutation(np.repeat([0, 1, 2], 5))
    values = np.where(block[:, None] == block[None, :], 0.8, -0.3) + 0.2 * np.eye(15)
    ordered = block[similar_together(values)]
    assert (np.diff(ordered) != 0).sum() == 2


def test_dendrogram_places_each_parent_between_its_children_at_the_merge_height():
    merges = [[0, 1, 0.5, 2], [2, 4, 1.0, 3], [3, 5, 2.0, 4]]
    order, brackets = dendrogram(4, merges)
    assert sorted(order) == [0, 1, 2, 3]
    assert [bracket["x"][1] for bracket in brackets] == [0.5, 1.0, 2.0]
    place = {leaf: k for k, leaf in enumerate(order)}
    assert brackets[0]["y"] == [place[0], place[0], place[1], place[1]]
    assert brackets[1]["y"][2] == (place[0] + place[1]) / 2


def test_a_tree_keeps_its_leaves_in_the_facts(wide, wide_facts):
    entry = by_name(wide_facts["relations"], "soft-sharing", "method")
    tree = by_name(entry["tables"], "tower_tree", "name")
    assert tree["leaves"] == [task["name"] for task in wide.tasks]
    assert len(tree["merges"]) == 11


def test_a_relation_of_constant_tasks_does_not_break_the_facts():
    relation = Relation("covariance", np.zeros((4, 4)), tuple("abcd"), tuple("abcd"))
    runs = (Run("m", 0, 0, relations={"r": relation}),)
    results = Results("t", {}, {}, (), (MethodInfo("m", "shared", ""),), runs)
    (entry,) = collect(results)["relations"]
    assert sorted(entry["tables"][0]["rows"]) == list("abcd")


def test_settings_hold_the_command_the_yaml_and_the_versions(wide, wide_facts):
    import yaml

    settings = wide_facts["settings"]
    assert settings["command"] == wide.setup["command"]
    assert yaml.safe_load(settings["yaml"]) == wide.setup["config"]
    assert {entry["name"]: entry["version"] for entry in settings["versions"]} == wide.setup["versions"]


def test_the_plan_is_shown_where_no_other_settings_are_known(wide):
    setup = {"plan": {"trials": 3}, "fingerprint": "ab", "command": ["polytask", "compare", "my file.csv"]}
    settings = collect(dataclasses.replace(wide, setup=setup))["settings"]
    assert settings["yaml"] == "{trials: 3}"
    assert settings["others"] == [{"name": "Fingerprint", "value": "ab"}]
    assert settings["command"] == "polytask compare 'my file.csv'"


def test_missing_counts_become_shares_of_all_rows(wide_facts):
    task = by_name(wide_facts["data"]["tasks"], "cholesterol")
    assert task["missing"] == pytest.approx((4812 - 2210) / 4812, rel=1e-4)


def test_control_characters_and_bidirectional_overrides_never_leave_the_facts(wide):
    bad = "a\x1b[31m\u202eb\x00\nc\ud800"
    tasks = ({**wide.tasks[0], "name": bad}, *wide.tasks[1:])
    facts = collect(dataclasses.replace(wide, title=bad, tasks=tasks))
    text = json.dumps(facts, ensure_ascii=False)
    text.encode("utf-8")
    assert not any(character in text for character in "\x1b\u202e\x00")
    assert facts["title"] == "a\ufffd[31m\ufffdb\ufffd c\ufffd"


def test_the_statistics_are_explained_in_three_sentences(wide, wide_facts):
    reading = wide_facts["reading"]
    assert len(reading) == 3
    assert "10 train/test splits" in reading[1]
    measured = sum(c.p_holm is not None for c in wide.comparisons if c.task)
    assert f"all {measured} pairs" in reading[2]


def test_importing_the_room_loads_neither_plotly_nor_jinja():
    code = "import sys, polytask.report; print([m for m in ('plotly', 'jinja2', 'rich', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
