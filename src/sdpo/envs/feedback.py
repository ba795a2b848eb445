"""The wording of code feedback: one text per failure, in the manner of a competitive-programming
site.

Program text is data: it ends up in the teacher's prompt, so control characters, chat-template
tokens and lines that look like a header are made harmless here. Long values are cut in the middle
and say so. Which failure is reported, and on which tests, is decided by `code_judge.py`.
"""

from __future__ import annotations

import re
import signal
import unicodedata
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

INCORRECT_FORMAT = "Incorrect Format: Put your code inside a ```python ... ``` block."
TRUNCATED = (
    "Truncated Attempt: Your previous response was too long and truncated because it reached the "
    "maximum response length. Try again with a shorter response."
)
RUNTIME_ERROR = "Runtime Error"
TIME_LIMIT = "Time Limit Exceeded"
MEMORY_LIMIT = "Memory Limit Exceeded"
OUTPUT_LIMIT = "Output Limit Exceeded"
WRONG_ANSWER = "Wrong Answer"
LAST_INPUT = "Last Executed Input"

HEADERS = {
    "wrong_answer": WRONG_ANSWER,
    "runtime_error": RUNTIME_ERROR,
    "time_limit": TIME_LIMIT,
    "memory_limit": MEMORY_LIMIT,
    "output_limit": OUTPUT_LIMIT,
}
"""Category to the header of its feedback."""

EXIT = "The program ended without an answer (exit code {code})."
TAMPERING = "The program broke the judge's protocol."
FORBIDDEN = " (processes, network and files are not available in this judge)"
"""Follows the message of a PermissionError that the sandbox caused."""

SIGNALS = {
    signal.SIGSEGV: "Segmentation fault (usually unbounded recursion)",
    signal.SIGABRT: "Aborted",
    signal.SIGKILL: "Killed",
}

MAX_VALUE_CHARS = 250
MAX_INPUT_LINES = 8
MAX_FRAMES = 3
MAX_WRONG_ANSWERS = 2

_HEADER_LINE = re.compile(
    r"^(?=[ \t]*(?:Runtime Error|(?:Time|Memory|Output) Limit Exceeded|Last Executed Input"
    r"|Test Case \S+:.*|Wrong Answer|Incorrect Format.*|Truncated Attempt.*"
    r"|Input|Stdout|Output|Expected)[ \t]*$)",
    re.MULTILINE | re.IGNORECASE,
)
_TOKEN = re.compile(
    r"<(?=[|｜])|(?<=[|｜])>"  # <|im_end|> and DeepSeek's full-width bars
    r"|<(?=/?(?:think|thinking|reasoning|answer|s|bos|eos|pad|unk|mask|sep|cls|tool_calls?"
    r"|tool_response|function_calls|start_of_turn|end_of_turn|start_of_image|begin_of_text"
    r"|end_of_text|eot_id|endoftext|fim_\w+"
    r"|unused\d+|extra_id_\d+|end_of_sentence|im_start|im_end)>)"
    r"|<(?=<SYS>>|</SYS>>)|\[(?=/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\])",
    re.IGNORECASE,
)
"""Where a space breaks a chat-template or reasoning token: after the match, before a final `>`."""


def escape(text: str) -> str:
    """`text` with invisible and direction-changing characters spelled out, special tokens and
    header lines broken up."""
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
    """`text` in at most `limit` characters; what is left out of the middle is counted in its
    place."""
    if len(text) <= limit:
        return text
    # The count's own width changes what fits; its digits for the whole text are an upper bound.
    room = limit - len(f" ... ({len(text)} characters left out) ... ")
    if room < 2:
        return text[:limit]
    head = (room + 1) // 2
    tail = room - head
    return (
        f"{text[:head]} ... ({len(text) - room} characters left out) ... {text[len(text) - tail :]}"
    )


def cut_lines(text: str, limit: int) -> str:
    """`text` in at most `limit` lines; the last one counts what was left out."""
    lines = text.split("\n")
    if len(lines) <= limit:
        return text
    kept = limit - 1
    return "\n".join([*lines[:kept], f"... ({len(lines) - kept} lines left out)"])


def safe(text: str) -> str:
    """One value ready to be shown: escaped, cut to `MAX_VALUE_CHARS` and `MAX_INPUT_LINES`."""
    # Escaping looks at every character, so a value of megabytes is thinned first; what is shown
    # comes from both its ends.
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
    """`value` as Python would write it; values of unknown types read `<TYPE object>`."""
    if isinstance(value, bool) or value is None or isinstance(value, (float, complex, str, bytes)):
        return repr(value)
    if isinstance(value, int):
        # Python refuses to spell ints beyond 4,300 digits, and spelling them takes quadratic time.
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


def exception_line(kind: str, message: str) -> str:
    """`KIND: message` of an exception, as its process described it."""
    if kind == "PermissionError":
        message += FORBIDDEN
    return safe(f"{kind}: {message}" if message else kind)


def signal_name(number: int | None) -> str:
    """What ended a program that a signal ended."""
    return SIGNALS.get(number, f"Killed by signal {number}")


def frame_lines(frames: Sequence[tuple[int, str]], source: Sequence[str]) -> list[str]:
    """Source line and place of the last `MAX_FRAMES` frames, outermost first.

    Only the line *number* comes from the program's process; the text is the judge's copy, so a
    program cannot write here.
    """
    lines = []
    for number, function in frames[-MAX_FRAMES:]:
        if 1 <= number <= len(source):
            lines.append(f"  {safe(source[number - 1].strip())}")
        lines.append(f"Line {number} in {safe(function)} (Solution.py)")
    return lines


def last_input(text: str | None) -> list[str]:
    """The closing section with the input that was running; nothing when no test had started."""
    return [] if text is None else ["", LAST_INPUT, _or_nothing(text)]


def wrong_answer(number: int, given: str, stdout: str, output: str, expected: str) -> str:
    """`Test Case K: Wrong Answer` with input, printed text if any, output and what was expected."""
    sections = [f"Test Case {number}: {WRONG_ANSWER}", "Input", _or_nothing(given)]
    if stdout.strip():
        sections += ["Stdout", _or_nothing(stdout)]
    sections += ["Output", _or_nothing(output), "Expected", _or_nothing(expected)]
    return "\n".join(sections)


def _or_nothing(text: str) -> str:
    """A value to show; an empty one would leave its header alone."""
    return safe(text.rstrip("\n")) or "(nothing)"


def fit(parts: Sequence[str], limit: int) -> str:
    """The parts one after the other in at most `limit` characters: later parts go first, then the
    middle of the first."""
    kept = list(parts)
    while len(kept) > 1 and len("\n\n".join(kept)) > limit:
        kept.pop()
    return cut_middle("\n\n".join(kept), limit)


def counts(header: str, passed: int, total: int) -> str:
    """What judging on private tests may say: the kind of failure and how many tests passed."""
    return f"{header}\n{passed} of {total} tests passed."
