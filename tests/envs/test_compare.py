"""Which answers are right: every rule of the table, and laws that hold for all plain data."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo.envs.code.compare import outputs_match, values_match

NAN = float("nan")
INF = float("inf")

EQUAL = [
    ([1, 2], (1, 2)),
    ((1, [2, (3,)]), [1, (2, [3])]),
    (2.0, 2),
    (2, 2.0),
    (True, 1),
    (1, True),
    (0.1 + 0.2, 0.3),
    (1e12 + 0.1, 1e12),
    (-0.0, 0.0),
    (0, -0.0),
    (NAN, NAN),
    (INF, INF),
    ([NAN, [INF]], (NAN, [INF])),
    (10**400, 10**400),
    ({1: "a", 2: "b"}, {"1": "a", "2": "b"}),
    ({True: 1, None: 2, 1.5: 3}, {"true": 1, "null": 2, "1.5": 3}),
    ({1: "a"}, {1: "a"}),
    ({1.0: "a"}, {1: "a"}),
    ({"a": {"b": (1,)}}, {"a": {"b": [1]}}),
    ({1, 2}, frozenset({2, 1})),
    ({0.1 + 0.2, 1}, {0.3, 1.0}),
    ({NAN, 1.0}, {1.0, NAN}),
    ("", ""),
    (b"x", b"x"),
    (None, None),
    (1 + 2j, 1.0000000001 + 2j),
]

UNEQUAL = [
    ([1, 2], [1, 2, 3]),
    ([1, 2], {1, 2}),
    ({1, 2}, [1, 2]),
    ({1, 2}, {1, 3}),
    ({1, 2}, {1, 2, 3}),
    ({"1", 1}, {"1", 2}),
    (3.0000001, 3),
    (0.3001, 0.3),
    (INF, 1e308),
    (1e308, INF),
    (-INF, INF),
    (NAN, 1.0),
    (1.0, NAN),
    (10**400, 1.0),
    ("1", 1),
    (1, "1"),
    ("a ", "a"),
    ("a", b"a"),
    (["a", "b"], "ab"),
    ("ab", ["a", "b"]),
    (None, 0),
    (0, None),
    (None, False),
    ({}, []),
    ([], {}),
    ({1: "a", "1": "b"}, {"1": "b"}),
    ({1: "a", "1": "b"}, {"1": "b", "2": "a"}),
    ({(1,): "a"}, {"(1,)": "a"}),
    ({"a": 1}, {"a": 2}),
    ({"a": 1}, {"b": 1}),
    (object(), 1),
    (object(), None),
    (object(), [1]),
    (object(), {"a": 1}),
]


@pytest.mark.parametrize(("actual", "expected"), EQUAL)
def test_right_answers(actual: object, expected: object) -> None:
    assert values_match(actual, expected)


@pytest.mark.parametrize(("actual", "expected"), UNEQUAL)
def test_wrong_answers(actual: object, expected: object) -> None:
    assert not values_match(actual, expected)


def test_tolerance_is_the_tasks() -> None:
    assert values_match(1.01, 1.0, 0.05)
    assert not values_match(1.01, 1.0, 0.0)
    assert values_match(1.0, 1.0, 0.0)


def test_an_object_equal_to_everything_equals_nothing() -> None:
    class Always:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None

    for expected in (0, 1.0, "a", [1], {"a": 1}, {1}, None, True):
        assert not values_match(Always(), expected)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text()
    | st.binary()
)
KEYS = st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.sets(st.integers() | st.text(), max_size=4)
    ),
    max_leaves=12,
)


def swap_sequences(value: object) -> object:
    if isinstance(value, list):
        return tuple(map(swap_sequences, value))
    if isinstance(value, tuple):
        return [swap_sequences(item) for item in value]
    if isinstance(value, dict):
        return {key: swap_sequences(item) for key, item in value.items()}
    return value


@settings(max_examples=150, deadline=None)
@given(PLAIN)
def test_every_value_equals_itself_and_its_tuples_as_lists(value: object) -> None:
    assert values_match(value, value)
    assert values_match(swap_sequences(value), value)


@settings(max_examples=150, deadline=None)
@given(PLAIN, PLAIN)
def test_what_python_calls_equal_is_right(actual: object, expected: object) -> None:
    if actual == expected and not isinstance(expected, (bytes, dict)):
        assert values_match(actual, expected)


@settings(max_examples=100, deadline=None)
@given(PLAIN, st.lists(PLAIN, max_size=3))
def test_a_changed_length_is_wrong(extra: object, values: list[object]) -> None:
    assert not values_match([*values, extra], values)
    assert not values_match(values, [*values, extra])


@settings(max_examples=200, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(-1, 1))
def test_the_tolerance_is_absolute_or_relative(expected: float, share: float) -> None:
    bound = 1e-6 * max(1.0, abs(expected))
    actual = expected + share * 0.99 * bound
    if math.isfinite(actual):
        assert values_match(actual, expected)
    beyond = expected + 1.01 * bound
    if math.isfinite(beyond) and beyond - expected > bound:
        assert not values_match(beyond, expected)


OUTPUTS = [
    ("4\n", "4", True),
    ("4 \r\n\n\n", "4", True),
    ("\n\n4", "4", True),
    ("4\n\n5", "4\n5", False),
    ("4 5", "4  5", True),
    ("4\n5", "4 5", False),
    ("1.0", "1", True),
    ("1e3", "1000", True),
    ("0.3333333", "0.333333333333", True),
    ("0.3334", "0.333333333333", False),
    ("3.0000001", "3", False),
    ("Yes", "yes", False),
    ("nan", "nan", True),
    ("inf", "1.0", False),
    ("", "", True),
    ("", "0", False),
    ("1" * 5000, "1" * 5000, True),
    ("1" * 5000, "1" * 4999 + "2", False),
    ("1e9999", "1e9999", True),
    ("1e9999", "1.0", False),
    ("٣", "3", False),
    ("a 1.00000001 b", "a 1.0 b", True),
    ("1_000", "1000", False),
    ("+5", "5", True),
]


@pytest.mark.parametrize(("actual", "expected", "right"), OUTPUTS)
def test_printed_text(actual: str, expected: str, right: bool) -> None:
    assert outputs_match(actual, expected) is right


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_every_text_equals_itself_with_spaces_at_the_end(text: str) -> None:
    assert outputs_match(text, text)
    assert outputs_match(text + "  \n\n", text)


def test_long_numbers_and_many_lines_take_no_time() -> None:
    text = "9" * 400_000
    assert not outputs_match(text, text + "8")
    lines = "\n".join(map(str, range(50_000)))
    assert outputs_match(lines + "\n", lines)
