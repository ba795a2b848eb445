"""The process that compares formulas: the other end of `math_process.py`.

Run as a script, `python -I -S -B math_worker.py PATHS`, with an empty environment; PATHS are the
folders to import from, as JSON. It imports the algebra, confines itself, and only then reads lines
`[reference, answer]`, to which it answers `right`, `wrong` or `unreadable`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

MEMORY_BYTES = 4 << 30
"""Address space of the process: a number of 10^10 digits must not take the machine down."""
PACKAGES = ("antlr4", "gmpy2", "latex2sympy2_extended", "math_verify", "mpmath", "sympy")
"""What may be imported after the process is confined."""


def serve(requests: Iterable[str], replies: TextIO) -> None:
    """Answer requests until there are no more; the first reply says that the process is ready."""
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    # Load grammars and unit tables now, not within some attempt's time limit.
    verify(_parsed(parse, "7\\text{ cm}"), _parsed(parse, "\\frac{7}{2}"), timeout_seconds=None)
    _reply(replies, f"ready {_confine()}")
    gold: dict[str, list[Any]] = {}
    for line in requests:
        reference, answer = json.loads(line)
        try:
            if reference not in gold:
                gold[reference] = _parsed(parse, reference)
            read = _parsed(parse, answer)
            is_right = bool(read) and verify(gold[reference], read, timeout_seconds=None)
            outcome = "right" if is_right else "wrong" if _is_formula(read) else "unreadable"
        except Exception:  # noqa: BLE001 - a formula may raise anything in the algebra
            outcome = "unreadable"
        _reply(replies, outcome)


def _confine() -> str:
    """Bounds memory and locks the process down as far as the system can; the layers in use."""
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
        return confine(_package_paths())
    except JailError:
        # Defence in depth: the algebra evaluates no code of the model's, so a system without
        # these layers may do without.
        return "none"


def _package_paths() -> list[str]:
    found = [getattr(sys.modules.get(name), "__path__", None) for name in PACKAGES]
    return [folder for folders in found if folders is not None for folder in folders]


def _reply(replies: TextIO, text: str) -> None:
    replies.write(text + "\n")
    replies.flush()


def _parsed(parse: Any, text: str) -> list[Any]:
    return parse(f"\\boxed{{{text}}}", parsing_timeout=None)


def _is_formula(parsed: list[Any]) -> bool:
    """Whether the parser returned anything but the bare string."""
    return any(not isinstance(part, str) for part in parsed)


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
    # What a library prints must not be taken for a reply.
    own_replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, own_replies)
