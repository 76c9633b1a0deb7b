import dataclasses
import io

import pytest
from rich.console import Console

from polytask.report import to_terminal


def printed(results, width=100, encoding="utf-8", **rest):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    Console(file=stream, width=width, **rest).print(to_terminal(results))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


def test_every_task_stands_in_the_table_with_its_verdict_and_own_metric(wide, wide_facts):
    text = printed(wide)
    for row in wide_facts["verdicts"]:
        assert any(line.startswith(row["task"]) and row["verdict"] in line for line in text.splitlines())
    for label in ("RMSE", "log-loss", "MAE"):
        assert label in text


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_no_line_is_wider_than_the_terminal(wide_facts, long_facts, empty, width):
    for results in (wide_facts, long_facts, empty):
        assert max(len(line) for line in printed(results, width).splitlines()) <= width


def test_output_that_is_no_terminal_has_no_control_codes(wide):
    assert "\x1b" not in printed(wide)
    assert "\x1b" in printed(wide, force_terminal=True)


def test_an_ascii_stream_gets_ascii(wide):
    text = printed(wide, encoding="ascii")
    assert "+ gains" in text
    assert "- hurt" in text


def test_names_are_not_read_as_markup_and_cannot_move_the_cursor(wide):
    names = ("[bold red]x[/]", "[/nothing]", "a\x1b[2Jb", "[link=http://x]y[/link]")
    tasks = tuple({**task, "name": name} for task, name in zip(wide.tasks, names, strict=False))
    verdicts = tuple(dataclasses.replace(v, task=n) for v, n in zip(wide.verdicts, names, strict=False))
    odd = dataclasses.replace(wide, title="[red]title[/red]", tasks=tasks, verdicts=verdicts)
    text = printed(odd, 140, force_terminal=True, color_system=None)
    assert "[bold red]x[/]" in text
    assert "[/nothing]" in text
    assert "[red]title[/red]" in text
    assert "\x1b[2J" not in text


def test_many_tasks_are_cut_to_the_strongest_of_every_verdict(long_facts):
    text = printed(long_facts)
    assert "24 of 139 tasks shown" in text
    counts = long_facts["headline"]["counts"]
    for verdict in ("gains", "hurt", "cannot tell"):
        assert f"{counts[verdict]} {verdict}" in text
        assert sum(verdict in line for line in text.splitlines() if line.startswith("school")) == 8


def test_explained_variance_of_both_definitions_is_printed_with_published_ranges(long_facts):
    text = " ".join(printed(long_facts).split())
    assert "Explained variance, overall mean: ridge 33.0 %" in text
    assert "Explained variance, task means: ridge 23.0 %" in text
    assert "published, approximate: multi-task feature learning 26.0 % to 27.0 %" in text


def test_one_line_tells_the_mean_gain_of_each_sharing_method(wide, wide_facts):
    text = " ".join(printed(wide).split())
    for row in wide_facts["methods"]:
        if row["sharing"] != "single":
            assert f"{row['method']}: mean gain" in text


def test_results_without_a_finished_run_are_printed(empty):
    text = printed(empty)
    assert "No run has finished" in text
    assert "13 more failed runs" in text
