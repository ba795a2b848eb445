"""Docstrings as mkdocstrings should read them: the code under `Example:` is code."""

from __future__ import annotations

import re
from textwrap import dedent
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^Example:\n((?:[ \t]+\S.*\n?|[ \t]*\n)+)", re.MULTILINE)


class Examples(griffe.Extension):
    """Puts fences around examples, which would be read as prose."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once for every object that has been read."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(match: re.Match[str]) -> str:
    code = dedent(match.group(1)).strip("\n")
    return f"Example:\n\n```python\n{code}\n```\n"
