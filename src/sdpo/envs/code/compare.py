"""Whether an answer is right: plain values and printed text compared with what a test expects.

Pure functions of plain data: the program that made the answer is gone, so no method of its objects
can run here. The rules, which `docs/code-tasks.md` repeats for users:

* lists and tuples are equal as sequences, at every depth;
* numbers compare as in Python; if a float or complex is expected, an absolute or relative error up
  to the tolerance is accepted; an expected int is exact, but 2.0 equals 2 and True equals 1;
* NaN equals NaN, infinities compare by sign, -0.0 equals 0.0;
* if all keys of an expected dict are strings (JSON), keys compare as JSON spells them: 1 is "1",
  True is "true";
* a set is right only where a set is expected; a string is exact and never equals a number; an
  opaque value equals nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from decimal import Decimal
from typing import Any

TOLERANCE = 1e-6
"""Absolute or relative error allowed where a float is expected."""

_DECIMAL = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,4})?", re.ASCII)
_MAX_DECIMAL_CHARS = 400
"""Longer number-like tokens are compared as strings: parsing time grows faster than length."""


def values_match(actual: Any, expected: Any, tolerance: float = TOLERANCE) -> bool:
    """Whether the value `actual` is a right answer where `expected` is the one on file."""
    if isinstance(expected, (bool, int, float, complex)):
        return isinstance(actual, (bool, int, float, complex)) and _numbers_match(
            actual, expected, tolerance
        )
    if isinstance(expected, (str, bytes)):
        return type(actual) is type(expected) and actual == expected
    if isinstance(expected, (list, tuple)):
        return (
            isinstance(actual, (list, tuple))
            and len(actual) == len(expected)
            and all(values_match(a, e, tolerance) for a, e in zip(actual, expected, strict=True))
        )
    if isinstance(expected, AbstractSet):
        return isinstance(actual, AbstractSet) and _sets_match(actual, expected, tolerance)
    if isinstance(expected, Mapping):
        return isinstance(actual, Mapping) and _mappings_match(actual, expected, tolerance)
    return expected is None and actual is None


def _numbers_match(actual: complex, expected: complex, tolerance: float) -> bool:
    if isinstance(expected, complex) or isinstance(actual, complex):
        try:
            a, e = complex(actual), complex(expected)
        except OverflowError:  # an int beyond the floats
            return False
        return _numbers_match(a.real, e.real, tolerance) and _numbers_match(
            a.imag, e.imag, tolerance
        )
    if actual == expected:
        return True
    if not isinstance(expected, float):
        return False
    if math.isnan(expected):
        return isinstance(actual, float) and math.isnan(actual)
    try:
        error = abs(float(actual) - expected)
    except OverflowError:  # an int beyond the floats; equality was tried above
        return False
    # An infinity on either side makes the error or the bound infinite or NaN; equal infinities were
    # accepted above.
    return (
        math.isfinite(error)
        and math.isfinite(expected)
        and error <= tolerance * max(1.0, abs(expected))
    )


def _sets_match(actual: AbstractSet[Any], expected: AbstractSet[Any], tolerance: float) -> bool:
    if len(actual) != len(expected):
        return False
    if actual == expected:
        return True
    # Floats in a set may differ in their last digits like any others; sorting pairs them. NaN is
    # hashed by identity, so it ends up here too.
    if not all(isinstance(x, (int, float)) for x in (*actual, *expected)):
        return False
    pairs = zip(sorted(actual, key=_nan_last), sorted(expected, key=_nan_last), strict=True)
    return all(_numbers_match(a, e, tolerance) for a, e in pairs)


def _nan_last(number: float) -> tuple[bool, float]:
    is_nan = isinstance(number, float) and math.isnan(number)
    return is_nan, 0.0 if is_nan else number


def _mappings_match(
    actual: Mapping[Any, Any], expected: Mapping[Any, Any], tolerance: float
) -> bool:
    if len(actual) != len(expected):
        return False
    if all(isinstance(key, str) for key in expected):
        actual = {_json_key(key): value for key, value in actual.items()}
        if len(actual) != len(expected):  # 1 and "1" became one key
            return False
    return all(
        key in actual and values_match(actual[key], value, tolerance)
        for key, value in expected.items()
    )


def _json_key(key: Any) -> Any:
    """The key as `json.dumps` would spell it; a key that JSON cannot represent is unchanged, so it
    equals no string."""
    if key is None or isinstance(key, (bool, float)):
        return json.dumps(key)
    if isinstance(key, int) and key.bit_length() <= 64:
        return str(key)
    return key


def outputs_match(actual: str, expected: str, tolerance: float = TOLERANCE) -> bool:
    """Whether the printed text `actual` is right where `expected` is on file.

    Trailing spaces and blank lines at either end are ignored, and CRLF is LF. Lines are compared
    one by one, token by token: equal strings, equal decimals, or decimals within the tolerance if
    the expected token has a point or an exponent.
    """
    lines, right = _lines(actual), _lines(expected)
    return lines == right or (
        len(lines) == len(right)
        and all(_line_matches(a, e, tolerance) for a, e in zip(lines, right, strict=True))
    )


def _lines(text: str) -> Sequence[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    first, last = 0, len(lines)
    while first < last and not lines[first]:
        first += 1
    while last > first and not lines[last - 1]:
        last -= 1
    return lines[first:last]


def _line_matches(actual: str, expected: str, tolerance: float) -> bool:
    if actual == expected:
        return True
    tokens, right = actual.split(), expected.split()
    return len(tokens) == len(right) and all(
        a == e or _decimals_match(a, e, tolerance) for a, e in zip(tokens, right, strict=True)
    )


def _decimals_match(actual: str, expected: str, tolerance: float) -> bool:
    for token in (actual, expected):
        if len(token) > _MAX_DECIMAL_CHARS or not _DECIMAL.fullmatch(token):
            return False
    if Decimal(actual) == Decimal(expected):
        return True
    if "." in expected or "e" in expected or "E" in expected:
        return _numbers_match(float(actual), float(expected), tolerance)
    return False
