"""Ctrl-C at a moment that can be saved: never in the middle of an update."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType


class BrokenOff(KeyboardInterrupt):
    """A second Ctrl-C broke into an undivided block: what it left must not be saved."""


@contextmanager
def undivided(say: Callable[[str], None]) -> Generator[None]:
    """A block in which Ctrl-C waits for the end, since half an update cannot be saved; a second one
    breaks in and raises `BrokenOff`. `say` tells the user."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = []

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, previous)
        interrupted.append(number)
        say("interrupt noted; finishing the update first")

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield
    except KeyboardInterrupt:
        raise BrokenOff from None
    finally:
        signal.signal(signal.SIGINT, previous)
    if interrupted:
        raise KeyboardInterrupt
