"""Ctrl-C only takes effect where the run can be saved: never in the middle of an update."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType


class BrokenOff(KeyboardInterrupt):
    """A second Ctrl-C aborted an undivided block, whose state must not be saved."""


@contextmanager
def undivided(say: Callable[[str], None]) -> Generator[None]:
    """A block that Ctrl-C does not interrupt until its end, since half an update cannot be saved; a
    second Ctrl-C aborts it with `BrokenOff`. `say` tells the user."""
    is_main = threading.current_thread() is threading.main_thread()
    # Whoever started this process may have it ignore Ctrl-C (nohup, a background job).
    if not is_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    interrupts = []

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, previous)
        interrupts.append(number)
        say("interrupted; finishing the current step (press Ctrl-C again to abort)")

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield
    except KeyboardInterrupt:
        raise BrokenOff from None
    finally:
        signal.signal(signal.SIGINT, previous)
    if interrupts:
        raise KeyboardInterrupt
