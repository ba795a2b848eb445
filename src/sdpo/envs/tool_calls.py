"""Tool calls in a completion, as templates of the Hermes and Qwen families teach models to write
them.

    <tool_call>
    {"name": "list_tables", "arguments": {"prefix": "hr"}}
    </tool_call>

Small models often leave the tags out and write the object alone or in a fenced block
(Qwen2.5-Coder-0.5B always does); that is a call too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_FENCED = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)
_NEEDED = {"name", "arguments"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call, or what was wrong with it.

    Example:
        ToolCall(name="list_tables", arguments={"prefix": "hr"})
    """

    name: str
    """Empty where `problem` says why the call cannot be read."""
    arguments: Mapping[str, Any]
    problem: str | None = None
    """In words for the model; None for a call that can be read."""


def tool_calls(text: str) -> tuple[ToolCall, ...]:
    """The calls in `text`, in order; empty when there are none. A tagged call that cannot be read
    is among them, with its `problem`: an answer to it is an environment's to give. Without a tag,
    JSON with a `name` and `arguments` is a call; any other JSON is an answer."""
    tagged = _CALL.findall(text)
    if tagged:
        return tuple(_read(_json(found)) for found in tagged)
    bare = [_json(found) for found in _FENCED.findall(text) or [text]]
    return tuple(_read(call) for call in bare if isinstance(call, dict) and call.keys() >= _NEEDED)


def _json(text: str) -> object:
    """What `text` says; None when it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read(call: object) -> ToolCall:
    if call is None:
        return _unreadable("it is not JSON")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return _unreadable("it has no name")
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        return _unreadable("its arguments are not a JSON object")
    return ToolCall(name=call["name"], arguments=arguments)


def _unreadable(why: str) -> ToolCall:
    return ToolCall(
        name="",
        arguments={},
        problem=f"The tool call cannot be read: {why}. "
        'Write <tool_call>{"name": ..., "arguments": {...}}</tool_call>.',
    )
