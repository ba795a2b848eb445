"""What a reader of the report finds and takes along, in Chromium."""

import csv
import inspect
import io
import json
import re

import pytest
from chromium import Browser, find
from synthetic_run import make_run

from sdpo.metrics.jsonl import read_rows
from sdpo.records import TeacherContext
from sdpo.report import write_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find() is None, reason="no Chromium on this machine"),
]

CARD = (
    "[...document.querySelectorAll('.chart')].find((c) => c.querySelector('h3').textContent"
    " === '{}')"
)
BUTTON = "[...document.querySelectorAll('#rollouts button')].find((b) => b.textContent === '{}')"
PLOT = CARD + ".querySelector('.plot')"


@pytest.fixture(scope="module")
def report(tmp_path_factory, tiny_run):
    return write_report([tiny_run], tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def browser():
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def opened(browser, report):
    browser.size(1600, 9000)
    browser.open(report)
    browser.wait("document.querySelectorAll('.plot:not(.js-plotly-plot)').length === 0")
    return browser


@pytest.fixture
def page(opened):
    """The report of a real run, every chart drawn. Tests that open another page stand last."""
    yield opened
    assert opened.errors == []


def rows(run, name):
    return list(read_rows(run / name))


def texts(page, selector):
    return page.evaluate(
        f"[...document.querySelectorAll({json.dumps(selector)})].map((n) => n.textContent)"
    )


def test_the_first_words_say_what_happened(page):
    first = page.evaluate("document.querySelector('main section').textContent")
    assert first.startswith("Overview")
    headline = page.evaluate("document.querySelector('main section .headline').textContent")
    assert "held-out" in headline.lower()
    assert first.index(headline) < 20


def test_every_chart_names_its_axes_and_says_what_it_means(page):
    charts = page.evaluate(
        "[...document.querySelectorAll('.chart')].map((c) => [c.querySelector('h3').textContent,"
        " c.querySelector('.ytitle')?.textContent, c.querySelector('.xtitle')?.textContent,"
        " c.querySelector('.help').title])"
    )
    assert len(charts) > 20
    for title, vertical, horizontal, meaning in charts:
        assert vertical, title
        assert horizontal == "step", title
        assert meaning.endswith("."), title
    page.evaluate("document.querySelector('.help').click()")
    note = "document.querySelector('.chart .note')"
    assert page.evaluate(f"getComputedStyle({note}).display") == "block"
    assert page.evaluate(f"{note}.textContent") == charts[0][3]


def test_steps_are_whole_numbers(page):
    """A run of three steps had ticks at 0.5 and 1.5."""
    assert set(texts(page, "#curves .xtick, #cost .xtick")) <= {"0", "1", "2", "3"}


def test_the_shares_of_the_verdicts_are_those_of_the_records(page, tiny_run):
    traces = page.evaluate(PLOT.format("Verdicts") + ".data.map((t) => [t.name, t.x, t.y])")
    train = [row for row in rows(tiny_run, "rollouts.jsonl") if row["split"] == "train"]
    assert [name for name, _, _ in traces] == ["accepted", "wrong answer"]
    for name, steps, shares in traces:
        assert steps == [1, 2, 3]
        for step, share in zip(steps, shares, strict=True):
            of_step = [row["category"] for row in train if row["step"] == step]
            assert share == pytest.approx(of_step.count(name.replace(" ", "_")) / len(of_step))


def test_credit_is_sorted_by_disagreement_and_can_be_sorted_by_step(page):
    options = "[...document.querySelector('#credit [aria-label=attempt]').options]"
    sizes = page.evaluate(options + ".map((o) => parseFloat(o.textContent))")
    assert len(sizes) == 6
    assert sizes == sorted(sizes, reverse=True)
    page.evaluate(
        "{const s = document.querySelector('#credit [aria-label=\"order of attempts\"]');"
        " s.value = 'step'; s.dispatchEvent(new Event('change'))}"
    )
    steps = page.evaluate(options + r".map((o) => Number(/step (\d+)/.exec(o.textContent)[1]))")
    assert steps == sorted(steps)


def test_credit_says_what_the_teacher_read(page, tiny_run):
    records = {
        (row["step"], row["task"], row["index"]): row
        for row in rows(tiny_run, "rollouts.jsonl")
        if row["split"] == "train"
    }
    kinds = set()
    for _ in range(6):
        label = page.evaluate(
            "document.querySelector('#credit [aria-label=attempt]').selectedOptions[0].textContent"
        )
        _, step, attempt, _ = label.split(" · ")
        task, index = attempt.split(" #")
        row = records[int(step.removeprefix("step ")), task, int(index)]
        said = page.evaluate("document.querySelector('#credit .read').textContent")
        shown = texts(page, "#credit .reading > div > pre")
        if row["demonstration"] is not None:
            kinds.add("demonstration")
            assert said == f"The teacher read attempt {row['demonstration']}'s solution."
            assert shown == [records[row["step"], task, row["demonstration"]]["text"]]
        elif row["feedback_used"]:
            kinds.add("feedback")
            assert said == "The teacher read the feedback on this attempt."
            assert shown == [row["feedback"]]
        page.evaluate("[...document.querySelectorAll('#credit button')][1].click()")
    assert "demonstration" in kinds


def test_attempts_can_be_put_in_order_and_gone_through_by_key(page):
    order = (
        "{{const s = document.querySelector('#rollouts [aria-label=order]'); s.value = '{}';"
        " s.dispatchEvent(new Event('change'))}}"
    )
    items = "[...document.querySelectorAll('#rollouts .item')].map((n) => n.item)"
    assert page.evaluate(items + "[0].step") == 3
    page.evaluate(order.format("best"))
    rewards = page.evaluate(items + ".map((i) => i.rollout.reward)")
    assert rewards == sorted(rewards, reverse=True)
    page.evaluate(order.format("longest"))
    lengths = page.evaluate(items + ".map((i) => i.rollout.completion_tokens)")
    assert lengths == sorted(lengths, reverse=True)
    page.evaluate(
        "{const first = document.querySelector('#rollouts .item'); first.focus();"
        " first.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowDown', bubbles: true}))}"
    )
    nodes = "[...document.querySelectorAll('#rollouts .item')]"
    assert page.evaluate(nodes + ".findIndex((n) => n.ariaCurrent === 'true')") == 1
    page.evaluate(BUTTON.format("this task over the run") + ".click()")
    tasks = page.evaluate(items + ".map((i) => i.task)")
    steps = page.evaluate(items + ".map((i) => i.step)")
    assert len(set(tasks)) == 1
    assert steps == sorted(steps)


def test_numbers_can_be_taken_along_as_csv(page, tiny_run):
    def table(expression):
        text = page.evaluate(f"csv({expression})")
        return list(csv.DictReader(io.StringIO(text)))

    metrics = rows(tiny_run, "metrics.jsonl")
    page.evaluate("unpack('data').then((text) => { window.data = JSON.parse(text) })")
    whole = table("metricsTable(groupsOf(window.data))")
    assert [row["step"] for row in whole] == ["0", "1", "2", "3"]
    for name in ("eval/solved", "policy/entropy", "time/step_s"):
        for row, metric in zip(whole, metrics, strict=True):
            if name in metric:
                assert float(row[name]) == pytest.approx(metric[name], rel=1e-4)
            else:
                assert row[name] == ""
    entropy = table(CARD.format("Entropy") + ".querySelector('.plot').chart.table()")
    assert list(entropy[0])[:3] == ["run", "step", "policy/entropy"]
    verdicts = table(CARD.format("Verdicts") + ".querySelector('.plot').chart.table()")
    assert sum(int(row["attempts"]) for row in verdicts) == len(rows(tiny_run, "rollouts.jsonl"))


def test_a_table_cannot_run_a_formula_of_the_model(page):
    cells = ["=1+1", "+1", "-1", "@x", "a,b", 'say "so"', "two\nlines", None, 1.5, True]
    text = page.evaluate(f"csv([{json.dumps(cells)}])")
    assert next(csv.reader(io.StringIO(text, newline=""))) == [
        "'=1+1", "'+1", "'-1", "'@x", "a,b", 'say "so"', "two\nlines", "", "1.5", "true",
    ]  # fmt: skip


def test_a_chart_can_be_taken_along_as_a_picture(page):
    for title in ("Entropy", "Verdicts"):
        url = page.evaluate(CARD.format(title) + ".querySelector('.plot').chart.picture()")
        assert url.startswith("data:image/png;base64,")
        assert len(url) > 10_000


def test_texts_and_addresses_can_be_copied(page):
    for label in ("copy link", "copy"):
        page.evaluate(f"window.button = {BUTTON.format(label)}; window.button.click()")
        page.wait("window.button.textContent === 'copied'")
        page.wait(f"window.button.textContent === '{label}'")


@pytest.mark.parametrize("width", [1600, 400])
def test_what_either_side_would_have_said_hides_no_token_pointed_at(page, width):
    page.size(width, 700)
    page.evaluate("document.querySelector('#credit .tokens').scrollIntoView({block: 'end'})")
    page.wait("window.scrollY > 0")
    for place in (0, "length - 1"):
        overlap = page.evaluate(
            "(() => { const spans = document.querySelectorAll('#credit .tokens')[0].children;"
            f" const span = spans[{'spans.' if place else ''}{place}];"
            " span.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}));"
            " const a = span.getBoundingClientRect();"
            " const b = document.querySelector('.tip').getBoundingClientRect();"
            " return a.left < b.right && b.left < a.right"
            " && a.top < b.bottom && b.top < a.bottom})()"
        )
        assert overlap is False


def test_an_address_opens_one_attempt_and_each_attempt_has_one(page, report, tiny_run):
    attempts = rows(tiny_run, "rollouts.jsonl")
    row = [r for r in attempts if r["step"] == 2 and r["split"] == "train"][5]
    fragment = f"#step=2&split=train&task={row['task']}&index={row['index']}"
    page.size(1600, 1000)
    page.open(report, fragment)
    detail = "document.querySelector('#rollouts .detail')"
    assert page.evaluate(f"{detail}.querySelector('h2').textContent") == (
        f"{row['task']}, attempt {row['index']}"
    )
    assert "step 2" in page.evaluate(f"{detail}.textContent")
    assert page.evaluate(f"{detail}.getBoundingClientRect().top") < 500
    page.evaluate("document.querySelectorAll('#rollouts .item')[3].click()")
    chosen = page.evaluate(
        "(({step, split, task, index}) =>"
        " `#step=${step}&split=${split}&task=${task}&index=${index}`)"
        "(document.querySelectorAll('#rollouts .item')[3].item)"
    )
    assert page.evaluate("location.hash") == chosen
    page.evaluate(f"location.hash = {json.dumps(fragment)}")
    page.wait(f"{detail}.querySelector('h2').textContent.startsWith({json.dumps(row['task'])})")
    page.evaluate("location.hash = '#step=99&split=train&task=gone&index=0'")
    page.wait("document.querySelector('#rollouts').textContent.includes('is not on this page')")


def test_a_single_evaluation_has_one_tick(page, tmp_path, tiny_run):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text((tiny_run / "metrics.jsonl").read_text().split("\n")[0])
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n")
    page.open(write_report([run]))
    page.wait("document.querySelectorAll('.xtick').length > 0")
    assert set(texts(page, ".xtick")) == {"0"}


def test_bands_stay_where_the_values_can_be(page, tmp_path):
    """Student's t of two seeds reached from -0.4 to 1.6."""
    runs = [make_run(tmp_path / f"a-seed{i}", steps=10, seed=i) for i in range(2)]
    page.size(1600, 9000)
    page.open(write_report(runs, tmp_path / "report.html"))
    page.wait("document.querySelectorAll('.js-plotly-plot').length > 20")
    for title, low, high in (
        ("Solved, training", 0, 1),
        ("Solved, held out", 0, 1),
        ("Reward, training", 0, 1),
        ("Teacher probe, gain in solved rate", -1, 1),
        ("Entropy", 0, 1e9),
    ):
        bands = page.evaluate(
            PLOT.format(title) + ".data.filter((t) => t.fill === 'toself').map((t) => t.y)"
        )
        assert bands, title
        assert low <= min(map(min, bands)), title
        assert max(map(max, bands)) <= high, title


def test_curves_that_lie_on_each_other_are_both_seen(page, flat_run, tmp_path):
    page.size(1600, 9000)
    page.open(write_report([flat_run], tmp_path / "report.html"))
    page.wait(PLOT.format("Groups") + "?.classList.contains('js-plotly-plot')")
    dashes = page.evaluate(PLOT.format("Groups") + ".data.map((t) => t.line.dash)")
    assert dashes == ["solid", "5px,6px", "solid", "5px,6px"]
    shown = page.evaluate(PLOT.format("Groups") + ".layout.yaxis.range")
    assert shown == [-0.02, 1.02]


def test_everything_a_teacher_can_read_has_words(page):
    names = page.evaluate("Object.keys(SOURCES)")
    documented = set(re.findall(r"`(\w+)`", get_field_doc()))
    assert set(names) == documented
    said = page.evaluate(
        "readingText({rollouts: []}, {teacher: [], sources: ['sibling', 'feedback', 'attempt'],"
        " demonstration: 3})"
    )
    assert said == (
        "The teacher read attempt 3's solution, the feedback on this attempt and the attempt "
        "itself."
    )


def get_field_doc():
    """What records.py says `TeacherContext.sources` can hold."""
    source = inspect.getsource(TeacherContext)
    return re.search(r'sources: .*?"""(.*?)"""', source, re.DOTALL)[1]
