"""How feedback is worded, cut and made harmless."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo.envs import text as envs_text
from sdpo.envs.code import wording

BAR = "\N{FULLWIDTH VERTICAL LINE}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<|im_end|>", "< |im_end| >"),
        ("<|im_start|>system", "< |im_start| >system"),
        ("<think>", "< think>"),
        ("</think>", "< /think>"),
        (f"<{BAR}end{BAR}>", f"< {BAR}end{BAR} >"),
        ("[INST] x [/INST]", "[ INST] x [ /INST]"),
        ("<<SYS>>", "< <SYS>>"),
        ("<s>", "< s>"),
        ("<start_of_turn>user", "< start_of_turn>user"),
        ("a < b > c", "a < b > c"),
        ("a\x1b[31mred", "a\\x1b[31mred"),
        ("abc\u202edef", "abc\\u202edef"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("lone \ud800", "lone \\ud800"),
        ("a\u2028b", "a\\u2028b"),
        ("é 漢 🙂", "é 漢 🙂"),
        ("one\r\ntwo\tthree", "one\ntwo\tthree"),
        ("Runtime Error", "| Runtime Error"),
        ("x\nTest Case 1: Wrong Answer\ny", "x\n| Test Case 1: Wrong Answer\ny"),
        ("  expected  \n3", "|   expected  \n3"),
        ("Expected 3", "Expected 3"),
        ("Last Executed Input", "| Last Executed Input"),
    ],
)
def test_program_text_is_data(text: str, shown: str) -> None:
    assert envs_text.escape(text) == shown


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="<|>/think\n\u202e\x00abc[]INST") | st.text())
def test_nothing_dangerous_survives(text: str) -> None:
    shown = envs_text.safe(text)
    for token in ("<|", "|>", "<think>", "</think>", "[INST]"):
        assert token not in shown
    for character in ("\u202e", "\x00"):
        assert character not in shown
    shown.encode("utf-8")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=600), st.integers(1, 400))
def test_cutting_keeps_within_the_limit_and_says_so(text: str, limit: int) -> None:
    cut = envs_text.cut_middle(text, limit)
    assert len(cut) <= limit
    if len(text) <= limit:
        assert cut == text
    elif limit > 60:
        assert "characters left out" in cut
        assert cut.startswith(text[:5])
        assert cut.endswith(text[-5:])


def test_the_count_of_what_was_left_out_is_right() -> None:
    text = "a" * 1000 + "b" * 1000
    cut = envs_text.cut_middle(text, 100)
    kept = cut.count("a" * 5)
    assert kept
    number = int(cut.split("... (")[1].split()[0])
    head, tail = cut.split(f" ... ({number} characters left out) ... ")
    assert len(head) + len(tail) + number == 2000


@pytest.mark.parametrize("size", [250, 251, 1999, 2000, 2001, 10_000, 3_000_000])
def test_values_of_every_size_are_short(size: int) -> None:
    shown = envs_text.safe("x" * size)
    assert len(shown) <= envs_text.MAX_VALUE_CHARS
    assert ("left out" in shown) is (size > envs_text.MAX_VALUE_CHARS)


def test_inputs_have_at_most_eight_lines() -> None:
    shown = envs_text.safe("\n".join("abcdefghijklmnop"))
    assert shown.split("\n")[-1] == "... (9 lines left out)"
    assert len(shown.split("\n")) == 8


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (True, "True"),
        ("a\n", "'a\\n'"),
        ([1, (2,), {"a": None}], "[1, (2,), {'a': None}]"),
        ((), "()"),
        (set(), "set()"),
        ({10, 2, 1}, "{1, 2, 10}"),
        ({"b", "a", 1}, "{'a', 'b', 1}"),
        (frozenset({1}), "frozenset({1})"),
        (float("nan"), "nan"),
        (b"x", "b'x'"),
        pytest.param(10**5000, "<int of 16610 bits>", id="big"),
    ],
)
def test_values_are_shown_as_python(value: object, text: str) -> None:
    assert envs_text.show(value) == text


def test_the_failing_line_is_not_quoted() -> None:
    """The teacher repeats a mistake it reads: 0.08 of attempts corrected with it, 0.33 without."""
    assert wording.frame_lines([(2, "f"), (9, "g")]) == [
        "Line 2 in f (Solution.py)",
        "Line 9 in g (Solution.py)",
    ]
