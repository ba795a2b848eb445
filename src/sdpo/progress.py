"""Where a long computation stands, said from inside it to whoever listens: attempts sampled,
judged, re-read, trained on.

Those who compute call `tell`, which costs a comparison where nobody listens. There is one listener
at a time, the innermost; nothing that is computed depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One place in a computation.

    Example:
        Progress(phase=None, what="sample", done=64, total=128, tokens=5120, seconds=63.0)
    """

    phase: str | None
    """What it is part of (`evaluate`, `probe`); None for a training step itself."""
    what: str
    """`sample`, `judge`, `teacher` or `update`."""
    done: int
    total: int
    """Attempts."""
    tokens: int = 0
    """Sampled so far, by `sample`."""
    seconds: float = 0.0
    """Since this part began."""

    def __str__(self) -> str:
        """`sample 64/128 at 81 tok/s`; of an evaluation `evaluate 37/224 at 81 tok/s`."""
        name = self.what
        if self.phase is not None:
            name = self.phase if self.what == "sample" else f"{self.phase}: {self.what}"
        rate = self.tokens / self.seconds if self.seconds > 0 else 0.0
        return f"{name} {self.done}/{self.total}" + (f" at {rate:.0f} tok/s" if rate else "")


Listener = Callable[[Progress], object]
_listeners: list[Listener] = []
_phases: list[str] = []
_began: tuple[str, float] = ("", 0.0)
"""The part that is under way, and when it began."""


@contextmanager
def listening(listener: Listener) -> Generator[None]:
    """Call `listener` with everything told inside the block. It is called from other threads too,
    one call at a time, and often: it must be quick."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def phase(name: str) -> Generator[None]:
    """What is told inside the block is part of `name`."""
    _phases.append(name)
    try:
        yield
    finally:
        _phases.pop()


def tell(what: str, done: int, total: int, *, tokens: int = 0) -> None:
    """`done` of `total` attempts are through `what`; `done` = 0 begins it."""
    global _began
    if not _listeners:
        return
    now = time.perf_counter()
    if done == 0 and tokens == 0:
        _began = (what, now)
    name, start = _began
    seconds = now - start if name == what else 0.0
    outer = _phases[-1] if _phases else None
    _listeners[-1](
        Progress(phase=outer, what=what, done=done, total=total, tokens=tokens, seconds=seconds)
    )
