"""Files of rows to tasks, and which rows are held out: what choice, tools and math have in common.

A row's id decides its split, by a hash: adding or removing rows moves no other row, and a larger
`eval_fraction` only adds to the held-out ones. A file with its own `split` key keeps it.
"""

from __future__ import annotations

import hashlib
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from sdpo.envs.base import CheckReport
from sdpo.envs.code_tasks import Line, read_lines, unique_ids
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
        lines = read_rows(Path(self._path))
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
