"""The wording of code feedback, in the manner of a competitive-programming site.

Program text is data, and it ends up in the teacher's prompt: control characters, chat-template
tokens and lines that look like a header are made harmless here. Long values are cut in the middle
and say so. `judge.py` decides which failure is reported, and on which tests.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

from sdpo.envs.code.extract import Extracted
from sdpo.envs.text import cut_middle, safe

INCORRECT_FORMAT = "Incorrect Format: Put your code inside a ```{language} ... ``` block."
COMPILE_ERROR = "Compile Error"
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
"""Appended to the message of a PermissionError, which only the sandbox causes."""

SIGNALS = {
    signal.SIGSEGV: "Segmentation fault (usually unbounded recursion)",
    signal.SIGABRT: "Aborted",
    9: "Killed",  # SIGKILL, which Python on Windows does not name
}

MAX_FRAMES = 3
MAX_WRONG_ANSWERS = 2


def exception_line(kind: str, message: str) -> str:
    """`KIND: message` of an exception, as the program's process described it."""
    if kind == "PermissionError":
        message += FORBIDDEN
    return safe(f"{kind}: {message}" if message else kind)


def which_block(found: Extracted) -> str | None:
    """Which block of an answer was judged, if it had several."""
    if found.num_blocks < 2:
        return None
    return f"Block {found.position} of the {found.num_blocks} code blocks in the answer was judged."


def signal_name(number: int | None) -> str:
    """The line about a program that a signal ended."""
    return SIGNALS.get(number, f"Killed by signal {number}")


def frame_lines(frames: Sequence[tuple[int, str]], file: str = "Solution.py") -> list[str]:
    """Location of the last `MAX_FRAMES` frames, outermost first.

    The failing line itself is not quoted: a teacher that has the attempt's mistake before its eyes
    repeats it (0.08 of 48 attempts at `private-api` corrected with the line, 0.33 without).
    """
    return [
        f"Line {number} in {safe(function)} ({file})" for number, function in frames[-MAX_FRAMES:]
    ]


def last_input(text: str | None) -> list[str]:
    """The closing section with the input that was running; empty if no test had started."""
    return [] if text is None else ["", LAST_INPUT, _or_nothing(text)]


def wrong_answer(number: int, given: str, stdout: str, output: str, expected: str) -> str:
    """`Test Case K: Wrong Answer` with the input, printed text if any, the output and the expected
    output."""
    sections = [f"Test Case {number}: {WRONG_ANSWER}", "Input", _or_nothing(given)]
    if stdout.strip():
        sections += ["Stdout", _or_nothing(stdout)]
    sections += ["Output", _or_nothing(output), "Expected", _or_nothing(expected)]
    return "\n".join(sections)


def _or_nothing(text: str) -> str:
    """A value to show; a blank one would leave its header without content."""
    return safe(text.rstrip("\n")) or "(nothing)"


def fit(parts: Sequence[str], limit: int) -> str:
    """The parts joined within `limit` characters: later parts are dropped first, then the first is
    cut in its middle."""
    kept = list(parts)
    while len(kept) > 1 and len("\n\n".join(kept)) > limit:
        kept.pop()
    return cut_middle("\n\n".join(kept), limit)


def counts(header: str, passed: int, total: int) -> str:
    """All that feedback reveals about private tests: the kind of failure and how many passed."""
    return f"{header}\n{passed} of {total} tests passed."
