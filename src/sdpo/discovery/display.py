"""How a search is shown in a terminal: tables of tasks and methods, and progress while it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sdpo.discovery.curves import LEVEL, summarise_discovery, task_rows
from sdpo.discovery.log import SOLUTIONS
from sdpo.discovery.result import Discovery
from sdpo.printable import printable

SECONDS_BETWEEN_LINES = 60.0


class _Say(Protocol):
    def __call__(self, results: Sequence[Discovery], line: str, /) -> None: ...


def _text(text: str) -> Text:
    """Text of tasks and attempts, which must not reach the terminal as commands."""
    return Text(printable(text))


def task_table(results: Sequence[Discovery]) -> Table:
    """One row per task and method."""
    table = Table(title="Discovery")
    for column in ("task", "method", "solved", "median attempts", "attempts", "seconds"):
        table.add_column(column, justify="left" if column in ("task", "method") else "right")
    for row in task_rows(results):
        median = row["median_attempts"]
        stopped = f" ({row['stopped']} stopped)" if row["stopped"] else ""
        table.add_row(
            _text(row["task_id"]),
            row["method"],
            f"{row['solved']}/{row['searches']}{stopped}",
            "-" if median is None else f"{median:g}",
            str(row["attempts"]),
            f"{row['seconds']:.1f}",
        )
    return table


def method_table(results: Sequence[Discovery]) -> Table:
    """discovery@k at a few k, one row per method, with intervals at the budget and the speed-up of
    self-distillation."""
    summary = summarise_discovery(results)
    ks = summary["ks"]
    shown = sorted({len(ks) // 2, len(ks) - 1})
    table = Table(title=f"discovery@k (mean, {LEVEL:.0%} interval over tasks and seeds)")
    table.add_column("method")
    for index in shown:
        table.add_column(f"k={ks[index]}", justify="right")
    table.add_column("speed-up over it", justify="right")
    for name, values in summary["curves"].items():
        cells = [
            f"{values[i]['mean']:.2f} [{values[i]['low']:.2f}, {values[i]['high']:.2f}]"
            for i in shown
        ]
        fast = summary["against"].get(name, {}).get("speed_up")
        factor = f"{fast['factor']:.2g}x at {fast['probability']:.0%}" if fast else "-"
        table.add_row(name, *(Text(cell) for cell in cells), factor)
    return table


def show(results: Sequence[Discovery], console: Console | None = None) -> None:
    """Print tables and the first solution of every solved task."""
    console = console or Console()
    if not results:
        console.print("no searches")
        return
    if len(results) == 1:
        console.print(_text(_outcome(results[0])))
    else:
        console.print(task_table(results))
        console.print(method_table(results))
    printed: set[str] = set()
    for result in results:
        if result.stopped is not None and len(results) > 1:
            console.print(
                _text(f"{result.task_id}, {result.method}, seed {result.seed}: {result.stopped}")
            )
        if result.solution is not None and result.task_id not in printed:
            printed.add(result.task_id)
            console.rule(
                _text(f"{result.task_id}: {result.method}, attempt {result.attempts_to_solve}")
            )
            console.print(_text(result.solution))


def next_lines(results: Sequence[Discovery], run: str, budget: int) -> Iterator[str]:
    """Where the solutions lie, and what to do next."""
    found = {result.task_id for result in results if result.solution is not None}
    missing = {result.task_id for result in results} - found
    for path in sorted(Path(run, SOLUTIONS).glob("*.txt")):
        yield f"solution: {path}"
    yield f"next: sdpo report {run}     every attempt with its feedback"
    if missing:
        yield f"      sdpo discover {run} discover.budget={2 * budget}     searches on"


@contextmanager
def live_progress(console: Console | None = None) -> Generator[_Say]:
    """A live table on the terminal, lines elsewhere (a log file); yields the `progress` that
    `discover_tasks` takes."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console)
        return
    with Live(console=console, transient=True) as live:

        def say(results: Sequence[Discovery], line: str, /) -> None:
            live.update(Group(task_table(results), _text(line)))

        yield say


class _Lines:
    """Every finished search as a line, and once a minute the progress of the current one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._num_results: int | None = None
        self._last = -math.inf

    def __call__(self, results: Sequence[Discovery], line: str, /) -> None:
        if self._num_results is None:
            self._num_results = len(results)
        for result in results[self._num_results :]:
            self._print(_outcome(result))
        self._num_results = len(results)
        if line and time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._print(line)
            self._last = time.monotonic()

    def _print(self, line: str) -> None:
        self._console.print(_text(line), soft_wrap=True)


def _outcome(result: Discovery) -> str:
    """One search in one line."""
    outcome = f"not solved in {result.attempts} attempts"
    if result.attempts_to_solve is not None:
        outcome = f"solved at attempt {result.attempts_to_solve}"
    stopped = f"; stopped: {result.stopped}" if result.stopped else ""
    name = f"{result.task_id}, {result.method}, seed {result.seed}"
    return f"{name}: {outcome}, {result.seconds:.0f} s{stopped}"
