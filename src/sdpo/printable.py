"""Foreign text made safe to print: models, tasks and files may hold escape sequences, which a
terminal obeys (titles, links, the clipboard), and characters that reverse what is read.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

_LONE = re.compile("[\ud800-\udfff]")
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories: control, format, surrogate, line and paragraph separator."""


def printable(text: str) -> str:
    """`text` with unsafe characters replaced; newlines stay and tabs become spaces."""
    text = text.expandtabs(4).replace("\r\n", "\n")
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(
        "\ufffd" if char != "\n" and unicodedata.category(char) in _UNSAFE else char
        for char in text
    )


def printable_json(value: Any) -> str:
    """`value` as JSON on one line, readable where it can be: only unsafe characters are escaped,
    halves of surrogate pairs among them, which no file can hold."""
    text = json.dumps(value, ensure_ascii=False)
    if text.isascii():
        return text.replace("\x7f", "\\u007f")
    return "".join(
        json.dumps(char)[1:-1] if unicodedata.category(char) in _UNSAFE else char for char in text
    )


def mend(text: str) -> str:
    """`text` with U+FFFD for every half of a surrogate pair: bytes that were not text when they
    were read (`errors="surrogateescape"`), which no tokenizer takes."""
    return text if text.isprintable() else _LONE.sub("\ufffd", text)
