import base64
import dataclasses
import hashlib
import html.parser
import json
import re
import subprocess
import sys

import pytest

from polytask.core.errors import DiskError, InputError
from polytask.report import collect, write_html
from polytask.report.figures import curve_figures, forests, label, relation_figure
from polytask.report.html import script_json, to_html


class Page(html.parser.HTMLParser):
    """Collects what a page is made of."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.scripts, self.policy, self.tags, self.attributes, self.rows = [], "", [], [], []
        self._script = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        found = dict(attrs)
        if tag == "script":
            self._script = found.get("type", "")
            self.scripts.append([self._script, ""])
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]
        if tag == "tr" and "data-verdict" in found:
            self.rows.append(found["data-name"])

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, data):
        if self._script is not None:
            self.scripts[-1][1] += data


@pytest.fixture(scope="module")
def page(wide):
    return Page(to_html(wide))


def test_only_scripts_whose_hash_is_in_the_policy_stand_in_the_page(page):
    code = [text for kind, text in page.scripts if kind != "application/json"]
    assert len(code) == 2
    for text in code:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in page.policy
    rules = dict(rule.strip().split(" ", 1) for rule in page.policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in rules["script-src"]


def test_the_page_names_no_address_to_load_from(page):
    loading = {"src", "srcset", "data", "action", "formaction", "poster", "background"}
    assert not [entry for entry in page.attributes if entry[1] in loading]
    assert all(value.startswith("#") for _, name, value in page.attributes if name == "href")
    assert not [entry for entry in page.attributes if entry[1].startswith("on")]
    assert not set(page.tags) & {"link", "iframe", "object", "embed", "base", "img"}


def test_the_verdict_table_comes_before_every_chart_and_has_every_task(wide, page, wide_facts):
    assert page.rows == [row["task"].lower() for row in wide_facts["verdicts"]]
    text = to_html(wide)
    assert text.index('id="verdicts"') < text.index('class="plot"')
    order = [
        text.index(f'<section id="{name}">') for name in ("verdict", "gains", "curves", "shared", "data", "settings")
    ]
    assert order == sorted(order)


def test_all_tasks_of_a_long_comparison_are_rows_of_the_page(long_facts):
    assert len(Page(to_html(long_facts)).rows) == 139


def test_facts_and_results_make_the_same_page(wide, wide_facts):
    assert to_html(wide_facts) == to_html(wide)


def test_pages_of_no_or_few_runs_are_made(wide, empty):
    assert "No run has finished" in to_html(empty)
    for n_tasks, runs in ((0, ()), (1, wide.runs[:3])):
        cut = dataclasses.replace(wide, tasks=wide.tasks[:n_tasks], runs=runs, comparisons=(), verdicts=())
        assert "<main" in to_html(cut)
    bare = dataclasses.replace(
        wide, tasks=(), runs=(), comparisons=(), verdicts=(), methods=(), setup={}, data={}, title=""
    )
    assert "<main" in to_html(bare)


def test_json_in_a_script_cannot_end_the_script():
    nasty = {"a": "</script><!--<script>&\u2028\u2029"}
    text = script_json(nasty)
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == nasty


def test_labels_of_charts_are_escaped_but_keep_quotes():
    assert label("<a href='x'>&\"") == "&lt;a href='x'&gt;&amp;\""
    assert label("x" * 100).endswith("…")


def every_figure(facts):
    curves = curve_figures(facts["curves"])
    charts = [*forests(facts), *curves["tasks"], *curves["bands"]]
    figures = [chart["figure"] for chart in charts]
    figures += [relation_figure(table) for entry in facts["relations"] for table in entry["tables"]]
    return [figure for figure in figures if figure is not None]


def test_every_chart_is_a_valid_plotly_figure(wide_facts, long_facts):
    import plotly.graph_objects as go

    for facts in (wide_facts, long_facts):
        figures = every_figure(facts)
        assert len(figures) >= 10
        for figure in figures:
            go.Figure({"data": figure["data"], "layout": figure["layout"]})


def test_forest_of_few_tasks_names_them_and_of_many_tasks_sorts_them(wide_facts, long_facts):
    few = {chart["method"]: chart["figure"] for chart in forests(wide_facts)}
    assert few["hard-sharing"]["layout"]["yaxis"]["ticktext"][0] == "fasting_glucose"
    assert sum(len(trace["x"]) for trace in few["hard-sharing"]["data"]) == 11
    many = forests(long_facts)[0]["figure"]
    points = sorted((y, x) for trace in many["data"] for x, y in zip(trace["x"], trace["y"], strict=True))
    assert len(points) == 139
    assert [x for _, x in points] == sorted(x for _, x in points)


def test_forest_interval_ends_are_those_of_the_comparison(wide, wide_facts):
    chart = next(chart for chart in forests(wide_facts) if chart["method"] == "pooled")
    item = next(c for c in wide.comparisons if (c.task, c.method) == ("bmi", "pooled"))
    trace = next(t for t in chart["figure"]["data"] if t["name"] == item.verdict)
    place = chart["figure"]["layout"]["yaxis"]["ticktext"].index("bmi")
    k = trace["y"].index(place)
    assert trace["x"][k] == pytest.approx(100 * item.gain, rel=1e-3)
    assert trace["x"][k] + trace["error_x"]["array"][k] == pytest.approx(100 * item.high, rel=1e-3)
    assert trace["x"][k] - trace["error_x"]["arrayminus"][k] == pytest.approx(100 * item.low, rel=1e-3)


def test_one_absurd_interval_does_not_squeeze_the_others(wide):
    first = next(k for k, c in enumerate(wide.comparisons) if c.gain is not None)
    wild = list(wide.comparisons)
    wild[first] = dataclasses.replace(wild[first], gain=-500.0, low=-900.0, high=-100.0)
    chart = forests(collect(dataclasses.replace(wide, comparisons=tuple(wild))))[0]["figure"]
    low, high = chart["layout"]["xaxis"]["range"]
    assert high - low < 100


def test_the_file_is_replaced_whole_and_nothing_is_left_beside_it(wide, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    assert write_html(wide, path) == path
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_most_of_the_file_is_plotly(wide, tmp_path):
    from plotly.offline import get_plotlyjs

    size = write_html(wide, tmp_path / "report.html").stat().st_size
    assert size < len(get_plotlyjs().encode()) + 400_000


def test_a_path_that_cannot_be_is_refused_with_its_remedy(wide, tmp_path):
    with pytest.raises(InputError, match="does not exist; create it first"):
        write_html(wide, tmp_path / "no" / "report.html")
    with pytest.raises(InputError, match="is a folder"):
        write_html(wide, tmp_path)


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))"
    code = f"""
import resource
from polytask.core.results import Results
from polytask.core.errors import DiskError
from polytask.report import write_html
{limit}
try:
    write_html(Results("t", {{}}, {{}}, (), (), ()), {str(path)!r})
except DiskError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert str(path) in done.stdout
    assert "bytes free" in done.stdout
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    assert DiskError.exit_code == 74
