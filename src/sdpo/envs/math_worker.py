"""The process that compares formulas: the other end of `workers.py`.

Run as a script, `python -I -S -B math_worker.py PATHS`, with an empty environment; PATHS are the
folders to import from, as JSON. It imports the algebra, confines itself, and only then reads lines
`[reference, answer]`, to which it answers `right`, `wrong` or `unreadable`.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Iterable
from typing import Any, TextIO

READ_AT_ONCE = 4096
"""Formulas kept as they were read: a reference comes again with every attempt at its task."""
PACKAGES = ("antlr4", "gmpy2", "latex2sympy2_extended", "math_verify", "mpmath", "sympy")
"""What may be imported after the process is confined."""


def serve(requests: Iterable[str], replies: TextIO) -> None:
    """Answer requests until there are no more; the first reply says that the process is ready."""
    from math_verify import parse, verify

    from sdpo.envs.math_values import same
    from sdpo.envs.worker_side import confined, reply

    read_once = functools.lru_cache(READ_AT_ONCE)(functools.partial(_parsed, parse))

    def equal(gold: list[Any], answer: list[Any]) -> bool:
        return bool(verify(gold, answer, timeout_seconds=None))

    logging.disable(logging.CRITICAL)
    # Load grammars and unit tables now, not within some attempt's time limit.
    verify(_parsed(parse, "7\\text{ cm}"), _parsed(parse, "\\frac{7}{2}"), timeout_seconds=None)
    reply(replies, f"ready {confined(PACKAGES)}")
    for line in requests:
        reference, answer = json.loads(line)
        try:
            is_right, read = same(reference, answer, read_once, equal)
            outcome = "right" if is_right else "wrong" if _is_formula(read) else "unreadable"
        except Exception:  # noqa: BLE001 - a formula may raise anything in the algebra
            outcome = "unreadable"
        reply(replies, outcome)


def _parsed(parse: Any, text: str) -> list[Any]:
    return parse(f"\\boxed{{{text}}}", parsing_timeout=None)


def _is_formula(parsed: list[Any]) -> bool:
    """Whether the parser returned anything but the bare string."""
    return any(not isinstance(part, str) for part in parsed)


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
    from sdpo.envs.worker_side import own_replies

    serve(sys.stdin, own_replies())
