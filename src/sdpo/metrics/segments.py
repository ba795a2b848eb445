"""JSON lines in a gzip file that is appended to, cut back and read in places.

Each append adds segments: members of the gzip file, which `zcat` and every gzip reader take for one
stream. A field in a member's header says how long it is, so a reader finds the next one without
unpacking, a torn last one is known for what it is, and a few lines of a large file cost one
segment. What calls itself `rollouts.jsonl` here is `rollouts.jsonl.gz` on disk; older runs have the
plain file, and both are read.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sdpo.errors import SdpoError

SEGMENT_BYTES = 1 << 18
"""Unpacked. Smaller ones compress worse, larger ones cost more to read a few lines of."""
LEVEL = 6
BUFFER_BYTES = 1 << 20

# RFC 1952: magic, deflate, FEXTRA, no time (equal rows are equal bytes), unknown system; then the
# extra field: its length, our two letters, the length of what follows, the member's size.
_HEADER = struct.Struct("<4sIBBH2sHI")
_MAGIC = b"\x1f\x8b\x08\x04"
_FIELD = b"SD"
_TRAILER = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Place:
    """Where lines are: `size` bytes at `offset` of the file, and of these, unpacked, `length` bytes
    from `start`."""

    offset: int
    size: int
    start: int
    length: int

    def to(self, after: Place) -> Place:
        """From this place to a later one: of the same segment, or of the same plain file."""
        if after.offset == self.offset:
            length = after.start + after.length - self.start
            return Place(self.offset, self.size, self.start, length)
        size = after.offset + after.size - self.offset
        return Place(self.offset, size, self.start, size)


def stored(path: Path) -> Path:
    """The file on disk that holds the lines of `path`."""
    packed = packed_path(path)
    return packed if packed.exists() else path


def packed_path(path: Path) -> Path:
    """Where the lines of `path` are compressed."""
    return path.with_name(f"{path.name}.gz")


def pack(units: Iterable[bytes]) -> bytes:
    """`units` (lines that belong together) as segments; none of them is divided."""
    packed, part = [], bytearray()
    for unit in units:
        if part and len(part) + len(unit) > SEGMENT_BYTES:
            packed.append(_member(bytes(part)))
            part.clear()
        part += unit
    if part:
        packed.append(_member(bytes(part)))
    return b"".join(packed)


def _member(data: bytes) -> bytes:
    deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = deflate.compress(data) + deflate.flush()
    size = _HEADER.size + len(body) + _TRAILER.size
    header = _HEADER.pack(_MAGIC, 0, 0, 255, 8, _FIELD, 4, size)
    return header + body + _TRAILER.pack(zlib.crc32(data), len(data) & 0xFFFFFFFF)


def lines_at(path: Path, position: int = 0) -> Iterator[tuple[Place, bytes]]:
    """The complete lines of the file `path`, compressed or not, from the byte `position` on, each
    with its place. Raises `SdpoError` naming a damaged segment, or why it cannot be read."""
    if not path.exists():
        return
    try:
        with path.open("rb", buffering=BUFFER_BYTES) as file:
            file.seek(position)
            yield from _lines(file, path, position)
    except OSError as error:
        raise SdpoError(
            f"cannot read {path}: {error.strerror}; give yourself the right to, or move it away"
        ) from error


def _lines(file: BinaryIO, path: Path, position: int) -> Iterator[tuple[Place, bytes]]:
    if path.suffix == ".gz":
        for offset, size, data in _segments(file, path):
            start = 0
            for line in data.split(b"\n")[:-1]:
                place = Place(offset, size, start, len(line) + 1)
                start += place.length
                yield place, line + b"\n"
        return
    for line in file:
        if not line.endswith(b"\n"):
            return
        yield Place(position, len(line), 0, len(line)), line
        position += len(line)


def read_place(path: Path, place: Place) -> bytes:
    """The lines at `place` of the file `path`."""
    with path.open("rb") as file:
        file.seek(place.offset)
        data = file.read(place.size)
    if path.suffix == ".gz":
        data = b"".join(part for _, _, part in _segments(io.BytesIO(data), path))
    return data[place.start : place.start + place.length]


def _segments(file: BinaryIO, path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Offset, size and unpacked bytes of the complete segments from where `file` stands."""
    while len(head := file.read(_HEADER.size)) == _HEADER.size:
        offset = file.tell() - len(head)
        magic, *_, field, _, size = _HEADER.unpack(head)
        if (magic, field) != (_MAGIC, _FIELD):
            raise SdpoError(
                f"{path}, byte {offset}: no segment of ours begins here, as after a power loss or "
                "in a file that another program compressed; `gunzip` the latter, and move a "
                "damaged file away to continue without its rows"
            )
        body = file.read(size - len(head))
        if len(body) < size - len(head):
            return
        try:
            yield offset, size, zlib.decompress(head + body, 16 + zlib.MAX_WBITS)
        except zlib.error as error:
            raise SdpoError(
                f"{path}, byte {offset}: a damaged segment ({error}); move the file away to "
                "continue without its rows"
            ) from error
