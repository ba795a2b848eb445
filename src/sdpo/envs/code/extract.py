"""The program inside a chat answer: the last complete block in its language, found line by line as
CommonMark does.

A fence is a line; a non-greedy pattern over backticks breaks on docstrings and strings that contain
them. Hidden reasoning is dropped first, so that a draft in it is never judged. Nothing here looks
at whether the code parses.
"""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass

PYTHON_TAGS = frozenset({"py", "python", "python3"})
"""Language words of a Python block, compared without case.

A block without any word is taken when there is none of these.
"""

_OPEN = re.compile(r"^([ \t]*)(`{3,}|~{3,})([^\n]*)$")
_THINK = re.compile(r"^[ \t]*<think(?:ing)?>", re.MULTILINE)
_END_OF_THINK = re.compile(r"^[ \t]*</think(?:ing)?>|</think(?:ing)?>[ \t]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """What an answer holds.

    Example:
        Extracted(program="def f():\\n    return 1\\n", unclosed=False)
    """

    program: str | None
    """Text between the fences, lines ended by LF; None without a complete block."""
    unclosed: bool
    """True when the block that would have been taken has no closing fence."""


@dataclass(slots=True)
class _Block:
    tagged: bool
    lines: list[str]
    closed: bool


def extract_program(text: str, tags: Set[str] = PYTHON_TAGS) -> Extracted:
    """The last block tagged with one of `tags`, or else the last untagged one; other languages are
    passed over.

    A last block that is never closed gives no program: what follows a cut is unknown. An unclosed
    fence with nothing after it is a stray line and is ignored.
    """
    blocks = [
        block
        for block in _blocks(strip_thinking(text), tags)
        if block.closed or any(map(str.strip, block.lines))
    ]
    chosen = [block for block in blocks if block.tagged] or blocks
    if not chosen:
        return Extracted(program=None, unclosed=False)
    block = chosen[-1]
    if not block.closed:
        return Extracted(program=None, unclosed=True)
    return Extracted(program="\n".join(block.lines) + "\n", unclosed=False)


def strip_thinking(text: str) -> str:
    """`text` without `<think>` sections; a section never closed reaches to the end.

    Tags count only where a reasoning model writes them, at the start of a line or (closing) at its
    end, so that a program with the tag in a string survives. A closing tag without an opening one
    ends a section opened by the chat template.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    kept = []
    start = 0
    # One pass: a pattern with both tags would try every opening tag of an answer that never closes
    # one.
    while opening := _THINK.search(text, start):
        kept.append(text[start : opening.start()])
        closing = re.search(r"</think(?:ing)?>", text[opening.end() :])
        if closing is None:
            start = len(text)
            break
        start = opening.end() + closing.end()
    kept.append(text[start:])
    text = "".join(kept)
    ending = _END_OF_THINK.search(text)
    return text[ending.end() :] if ending else text


def _blocks(text: str, tags: Set[str]) -> list[_Block]:
    """Fenced blocks in order whose language is one of `tags` or not named."""
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
    """`line` without up to `indent` leading spaces: a block inside a list item is shifted as a
    whole."""
    return line[min(indent, len(line) - len(line.lstrip(" "))) :]
