"""Frames between judge and child: four bytes of length, then a JSON object.

What comes from a child is checked here before anything is made of it. Its size is bounded before it
is parsed: parsing happens in the judge's process, at the expense of everything else there.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any, Literal

from sdpo.sandbox.protocol import Failure, Frame

MAX_FRAME_BYTES = 5 << 20
"""A child's own bound is 4 MiB (`runner.py`); the rest is room for what surrounds a value."""
MAX_FAILURE_FRAMES = 32
MAX_KIND_CHARS, MAX_MESSAGE_CHARS = 200, 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A frame that a child sent.

    Example:
        Answer(message={"n": 0, "v": 3}, num_bytes=16)
    """

    message: dict[str, Any]
    num_bytes: int


def make_frame(message: dict[str, Any]) -> bytes:
    """The bytes of a frame to a child."""
    data = json.dumps(message).encode()
    return struct.pack(">I", len(data)) + data


def take_frame(buffer: bytearray) -> Answer | Literal["tampering"] | None:
    """Removes and returns the first frame; None while it is incomplete, "tampering" if it is not a
    frame."""
    if len(buffer) < 4:
        return None
    (length,) = struct.unpack_from(">I", buffer)
    if length > MAX_FRAME_BYTES:
        return "tampering"
    if len(buffer) < length + 4:
        return None
    body = bytes(buffer[4 : length + 4])
    del buffer[: length + 4]
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return "tampering"
    return Answer(message=message, num_bytes=length) if isinstance(message, dict) else "tampering"


def kind_and_body(answer: Answer, index: int) -> tuple[str, Any]:
    """What kind of answer it is and what it says. Raises `ValueError` or `KeyError` unless it
    answers input `index` with one thing."""
    message = dict(answer.message)
    if message.pop("n") != index or len(message) != 1:
        raise ValueError("an answer to another question")
    ((kind, body),) = message.items()
    return kind, body


def read_failure(data: Any) -> Failure:
    """The exception that a child describes. Raises `TypeError` or `KeyError` for anything else."""
    frames = tuple(
        Frame(line=line, function=_clean(name))
        for line, name in data["f"][:MAX_FAILURE_FRAMES]
        if type(line) is int and type(name) is str
    )
    kind, message, bases = data["k"], data["m"], data["b"]
    if type(bases) is not list or not all(type(name) is str for name in bases):
        raise TypeError("the bases of an exception are names")
    if type(kind) is not str or type(message) is not str:
        raise TypeError("an exception has a name and a message")
    return Failure(
        kind=_clean(kind[:MAX_KIND_CHARS]),
        message=_clean(message[:MAX_MESSAGE_CHARS]),
        frames=frames,
        bases=tuple(_clean(name[:MAX_KIND_CHARS]) for name in bases[:MAX_FAILURE_FRAMES]),
        at_load=data["l"] is True,
    )


def _clean(text: str) -> str:
    """`text` with unpaired surrogates replaced, because UTF-8 cannot encode them."""
    return text.encode("utf-8", errors="replace").decode()
