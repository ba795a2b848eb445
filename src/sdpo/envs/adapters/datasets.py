"""Rows of a Hugging Face dataset, or any mappings, to tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdpo.errors import TaskError
from sdpo.records import Message, Task


def tasks_from_rows(
    rows: Iterable[Mapping[str, Any]],
    *,
    prompt: str = "prompt",
    reference: str | None = "answer",
    id: str | None = None,
    system: str | None = None,
) -> list[Task]:
    """One task per row, in order.

    `prompt` names the column of the question (a string, or a list of chat messages), `reference`
    the column of the gold answer (None: the whole row), `id` the column of the id (None: the row's
    number). `system` is a system message for questions that are strings. Raises `TaskError` naming
    row and column.

    Example:
        tasks = tasks_from_rows(datasets.load_dataset("openai/gsm8k", "main", split="train"),
                                prompt="question")
        env = sdpo.env(tasks, judge)
    """
    tasks = []
    for number, row in enumerate(rows):
        for column in (prompt, reference, id):
            if column is not None and column not in row:
                raise TaskError(
                    f"row {number}: no column {column!r}; the columns are {', '.join(row)}"
                )
        tasks.append(
            Task(
                id=str(number if id is None else row[id]),
                messages=as_messages(row[prompt], system=system, where=f"row {number}: {prompt}"),
                reference=dict(row) if reference is None else row[reference],
                metadata={"row": number},
            )
        )
    if not tasks:
        raise TaskError("the dataset has no rows")
    return tasks


def as_messages(
    prompt: str | Sequence[Mapping[str, Any]], *, system: str | None = None, where: str = "prompt"
) -> tuple[Message, ...]:
    """The messages of a prompt, which must end with one from the user or a tool."""
    if isinstance(prompt, str):
        first = () if system is None else ({"role": "system", "content": system},)
        return (*first, {"role": "user", "content": prompt})
    if isinstance(prompt, Mapping) or not isinstance(prompt, Sequence) or not prompt:
        raise TaskError(f"{where}: expected a string or a list of messages, got {prompt!r:.60}")
    for message in prompt:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise TaskError(f"{where}: a message has role and content, got {message!r:.60}")
        if not isinstance(message["content"], str):
            raise TaskError(f"{where}: content must be a string, got {message['content']!r:.60}")
    if prompt[-1]["role"] not in ("user", "tool"):
        raise TaskError(
            f"{where}: the last message is from {prompt[-1]['role']!r}; it must be from the user"
        )
    # Rows have empty columns such as `name: None`, on which chat templates fail.
    return tuple(
        {key: value for key, value in message.items() if value is not None} for message in prompt
    )
