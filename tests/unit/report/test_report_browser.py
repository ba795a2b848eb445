import importlib.util
import json
import re

import pytest
from chromium import Browser, find
from synthetic_run import ATTACK, make_run

from sdpo.config.load import load_config
from sdpo.models.gguf import DEMO_PACKAGE
from sdpo.report import credit_page, write_report
from sdpo.rollouts.credit import read_credit
from sdpo.training.loop import train

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find() is None, reason="no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report([make_run(tmp_path_factory.mktemp("one") / "run", steps=30)])


@pytest.fixture(scope="module")
def page(report):
    with Browser() as browser:
        browser.size(1600, 1000)
        browser.open(report)
        yield browser


def test_it_opens_without_errors_or_requests(page, report):
    page.wait("document.querySelectorAll('.js-plotly-plot .scatterlayer path').length > 4")
    assert page.errors == []
    assert [u for u in page.requests if u != report.resolve().as_uri() and u[:5] != "data:"] == []
    assert page.evaluate("document.body.dataset.pwned") is None


def test_every_section_is_there(page):
    titles = page.evaluate("[...document.querySelectorAll('h2')].map((n) => n.textContent)")
    for title in (
        "Overview",
        "Curves",
        "Token credit",
        "Rollouts",
        "Time and cost",
        "Settings",
    ):
        assert title in titles


def test_all_charts_draw_and_redraw(page):
    page.size(1600, 9000)
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    drawn = "document.querySelectorAll('.plot.js-plotly-plot').length"
    page.wait(f"{drawn} === document.querySelectorAll('.plot').length")
    assert page.evaluate(drawn) >= 18
    page.evaluate(
        "{const s = document.querySelector('#curves select'); s.value = 'tokens_total';"
        " s.dispatchEvent(new Event('change'))}"
    )
    page.wait("document.querySelector('.plot').textContent.includes('sampled tokens')")
    page.evaluate("document.querySelector('nav button').click()")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.errors == []


def test_the_parts_of_the_time_add_up_to_the_steps(page, tiny_run, tmp_path):
    """The page as it stands, on a real run: total seconds and percentages."""
    rows = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    page.open(write_report([tiny_run], tmp_path / "report.html"))
    parts = page.evaluate(
        "unpack('data').then((text) => { const data = JSON.parse(text);"
        " return timeParts(data.runs[0], data.time) })"
    )
    for i, row in enumerate(rows[1:], start=1):
        total = sum(values[i] for values in parts.values())
        assert total == pytest.approx(row["time/step_s"], rel=1e-3)
    shown = page.evaluate("document.querySelector('#cost tbody tr').textContent")
    shares = [int(share) for share in re.findall(r"(\d+)%", shown)]
    assert abs(sum(shares) - 100) <= len(shares)


def test_entropy_has_the_teachers_curve(page):
    keys = "[...document.querySelectorAll('.chart')].find((c) => c.querySelector('h3').textContent"
    text = page.evaluate(keys + " === 'Entropy').querySelector('.keys').textContent")
    assert "teacher" in text


def test_the_browser_filters(page, report):
    page.open(report)
    count = "document.querySelector('#rollouts .controls > span').textContent"
    assert page.evaluate(count) == "608 of 608 attempts"
    choose = (
        "{{const f = document.querySelector('#rollouts [aria-label=\"{}\"]'); f.value = '{}';"
        " f.dispatchEvent(new Event('{}'))}}"
    )
    page.evaluate(choose.format("outcome", "solved", "change"))
    page.evaluate(choose.format("first step", "30", "change"))
    solved = "[...document.querySelectorAll('#rollouts .item .badge')].map((n) => n.textContent)"
    assert set(page.evaluate(solved)) == {"accepted"}
    page.evaluate(choose.format("text", "no such text", "input"))
    assert page.evaluate(count).startswith("0 of")
    page.evaluate(choose.format("text", "", "input"))
    page.evaluate("document.querySelector('#rollouts .item').click()")
    assert "step 30" in page.evaluate("document.querySelector('#rollouts .detail').textContent")


def test_hostile_text_is_shown_as_text(page):
    page.evaluate(
        "{const f = document.querySelector('#rollouts [aria-label=text]');"
        " document.querySelector('#rollouts [aria-label=\"outcome\"]').value = '';"
        " document.querySelector('#rollouts [aria-label=\"first step\"]').value = 0;"
        " f.value = 'onerror=alert'; f.dispatchEvent(new Event('input'));"
        " document.querySelector('#rollouts .item').click()}"
    )
    assert ATTACK in page.evaluate("document.querySelector('#rollouts .detail').textContent")
    assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0


def test_pointing_at_a_token_shows_both_sides(page):
    page.evaluate(
        "document.querySelector('#credit .tok').dispatchEvent("
        "new MouseEvent('mouseover', {bubbles: true}))"
    )
    tip = page.evaluate("document.querySelector('.tip').textContent")
    assert "Student would say" in tip
    assert "Teacher would say" in tip
    shades = page.evaluate(
        "new Set([...document.querySelectorAll('#credit .tokens')[1].children]"
        ".map((t) => t.style.backgroundColor)).size"
    )
    assert shades == 1


def test_a_phone_needs_no_sideways_scrolling(page, report):
    page.size(400, 900)
    page.open(report)
    page.wait("document.querySelectorAll('.js-plotly-plot').length > 1")
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert page.errors == []


def test_several_runs_are_compared(page, tmp_path):
    runs = [make_run(tmp_path / f"sdpo-seed{i}", steps=12, seed=i) for i in range(2)]
    runs.append(make_run(tmp_path / "hot", steps=30, collapse=True, optim={"lr": 3e-4}))
    page.size(1600, 1000)
    page.open(write_report(runs, tmp_path / "compared.html"))
    page.wait("document.querySelectorAll('.js-plotly-plot').length > 3")
    text = page.evaluate("document.querySelector('main').textContent")
    assert "sdpo (2 seeds)" in text
    assert "entropy collapse" in text
    assert "What differs" in text
    assert page.errors == []


def test_the_page_of_one_attempt_works(page, tmp_path):
    credit = next(read_credit(make_run(tmp_path / "run", steps=1)))
    path = tmp_path / "credit.html"
    path.write_text(credit_page(credit))
    page.open(path)
    assert page.evaluate("document.querySelectorAll('.tok').length") == 2 * len(credit.token_ids)
    assert page.errors == []


def test_a_discovery_run_has_its_curves_and_tasks(page, tmp_path):
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "discovery.json").write_text(json.dumps(discovery_summary()))
    report = write_report([tmp_path / "found"])
    page.errors.clear()
    page.size(1600, 1000)
    page.open(report)
    page.wait("document.querySelectorAll('#discovery .scatterlayer path').length >= 4")
    text = page.evaluate("document.querySelector('#discovery').textContent")
    assert "Self-distillation against best of k at 64 attempts: +0.40 [0.10, 0.60]." in text
    assert "4 times fewer" in text
    assert "clamp" in text
    links = page.evaluate(
        "[...document.querySelectorAll('nav a:not([hidden])')].map((a) => a.textContent)"
    )
    assert links == ["Discovery"]
    page.size(400, 900)
    page.wait("document.documentElement.scrollWidth <= 400")
    assert page.errors == []


def discovery_summary():
    """As discovery/curves.py writes it."""
    ks = [1, 2, 4, 8, 16, 32, 64]
    curves = {
        name: [{"mean": f * i / 6, "low": f * i / 8, "high": f * i / 5} for i in range(7)]
        for name, f in (("self_distillation", 0.8), ("best_of_k", 0.4))
    }
    gain = {
        "difference": {"k": 64, "mean": 0.4, "low": 0.1, "high": 0.6},
        "speed_up": {"probability": 0.4, "attempts": 16, "baseline_attempts": 64, "factor": 4.0},
    }
    row = {"task_id": "clamp", "searches": 3, "attempts": 90, "seconds": 61.5, "stopped": 1}
    tasks = [
        {**row, "method": "self_distillation", "solved": 2, "median_attempts": 12.5},
        {**row, "method": "best_of_k", "solved": 0, "median_attempts": None},
    ]
    against = {"best_of_k": gain}
    return {"level": 0.9, "ks": ks, "curves": curves, "against": against, "tasks": tasks}


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec(DEMO_PACKAGE) is None,
    reason="the demo model's wheel is not installed: make setup",
)
def test_the_report_of_the_quickstart_opens(page, tmp_path):
    """One step of the real recipe with the real model, evaluated on three tasks."""
    run = tmp_path / "quickstart"
    train(load_config(["quickstart", f"run={run}", "steps=1", "eval.max_tasks=3"]))
    report = write_report([run])
    page.requests.clear()
    page.size(1600, 9000)
    page.open(report)
    page.wait("document.querySelectorAll('.js-plotly-plot .scatterlayer path').length > 4")
    assert page.evaluate("document.querySelectorAll('#credit .tok').length") > 0
    assert page.errors == []
    assert [u for u in page.requests if u != report.resolve().as_uri() and u[:5] != "data:"] == []
