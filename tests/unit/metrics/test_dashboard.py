import io
import re
from pathlib import Path

from rich.console import Console

from sdpo.metrics.canaries import Alert
from sdpo.metrics.dashboard import Dashboard, duration, sparkline
from sdpo.printable import printable
from sdpo.records import Verdict

ROW = {
    "train/solved": 0.41,
    "train/reward": 0.4,
    "loss/total": 0.0213,
    "policy/entropy": 0.5,
    "time/step_s": 10.0,
    "tokens_total": 1000.0,
}
ALERT = Alert(
    canary="truncation",
    step=2,
    since=1,
    good=0,
    value=1,
    baseline=0,
    action="warn",
    message="too long",
)
LAST = (
    "def f(x):\n    return x + 1\x1b[2J",
    Verdict(reward=0, solved=False, feedback="Wrong Answer", info={"category": "wrong_answer"}),
)


def shown(*, is_terminal, is_quiet=False, encoding="utf-8", width=80):
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=encoding)
    console = Console(
        file=out, force_terminal=is_terminal, width=width, color_system=None, legacy_windows=False
    )
    board = Dashboard(4, Path("runs/x"), console=console, is_quiet=is_quiet)
    with board:
        board.update(1, ROW, last=LAST)
        board.update(2, {**ROW, "tokens_total": 3000.0, "eval/solved": 0.3}, alerts=[ALERT])
        board.say("saved step 2")
    out.flush()
    return raw.getvalue().decode(encoding)


def test_plain_output_is_one_line_a_step():
    lines = shown(is_terminal=False).splitlines()
    assert lines == [
        "step 1/4  solved 0.41  reward 0.40  loss 0.0213  entropy 0.50  10.0 s  eta 30s",
        "step 2/4  solved 0.41  reward 0.40  loss 0.0213  entropy 0.50  eval 0.300  200 tok/s"
        "  10.0 s  eta 20s",
        "canary truncation (warn): too long",
        "saved step 2",
    ]


def test_the_terminal_shows_last_attempt_verdict_and_canaries():
    text = shown(is_terminal=True)
    for part in ("2/4", "eta 20s", "200 tok/s", "wrong_answer", "return x + 1", "truncation"):
        assert part in text


def test_a_rollout_cannot_move_the_cursor():
    assert "\x1b[2J" not in shown(is_terminal=True)
    assert printable("a\x1b[31mb\u202ec\td\r\ne") == "a\ufffd[31mb\ufffdc   d\ne"


def test_quiet_shows_only_what_is_said():
    assert shown(is_terminal=True, is_quiet=True).strip() == "saved step 2"


def test_a_terminal_without_unicode_gets_ascii_bars():
    assert sparkline([0.0, 0.5, 1.0], 10, is_ascii=True) == "_+@"


def test_a_long_series_is_averaged_into_the_width():
    assert sparkline([0.0] * 50 + [1.0] * 50, 2) == "▁█"
    assert sparkline([], 5) == ""
    assert len(sparkline([0.3] * 7, 5)) == 5


def test_narrow_terminals_keep_their_width():
    lines = re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "\n", shown(is_terminal=True, width=40)).splitlines()
    assert max(map(len, lines)) == 40


def test_durations():
    assert [duration(s) for s in (4.4, 372, 11100)] == ["4s", "6m12s", "3h05m"]
