"""Ctrl-C and SIGTERM (schedulers, `docker stop`) only take effect where the run can be saved: never
in the middle of an update."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM: like Ctrl-C, but the command exits with 143 as a scheduler expects."""


class BrokenOff(KeyboardInterrupt):
    """A second signal aborted an undivided block, whose state must not be saved."""


@contextmanager
def terminable() -> Generator[None]:
    """Inside the block SIGTERM raises `Terminated` instead of ending the process, unless whoever
    started it has SIGTERM ignored."""
    if not _is_main_thread() or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def undivided(say: Callable[[str], None]) -> Generator[None]:
    """A block that a signal does not interrupt until its end, since half an update cannot be saved;
    a second one aborts it with `BrokenOff`. `say` tells the user. Signals that nothing handles stay
    as they are: ignored under nohup and in a background job, SIGTERM outside `terminable`."""
    if not _is_main_thread():
        yield
        return
    received: list[int] = []
    previous = {
        number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))
    }

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        restore()
        received.append(number)
        say("interrupted; finishing the current step (press Ctrl-C again to abort)")

    for number in previous:
        signal.signal(number, note)
    try:
        yield
    except KeyboardInterrupt:
        raise BrokenOff from None
    finally:
        restore()
    if received:
        raise Terminated if received[0] == signal.SIGTERM else KeyboardInterrupt


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
