"""The process that compares formulas: the other end of `workers.py`.

Run as a script, `python -I -S -B math_worker.py PATHS`, with an empty environment; PATHS are the
folders to import from, as JSON. It imports the algebra, confines itself, and only then reads lines
`[reference, answer]`, to which it answers `right`, `wrong` or `unreadable`.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

MEMORY_BYTES = 4 << 30
"""Address space of the process: a number of 10^10 digits must not take the machine down."""
READ_AT_ONCE = 4096
"""Formulas kept as they were read: a reference comes again with every attempt at its task."""
PACKAGES = ("antlr4", "gmpy2", "latex2sympy2_extended", "math_verify", "mpmath", "sympy")
"""What may be imported after the process is confined."""


def serve(requests: Iterable[str], replies: TextIO) -> None:
    """Answer requests until there are no more; the first reply says that the process is ready."""
    from math_verify import parse, verify

    from sdpo.envs.math_values import same

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


def confined(packages: Sequence[str]) -> str:
    """Bounds memory and locks the process down as far as the system can, but for reading
    `packages`; the layers in use."""
    try:
        import resource
    except ImportError:  # Windows
        return "none"
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # macOS refuses a bound of the address space; there the time limit alone ends a comparison.
    if sys.platform == "darwin":
        return "none"
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    from sdpo.sandbox.confine import confine
    from sdpo.sandbox.jail import JailError

    try:
        return confine(_paths_of(packages))
    except JailError:
        # Defence in depth: the algebra evaluates no code of the model's, so a system without
        # these layers may do without.
        return "none"


def _paths_of(packages: Sequence[str]) -> list[str]:
    found = [getattr(sys.modules.get(name), "__path__", None) for name in packages]
    return [folder for folders in found if folders is not None for folder in folders]


def reply(replies: TextIO, text: str) -> None:
    """Write one line."""
    replies.write(text + "\n")
    replies.flush()


def _parsed(parse: Any, text: str) -> list[Any]:
    return parse(f"\\boxed{{{text}}}", parsing_timeout=None)


def _is_formula(parsed: list[Any]) -> bool:
    """Whether the parser returned anything but the bare string."""
    return any(not isinstance(part, str) for part in parsed)


def own_replies() -> TextIO:
    """Where to reply to; what a library prints goes elsewhere from now on."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
    serve(sys.stdin, own_replies())
