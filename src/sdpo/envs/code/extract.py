"""The program in a chat answer: the last complete block in its language, found line by line as in
CommonMark.

A fence is a line; a non-greedy pattern over backticks breaks on docstrings and strings that contain
them. Hidden reasoning is removed first, so that a draft in it is never judged. Whether the code
parses is not checked here.
"""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass

from sdpo.chat import strip_thinking

PYTHON_TAGS = frozenset({"py", "python", "python3"})
"""Language tags of a Python block, in any case; untagged blocks count if there is no tagged one."""

_OPEN = re.compile(r"^([ \t]*)(`{3,}|~{3,})([^\n]*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """What was found in an answer.

    Example:
        Extracted(program="def f():\\n    return 1\\n", unclosed=False)
    """

    program: str | None
    """Text between the fences, lines ending in LF; None without a complete block."""
    unclosed: bool
    """True if the block that would have been taken has no closing fence."""


@dataclass(slots=True)
class _Block:
    tagged: bool
    lines: list[str]
    closed: bool


def extract_program(text: str, tags: Set[str] = PYTHON_TAGS) -> Extracted:
    """The last block tagged with one of `tags`, or else the last untagged one; other languages are
    ignored.

    If that block is never closed, there is no program, because nobody knows what would have
    followed. An unclosed fence with nothing after it is a stray line and is ignored.
    """
    blocks = [
        block
        for block in _blocks(strip_thinking(text).replace("\r\n", "\n").replace("\r", "\n"), tags)
        if block.closed or any(map(str.strip, block.lines))
    ]
    chosen = [block for block in blocks if block.tagged] or blocks
    if not chosen:
        return Extracted(program=None, unclosed=False)
    block = chosen[-1]
    if not block.closed:
        return Extracted(program=None, unclosed=True)
    return Extracted(program="\n".join(block.lines) + "\n", unclosed=False)


def _blocks(text: str, tags: Set[str]) -> list[_Block]:
    """The fenced blocks whose language is one of `tags` or not given, in order."""
    blocks: list[_Block] = []
    fence = ""
    indent = 0
    current: _Block | None = None
    keep = False
    for line in text.split("\n"):
        match = _OPEN.match(line)
        if current is None:
            if match and not (match[2][0] == "`" and "`" in match[3]):
                fence, indent = match[2], len(match[1].expandtabs(4))
                words = match[3].strip().strip("{}.").split(maxsplit=1)
                word = re.split(r"[:,{]", words[0].lower())[0] if words else ""
                keep = word in tags or not word
                current = _Block(tagged=bool(word), lines=[], closed=False)
            continue
        if match and _closes(match, fence, indent):
            current.closed = True
            if keep:
                blocks.append(current)
            current = None
            continue
        current.lines.append(_dedent(line, indent))
    if current is not None and keep:
        blocks.append(current)
    return blocks


def _closes(match: re.Match[str], fence: str, indent: int) -> bool:
    """A closing fence is bare, of the same character, at least as long, and at most three columns
    deeper."""
    return (
        match[2][0] == fence[0]
        and len(match[2]) >= len(fence)
        and not match[3].strip()
        and len(match[1].expandtabs(4)) <= indent + 3
    )


def _dedent(line: str, indent: int) -> str:
    """`line` without up to `indent` leading spaces, because a block in a list item is indented as a
    whole."""
    return line[min(indent, len(line) - len(line.lstrip(" "))) :]
