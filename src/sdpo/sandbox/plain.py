"""Tagged plain data between judge and child: exact types only, no pickle, no eval, no repr.

The child's half of this format is in runner.py; this half never trusts what it decodes beyond "a value of that type".
"""

from __future__ import annotations

from typing import Any

from sdpo.sandbox.protocol import Opaque

MAX_DEPTH = 200
MAX_INT_DIGITS = 1 << 20
"""Hexadecimal digits; a program may answer with big numbers, not with one that stalls the judge."""
SAFE_INT = 2**53


def encode(value: Any) -> Any:
    """`value` as JSON with tags; raises `TypeError` for anything that is not plain data."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if -SAFE_INT <= value <= SAFE_INT else {"i": hex(value)}
    if isinstance(value, float):
        return {"f": "nan" if value != value else value.hex()}
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


def decode(data: Any, depth: int = 0) -> Any:
    """The value that `data` stands for. Raises `ValueError` or `TypeError` when it is malformed."""
    if depth > MAX_DEPTH:
        raise ValueError("too deep")
    if data is None or isinstance(data, (bool, int, str)):
        return data
    if isinstance(data, list):
        return [decode(item, depth + 1) for item in data]
    if not isinstance(data, dict) or len(data) != 1:
        raise ValueError("not tagged data")
    ((tag, body),) = data.items()
    match tag:
        case "i" if isinstance(body, str) and len(body) <= MAX_INT_DIGITS:
            return int(body, 16)
        case "f" if isinstance(body, str):
            return float("nan") if body == "nan" else float.fromhex(body)
        case "t" if isinstance(body, list):
            return tuple(decode(item, depth + 1) for item in body)
        case "s" if isinstance(body, list):
            return {_hashable(decode(item, depth + 1)) for item in body}
        case "d" if isinstance(body, list):
            return {
                _hashable(decode(key, depth + 1)): decode(item, depth + 1) for key, item in body
            }
        case "b" if isinstance(body, str):
            return bytes.fromhex(body)
        case "o" if isinstance(body, str):
            return Opaque(body[:200])
    raise ValueError("unknown tag")


def _hashable(value: Any) -> Any:
    """A key or set member; what cannot be one (a child may claim anything) is replaced by its kind."""
    if isinstance(value, (list, dict, set, Opaque)):
        return f"<{type(value).__name__}>"
    if isinstance(value, tuple):
        return tuple(_hashable(item) for item in value)
    return value
