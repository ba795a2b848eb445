"""The page's metric names against metrics.jsonl of real runs: a panel that no run writes for, and a
metric that no panel explains, both fail."""

from __future__ import annotations

import json

import pytest
from synthetic_run import make_run

from sdpo.metrics.canaries import RULES
from sdpo.report.panels import PANELS, STEP_SECONDS, TIME_PARTS, UNDRAWN


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def names(run):
    return {name for row in rows(run) for name in row}


@pytest.fixture(scope="module")
def written(tiny_run, sft_run):
    return names(tiny_run) | names(sft_run)


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
