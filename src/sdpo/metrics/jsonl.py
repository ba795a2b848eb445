"""Append-only files of JSON objects, one a line, each with its `step`; cut back to a step when a
run is resumed. Those that grow large are compressed (segments.py); readers take either.

A line is complete or absent for every reader: a last line without its newline (a killed process, a
full disk) is ignored when reading and removed when resuming.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from sdpo.errors import SdpoError
from sdpo.files import record_whole, unwritable
from sdpo.metrics.segments import lines_at, pack, packed_path, stored


class JsonLines:
    """One such file, opened on the first append.

    Example:
        file = JsonLines(run_dir / "metrics.jsonl")
        file.resume_at(12)
        file.append([{"step": 13, "loss/total": 0.02}])
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write `rows` at once. NaN and infinities become null: they are not JSON and break every
        other reader.

        Raises `SdpoError` when the disk is full or read-only; earlier lines stay intact.
        """
        data = memoryview(self._encode(rows))
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("ab", buffering=0)
            size = self._file.tell()
            try:
                while data:
                    data = data[self._file.write(data) :]
            except OSError:
                # Half a line would be glued to the next one.
                with contextlib.suppress(OSError):
                    self._file.truncate(size)
                raise
        except OSError as error:
            self.close()
            raise unwritable(self.path, error) from error

    def resume_at(
        self, step: int, *, drops: Callable[[Mapping[str, Any]], bool] = lambda row: False
    ) -> None:
        """Remove every line of a later step than `step`, and a torn last line. Steps never decrease
        within a file. The first row that `drops` names goes too, with all after it."""
        self.close()
        if not self.path.exists():
            return
        keep = 0
        for number, (place, line) in enumerate(lines_at(self.path), start=1):
            row = _row(self.path, number, line)
            if row["step"] > step or drops(row):
                break
            keep = place.offset + place.size
        try:
            if keep < self.path.stat().st_size:
                os.truncate(self.path, keep)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def begin_anew(self) -> None:
        """Start with an empty file. What was written is kept beside it as `.bak`, unless an earlier
        `.bak` is longer."""
        self.close()
        if not self.path.exists():
            return
        kept = self.path.with_name(f"{self.path.name}.bak")
        try:
            if kept.exists() and kept.stat().st_size > self.path.stat().st_size:
                self.path.unlink()
            else:
                self.path.replace(kept)
        except OSError as error:
            raise unwritable(kept, error) from error

    def close(self) -> None:
        """Close the file; a later append opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _encode(self, rows: Iterable[Mapping[str, Any]]) -> bytes:
        return b"".join(map(_line, rows))


class CompressedLines(JsonLines):
    """The same, compressed. `unit` names by more than one level which rows belong together, the
    finest last: those of one unit are never divided into segments, and a segment holds no two
    units that differ in anything but the last level, so that `resume_at` cuts between segments.

    Example:
        file = CompressedLines(path, unit=lambda row: (row["step"], row["task"]))
    """

    def __init__(
        self, path: Path, *, unit: Callable[[Mapping[str, Any]], tuple[object, ...]]
    ) -> None:
        super().__init__(packed_path(path))
        self._plain = path
        self._unit = unit

    def resume_at(
        self, step: int, *, drops: Callable[[Mapping[str, Any]], bool] = lambda row: False
    ) -> None:
        """As for plain files; rows that an older version left uncompressed are taken over."""
        if self._plain.exists():
            if not self.path.exists():
                with record_whole(self.path) as partial:
                    partial.write_bytes(self._encode(read_rows(self._plain)))
            self._plain.unlink()
        super().resume_at(step, drops=drops)

    def begin_anew(self) -> None:
        """Start with an empty file; what was written is kept as `.bak`."""
        JsonLines(self._plain).begin_anew()
        super().begin_anew()

    def _encode(self, rows: Iterable[Mapping[str, Any]]) -> bytes:
        return b"".join(
            pack(b"".join(map(_line, unit)) for _, unit in itertools.groupby(part, self._unit))
            for _, part in itertools.groupby(rows, lambda row: self._unit(row)[:-1])
        )


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of `path`; nothing when it does not exist. Raises `SdpoError` naming a
    line that is not JSON."""
    path = stored(path)
    for number, (_, line) in enumerate(lines_at(path), start=1):
        yield _row(path, number, line)


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    if b"\0" in line:
        # File systems leave such blocks when the power fails between a file's size and its data.
        raise SdpoError(
            f"{path}, line {number}: {line.count(0)} zero bytes instead of a row, as after a power "
            "loss; delete that line to continue without it"
        )
    try:
        return json.loads(line)
    except ValueError as error:
        raise SdpoError(f"{path}, line {number}: not a JSON object ({error})") from error


def _line(row: Mapping[str, Any]) -> bytes:
    return (dumps(row) + "\n").encode()


def dumps(value: Any) -> str:
    """Compact JSON with sorted keys, so that equal rows are equal bytes."""
    plain = _finite(value)
    text = _encode(plain, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half a surrogate pair (a judge that read bytes with `surrogateescape`) has no UTF-8 form;
        # its escape has.
        return _encode(plain, ensure_ascii=True)
    return text


def _encode(value: Any, *, ensure_ascii: bool) -> str:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=ensure_ascii, allow_nan=False
    )


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
