"""The judge's end of the encoding between judge and child: tagged plain data of exact types, no
pickle, no eval, no repr.

The child's end is `values.py`. This end takes nothing it decodes on trust and bounds the time it
spends on it.
"""

from __future__ import annotations

import time
from typing import Any

from sdpo.sandbox.protocol import Opaque

MAX_DEPTH = 200
MAX_INT_DIGITS = 1 << 20
"""Hexadecimal digits of one integer; parsing a longer one could stall the judge."""
SAFE_INT = 2**53
MAX_DECODE_S = 1.0
"""CPU seconds for one answer. Hashes of numbers are predictable, so decoding a forged set of equal
hashes could take hours; an honest answer of 4 MiB takes a fraction of this."""
CHECK_EVERY = 256


def encode(value: Any) -> Any:
    """`value` as JSON with tags; raises `TypeError` for anything that is not plain data."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if -SAFE_INT <= value <= SAFE_INT else {"i": hex(value)}
    if isinstance(value, float):
        return {"f": "nan" if value != value else value.hex()}
    if isinstance(value, complex):
        return {"c": [encode(value.real), encode(value.imag)]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple):
        return {"t": [encode(item) for item in value]}
    if isinstance(value, (set, frozenset)):
        return {"s": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"d": [[encode(k), encode(v)] for k, v in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"b": bytes(value).hex()}
    raise TypeError(f"{type(value).__name__} is not plain data")


class TooLargeError(ValueError):
    """Decoding takes longer than an honest answer does."""


def decode(data: Any) -> Any:
    """The value that `data` encodes; lists in it are reused. Raises `TooLargeError`, and
    `ValueError` or `TypeError` if it is malformed or a trap."""
    if data is None or type(data) in (bool, int, str):
        return data
    return _Decoder().decode(data, 0)


class _Decoder:
    """Decodes one answer within a bounded time."""

    __slots__ = ("_deadline", "_left")

    def __init__(self) -> None:
        self._deadline = time.thread_time() + MAX_DECODE_S
        self._left = CHECK_EVERY

    def decode(self, data: Any, depth: int) -> Any:
        if data is None or isinstance(data, (bool, int, str)):
            return data
        if depth > MAX_DEPTH:
            raise ValueError("too deep")
        if isinstance(data, list):
            return self._list(data, depth)
        if not isinstance(data, dict) or len(data) != 1:
            raise ValueError("not tagged data")
        ((tag, body),) = data.items()
        match tag:
            case "i" if isinstance(body, str) and len(body) <= MAX_INT_DIGITS:
                return int(body, 16)
            case "f" | "c":
                return _float(body) if tag == "f" else _complex(body)
            case "t" if isinstance(body, list):
                return tuple(self._list(body, depth))
            case "s" if isinstance(body, list):
                return set(self._pairs(((item, None) for item in body), depth))
            case "d" if isinstance(body, list):
                return self._pairs(body, depth)
            case "b" if isinstance(body, str):
                return bytes.fromhex(body)
            case "o" if isinstance(body, str):
                return Opaque(body[:200])
        raise ValueError("unknown tag")

    def _list(self, data: list[Any], depth: int) -> list[Any]:
        self._left -= 1
        if self._left < 0:
            self._left = CHECK_EVERY
            if time.thread_time() > self._deadline:
                raise TooLargeError("takes too long to decode")
        # In place: a second copy would double the memory of an answer.
        for index, item in enumerate(data):
            if isinstance(item, (list, dict, float)):
                data[index] = self.decode(item, depth + 1)
        return data

    def _pairs(self, pairs: Any, depth: int) -> dict[Any, Any]:
        """A dict of decoded keys and values. Raises `ValueError` if the keys' hashes collide too
        much."""
        found: dict[Any, Any] = {}
        for count, (key, value) in enumerate(pairs):
            found[_hashable(self.decode(key, depth + 1))] = self.decode(value, depth + 1)
            if count % CHECK_EVERY == 0 and time.thread_time() > self._deadline:
                raise ValueError("takes too long to build")
        return found


def _float(body: str) -> float:
    return float("nan") if body == "nan" else float.fromhex(body)


def _complex(body: list[Any]) -> complex:
    real, imaginary = (_float(part["f"]) for part in body)
    return complex(real, imaginary)


def _hashable(value: Any) -> Any:
    """`value` as a dict key or set member; a forged, unhashable one becomes its type's name."""
    if isinstance(value, (list, dict, set, Opaque)):
        return f"<{type(value).__name__}>"
    if isinstance(value, tuple):
        return tuple(_hashable(item) for item in value)
    return value
