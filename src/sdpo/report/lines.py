"""Files of JSON lines that are too large to hold, or still being written: read once from front to
back, then single lines by their place.

Like `metrics.jsonl.read_rows` a last line without its newline does not exist yet. A file that was
cut back (a resumed run) or replaced is noticed and read again from the start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdpo.errors import SdpoError

BUFFER_BYTES = 1 << 20
"""Of one read: lines of token credit take megabytes."""
MARK_BYTES = 256
"""The end of what was read last; rows of two histories of a run hardly agree on so much."""


class GrowingLines:
    """The complete lines of `path`, each handed out once.

    Example:
        lines = GrowingLines(run_dir / "rollouts.jsonl")
        for offset, line in lines.new(): ...
        lines.row_at(0)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        """Bytes handed out so far."""
        self.count = 0
        """Lines handed out so far."""
        self._mark = b""

    def was_rewritten(self) -> bool:
        """Whether what was handed out is no longer what the file holds; the next `new` then starts
        over."""
        if not self.position:
            return False
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self.position - len(self._mark))
                if file.read(len(self._mark)) == self._mark:
                    return False
        self.position, self.count, self._mark = 0, 0, b""
        return True

    def new(self) -> Iterator[tuple[int, bytes]]:
        """Offset and bytes of every complete line after the last one handed out; none when there is
        no file."""
        if not self.path.exists():
            return
        with self.path.open("rb", buffering=BUFFER_BYTES) as file:
            file.seek(self.position)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset = self.position
                self.position += len(line)
                self.count += 1
                self._mark = line[-MARK_BYTES:]
                yield offset, line

    def read(self, offset: int, size: int) -> list[dict[str, Any]]:
        """The rows of `size` bytes at `offset`, which are whole lines."""
        with self.path.open("rb") as file:
            file.seek(offset)
            return [self.parse(line) for line in file.read(size).split(b"\n") if line]

    def parse(self, line: bytes) -> dict[str, Any]:
        """A line as its row. Raises `SdpoError` naming the file and the last line handed out."""
        try:
            return json.loads(line)
        except ValueError as error:
            raise SdpoError(
                f"{self.path}, line {self.count}: not a JSON object ({error})"
            ) from error
