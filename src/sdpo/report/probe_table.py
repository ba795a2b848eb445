"""A teacher probe for a reader: one row per kind of context, then the conclusion."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sdpo.inspection.probe import Kind, KindResult, Probe

KINDS: dict[Kind, str] = {
    "recipe": "this recipe",
    "other_layout": "the other layout",
    "demonstration": "demonstration",
    "feedback": "feedback",
    "both": "both",
    "other_task": "another task's (control)",
    "no_context": "bare task (control)",
}


def probe_text(probe: Probe) -> RenderableType:
    """The table and the sentence."""
    table = Table(
        title=f"{probe.num_failed} of {probe.num_attempts} attempts at {probe.num_tasks} tasks "
        "failed; the teacher's answers to those",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("the teacher reads")
    for column in ("attempts", "tasks", "student", "teacher", "gain", "90% interval"):
        table.add_column(column, justify="right")
    for kind, result in probe.kinds.items():
        table.add_row(KINDS[kind], *_cells(result))
    lines = [probe.sentence()]
    if probe.reach is not None:
        lines.append(probe.reach.sentence())
    lines += [f"Try: {advice}." for advice in probe.advice]
    return Group(table, *map(Text, lines))


def _cells(result: KindResult) -> list[str]:
    counts = [str(result.num_attempts), str(result.num_tasks)]
    gain = result.gain
    if gain is None:
        return [*counts, "-", "-", "-", "-"]
    return [
        *counts,
        f"{result.student:.2f}",
        f"{result.teacher:.2f}",
        f"{gain.mean:+.2f}",
        f"{gain.low:+.2f} to {gain.high:+.2f}",
    ]
