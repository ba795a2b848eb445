"""The page that follows a run, in Chromium: the records of a real run, appended step by step."""

import threading
from contextlib import closing

import pytest
from chromium import Browser, find

from sdpo.metrics.jsonl import JsonLines, read_rows
from sdpo.report.watch import ReportServer

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find() is None, reason="no Chromium on this machine"),
]

FILES = ("rollouts.jsonl", "credit.jsonl", "metrics.jsonl")
"""The first as older versions left it: not compressed."""
STATE = "document.querySelector('#live').textContent"
SOLVED = (
    "[...document.querySelectorAll('.chart')].find((c) => c.querySelector('h3').textContent"
    " === 'Solved, training').querySelector('.plot')"
)


class Replayed:
    """A run directory that grows as `source` did."""

    def __init__(self, folder, source):
        self.folder, self._source = folder, source
        folder.mkdir()
        (folder / "config.json").write_bytes((source / "config.json").read_bytes())

    def go_on(self, step):
        """Append what the run wrote at `step`, the metrics last, as training does."""
        for name in FILES:
            rows = (row for row in read_rows(self._source / name) if row["step"] == step)
            with closing(JsonLines(self.folder / name)) as lines:
                lines.append(rows)


@pytest.fixture
def run(tiny_run, tmp_path):
    return Replayed(tmp_path / "run", tiny_run)


@pytest.fixture
def page():
    with Browser() as browser:
        browser.size(1600, 1200)
        yield browser


@pytest.fixture
def server(run):
    with ReportServer([run.folder], port=0) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def test_the_page_grows_with_the_run_and_the_reader_stays_where_they_are(run, page, server):
    page.goto(server.address)
    assert "No step is done yet" in page.evaluate("document.querySelector('main').textContent")
    assert page.evaluate(STATE) == "live, waiting for the first step"
    run.go_on(0)
    page.wait(f"{STATE}.startsWith('live, step 0 of 3')")
    run.go_on(1)
    page.wait(f"{STATE}.startsWith('live, step 1 of 3')")
    page.wait(f"{SOLVED}.classList.contains('js-plotly-plot')")
    assert page.evaluate(f"{SOLVED}.data.at(-1).x") == [1]
    page.evaluate(
        "{const f = document.querySelector('#rollouts [aria-label=outcome]'); f.value = 'failed';"
        " f.dispatchEvent(new Event('change')); document.querySelectorAll('#rollouts .item')[1]"
        ".click(); window.plot = " + SOLVED + "; window.scrollTo(0, 400)}"
    )
    chosen = page.evaluate("document.querySelector('#rollouts .detail').textContent")
    count = page.evaluate("document.querySelectorAll('#rollouts .item').length")
    place = page.evaluate(f"{SOLVED}.getBoundingClientRect().top")
    run.go_on(2)
    run.go_on(3)
    page.wait(f"{STATE}.startsWith('live, step 3 of 3')")
    page.wait(f"{SOLVED}.data.at(-1).x.length === 3")
    assert page.evaluate(f"window.plot === {SOLVED}")
    # Text above it changed; the browser holds on to what is in view.
    assert abs(page.evaluate(f"{SOLVED}.getBoundingClientRect().top") - place) < 2
    assert page.evaluate("document.querySelector('#rollouts .detail').textContent") == chosen
    assert page.evaluate("document.querySelectorAll('#rollouts .item').length") > count
    badges = "[...document.querySelectorAll('#rollouts .item .badge')].map((n) => n.textContent)"
    assert set(page.evaluate(badges)) <= {"wrong answer", "not solved"}
    assert page.evaluate("document.querySelector('.headline').textContent").count("over 6 tasks")
    assert page.errors == []
    origin = server.address
    assert [u for u in page.requests if not u.startswith((origin, "data:", "about:"))] == []


def test_the_page_says_when_its_server_has_ended_and_keeps_what_it_has(run, page, server):
    run.go_on(0)
    run.go_on(1)
    page.goto(server.address)
    server.shutdown()
    server.server_close()
    page.wait(f"{STATE} === 'the server has ended'")
    assert page.evaluate("document.querySelectorAll('#rollouts .item').length") > 0
    assert all("ERR_CONNECTION_REFUSED" in error for error in page.errors)
