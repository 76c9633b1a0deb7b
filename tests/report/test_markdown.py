import dataclasses

import pytest

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
