"""Answers on a terminal: before and after side by side where there is room, else one below the
other."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sdpo.printable import printable
from sdpo.records import Task
from sdpo.talk import Answer, Moment, Speaker

SIDE_BY_SIDE = 100
"""Columns from which two answers stand beside each other."""
MAX_PROMPT = 600
"""Characters of a task that are shown; a worked example before it is longer than the question."""
MAX_FEEDBACK = 400


def show_answers(
    who: Sequence[Speaker],
    answered: Sequence[Sequence[tuple[Task, Sequence[Answer]]]],
    console: Console | None = None,
) -> None:
    """Print every task with the answers of every model and, where they were judged, how many
    attempts each has solved. `answered` has one list a model, of the same tasks."""
    console = console or Console()
    for one in who:
        console.print(f"{one.moment:>6}: {one.name}", highlight=False, markup=False)
    for parts in zip(*answered, strict=True):
        task = parts[0][0]
        prompt = printable(str(task.messages[-1]["content"])).strip()
        shown = prompt if len(prompt) <= MAX_PROMPT else "... " + prompt[-MAX_PROMPT:]
        console.print()
        console.print(Text(f"task {task.id}", style="bold"))
        console.print(Padding(Text(shown, style="dim"), (0, 0, 0, 2)))
        _side_by_side(console, [[_answer(a) for a in found] for _, found in parts])
    counts = [
        f"{one.moment} {sum(v.solved for v in verdicts)} of {len(verdicts)}"
        for one, found in zip(who, answered, strict=True)
        if (verdicts := [a.verdict for _, part in found for a in part if a.verdict is not None])
    ]
    if counts:
        console.print()
        console.print(f"solved: {', '.join(counts)}", highlight=False)


def show_lines(answers: Iterable[Sequence[tuple[Moment, str]]]) -> None:
    """Print the answers to each line as they come."""
    console = Console()
    for found in answers:
        _side_by_side(console, [[_titled(moment, text)] for moment, text in found])


def _side_by_side(console: Console, columns: Sequence[Sequence[Group]]) -> None:
    if len(columns) == 1 or console.width < SIDE_BY_SIDE:
        for column in columns:
            for answer in column:
                console.print(answer)
        return
    table = Table.grid(padding=(0, 2), expand=True)
    for _ in columns:
        table.add_column(ratio=1)
    # An attempt that could not be judged is missing.
    for row in itertools.zip_longest(*columns, fillvalue=""):
        table.add_row(*row)
    console.print(table)


def _answer(answer: Answer) -> Group:
    verdict = answer.verdict
    if verdict is None:
        return _titled(answer.moment, answer.text)
    said = "solved" if verdict.solved else f"not solved, reward {verdict.reward:g}"
    feedback = printable(verdict.feedback or "").strip()
    if len(feedback) > MAX_FEEDBACK:
        feedback = feedback[:MAX_FEEDBACK] + " ..."
    return _titled(
        answer.moment,
        answer.text,
        Text(f" {said}", style="green" if verdict.solved else "yellow"),
        feedback,
    )


def _titled(moment: Moment, text: str, said: Text | str = "", feedback: str = "") -> Group:
    head = Text.assemble((f"{moment}:", "cyan"), said)
    parts = [head, Padding(Text(printable(text).strip() or "(empty)"), (0, 0, 0, 2))]
    if feedback:
        parts.append(Padding(Text(feedback, style="dim italic"), (0, 0, 0, 4)))
    return Group(*parts)
