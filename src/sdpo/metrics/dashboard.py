"""What a run shows while it goes: a compact live panel in a terminal, one plain line a step
elsewhere.

Shows what metrics.jsonl and rollouts.jsonl record anyway and decides nothing. Model output is
stripped of control characters: a rollout must not be able to move the user's cursor.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sdpo.metrics import names
from sdpo.metrics.canaries import Alert
from sdpo.printable import printable
from sdpo.progress import Progress, listening
from sdpo.records import Verdict

BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.-=+*#@"
ETA_STEPS = 10
"""Steps averaged for tokens/s and the time left; step times vary with completion lengths."""
LAST_LINES = 6
"""Lines of the last rollout and of its feedback that are shown."""
REFRESH_S = 0.2
"""Between two drawings of where a step stands."""
SECONDS_BETWEEN_LINES = 10.0
"""Without a terminal: nothing is said of a step's inside until so long after the last line."""
MAX_LINE = 400
"""Characters of one shown line before it is cut; the terminal cuts again at its width."""


class Dashboard:
    """The display of one run. In a terminal it redraws in place; otherwise it writes one line per
    update.

    Example:
        with Dashboard(total_steps=40, run_dir=run_dir) as dashboard:
            dashboard.update(1, metrics, last=(rollout.text, verdict), alerts=alerts)
    """

    def __init__(
        self,
        total_steps: int,
        run_dir: Path,
        *,
        console: Console | None = None,
        is_quiet: bool = False,
        step: Callable[[], int] = lambda: 0,
    ) -> None:
        """`is_quiet` shows nothing but `say`; processes other than the first use it. `step` says
        how many steps are complete."""
        self._num_complete = step
        self._open = ExitStack()
        self._total = total_steps
        self._run_dir = run_dir
        self._console = console or Console()
        self._is_quiet = is_quiet
        self._is_live = self._console.is_terminal and not is_quiet
        self._live: Live | None = None
        self._solved: list[float] = []
        self._evals: list[tuple[int, float]] = []
        self._seconds: deque[float] = deque(maxlen=ETA_STEPS)
        self._tokens: deque[float] = deque(maxlen=ETA_STEPS + 1)
        self._alerts: list[Alert] = []
        self._last: tuple[str, Verdict] | None = None
        self._step = 0
        self._metrics: Mapping[str, float] = {}
        self._inside = ""
        self._shown_at = time.monotonic()

    def __enter__(self) -> Dashboard:
        if self._is_live:
            self._live = Live(console=self._console, auto_refresh=False, transient=False)
            self._live.start()
            self._live.update(self.render(), refresh=True)
        if not self._is_quiet:
            self._open.enter_context(listening(self._progress))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """One line above the display (a checkpoint was written, the run was interrupted)."""
        self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
        self._shown_at = time.monotonic()

    def _progress(self, found: Progress) -> None:
        """Show where the computation stands."""
        wait = REFRESH_S if self._is_live else SECONDS_BETWEEN_LINES
        if time.monotonic() - self._shown_at < wait:
            return
        step = self._num_complete() + (found.phase is None)
        self._inside = f"step {step}: {found}"
        if self._live is None:
            self.say(self._inside)
            return
        self._live.update(self.render(), refresh=True)
        self._shown_at = time.monotonic()

    def update(
        self,
        step: int,
        metrics: Mapping[str, float],
        last: tuple[str, Verdict] | None = None,
        alerts: Sequence[Alert] = (),
    ) -> None:
        """Show the state after `step`; `last` is a rollout's text with its verdict."""
        self._step, self._metrics, self._inside = step, metrics, ""
        self._last = last or self._last
        self._alerts += alerts
        if (solved := _get(metrics, names.TRAIN_SOLVED)) is not None:
            self._solved.append(solved)
        if (solved := _get(metrics, names.EVAL_SOLVED)) is not None:
            self._evals.append((step, solved))
        if (seconds := _get(metrics, names.TIME_STEP_S)) is not None:
            self._seconds.append(seconds)
        if (tokens := _get(metrics, names.TOKENS_TOTAL)) is not None:
            self._tokens.append(tokens)
        if self._live is not None:
            self._live.update(self.render(), refresh=True)
        elif not self._is_quiet:
            self.say(self.line())
            for alert in alerts:
                self.say(f"canary {alert.canary} ({alert.action}): {alert.message}")

    def line(self) -> str:
        """The step on one plain line."""
        parts = [f"step {self._step}/{self._total}"]
        for label, name, form in _SHOWN:
            if (value := _get(self._metrics, name)) is not None:
                parts.append(f"{label} {value:{form}}")
        if (rate := self.tokens_per_second()) is not None:
            parts.append(f"{rate:.0f} tok/s")
        if self._seconds:
            parts.append(f"{self._seconds[-1]:.1f} s")
        if (eta := self.eta_s()) is not None:
            parts.append(f"eta {duration(eta)}")
        return "  ".join(parts)

    def eta_s(self) -> float | None:
        """Seconds left at the pace of the last steps; None before the first timed step."""
        if not self._seconds:
            return None
        return (self._total - self._step) * sum(self._seconds) / len(self._seconds)

    def tokens_per_second(self) -> float | None:
        """Sampled tokens per second of whole steps; None until two totals are known."""
        # A resumed run starts in the middle: totals only count as differences.
        if len(self._tokens) < 2 or not self._seconds:
            return None
        totals = list(self._tokens)
        seconds = sum(list(self._seconds)[-(len(totals) - 1) :])
        return (totals[-1] - totals[0]) / seconds if seconds > 0 else None

    def render(self) -> RenderableType:
        """The panel a terminal shows."""
        blocks: list[RenderableType] = [self._numbers()]
        if self._last is not None:
            blocks += [Text(), *_rollout(*self._last)]
        for alert in self._alerts[-3:]:
            text = Text(f"canary {alert.canary} at step {alert.step}: ", style="bold red")
            text.append(printable(alert.message), style="red")
            blocks.append(text)
        if not self._alerts:
            blocks.append(Text("canaries: quiet", style="dim"))
        return Panel(
            Group(*blocks), title=Text(str(self._run_dir)), title_align="left", border_style="dim"
        )

    def _numbers(self) -> Table:
        table = Table.grid(padding=(0, 2), expand=False)
        table.add_column(style="dim", no_wrap=True, min_width=len("held out"))
        table.add_column()
        eta = self.eta_s()
        progress = f"{self._step}/{self._total}"
        table.add_row("step", progress if eta is None else f"{progress}   eta {duration(eta)}")
        if self._solved:
            width = max(10, min(40, self._console.width - 40))
            bars = sparkline(self._solved, width, is_ascii=self._is_ascii)
            table.add_row("solved", f"{bars} {self._solved[-1]:.2f}")
        if self._evals:
            table.add_row("held out", " -> ".join(f"{value:.3f}" for _, value in self._evals[-5:]))
        numbers = [
            f"{label} {value:{form}}"
            for label, name, form in _SHOWN
            if label not in ("solved", "eval") and (value := _get(self._metrics, name)) is not None
        ]
        if (rate := self.tokens_per_second()) is not None:
            numbers.append(f"{rate:.0f} tok/s")
        if numbers:
            table.add_row("last", "  ".join(numbers))
        if self._inside:
            table.add_row("now", self._inside)
        return table

    @property
    def _is_ascii(self) -> bool:
        return not self._console.encoding.lower().startswith("utf")


_SHOWN = (
    ("solved", names.TRAIN_SOLVED, ".2f"),
    ("reward", names.TRAIN_REWARD, ".2f"),
    ("loss", names.LOSS_TOTAL, ".4f"),
    ("entropy", names.POLICY_ENTROPY, ".2f"),
    ("len", names.TRAIN_COMPLETION_TOKENS, ".0f"),
    ("eval", names.EVAL_SOLVED, ".3f"),
    ("teacher gain", names.probe_gain("recipe"), "+.2f"),
)
"""Label, metric and format of what both displays show, in order."""


def _get(metrics: Mapping[str, float], name: str) -> float | None:
    value = metrics.get(name)
    return None if value is None or not math.isfinite(value) else value


def _rollout(text: str, verdict: Verdict) -> list[RenderableType]:
    """The last rollout: its verdict, the start of its text and of its feedback."""
    category = printable(str(verdict.info.get("category") or ""))
    style = "green" if verdict.solved else "yellow"
    head = Text("last attempt: ", style="dim")
    head.append("solved" if verdict.solved else category or "not solved", style=style)
    blocks: list[RenderableType] = [head, _excerpt(text, "")]
    if verdict.feedback:
        blocks.append(_excerpt(verdict.feedback, "dim"))
    return blocks


def _excerpt(text: str, style: str) -> Text:
    lines = printable(text).strip("\n").split("\n")
    shown = [line if len(line) <= MAX_LINE else line[:MAX_LINE] + "..." for line in lines]
    if len(shown) > LAST_LINES:
        shown = [*shown[: LAST_LINES - 1], f"... {len(lines) - LAST_LINES + 1} more lines"]
    return Text(
        "\n".join("  " + line for line in shown), style=style, no_wrap=True, overflow="ellipsis"
    )


def sparkline(values: Sequence[float], width: int, *, is_ascii: bool = False) -> str:
    """`values` between 0 and 1 as at most `width` bars; longer series are averaged into as many
    bins."""
    bars = ASCII_BARS if is_ascii else BARS
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)] if count else []
    text = ""
    for low, high in itertools.pairwise(edges):
        mean = sum(values[low:high]) / (high - low)
        text += bars[min(len(bars) - 1, max(0, int(mean * len(bars))))]
    return text


def duration(seconds: float) -> str:
    """Seconds as `42s`, `6m12s` or `3h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
