"""What is told from inside a computation, and to whom."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

import sdpo
from sdpo.metrics import dashboard
from sdpo.metrics.dashboard import Dashboard
from sdpo.models.quiet import quiet
from sdpo.progress import Progress, listening, phase, tell
from sdpo.testing import byte_tokenizer, tiny_model


def test_the_innermost_listener_hears_and_nobody_need():
    outer, inner = [], []
    tell("sample", 0, 4)
    with listening(outer.append):
        tell("sample", 0, 4)
        with listening(inner.append), phase("evaluate"):
            tell("judge", 1, 4)
        tell("sample", 2, 4, tokens=10)
    tell("sample", 3, 4)
    assert [(p.phase, p.what, p.done) for p in outer] == [(None, "sample", 0), (None, "sample", 2)]
    assert [(p.phase, p.what, p.done) for p in inner] == [("evaluate", "judge", 1)]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"what": "sample", "tokens": 810, "seconds": 10.0}, "sample 3/8 at 81 tok/s"),
        ({"what": "sample", "phase": "evaluate"}, "evaluate 3/8"),
        ({"what": "judge", "phase": "evaluate"}, "evaluate: judge 3/8"),
        ({"what": "update"}, "update 3/8"),
    ],
)
def test_words(fields, text):
    assert str(Progress(**{"phase": None, "done": 3, "total": 8, **fields})) == text


def board(monkeypatch, *, is_terminal, is_quiet=False, seconds_a_line=10.0):
    out = io.StringIO()
    now = iter(range(1000))
    monkeypatch.setattr(dashboard.time, "monotonic", lambda: float(next(now)))
    monkeypatch.setattr(dashboard, "SECONDS_BETWEEN_LINES", seconds_a_line)
    console = Console(file=out, force_terminal=is_terminal, width=80, color_system=None)
    shown = Dashboard(8, Path("runs/x"), console=console, is_quiet=is_quiet, step=lambda: 2)
    return shown, out


def test_without_a_terminal_a_line_of_progress_at_most_every_ten_seconds(monkeypatch):
    shown, out = board(monkeypatch, is_terminal=False)
    with shown:
        for done in range(35):  # a second each, by the clock above
            tell("sample", done, 64, tokens=100 * done)
    lines = out.getvalue().splitlines()
    assert 2 <= len(lines) <= 4
    assert all(line.startswith("step 3: sample ") for line in lines)


def test_an_evaluation_belongs_to_the_step_that_is_done(monkeypatch):
    shown, out = board(monkeypatch, is_terminal=False, seconds_a_line=0.0)
    with shown, phase("evaluate"):
        tell("judge", 5, 64)
    assert out.getvalue() == "step 2: evaluate: judge 5/64\n"


def test_a_terminal_shows_it_inside_the_panel_and_a_quiet_run_nothing(monkeypatch):
    shown, out = board(monkeypatch, is_terminal=True)
    with shown:
        tell("update", 3, 11)
    assert "now       step 3: update 3/11" in out.getvalue()
    assert out.getvalue().count("runs/x") >= 1
    shown, out = board(monkeypatch, is_terminal=False, is_quiet=True, seconds_a_line=0.0)
    with shown:
        tell("update", 3, 11)
    assert out.getvalue() == ""


def test_every_part_of_a_step_and_of_an_evaluation_is_told(tmp_path, monkeypatch):
    """Each part from 0 to all of its attempts, and tokens while they are sampled."""
    with quiet():
        tiny_model().save_pretrained(tmp_path / "tiny")
        byte_tokenizer().save_pretrained(tmp_path / "tiny")
    heard = []
    monkeypatch.setattr(Dashboard, "_progress", lambda self, found: heard.append(found))
    env = sdpo.env([f"say {i}" for i in range(3)], lambda task, rollout: (0.0, "say more"))
    sdpo.train(
        "quickstart", env=env, model=tmp_path / "tiny", run=tmp_path / "run", steps=1,
        rollout={"tasks_per_step": 2, "group_size": 4, "max_completion_tokens": 6,
                 "max_prompt_tokens": 200},
        eval={"samples": 2}, objective={"type": "sdpo"},
    )  # fmt: skip
    for part, total in {
        (None, "sample"): 8, (None, "judge"): 8, (None, "teacher"): 8, (None, "update"): 8,
        ("evaluate", "sample"): 6, ("evaluate", "judge"): 6,
    }.items():  # fmt: skip
        found = [p for p in heard if (p.phase, p.what) == part]
        assert found[0].done == 0, part
        assert found[-1].done == found[-1].total == total, part
    sampled = [p.tokens for p in heard if (p.phase, p.what) == (None, "sample")]
    assert sampled == sorted(sampled)
    assert 8 <= sampled[-1] <= 48
