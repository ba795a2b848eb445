"""Files of JSON lines, compressed or not, that are too large to hold, or still being written: read
once from front to back, then single lines by their place.

Like `metrics.jsonl.read_rows` a last line without its newline does not exist yet. A file that was
cut back (a resumed run) or replaced is noticed and read again from the start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdpo.errors import SdpoError
from sdpo.metrics.segments import Place, lines_at, read_place, stored

MARK_BYTES = 256
"""The end of what was read last; rows of two histories of a run hardly agree on so much."""


class GrowingLines:
    """The complete lines of `path`, each handed out once.

    Example:
        lines = GrowingLines(run_dir / "rollouts.jsonl")
        places = [place for place, line in lines.new()]
        lines.read(places[0])
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        """Bytes of the file on disk handed out so far."""
        self.count = 0
        """Lines handed out so far."""
        self._mark = b""
        self._last_read = path

    def was_rewritten(self) -> bool:
        """Whether what was handed out is no longer what the file holds; the next `new` then starts
        over."""
        if not self.position:
            return False
        if stored(self.path) == self._last_read and self._mark == self._end():
            return False
        self.position, self.count, self._mark = 0, 0, b""
        return True

    def new(self) -> Iterator[tuple[Place, bytes]]:
        """Place and bytes of every complete line after the last one handed out; none when there is
        no file. To be read to its end."""
        self._last_read = stored(self.path)
        for place, line in lines_at(self._last_read, self.position):
            self.position = place.offset + place.size
            self.count += 1
            yield place, line
        self._mark = self._end()

    def _end(self) -> bytes:
        """What the file holds before `position`."""
        if not self.position or not self._last_read.exists():
            return b""
        with self._last_read.open("rb") as file:
            file.seek(max(0, self.position - MARK_BYTES))
            return file.read(min(MARK_BYTES, self.position))

    def read(self, place: Place) -> list[dict[str, Any]]:
        """The rows at `place`."""
        data = read_place(self._last_read, place)
        return [self.parse(line) for line in data.split(b"\n") if line]

    def parse(self, line: bytes) -> dict[str, Any]:
        """A line as its row. Raises `SdpoError` naming the file and the last line handed out."""
        try:
            return json.loads(line)
        except ValueError as error:
            raise SdpoError(
                f"{self.path}, line {self.count}: not a JSON object ({error})"
            ) from error
