"""The program in a chat answer: the last complete block in its language that defines what is asked
for, found line by line as in CommonMark.

A fence is a line; a non-greedy pattern over backticks breaks on docstrings and strings that contain
them. Hidden reasoning is removed first, so that a draft in it is never judged. Whether the code
parses is not checked here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Set
from dataclasses import dataclass

from sdpo.chat import strip_thinking

PYTHON_TAGS = frozenset({"py", "py3", "python", "python3"})
"""Language tags of a Python block, in any case; untagged blocks count if there is no tagged one."""

_OPEN = re.compile(r"^([ \t]*)(`{3,}|~{3,})([^\n]*)$")
_END = re.compile(r"(?:<\|(?:endoftext|im_end|eot_id|end_of_text)\|>|</s>)\s*\Z")
"""An end token that a response from elsewhere still carries, perhaps behind the closing fence."""
_BRACKETS = re.compile(r"\[(python)\](.*?)\[/\1\]", re.DOTALL | re.IGNORECASE)
"""How CodeLlama marks a program."""
_ONE_LINE = re.compile(r"^[ \t]*`{3,}([\w+]+)[ \t]+([^`\n]+)`{3,}[ \t]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """What was found in an answer.

    Example:
        Extracted(program="def f():\\n    return 1\\n", unclosed=False, position=1, num_blocks=2)
    """

    program: str | None
    """Text between the fences, lines ending in LF; None without a complete block."""
    unclosed: bool
    """True if the block that would have been taken has no closing fence."""
    position: int = 0
    """Which of the blocks the program is, from 1."""
    num_blocks: int = 0
    """Blocks that could have been the program."""


@dataclass(slots=True)
class _Block:
    tagged: bool
    lines: list[str]
    closed: bool


def extract_program(
    text: str, tags: Set[str] = PYTHON_TAGS, names: Collection[str] = ()
) -> Extracted:
    """The last block tagged with one of `tags`, or else the last untagged one; other languages are
    ignored.

    If some of these blocks define one of `names`, it is the last that does: after a solution, many
    models write an example of its use. If the block is never closed, there is no program, because
    nobody knows what would have followed. An unclosed fence with nothing after it is a stray line
    and is ignored. Without any fence, `[PYTHON] ... [/PYTHON]` and a block on one line count.
    """
    text = _END.sub("", strip_thinking(text)).replace("\r\n", "\n").replace("\r", "\n")
    blocks = [
        block for block in _blocks(text, tags) if block.closed or any(map(str.strip, block.lines))
    ]
    chosen = [block for block in blocks if block.tagged] or blocks or _unfenced(text, tags)
    if not chosen:
        return Extracted(program=None, unclosed=False)
    position = len(chosen)
    if names:
        defines = re.compile(_DEFINITION.format("|".join(map(re.escape, names))), re.MULTILINE)
        found = [k for k, each in enumerate(chosen, 1) if defines.search("\n".join(each.lines))]
        position = found[-1] if found else position
    block = chosen[position - 1]
    return Extracted(
        program="\n".join(block.lines) + "\n" if block.closed else None,
        unclosed=not block.closed,
        position=position,
        num_blocks=len(chosen),
    )


_DEFINITION = (
    r"^[ \t]*(?:(?:async[ \t]+)?def|class)[ \t]+(?:{0})\b|^(?:{0})[ \t]*(?::[^=\n]*)?=(?!=)"
)
"""Also matches a method (`class Solution`), and programs that do not compile."""


def _unfenced(text: str, tags: Set[str]) -> list[_Block]:
    """Programs marked in other ways than by a fence of its own line."""
    found = _BRACKETS.findall(text) or _ONE_LINE.findall(text)
    return [
        _Block(tagged=True, lines=code.strip("\n").rstrip().split("\n"), closed=True)
        for tag, code in found
        if tag.lower() in tags
    ]


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
