"""Compares formulas in a process of its own, which can be killed when it takes too long.

One process makes one comparison at a time; `math.py` keeps several. The process runs this module:
it reads lines `[reference, answer]` and writes `right`, `wrong` or `unreadable`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any, TextIO

from sdpo.errors import SdpoError

START_LIMIT_S = 120.0
"""Importing sympy takes a second, and far longer on a busy machine."""
MEMORY_BYTES = 4 << 30
"""Address space of the process: a number of 10^10 digits must not take the machine down."""
_READY = "ready"


class Comparer:
    """A process that compares formulas.

    Example:
        Comparer().compare("1/2", "0.5", time_limit_s=5)   # "right"
    """

    def __init__(self) -> None:
        # -P, because the current directory may have a `math.py` or `sympy.py`.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sdpo.envs.math_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        if self._read(START_LIMIT_S) != _READY:
            self.close()
            raise SdpoError(
                "the process that compares formulas did not start; "
                f"run `{sys.executable} -m sdpo.envs.math_process` to see why"
            )

    @property
    def is_alive(self) -> bool:
        """False once a comparison has taken too long or crashed the process."""
        return self._process.poll() is None

    def compare(self, reference: str, answer: str, time_limit_s: float) -> str:
        """`right`, `wrong`, `unreadable` or `too_slow`; after the last, the process is gone."""
        assert self._process.stdin is not None
        # An earlier answer may have crashed the process.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([reference, answer]).encode() + b"\n")
            self._process.stdin.flush()
        outcome = self._read(time_limit_s)
        if outcome is None:
            self.close()
            return "too_slow"
        return outcome

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _read(self, time_limit_s: float) -> str | None:
        """The next line; None if the time is up or the process has ended."""
        assert self._process.stdout is not None
        file = self._process.stdout.fileno()
        deadline = time.monotonic() + time_limit_s
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(file, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                part = os.read(file, 4096)
                if not part:
                    return None
                line += part
        return line.decode().strip()


def _serve(requests: Iterable[str], replies: TextIO) -> None:
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    # Load grammars and unit tables now, not within some attempt's time limit.
    verify(_parsed(parse, "7\\text{ cm}"), _parsed(parse, "\\frac{7}{2}"), timeout_seconds=None)
    _reply(replies, _READY)
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


def _bound_memory() -> None:
    import resource  # Windows has none

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # macOS refuses a bound of the address space; there the time limit alone ends a comparison.
    if sys.platform != "darwin":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _reply(replies: TextIO, text: str) -> None:
    replies.write(text + "\n")
    replies.flush()


def _parsed(parse: Any, text: str) -> list[Any]:
    return parse(f"\\boxed{{{text}}}", parsing_timeout=None)


def _is_formula(parsed: list[Any]) -> bool:
    """Whether the parser returned anything but the bare string."""
    return any(not isinstance(part, str) for part in parsed)


if __name__ == "__main__":
    _bound_memory()
    # What a library prints must not be taken for a reply.
    own_replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _serve(sys.stdin, own_replies)
