"""JSON on its way to the page, compressed while it waits: as Python objects the chosen rollouts of
a run would take ten times the memory of the page that shows them."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sdpo.metrics.jsonl import dumps

DATA_DEPTH = 4
"""Levels of the page's data that are encoded piece by piece: its runs, their lists, one entry at a
time."""


MISSES = 20
"""Values that turn out too large for what is left of a budget before the search for smaller ones
ends."""


class Packed:
    """A value as compressed JSON.

    Example:
        Packed({"step": 12}).size     # what it takes in the page, about
    """

    __slots__ = ("_data",)

    def __init__(self, value: Any) -> None:
        self._data = zlib.compress(dumps(value).encode(), 1)

    @property
    def size(self) -> int:
        """Compressed bytes."""
        return len(self._data)

    @property
    def text(self) -> str:
        """The JSON."""
        return zlib.decompress(self._data).decode()

    @property
    def value(self) -> Any:
        """The value, up to what JSON cannot say."""
        return json.loads(self.text)


def fill(
    order: Iterable[tuple[int, int]], budget: int, load: Callable[[int], Any]
) -> dict[int, Packed]:
    """Values by number, packed, as long as they fit into `budget` compressed bytes.

    `order` has numbers and sizes in the file, the most wanted first. How well they compress is
    learnt on the way, so that what cannot fit is not even loaded.
    """
    chosen: dict[int, Packed] = {}
    raw, compressed, misses = 1, 0, 0
    for number, size in order:
        if misses >= MISSES:
            break
        # Texts of one run compress alike; half is allowed for the difference.
        if chosen and size * compressed / raw / 2 > budget:
            misses += 1
            continue
        packed = Packed(load(number))
        if packed.size > budget:
            misses += 1
            continue
        chosen[number] = packed
        budget -= packed.size
        raw, compressed = raw + size, compressed + packed.size
    return chosen


def gzip_json(data: Any, level: int = 6) -> bytes:
    """JSON of `data`, which may hold `Packed` values, compressed while it is encoded; without a
    timestamp, so that equal data are equal bytes."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=level, mtime=0) as file:
        for piece in _pieces(data, DATA_DEPTH):
            file.write(piece.encode())
    return out.getvalue()


def _pieces(value: Any, depth: int) -> Iterator[str]:
    """The text of `dumps(value)` in parts; `depth` levels are taken apart."""
    if isinstance(value, Packed):
        yield value.text
    elif not depth or not isinstance(value, (dict, list)):
        yield dumps(value)
    elif isinstance(value, dict):
        start = "{"
        for key in sorted(value):
            yield f"{start}{dumps(key)}:"
            yield from _pieces(value[key], depth - 1)
            start = ","
        yield "{}" if start == "{" else "}"
    else:
        start = "["
        for item in value:
            yield start
            yield from _pieces(item, depth - 1)
            start = ","
        yield "[]" if start == "[" else "]"
