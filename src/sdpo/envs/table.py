"""Task files: their rows, ids and splits. `RowsEnv` is what choice, tools and math share.

Whether a row is held out for evaluation is decided by a hash of its id, so adding or removing rows
moves no other row, and a larger `eval_fraction` only adds to the held-out ones. A file whose rows
have a `split` key keeps its own split.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo.envs.base import CheckReport
from sdpo.envs.verdicts import guarded
from sdpo.errors import ConfigError, TaskError
from sdpo.records import Message, Rollout, Task, Verdict
from sdpo.seeds import derive

_SPLITS = {"train": "train", "eval": "eval", "test": "eval", "validation": "eval"}
"""Split names that occur in files to ours."""

MAX_LINE_BYTES = 256 << 20
"""Bound of one row; a small gzip file may expand to anything."""
MAX_ARRAY_BYTES = 1 << 30
"""Bound of a JSON array, which can only be parsed whole."""


class RowsEnv(ABC):
    """An environment whose tasks are the rows of one `.json` or `.jsonl` file.

    A subclass turns a row into a task, judges an answer, and writes the answer that the reference
    stands for; loading, splitting and checking are done here.
    """

    def __init__(self, tasks: str, eval_fraction: float) -> None:
        self._path = tasks
        self._eval_fraction = eval_fraction
        self._lock = threading.Lock()
        self._splits: dict[str, list[Task]] | None = None

    def load(self, split: str) -> Sequence[Task]:
        """Tasks of `train` or `eval`, in file order.

        When no row is held out (`eval_fraction = 0`), the training tasks are evaluated.
        """
        if split not in ("train", "eval"):
            raise ConfigError(f"split {split!r} does not exist; choose train or eval")
        splits = self._load()
        if split == "train" and not splits["train"]:
            raise TaskError(
                f"env.tasks = {self._path!r} has no training row; lower env.eval_fraction "
                f'= {self._eval_fraction:g} or give some rows "split": "train"'
            )
        return splits[split] or splits["train"]

    def judge(self, task: Task, rollout: Rollout) -> Verdict:
        """The verdict on the attempt's text; thread-safe."""
        return guarded(lambda: self.judge_text(task, rollout.text, is_truncated=rollout.truncated))

    def check(self) -> CheckReport:
        """Whether every row's reference passes and a trivial answer does not."""
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
        """A completion that must pass, built from the reference."""

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
        return self.parse_all(list(read_lines(Path(self._path))))

    def parse_all(self, lines: Sequence[Line]) -> list[tuple[str, Task]]:
        """(split, task) of every row. Raises `TaskError` when only some rows name a split."""
        own = ["split" in line.row for line in lines]
        if any(own) and not all(own):
            raise lines[own.index(False)].error("split", "missing, but other rows have one")
        return unique_ids((self._split(line), line) for line in lines)

    def _split(self, line: Line) -> tuple[str, Task]:
        task = self.parse(line)
        if "split" not in line.row:
            return "eval" if is_held_out(task.id, self._eval_fraction) else "train", task
        name = line.row["split"]
        if not isinstance(name, str) or name not in _SPLITS:
            raise line.error("split", f"{name!r} is not a split; use {', '.join(_SPLITS)}")
        return _SPLITS[name], task


def is_held_out(task_id: str, fraction: float) -> bool:
    """Whether the row is among the share `fraction` of rows that is held out for evaluation."""
    return derive(0, "held out", task_id) < fraction * 2**63


def text_of(line: Line, key: str) -> str:
    """The string under `key`, which must be present and not blank."""
    value = line.row.get(key)
    if key not in line.row:
        raise line.error(key, "missing; give a non-empty string")
    if not isinstance(value, str) or not value.strip():
        raise line.error(key, f"expected a non-empty string, got {value!r:.60}")
    return value


def id_of(line: Line, text: str) -> str:
    """The row's `id` or `idx`, or else a hash of its question."""
    for key in ("id", "idx"):
        value = line.row.get(key)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value):
            return str(value)
        if value is not None:
            raise line.error(key, f"expected a string or a whole number, got {value!r:.60}")
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def messages_of(line: Line, prompt: str) -> tuple[Message, ...]:
    """The row's system message, if it has one, and `prompt` as the user's."""
    system = line.row.get("system")
    if system is not None and not isinstance(system, str):
        raise line.error("system", f"expected a string or null, got {system!r:.60}")
    user: Message = {"role": "user", "content": prompt}
    if system is None or not system.strip():
        return (user,)
    return ({"role": "system", "content": system}, user)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One JSON object of a file, and where it was found.

    Example:
        Line(path="tasks.jsonl", number=3, row={"id": "clamp"})
    """

    path: str
    number: int
    row: Mapping[str, Any]

    def error(self, key: str, problem: str) -> TaskError:
        """`file:line: key: what is wrong and how to fix it`."""
        return TaskError(f"{self.path}:{self.number}: {key}: {problem}")


def read_lines(path: Path) -> Iterator[Line]:
    """The rows of a file of JSON lines, or of one JSON array, gzip-compressed if it ends in `.gz`.

    Blank lines are skipped. Rows come one at a time, so that a file larger than memory can be
    turned into smaller tasks. Raises `TaskError` naming file and line (in an array: the row).
    """
    num_rows = 0
    try:
        with _open(path) as file:
            is_array = file.peek(1).lstrip().startswith(b"[")
            rows = _array(file, path) if is_array else _json_lines(file, path)
            for num_rows, line in enumerate(rows, start=1):  # noqa: B007
                yield line
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise TaskError(f"cannot read {path}: {reason}") from error
    if not num_rows:
        raise TaskError(f"{path}: the file holds no row; write one JSON object per line")


def _open(path: Path) -> io.BufferedReader | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _json_lines(file: io.BufferedIOBase, path: Path) -> Iterator[Line]:
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            raise TaskError(f"{path}:{number}: the line is longer than {MAX_LINE_BYTES >> 20} MiB")
        if raw.strip():
            row = _parse_json(raw, f"{path}:{number}", "a JSON object on one line")
            yield _line(str(path), number, row)


def _array(file: io.BufferedIOBase, path: Path) -> Iterator[Line]:
    raw = file.read(MAX_ARRAY_BYTES + 1)
    if len(raw) > MAX_ARRAY_BYTES:
        raise TaskError(
            f"{path}: a JSON array of more than {MAX_ARRAY_BYTES >> 30} GiB; write one JSON object "
            "per line instead"
        )
    for number, row in enumerate(_parse_json(raw, str(path), "a JSON array"), start=1):
        yield _line(f"{path} (row of the array)", number, row)


def _parse_json(raw: bytes, where: str, what: str) -> Any:
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise TaskError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{where}: not {what}: {error}") from error


def _line(path: str, number: int, row: Any) -> Line:
    if not isinstance(row, dict):
        raise TaskError(f"{path}:{number}: expected a JSON object {{...}}, got {kind_of(row)}")
    return Line(path=path, number=number, row=row)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return row


def unique_ids(tasks: Iterable[tuple[tuple[str, Task], Line]]) -> list[tuple[str, Task]]:
    """The tasks as a list; raises `TaskError` for an id that occurs twice."""
    places: dict[str, str] = {}
    result = []
    for (split, task), line in tasks:
        if task.id in places:
            raise line.error(
                "id", f"{task.id!r} is already the id of {places[task.id]}; ids must be unique"
            )
        places[task.id] = f"{line.path}:{line.number}"
        result.append((split, task))
    return result


def kind_of(value: Any) -> str:
    """What JSON calls the type of `value`, with its article."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        type(None): "null",
    }
    return names.get(type(value), "a number")
