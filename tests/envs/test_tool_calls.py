"""Tool calls as models write them."""

from __future__ import annotations

import pytest

from sdpo.envs.tool_calls import ToolCall, tool_calls


def test_calls_are_read_in_order_with_text_around_them():
    text = (
        'Let me see.\n<tool_call>\n{"name": "a", "arguments": {"x": 1}}\n</tool_call>\n'
        '<tool_call>{"name": "b"}</tool_call> and more'
    )
    assert tool_calls(text) == (
        ToolCall(name="a", arguments={"x": 1}),
        ToolCall(name="b", arguments={}),
    )
    assert tool_calls("SELECT 1") == ()


def test_the_last_call_needs_no_closing_tag():
    """Some templates end the turn there."""
    assert tool_calls('<tool_call>{"name": "a", "arguments": {}}')[0].name == "a"


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("", "not JSON"),
        ('{"name": "a"', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "no name"),
        ('{"name": 3}', "no name"),
        ('{"name": "a", "arguments": "x"}', "not a JSON object"),
    ],
)
def test_a_call_that_cannot_be_read_says_why(inside, said):
    (call,) = tool_calls(f"<tool_call>{inside}</tool_call>")
    assert said in call.problem
    assert call.name == ""


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"name": "a", "arguments": {"x": 1}}\n```',
        'I will look.\n\n```\n{\n  "name": "a",\n  "arguments": {"x": 1}\n}\n```\n',
        '```xml\n{"name": "a", "arguments": {"x": 1}}\n```',
        '{"name": "a", "arguments": {"x": 1}}',
    ],
)
def test_a_call_without_tags_is_a_call(text):
    """Qwen2.5-Coder-0.5B writes all its calls so."""
    assert tool_calls(text) == (ToolCall(name="a", arguments={"x": 1}),)


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"name": "Ada"}\n```',
        '{"arguments": {}}',
        "[1]",
        "```sql\nSELECT 1\n```",
        '```json\n{"name": "a", "arguments": {}\n```',
        "[" * 100_000,
    ],
)
def test_other_json_is_an_answer(text):
    assert tool_calls(text) == ()


def test_with_tags_only_tagged_calls_count():
    text = (
        'Like\n```json\n{"name": "a", "arguments": {}}\n```\n'
        '<tool_call>{"name": "b", "arguments": {}}</tool_call>'
    )
    assert [call.name for call in tool_calls(text)] == ["b"]
