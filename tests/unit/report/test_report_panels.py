"""The page's metric names against metrics.jsonl of real runs: a panel that no run writes for, and a
metric that no panel explains, both fail."""

from __future__ import annotations

import ast
import itertools
import json
import re
from pathlib import Path
from typing import get_args

import pytest
from synthetic_run import make_run

import sdpo
from sdpo.inspection.probe import Kind
from sdpo.metrics import names as metric
from sdpo.metrics.canaries import RULES
from sdpo.report.panels import PANELS, STEP_SECONDS, TIME_PARTS, UNDRAWN


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def names(run):
    return {name for row in rows(run) for name in row}


@pytest.fixture(scope="module")
def written(tiny_run, sft_run):
    # Only runs with servers write it: tests/unit/engines/test_staleness.py.
    return names(tiny_run) | names(sft_run) | {metric.ROLLOUTS_STALENESS}


SOURCE = Path(sdpo.__file__).parent
FAMILIES = (metric.EVAL_PASS_AT, metric.HOLDOUT, metric.ENV)
"""Begin names that depend on the run's settings."""
NAMED = {
    value
    for key, value in vars(metric).items()
    if key.isupper() and isinstance(value, str) and value not in FAMILIES
}
NAMED |= {metric.loss(part) for part in ("distill", "pg", "kl")}
NAMED |= {
    metric.rollouts_length(percentile, outcome)
    for percentile, outcome in itertools.product((50, 90), get_args(metric.Outcome))
}
KINDS = set(get_args(Kind)) - {"other_layout"}
"""Those that a run's probe asks for; the other is of `sdpo check --probe`."""
ESTIMATED = {metric.probe_gain(kind) for kind in KINDS} | {metric.EVAL_SOLVED}
"""Those that have an interval."""
NAMED |= ESTIMATED | {end(name) for name in ESTIMATED for end in (metric.low, metric.high)}


def test_every_metric_of_a_real_run_has_a_name_in_the_one_list_and_every_name_is_written(written):
    assert {name for name in written - NAMED if not name.startswith(FAMILIES)} == set()
    assert written >= NAMED
    for family in FAMILIES:
        assert any(name.startswith(family) for name in written - NAMED), family


def test_names_of_metrics_stand_in_one_module():
    """The report asked for names that nobody wrote; a constant cannot be misspelt."""
    begins = "|".join(sorted({name.partition("/")[0] for name in NAMED if "/" in name}))
    spelt = re.compile(rf"(?:{begins}|holdout|env)/[a-z_@0-9]*")
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        if path == Path(metric.__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and spelt.fullmatch(text):
                wrong.append(f"{path.relative_to(SOURCE)}:{node.lineno} {text}")
    assert wrong == []
    in_the_page = "".join(path.read_text("utf-8") for path in SOURCE.rglob("assets/*.js"))
    asked = set(re.findall(rf'["\'`]((?:{begins})/[a-z_0-9]+)["\'`]', in_the_page))
    assert asked
    assert asked <= NAMED


def matches(key, name):
    return name.startswith(key[:-1]) if key.endswith("*") else name == key


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_every_key_of_a_panel_is_written_by_a_real_run(panel, written):
    missing = [key for key in panel.keys if not any(matches(key, name) for name in written)]
    assert missing == []


def test_the_teachers_entropy_is_drawn_beside_the_students():
    """The panel asked for policy/teacher_entropy, which nothing writes."""
    (panel,) = [panel for panel in PANELS if panel.title == "Entropy"]
    assert {"policy/entropy", "teacher/entropy"} <= set(panel.keys)


def test_every_metric_of_a_real_run_has_a_panel_with_a_meaning(written):
    drawn = [key for panel in PANELS for key in panel.keys]
    unexplained = [
        name
        for name in written
        if not any(matches(key, name) for key in drawn)
        and not name.startswith(("env/", "time/"))
        and not name.endswith(("_low", "_high"))
        and name not in UNDRAWN
    ]
    assert unexplained == []
    assert all(panel.meaning.endswith(".") and panel.axis for panel in PANELS)


def test_every_canary_is_marked_in_a_panel_of_the_metric_it_watches():
    marked = {name: panel for panel in PANELS for name in panel.canaries}
    assert set(marked) == {rule.name for rule in RULES}
    for rule in RULES:
        metric = rule.metric.removesuffix("_high")
        assert metric in marked[rule.name].keys, rule.name


def test_every_part_of_the_time_is_written_and_they_add_up_to_the_step(tiny_run):
    """The teacher's seconds lie inside those of the update and were counted twice."""
    steps = rows(tiny_run)[1:]
    for row in steps:
        parts = [row[part.metric] - sum(row[name] for name in part.without) for part in TIME_PARTS]
        assert min(parts) >= 0
        assert sum(parts) <= row[STEP_SECONDS]
    timed = {name for name in steps[0] if name.startswith("time/")}
    assert timed == {STEP_SECONDS} | {part.metric for part in TIME_PARTS}


def test_invented_runs_use_real_names_only(tmp_path, written):
    invented = names(make_run(tmp_path / "run", steps=10))
    unknown = {name for name in invented - written if not name.startswith(("env/", "eval/pass@"))}
    assert unknown == set()
