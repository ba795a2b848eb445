"""Plain data survives the way to the child and back; traps are refused in bounded time."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo.sandbox import Opaque, plain, values

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary()
)
keys = scalars | st.tuples(scalars, scalars)
anything = st.recursive(
    scalars | st.sets(keys),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=20,
)


@given(anything)
def test_values_come_back_from_the_child(value: Any) -> None:
    assert plain.decode(json.loads(json.dumps(values.encode(value)))) == value


@given(anything)
def test_arguments_reach_the_child(value: Any) -> None:
    assert values.decode(json.loads(json.dumps(plain.encode(value)))) == value


def test_nan_comes_back() -> None:
    assert math.isnan(plain.decode(values.encode(float("nan"))))
    assert math.isnan(values.decode(plain.encode(float("nan"))))


def test_bool_int_and_float_stay_apart() -> None:
    back = plain.decode(json.loads(json.dumps(values.encode([True, 1, 1.0]))))
    assert [type(each) for each in back] == [bool, int, float]


class Lying(int):
    def __add__(self, other: object) -> int:
        raise AssertionError("a method of the program ran")

    __eq__ = __hash__ = __index__ = __int__ = __repr__ = __add__


def test_subclasses_are_encoded_without_their_methods() -> None:
    assert values.encode(Lying(5)) == 5


def test_other_objects_become_their_type_name() -> None:
    value = plain.decode(values.encode([object(), range(3)]))
    assert [each.type_name for each in value] == ["object", "range"]
    assert value[0] != value[0]


@pytest.mark.parametrize(
    "data",
    [
        1.5,
        {},
        {"x": 1},
        {"i": 5},
        {"i": "zz"},
        {"f": 1.0},
        {"f": "1e5x"},
        {"c": [1.0]},
        {"c": [{"f": "0x1p0"}, 1]},
        {"c": [{"f": "0x1p0"}, {"c": [{"f": "0x1p0"}, {"f": "0x1p0"}]}]},
        {"t": 3},
        {"d": [1]},
        {"d": [[1, 2, 3]]},
        {"b": "xyz"},
        {"i": "1", "f": "1"},
        {"i": "1" * (plain.MAX_INT_DIGITS + 1)},
    ],
)
def test_malformed_data_is_refused(data: Any) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        plain.decode([data])


def test_deep_data_is_refused() -> None:
    data: Any = 0
    for _ in range(plain.MAX_DEPTH + 5):
        data = [data]
    with pytest.raises(ValueError, match="too deep"):
        plain.decode(data)


@pytest.mark.parametrize("tag", ["s", "d"])
def test_equal_hashes_do_not_stall_the_judge(tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "MAX_DECODE_S", 0.2)
    keys = [{"i": hex(k * (2**61 - 1))} for k in range(1, 60_000)]
    started = time.thread_time()
    with pytest.raises(ValueError, match="too long"):
        plain.decode({tag: keys if tag == "s" else [[key, 0] for key in keys]})
    assert time.thread_time() - started < 0.8


def test_unhashable_keys_from_a_forged_frame_are_replaced() -> None:
    assert plain.decode({"d": [[[1], 2]]}) == {"<list>": 2}


def test_an_opaque_equals_nothing() -> None:
    value = Opaque("x")
    assert value != value
    assert [value] != [Opaque("x")]
