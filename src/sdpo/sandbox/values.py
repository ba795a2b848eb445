"""The child's end of the encoding between judge and child; `plain.py` is the judge's.

Runs in `python -I -S` without this package. Exact types only: a subclass is reduced to its
base-class content by base-class methods, so no method of the program's objects runs.
"""

from __future__ import annotations

from typing import Any

MAX_DEPTH = 150
SAFE_INT = 2**53


def encode(value: Any, depth: int = 0) -> Any:
    """`value` as tagged plain data; any other object becomes the name of its type."""
    if depth > MAX_DEPTH:
        return {"o": "deeply nested value"}
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -SAFE_INT <= value <= SAFE_INT else {"i": hex(value)}
    if kind is float:
        return {"f": value.hex() if value == value else "nan"}
    if kind is complex:
        return {"c": [encode(value.real), encode(value.imag)]}
    if kind is list:
        return [encode(item, depth + 1) for item in value]
    if kind is tuple:
        return {"t": [encode(item, depth + 1) for item in value]}
    if kind is set or kind is frozenset:
        return {"s": [encode(item, depth + 1) for item in value]}
    if kind is dict:
        return {"d": [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in value.items()]}
    if kind is bytes or kind is bytearray:
        return {"b": bytes(value).hex()}
    return encode_subclass(value, kind, depth)


def encode_subclass(value: Any, kind: type, depth: int) -> Any:
    """The base-class content of a subclass's instance (namedtuple, defaultdict, IntEnum, ...)."""
    if issubclass(kind, int):
        return encode(int.__add__(value, 0), depth)
    if issubclass(kind, float):
        return encode(float.__add__(value, 0.0), depth)
    if issubclass(kind, complex):
        return encode(complex.__add__(value, 0j), depth)
    if issubclass(kind, str):
        return "".join(str.__iter__(value))
    if issubclass(kind, bytes):
        return encode(bytes.__getitem__(value, slice(0, bytes.__len__(value))), depth)
    for base, plain in ((list, list), (tuple, tuple), (set, set), (frozenset, set)):
        if issubclass(kind, base):
            return encode(plain(base.__iter__(value)), depth)
    if issubclass(kind, dict):
        pairs = dict.items(value)
        return {"d": [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in pairs]}
    name = type.__dict__["__name__"].__get__(kind)
    return {"o": name if type(name) is str else "object"}


def decode(data: Any) -> Any:
    """The value that tagged plain data encodes; the judge made it, so it is well formed."""
    if type(data) is list:
        return [decode(item) for item in data]
    if type(data) is not dict:
        return data
    ((tag, body),) = data.items()
    match tag:
        case "i":
            return int(body, 16)
        case "f":
            return float("nan") if body == "nan" else float.fromhex(body)
        case "c":
            return complex(*map(decode, body))
        case "t":
            return tuple(decode(item) for item in body)
        case "s":
            return {decode(item) for item in body}
        case "d":
            return {decode(key): decode(item) for key, item in body}
        case _:
            return bytes.fromhex(body)
