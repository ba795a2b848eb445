"""Rows of task files: one JSON object each, their ids and fields, and where an error stands.

`sources.py` finds the files, `rows.py` makes an environment of them.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo.errors import TaskError
from sdpo.records import Message, Task
from sdpo.seeds import derive

MAX_LINE_BYTES = 256 << 20
"""Bound of one row; a small gzip file may expand to anything."""
MAX_ARRAY_BYTES = 1 << 30
"""Bound of a JSON array, which can only be parsed whole."""

OWN_ID_KEYS = ("id", "idx")
ID_KEYS = (*OWN_ID_KEYS, "ID", "task_id", "unique_id", "question_id", "problem_id", "Record ID")
"""Where a row's id is looked for, in this order."""


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
    """The row's `id` or `idx` (or what a published data set calls it), or else a hash of its
    question."""
    for key in ID_KEYS:
        value = line.row.get(key)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value):
            return str(value)
        if value is not None:
            raise line.error(key, f"expected a string or a whole number, got {value!r:.60}")
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


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
    split: str | None = None
    """`train` or `eval` where the file's name or a setting says it; then the row's own counts for
    nothing."""

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
        with open_file(path) as file:
            is_array = file.peek(1).lstrip().startswith(b"[")
            rows = _array(file, path) if is_array else _json_lines(file, path)
            for num_rows, line in enumerate(rows, start=1):  # noqa: B007
                yield line
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise TaskError(f"cannot read {path}: {reason}") from error
    if not num_rows:
        raise TaskError(f"{path}: the file holds no row; write one JSON object per line")


def open_file(path: Path) -> io.BufferedReader | gzip.GzipFile:
    """The file as bytes, unpacked if it ends in `.gz`."""
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
    """The tasks as a list; raises `TaskError` for an id that occurs twice.

    Rows of a file for training and of another for evaluation may share an id: both often count from
    zero. A row without an id of its own that repeats another word for word is left out: published
    data sets have such rows (DAPO each a hundred times), and split by chance they would leak.
    """
    seen: dict[tuple[str | None, str], tuple[Task, Line]] = {}
    result = []
    for (split, task), line in tasks:
        first, place = seen.setdefault((line.split, task.id), (task, line))
        if place is not line:
            if first == task and not line.row.keys() & set(OWN_ID_KEYS):
                continue
            where = f"{place.path}:{place.number}"
            raise line.error("id", f"{task.id!r} is already the id of {where}; ids must be unique")
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
