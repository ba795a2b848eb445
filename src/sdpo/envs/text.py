"""Text of programs and environments made fit to show: escaped, bounded in length, special tokens
broken up."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

TRUNCATED = (
    "Truncated Attempt: Your previous response was too long and truncated because it reached the "
    "maximum response length. Try again with a shorter response."
)

MAX_VALUE_CHARS = 250
MAX_INPUT_LINES = 8

_HEADER_LINE = re.compile(
    r"^(?=[ \t]*(?:(?:Runtime|Compile) Error|(?:Time|Memory|Output) Limit Exceeded"
    r"|Last Executed Input|Test Case \S+:.*|Wrong Answer|Incorrect Format.*|Truncated Attempt.*"
    r"|Input|Stdout|Output|Expected)[ \t]*$)",
    re.MULTILINE | re.IGNORECASE,
)
"""Lines that could pass for a header of code feedback."""

_TOKEN = re.compile(
    r"<(?=[|｜])|(?<=[|｜])>"  # <|im_end|> and DeepSeek's full-width bars
    r"|<(?=/?(?:think|thinking|reasoning|answer|s|bos|eos|pad|unk|mask|sep|cls|tool_calls?"
    r"|tool_response|function_calls|start_of_turn|end_of_turn|start_of_image|begin_of_text"
    r"|end_of_text|eot_id|endoftext|fim_\w+"
    r"|unused\d+|extra_id_\d+|end_of_sentence|im_start|im_end)>)"
    r"|<(?=<SYS>>|</SYS>>)|\[(?=/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\])",
    re.IGNORECASE,
)
"""Where a space breaks up a chat-template or reasoning token: after the match, or before a final
`>`."""


def escape(text: str) -> str:
    """`text` with invisible and direction-changing characters spelled out, and with special tokens
    and header lines broken up."""
    text = text.replace("\r\n", "\n")
    if not text.isascii() or not text.isprintable():
        text = "".join(map(_visible, text))
    text = _TOKEN.sub(lambda match: " >" if match[0] == ">" else match[0] + " ", text)
    return _HEADER_LINE.sub("| ", text)


def _visible(character: str) -> str:
    """The character itself, or its escape when it is a control, format, surrogate or
    line-separating character."""
    if character in "\n\t" or unicodedata.category(character) not in (
        "Cc",
        "Cf",
        "Cs",
        "Co",
        "Zl",
        "Zp",
    ):
        return character
    code = ord(character)
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )


def cut_middle(text: str, limit: int) -> str:
    """`text` shortened to at most `limit` characters; a note in the middle counts what was left
    out."""
    if len(text) <= limit:
        return text
    # How wide the note is depends on its number; the number for the whole text is an upper bound.
    room = limit - len(f" ... ({len(text)} characters left out) ... ")
    if room < 2:
        return text[:limit]
    head = (room + 1) // 2
    tail = room - head
    return (
        f"{text[:head]} ... ({len(text) - room} characters left out) ... {text[len(text) - tail :]}"
    )


def cut_lines(text: str, limit: int) -> str:
    """`text` shortened to at most `limit` lines; the last one counts what was left out."""
    lines = text.split("\n")
    if len(lines) <= limit:
        return text
    kept = limit - 1
    return "\n".join([*lines[:kept], f"... ({len(lines) - kept} lines left out)"])


def safe(text: str) -> str:
    """A value ready to show: escaped, within `MAX_VALUE_CHARS` and `MAX_INPUT_LINES`."""
    # Escaping visits every character, so a value of megabytes is reduced to its two ends first.
    if len(text) > 8 * MAX_VALUE_CHARS:
        ends = 3 * MAX_VALUE_CHARS
        head, tail = escape(text[:ends]), escape(text[-ends:])
        left_out = len(text) - 2 * ends
        room = (MAX_VALUE_CHARS - len(f" ... ({len(text)} characters left out) ... ")) // 2
        left_out += len(head) - room + len(tail) - room
        cut = f"{head[:room]} ... ({left_out} characters left out) ... {tail[-room:]}"
    else:
        cut = cut_middle(escape(text), MAX_VALUE_CHARS)
    return cut_lines(cut, MAX_INPUT_LINES)


def show(value: Any) -> str:
    """`value` as Python would write it; a value that is not plain data reads `<TYPE object>`."""
    if isinstance(value, bool) or value is None or isinstance(value, (float, complex, str, bytes)):
        return repr(value)
    if isinstance(value, int):
        # Python refuses to print ints of more than 4,300 digits, and printing takes quadratic time.
        return repr(value) if value.bit_length() < 8192 else f"<int of {value.bit_length()} bits>"
    if isinstance(value, list):
        return f"[{', '.join(map(show, value))}]"
    if isinstance(value, tuple):
        return f"({show(value[0])},)" if len(value) == 1 else f"({', '.join(map(show, value))})"
    if isinstance(value, frozenset):
        return f"frozenset({show(set(value)) if value else ''})"
    if isinstance(value, AbstractSet):
        return f"{{{', '.join(map(show, _in_order(value)))}}}" if value else "set()"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{show(key)}: {show(item)}' for key, item in value.items())}}}"
    return f"<{getattr(value, 'type_name', type(value).__name__)} object>"


def _in_order(values: AbstractSet[Any]) -> list[Any]:
    """The members of a set in an order that does not change between runs."""
    if all(isinstance(value, (int, float)) for value in values):
        return sorted(values)
    return sorted(values, key=show)
