"""Files of rows to tasks, and which rows are held out: what choice, tools and math have in common.

A row's id decides its split, by a hash: adding or removing rows moves no other row, and a larger
`eval_fraction` only adds to the held-out ones. A file with its own `split` key keeps it.
"""

from __future__ import annotations

import hashlib
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo.envs.base import CheckReport
from sdpo.errors import ConfigError, TaskError
from sdpo.records import Message, Rollout, Task, Verdict
from sdpo.seeds import derive

_SPLITS = {"train": "train", "eval": "eval", "test": "eval", "validation": "eval"}
"""Names of splits in files to ours."""


class RowsEnv(ABC):
    """An environment whose tasks are the rows of one `.json` or `.jsonl` file.

    A subclass says how a row becomes a task and how a text is judged, and what it would answer with
    the reference at hand; loading, splitting and checking are done here.
    """

    def __init__(self, tasks: str, eval_fraction: float) -> None:
        self._path = tasks
        self._eval_fraction = eval_fraction
        self._lock = threading.Lock()
        self._splits: dict[str, list[Task]] | None = None

    def load(self, split: str) -> Sequence[Task]:
        """Tasks of `train` or `eval`, in file order.

        When no row is held out (`eval_fraction = 0`), evaluation is on the training tasks.
        """
        if split not in ("train", "eval"):
            raise ConfigError(f"split {split!r} does not exist; there are train and eval")
        splits = self._load()
        if split == "train" and not splits["train"]:
            raise TaskError(
                f"env.tasks = {self._path!r} has no training row; lower env.eval_fraction "
                f"= {self._eval_fraction:g} or give rows the split train"
            )
        return splits[split] or splits["train"]

    def judge(self, task: Task, rollout: Rollout) -> Verdict:
        """The verdict on the attempt's text; thread-safe."""
        return self.judge_text(task, rollout.text, is_truncated=rollout.truncated)

    def check(self) -> CheckReport:
        """Every row's reference passes, and an answer that says nothing does not."""
        failures = {}
        splits = self._load()
        tasks = [*splits["train"], *splits["eval"]]
        for task in tasks:
            verdict = self.judge_text(task, self.reference_answer(task), is_truncated=False)
            if not verdict.solved:
                failures[task.id] = f"the reference fails: {verdict.feedback}"
            elif self.judge_text(task, self.trivial_answer(task), is_truncated=False).solved:
                failures[task.id] = "a trivial answer passes"
        return CheckReport(num_tasks=len(tasks), failures=failures, skipped=0)

    @abstractmethod
    def parse(self, line: Line) -> Task:
        """The task of one row. Raises `TaskError` naming file, line and key."""

    @abstractmethod
    def judge_text(self, task: Task, text: str, *, is_truncated: bool) -> Verdict:
        """The verdict on one answer."""

    @abstractmethod
    def reference_answer(self, task: Task) -> str:
        """A completion that is right by the row's reference."""

    @abstractmethod
    def trivial_answer(self, task: Task) -> str:
        """A completion that must not pass."""

    def _load(self) -> dict[str, list[Task]]:
        with self._lock:
            if self._splits is None:
                rows = self._read()
                self._splits = {
                    name: [task for split, task in rows if split == name]
                    for name in ("train", "eval")
                }
            return self._splits

    def _read(self) -> list[tuple[str, Task]]:
        return self.parse_all(read_rows(Path(self._path)))

    def parse_all(self, lines: Sequence[Line]) -> list[tuple[str, Task]]:
        """(split, task) of every row. Raises `TaskError` when only some rows name a split."""
        own = ["split" in line.row for line in lines]
        if any(own) and not all(own):
            raise lines[own.index(False)].error("split", "missing; other rows have one")
        return unique_ids((self._split(line), line) for line in lines)

    def _split(self, line: Line) -> tuple[str, Task]:
        task = self.parse(line)
        if "split" not in line.row:
            return "eval" if is_held_out(task.id, self._eval_fraction) else "train", task
        name = line.row["split"]
        if not isinstance(name, str) or name not in _SPLITS:
            raise line.error("split", f"{name!r} is unknown; use {', '.join(_SPLITS)}")
        return _SPLITS[name], task


def is_held_out(task_id: str, fraction: float) -> bool:
    """Whether the row belongs to the share `fraction` of rows kept for evaluation."""
    return derive(0, "held out", task_id) < fraction * 2**63


def read_rows(path: Path) -> list[Line]:
    """Rows of JSON lines, or of one JSON array, whatever the file is called.

    Errors in an array give the row's place in it instead of the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TaskError(
            f"env.tasks = {str(path)!r}: cannot read the file: {error.strerror}"
        ) from error
    if not data.lstrip().startswith(b"["):
        return read_lines(path)
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{path}: not a JSON array: {error}") from error
    lines = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise TaskError(f"{path} (row of the array):{number}: expected an object {{...}}")
        lines.append(Line(path=f"{path} (row of the array)", number=number, row=row))
    if not lines:
        raise TaskError(f"{path}: no row in the file")
    return lines


def text_of(line: Line, key: str) -> str:
    """The text under `key`, which must be there and not empty."""
    value = line.row.get(key)
    if not isinstance(value, str) or not value.strip():
        problem = "missing" if key not in line.row else f"expected a text, got {value!r:.60}"
        raise line.error(key, problem)
    return value


def id_of(line: Line, text: str) -> str:
    """The row's `id` or `idx`, or else a hash of its question."""
    for key in ("id", "idx"):
        value = line.row.get(key)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value):
            return str(value)
        if value is not None:
            raise line.error(key, f"expected a text or a whole number, got {value!r:.60}")
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def messages_of(line: Line, prompt: str) -> tuple[Message, ...]:
    """The row's system turn, if it has one, and `prompt` as the user's turn."""
    system = line.row.get("system")
    if system is not None and not isinstance(system, str):
        raise line.error("system", f"expected a text or null, got {system!r:.60}")
    user: Message = {"role": "user", "content": prompt}
    if system is None or not system.strip():
        return (user,)
    return ({"role": "system", "content": system}, user)


def failed(category: str, feedback: str, **metrics: float) -> Verdict:
    """A verdict of reward 0."""
    return Verdict(
        reward=0.0,
        solved=False,
        feedback=feedback,
        metrics=metrics,
        info={"category": category},
    )


def accepted(**metrics: float) -> Verdict:
    """A verdict of reward 1."""
    return Verdict(reward=1.0, solved=True, metrics=metrics, info={"category": "accepted"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One JSON object of a file and where it stands.

    Example:
        Line(path="tasks.jsonl", number=3, row={"id": "clamp"})
    """

    path: str
    number: int
    row: Mapping[str, Any]

    def error(self, key: str, problem: str) -> TaskError:
        """`file:line: key: what is wrong and how to repair it`."""
        return TaskError(f"{self.path}:{self.number}: {key}: {problem}")


def read_lines(path: Path) -> list[Line]:
    """Every JSON object of a `.jsonl` file; blank lines are passed over."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TaskError(f"cannot read the task file {path}: {error.strerror}") from error
    return parse_lines(data, str(path))


def parse_lines(data: bytes, name: str) -> list[Line]:
    """The JSON objects in `data`; errors name `name` and the line."""
    lines = []
    for number, raw in enumerate(data.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique)
        except UnicodeDecodeError as error:
            raise TaskError(
                f"{name}:{number}: not UTF-8 text ({error.reason}); save the file as UTF-8"
            ) from error
        except (ValueError, RecursionError) as error:
            raise TaskError(f"{name}:{number}: not a JSON object on one line: {error}") from error
        if not isinstance(row, dict):
            raise TaskError(f"{name}:{number}: expected a JSON object {{...}}, got {kind_of(row)}")
        lines.append(Line(path=name, number=number, row=row))
    if not lines:
        raise TaskError(f"{name}: no task in the file; write one JSON object a line")
    return lines


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return row


def unique_ids(tasks: Iterator[tuple[tuple[str, Task], Line]]) -> list[tuple[str, Task]]:
    """The tasks as a list; raises `TaskError` for an id that occurs twice."""
    found: dict[str, Line] = {}
    result = []
    for (split, task), line in tasks:
        if task.id in found:
            first = found[task.id]
            raise line.error(
                "id",
                f"{task.id!r} is already the id of {first.path}:{first.number}; ids are unique",
            )
        found[task.id] = line
        result.append((split, task))
    return result


def kind_of(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        type(None): "null",
    }
    return names.get(type(value), "a number")
