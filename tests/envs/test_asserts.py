"""Assert lines become probes for the program and conditions for the judge."""

from __future__ import annotations

import ast
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo.envs.code.assert_forms import as_source, compile_test

F = "def f(*xs):\n    return xs\n"


def compiled(source: str, entry_point: str | None = "f", solution: str | None = None) -> tuple:
    (test,) = compile_test(source, entry_point, solution, "")
    return test.form, test.probes, test.expected or test.condition


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("assert f(5) == 8", ("equals", ("f(5)",), "8")),
        ("assert 8 == f(5)", ("equals", ("f(5)",), "8")),
        ("assert f([1, 2], k=3) == [4], 'message'", ("equals", ("f([1, 2], k=3)",), "[4]")),
        ("assert f(1)[0].x == 2", ("equals", ("f(1)[0].x",), "2")),
        ("assert f(2) == 2.0 / 3.0", ("equals", ("f(2)",), "2.0 / 3.0")),
        ("assert f(f(1)) == 1", ("equals", ("f(f(1))",), "1")),
        ("assert sorted(f(3)) == [1]", ("equals", ("sorted(f(3))",), "[1]")),
        ("assert round(f(3), 2) == 1.5", ("equals", ("round(f(3), 2)",), "1.5")),
        ("assert f(1)", ("is", ("bool(f(1))",), "True")),
        ("assert not f(1)", ("is", ("bool(f(1))",), "False")),
        ("assert f(1) is True", ("is", ("f(1)",), "True")),
        ("assert f(1) is None", ("is", ("f(1)",), "None")),
        ("assert abs(f(1) - 1.5) < 1e-6", ("trusted", ("f(1)",), "abs(probe_0 - 1.5) < 1e-06")),
        ("assert f(1) != 3", ("trusted", ("f(1)",), "probe_0 != 3")),
        ("assert f(1) == f(2)", ("trusted", ("f(1)", "f(2)"), "probe_0 == probe_1")),
        ("assert isinstance(f(1), int)", ("trusted", ("f(1)",), "isinstance(probe_0, int)")),
        ("assert f(1) in (1, 2)", ("trusted", ("f(1)",), "probe_0 in (1, 2)")),
        (
            "assert all(f(n) for n in range(3))",
            ("replay", (), "assert all(f(n) for n in range(3))"),
        ),
        ("for n in [3]:\n    assert f(n)", ("replay", (), "for n in [3]:\n    assert f(n)")),
        ("x = f(1)\nassert x == 1", ("equals", ("(exec('x = f(1)', globals()), x)[1]",), "1")),
        ("e = [1]\nassert f(1) == e", ("replay", (), "e = [1]\nassert f(1) == e")),
        ("assert candidate(1) == f(1)", ("equals", ("f(1)",), "f(1)")),
        ("assert tuple(candidate(1)) == (2,)", ("equals", ("tuple(f(1))",), "(2,)")),
    ],
)
def test_forms(source: str, expected: tuple) -> None:
    assert compiled(source) == expected


def test_names_come_from_the_reference() -> None:
    solution = "import sys\nclass Pile:\n    pass\nLIMIT = 3\ndef helper():\n    pass\n"
    assert compiled("assert Pile().push(1).pop() == 1", None, solution)[1] == (
        "Pile().push(1).pop()",
    )
    assert compiled("assert LIMIT == 3", None, solution) == ("equals", ("LIMIT",), "3")
    right = compiled("assert helper() == sys.maxsize", None, solution)
    assert right == ("equals", ("helper()",), "sys.maxsize")


def test_without_a_reference_unknown_names_are_the_programs() -> None:
    assert compiled("assert g(math.pi) == 1", None) == ("equals", ("g(math.pi)",), "1")
    (test,) = compile_test("assert g(root) == 1", None, None, "root = Node(1)")
    assert test.probes == ("g(root)",)


def test_expected_values_never_reach_the_programs_process() -> None:
    for source in (
        "assert f(1) == 'secret'",
        "assert abs(f(1) - len('secret')) < 1",
        "assert 'secret' in f(1)",
        "assert f(1).startswith('x') or f(2) == 'secret'",
        "assert min(f(1), len('secret')) == 2",
    ):
        for test in compile_test(source, "f", F, ""):
            assert all("secret" not in probe for probe in test.probes)


def test_lines_before_an_assert_build_what_the_probe_needs() -> None:
    source = "n = 3\ns = Pile(n)\nwant = 5\ns.push(1)\nassert s.size() == 1"
    source += "\ns.pop()\nassert s.size() == 0"
    first, second = compile_test(source, None, "class Pile:\n    pass\n", "")
    assert first.shown == "n = 3\ns = Pile(n)\ns.push(1)\ns.size()"
    assert second.shown == "n = 3\ns = Pile(n)\ns.push(1)\ns.pop()\ns.size()"
    assert (first.form, first.expected, second.expected) == ("equals", "1", "0")


def test_arguments_that_the_call_changed_can_be_asserted() -> None:
    (test,) = compile_test("xs = [2, 1]\nf(xs)\nassert xs == [1, 2]", "f", None, "")
    assert (test.form, test.shown, test.expected) == ("equals", "xs = [2, 1]\nf(xs)\nxs", "[1, 2]")


def test_what_only_the_right_side_needs_stays_out() -> None:
    source = "xs = [2, 1]\nwant = sorted(xs)\nassert f(xs) == want"
    (test,) = compile_test(source, "f", None, "")
    assert test.form == "replay"


def test_a_test_without_a_call_is_refused() -> None:
    with pytest.raises(ValueError, match="calls nothing of the program"):
        compile_test("assert 1 == 1", "f", F, "")


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.sets(st.integers(), max_size=3)
        | st.frozensets(st.integers(), max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=100)
@given(PLAIN)
def test_plain_data_survives_as_source(value: object) -> None:
    again = eval(as_source(value))
    assert again == value
    assert type(again) is type(value)


def test_special_numbers_survive_as_source() -> None:
    assert math.isnan(eval(as_source(float("nan"))))
    assert eval(as_source([float("inf"), -float("inf")])) == [math.inf, -math.inf]
    big = 10**6000
    assert ast.literal_eval(as_source(big)) == big
    assert math.copysign(1, eval(as_source(-0.0))) == -1
    with pytest.raises(TypeError, match="not plain data"):
        as_source(object())
