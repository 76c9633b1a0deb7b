"""R19: nothing a table says becomes code, shown in a real browser with the policy on and off."""

import dataclasses
import os
import re
import shutil
import time

import pytest

from polytask.core.relation import Relation
from polytask.report import collect, write_html
from polytask.report.words import clip

pytestmark = pytest.mark.browser

PAYLOADS = (
    "<script>window.__xss=1</script>",
    "</script><script>window.__xss=2</script>",
    "<img src=x onerror=window.__xss=3>",
    '"><svg onload=window.__xss=4>',
    "' onmouseover=window.__xss=5 autofocus onfocus=window.__xss=5 x='",
    '<a href="javascript:window.__xss=6">x</a>',
    "{{constructor.constructor('window.__xss=7')()}}{% raw %}",
    "${window.__xss=8}`+(window.__xss=8)+`",
    "\\u003cimg src=x onerror=window.__xss=9\\u003e%{x}",
    "<!--<script>window.__xss=10//",
    '<iframe srcdoc="<script>parent.__xss=11</script>"></iframe>',
    "\u2028</style></title></textarea><body onload=window.__xss=12>&lt;b&gt;",
)
ARGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if found is None:
        if os.environ.get("POLYTASK_REQUIRE_BROWSER") == "1":
            pytest.fail("POLYTASK_REQUIRE_BROWSER=1 but neither chromium nor google-chrome is on the path")
        pytest.skip("no Chromium on the path; set POLYTASK_REQUIRE_BROWSER=1 to make this a failure")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=ARGS)
        yield chromium
        chromium.close()


def until(page, condition):
    """Wait until a condition holds in the page (the policy forbids playwright's own way, which is eval)."""
    deadline = time.monotonic() + 30
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(50)


class Visit:
    """A page that was opened, with everything it asked for and complained of."""

    def __init__(self, browser, path):
        self.page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.complaints.append("dialog"), dialog.dismiss()))
        self.own = path.resolve().as_uri()
        self.page.goto(self.own)

    def use_everything(self):
        """Open, draw, sort, filter and point at all there is."""
        page = self.page
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        until(page, "[...document.querySelectorAll('.plot')].every((p) => p.querySelector('svg.main-svg'))")
        for k in range(page.locator("#verdicts thead button").count()):
            page.locator("#verdicts thead button").nth(k).click()
        for k in range(page.locator(".chip").count()):
            page.locator(".chip").nth(k).click()
        page.locator(".chip").first.click()
        page.fill("#find", "<script>")
        page.fill("#find", "")
        for k in range(min(page.locator(".plot").count(), 4)):
            page.locator(".plot .nsewdrag").nth(k).hover(force=True)
        page.mouse.move(640, 400)
        page.evaluate(
            "for (const e of document.querySelectorAll('main *')) e.dispatchEvent(new MouseEvent('mouseover'))"
        )
        page.wait_for_timeout(300)


@pytest.fixture
def poisoned(wide):
    """Results in which every text a user can choose is a payload."""
    names = {task["name"]: PAYLOADS[k] for k, task in enumerate(wide.tasks)}
    methods = {method.name: f"{method.name} {PAYLOADS[k]}" for k, method in enumerate(wide.methods)}

    def relation(old):
        rows = tuple(names.get(name, PAYLOADS[k % 12] + str(k)) for k, name in enumerate(old.rows))
        columns = tuple(names.get(name, PAYLOADS[k % 12] + str(k)) for k, name in enumerate(old.columns))
        return Relation(old.kind, old.values, rows, columns, PAYLOADS[2])

    def run(k, old):
        history = {
            side: {names[name]: curve for name, curve in value.items()} if isinstance(value, dict) else value
            for side, value in old.history.items()
        }
        return dataclasses.replace(
            old,
            method=methods[old.method],
            error=PAYLOADS[k % 12] if old.error else "",
            scores={names[name]: value for name, value in old.scores.items()},
            history=history,
            relations={f"{name} {PAYLOADS[0]}": relation(value) for name, value in old.relations.items()},
        )

    everything = " ".join(PAYLOADS)
    data = {
        **wide.data,
        "form": PAYLOADS[1],
        "features": [{"name": text, "kind": text, "missing": 1} for text in PAYLOADS],
        "tasks": [
            {**task, "name": names[task["name"]], "labels": list(PAYLOADS), "shares": dict.fromkeys(PAYLOADS, 0.1)}
            for task in wide.data["tasks"]
        ],
        "notes": list(PAYLOADS),
    }
    return dataclasses.replace(
        wide,
        title=everything,
        setup={
            "command": f"polytask compare '{everything}.csv'",
            "config": {text: text for text in PAYLOADS},
            "fingerprint": everything,
            "versions": {text: text for text in PAYLOADS},
            "published": dict.fromkeys(PAYLOADS, PAYLOADS[3]),
            "more": {text: [text] for text in PAYLOADS},
        },
        data=data,
        tasks=tuple({**task, "name": names[task["name"]], "labels": list(PAYLOADS)} for task in wide.tasks),
        methods=tuple(
            dataclasses.replace(
                method,
                name=methods[method.name],
                summary=everything,
                refused={names[name]: PAYLOADS[k] for k, name in enumerate(method.refused)},
            )
            for method in wide.methods
        ),
        runs=tuple(run(k, old) for k, old in enumerate(wide.runs)),
        comparisons=tuple(
            dataclasses.replace(
                item,
                task=names.get(item.task),
                method=methods[item.method],
                baseline=methods.get(item.baseline, item.baseline),
                reason=PAYLOADS[k % 12] if item.reason else "",
            )
            for k, item in enumerate(wide.comparisons)
        ),
        verdicts=tuple(
            dataclasses.replace(
                item,
                task=names[item.task],
                method=methods.get(item.method),
                baseline=methods.get(item.baseline),
                hurt_by=tuple(methods[name] for name in item.hurt_by),
                advice=PAYLOADS[k],
            )
            for k, item in enumerate(wide.verdicts)
        ),
        overall={methods["ridge"]: {PAYLOADS[4]: {"mean": 1.0}}},
    )


@pytest.mark.parametrize("policy", [True, False], ids=["policy on", "policy off"])
def test_no_text_of_the_user_becomes_code(browser, poisoned, tmp_path, policy):
    path = tmp_path / "<img src=x onerror=window.__xss=13>.html"
    write_html(poisoned, path)
    if not policy:
        text, n = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text(encoding="utf-8"))
        assert n == 1
        path.write_text(text, encoding="utf-8")
    visit = Visit(browser, path)
    visit.use_everything()
    assert visit.page.evaluate("window.__xss") is None
    assert visit.complaints == []
    assert visit.requests == [visit.own]
    assert visit.page.locator("iframe, main img, main a[href^='javascript']").count() == 0
    assert visit.page.locator(".plot a").count() == 0
    shown = {text.strip() for text in visit.page.locator("#verdicts tbody .task").all_text_contents()}
    assert shown == {clip(row["task"], 60).strip() for row in collect(poisoned)["verdicts"]}
    visit.page.close()


def test_every_measured_gain_is_drawn_and_a_task_named_like_a_script_is_text(browser, wide, tmp_path):
    names = {"bmi": "<script>alert(1)</script>", "hdl": "<b>b</b><i>i</i>"}

    def renamed(item):
        return dataclasses.replace(item, task=names.get(item.task, item.task))

    results = dataclasses.replace(
        wide,
        tasks=tuple({**task, "name": names.get(task["name"], task["name"])} for task in wide.tasks),
        comparisons=tuple(map(renamed, wide.comparisons)),
        verdicts=tuple(map(renamed, wide.verdicts)),
    )
    facts = collect(results)
    visit = Visit(browser, write_html(facts, tmp_path / "report.html"))
    visit.use_everything()
    page = visit.page
    assert set(names.values()) < set(page.locator("#verdicts tbody .task").all_inner_texts())
    ticks = page.locator("#gains .plot .ytick text").all_text_contents()
    assert any(tick.startswith("<script>alert(1)</scrip") for tick in ticks)
    assert names["hdl"] in ticks
    measured = sum(cell["status"] == "measured" for row in facts["gains"]["tasks"] for cell in row["cells"])
    assert page.locator("#gains .plot .points path.point").count() == measured
    lines = sum(len(entry["tasks"]) * 2 for entry in facts["curves"])
    assert page.locator("#curves .plot .scatterlayer path.js-line").count() == lines
    assert page.locator("#shared .plot .heatmaplayer image").count() == 2
    assert fits_a_phone(page)
    assert visit.complaints == []
    page.close()


def fits_a_phone(page):
    """Whether the page, once charts have been drawn again, is not wider than a phone."""
    page.set_viewport_size({"width": 390, "height": 844})
    until(page, "document.documentElement.scrollWidth <= 390")
    return True


def test_tasks_of_a_long_comparison_can_all_be_reached_filtered_and_sorted(browser, long_facts, tmp_path):
    visit = Visit(browser, write_html(long_facts, tmp_path / "report.html"))
    page = visit.page
    rows = page.locator("#verdicts tbody tr:visible")
    assert rows.count() == 25
    page.click("#shown button")
    assert rows.count() == 139
    counts = long_facts["headline"]["counts"]
    page.click(".chip[data-filter=hurt]")
    assert rows.count() == counts["hurt"]
    page.click('.chip[data-filter=""]')
    page.fill("#find", "SCHOOL 01")
    assert rows.count() == 10
    page.fill("#find", "")
    page.locator("#verdicts thead button", has_text="Labels").click()
    labels = [int(text.replace(" ", "")) for text in page.locator("#verdicts tbody td:last-child").all_inner_texts()]
    assert labels == sorted(labels, reverse=True)
    assert page.locator("#verdicts th[aria-sort=descending]").count() == 1
    assert fits_a_phone(page)
    assert visit.complaints == []
    page.close()


def test_a_report_without_a_finished_run_opens(browser, empty, tmp_path):
    visit = Visit(browser, write_html(empty, tmp_path / "report.html"))
    assert "No run has finished" in visit.page.inner_text("header")
    assert fits_a_phone(visit.page)
    assert visit.complaints == []
    visit.page.close()
