import dataclasses

import numpy as np
import pytest

from polytask.core.relation import Relation
from polytask.core.results import MethodInfo, Results, Run
from polytask.report import to_markdown
from polytask.report.markdown import escape, fenced


def cells(line):
    """Split a table row at the pipes that are not escaped."""
    return [cell.strip() for cell in line.replace("\\|", "\0").strip().strip("|").split("|")]


def test_every_row_of_every_table_has_as_many_cells_as_its_head(wide, long_facts, empty):
    odd = dataclasses.replace(wide, title="a|b", tasks=tuple({**t, "name": f"|x`{t['name']}"} for t in wide.tasks))
    for results in (wide, long_facts, empty, odd):
        width = None
        for line in to_markdown(results).splitlines():
            if line.startswith("|"):
                width = width or len(cells(line))
                assert len(cells(line)) == width, line
            else:
                width = None


def test_markdown_and_facts_tell_the_same(wide, wide_facts):
    facts = wide_facts
    text = to_markdown(wide)
    assert to_markdown(facts) == text
    assert facts["headline"]["sentence"] in text
    for row in facts["verdicts"]:
        assert any(
            line.startswith(f"| {escape(row['task'])} |") and row["verdict"] in line for line in text.splitlines()
        )


def shown(relation):
    """Return the lines of a report on one relation."""
    runs = (Run("m", 0, 0, relations={"r": relation}),)
    return to_markdown(Results("t", {}, {}, (), (MethodInfo("m", "shared", ""),), runs)).splitlines()


def test_a_small_tree_of_tasks_is_a_nested_list():
    merges = np.array([[0, 1, 0.5, 2], [2, 3, 1.0, 2], [4, 5, 2.0, 4]])
    lines = shown(Relation("tree", merges, ("a", "b|c", "d", "e"), ()))
    start = lines.index("- joined at 2.000")
    assert lines[start + 1 : start + 7] == [
        "  - joined at 0.5000", "    - a", "    - b\\|c", "  - joined at 1.000", "    - d", "    - e",
    ]  # fmt: skip
    many = np.array([[0, 1, 1.0, 2], *([k + 1, 39 + k, k + 1.0, k + 2] for k in range(1, 39))])
    assert "A tree of 40 leaves; drawn in the HTML report." in shown(
        Relation("tree", many, tuple(map(str, range(40))), ())
    )


def test_clusters_and_loadings_are_a_table_with_tasks_as_rows_where_they_are_many():
    names = tuple(f"task {number}" for number in range(50))
    loadings = np.arange(100.0).reshape(2, 50)
    lines = shown(Relation("loadings", loadings, ("cluster 1", "cluster 2"), names))
    start = lines.index("|  | cluster 1 | cluster 2 |")
    assert lines[start + 2] == "| task 0 | 0 | 50.0 |"
    assert "10 more rows left out here." in lines
    assert "|  | a | b |" in shown(Relation("loadings", loadings[:, :2], ("cluster 1", "cluster 2"), ("a", "b")))
    assert "50 rows by 50 columns; drawn in the HTML report." in shown(Relation("weights", np.eye(50), names, names))


def test_text_of_the_user_is_escaped():
    assert escape("a|b") == "a\\|b"
    assert escape("`rm`") == "\\`rm\\`"
    assert escape("<script>") == "&lt;script&gt;"
    assert escape("[x](javascript:y)") == "\\[x\\](javascript:y)"
    assert escape("**b** _i_ $m$ #h") == "\\*\\*b\\*\\* \\_i\\_ \\$m\\$ \\#h"


def test_a_fence_is_longer_than_the_backticks_inside():
    assert fenced("a ```` b").startswith("`````\n")


def test_code_of_the_settings_cannot_leave_its_block(wide):
    setup = {"command": "polytask ```\n# not a heading", "config": {"a": "```\n<script>"}}
    text = to_markdown(dataclasses.replace(wide, setup=setup))
    lines = text.splitlines()
    inside = False
    for line in lines:
        if line.startswith("````"):
            inside = not inside
        assert inside or "<script>" not in line


@pytest.mark.parametrize("most", [5, 1000])
def test_long_tables_say_how_many_rows_are_left_out(long_facts, most):
    text = to_markdown(long_facts, most_tasks=most)
    rows = [line for line in text.split("## Gain")[0].splitlines() if line.startswith("| school")]
    assert len(rows) == min(most, 139)
    assert ("134 more tasks left out here." in text) == (most == 5)


def test_results_without_a_finished_run_give_markdown(empty):
    assert "No run has finished" in to_markdown(empty)
