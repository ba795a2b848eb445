"""Nothing that a model, a task or a file says reaches a terminal as a command."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

import sdpo.api
from sdpo import cli
from sdpo.discovery.display import live_progress, show
from sdpo.discovery.result import Discovery
from sdpo.envs.base import CheckReport
from sdpo.errors import JudgeError
from sdpo.printable import printable, printable_json

HOSTILE = "\x1b]0;pwned\x07\x1b[2Jx\x9b31m\x1b]8;;http://evil\x1b\\link\u202e\u2066\ud800\x7f"
UNSAFE = "\x1b\x07\x9b\u202e\u2066\x7f"


def is_safe(text: str) -> bool:
    return not any(char in text for char in UNSAFE)


def test_printable_keeps_what_is_harmless() -> None:
    assert printable("a\n\tbé漢 \u00a0🙂") == "a\n    bé漢 \u00a0🙂"
    assert is_safe(printable(HOSTILE))
    assert "pwned" in printable(HOSTILE)
    printable(HOSTILE).encode()


@pytest.mark.parametrize("value", [HOSTILE, {"é": [HOSTILE, 1.5, None]}, "plain", "\x7f", "漢"])
def test_printable_json_is_the_same_value(value) -> None:
    text = printable_json(value)
    assert is_safe(text)
    assert json.loads(text) == value
    text.encode()


def discovery(solution: str | None, stopped: str | None = None) -> Discovery:
    return Discovery(
        task_id=HOSTILE, method="self_distillation", seed=0, attempts=3, budget=8,
        attempts_to_solve=None if solution is None else 3, solution=solution,
        seconds=1.0, stopped=stopped,
    )  # fmt: skip


def test_discover_prints_no_escape_sequence() -> None:
    console = Console(file=io.StringIO(), width=200)
    show([discovery(HOSTILE), discovery(None, stopped=HOSTILE)], console)
    with live_progress(console) as progress:
        progress([], HOSTILE)
        progress([discovery(None, stopped=HOSTILE)], HOSTILE)
    printed = console.file.getvalue()
    assert "pwned" in printed
    assert is_safe(printed)


def test_check_prints_no_escape_sequence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = CheckReport(
        num_tasks=1, failures={HOSTILE: HOSTILE}, skipped=0, warnings={HOSTILE: HOSTILE}
    )
    monkeypatch.setattr(sdpo.api, "check", lambda *arguments: report)
    assert cli.run(["check", "quickstart"]) == 1
    printed = capsys.readouterr().out
    assert "pwned" in printed
    assert is_safe(printed)


def test_an_error_prints_no_escape_sequence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise JudgeError(f"judging raised {HOSTILE}")

    monkeypatch.setattr(sdpo.api, "check", fail)
    assert cli.run(["check", "quickstart"]) == 1
    printed = capsys.readouterr().err
    assert "pwned" in printed
    assert is_safe(printed)
