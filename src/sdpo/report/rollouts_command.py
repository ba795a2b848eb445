"""What `sdpo rollouts` does: the recorded attempts of a run, chosen and printed one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sdpo.errors import ConfigError
from sdpo.metrics.segments import stored
from sdpo.printable import printable, printable_json
from sdpo.rollouts.record import ROLLOUTS, read_rollouts

Row = dict[str, Any]


def show_rollouts(
    run: Path,
    say: Callable[[str], None],
    *,
    step: int | None = None,
    task: str | None = None,
    solved: bool | None = None,
    as_json: bool = False,
) -> None:
    """`say` the attempts of `run` that fit, in their order, then how many did; or each as a line of
    JSON. Raises `ConfigError` for a folder without any."""
    path = run / ROLLOUTS
    if not stored(path).is_file():
        seeds = sorted(str(each.parent) for each in run.glob(f"seed-*/{ROLLOUTS}*"))
        cure = f"name one of {', '.join(seeds)}" if seeds else "give the folder that `run` named"
        raise ConfigError(f"{run} has no {ROLLOUTS}.gz; {cure}")
    count = total = 0
    for row in _until(read_rollouts(run), step):
        total += 1
        if (
            step in (None, row["step"])
            and task in (None, row["task"])
            and solved in (None, row["solved"])
        ):
            count += 1
            say(printable_json(row) if as_json else printable(attempt_text(row)))
    if not as_json:
        say(f"{count} of {total} attempts read")


def _until(rows: Iterator[Row], step: int | None) -> Iterator[Row]:
    """`rows` up to `step`; steps never decrease."""
    for row in rows:
        if step is not None and row["step"] > step:
            return
        yield row


def attempt_text(row: Row) -> str:
    """An attempt, its feedback and what its teacher was given, for reading."""
    verdict = row["category"] or ("solved" if row["solved"] else "not solved")
    truncated = ", truncated" if row["truncated"] else ""
    lines = [
        f"--- step {row['step']}, {row['split']}, {row['task']}, attempt {row['index']}: "
        f"{verdict}, reward {row['reward']:g}, {row['completion_tokens']} tokens{truncated}"
    ]
    if row["text"] is None:
        return lines[0] + " (log.rollouts kept no text)"
    turns: list[Row] = row.get("turns") or [{"text": row["text"], "reply": None}]
    for turn in turns:
        lines.append(turn["text"])
        if turn["reply"] is not None:
            lines += [f"[{turn['reply']['role']}]", str(turn["reply"]["content"])]
    if row["feedback"] is not None:
        lines += ["[feedback]", row["feedback"]]
    if row["sources"]:
        lines.append(f"[teacher read: {', '.join(row['sources'])}]")
    return "\n".join(lines) + "\n"
