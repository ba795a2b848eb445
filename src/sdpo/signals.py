"""What the operating system asks of a run: to save and end (Ctrl-C; SIGTERM of schedulers and
`docker stop`), or to save and go on (SIGUSR1).

It takes effect where the run can be saved, never in the middle of an update; with several
processes, where all of them can agree on it.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Self

from sdpo.errors import Terminated

STOPS = (signal.SIGINT, signal.SIGTERM)
SAVE: int | None = getattr(signal, "SIGUSR1", None)
"""Windows has none."""
ECHO_S = 1.0
"""A second signal so soon after the first is the same request: `timeout` signals its child and then
their group, `torchrun` passes on what the terminal has sent to all."""


class BrokenOff(KeyboardInterrupt):
    """A second request to end, which came while an update or a checkpoint was being finished; the
    state must not be saved."""


class Signals:
    """The signals of one run, received between enter and exit in the main thread; elsewhere, and
    before, they do what they did. What is ignored stays ignored: nohup and background jobs ignore
    SIGINT.

    Example:
        with Signals() as signals:
            with signals.undivided():
                update()
    """

    def __init__(self) -> None:
        self.say: Callable[[str], None] = lambda text: None
        """Tells the user why nothing happens yet."""
        self._first: tuple[int, float] | None = None
        """The first request to end and when it came."""
        self._is_raised = False
        self._holds = 0
        """Blocks within each other that a signal does not interrupt."""
        self._asks_save = False
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                handler = signal.getsignal(number)
                if callable(handler) or (number, handler) == (signal.SIGTERM, signal.SIG_DFL):
                    self._previous[number] = signal.signal(number, self._stop)
            if SAVE is not None and signal.getsignal(SAVE) is signal.SIG_DFL:
                self._previous[SAVE] = signal.signal(SAVE, self._save)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def hold(self) -> None:
        """From now on a request to end is only noted, outside `divisible`: other processes would
        wait for ever for one that leaves on its own."""
        self._holds += 1

    @contextmanager
    def undivided(self) -> Generator[None]:
        """A block that a request to end does not interrupt, except in parts that are `divisible`,
        since half of it cannot be saved; it is raised at its end. A second one aborts the block
        with `BrokenOff`."""
        self._holds += 1
        try:
            yield
        except KeyboardInterrupt:
            # Raised by a signal of ours only where a divisible part of the block was under way.
            if self._is_raised:
                raise
            raise BrokenOff from None
        finally:
            self._holds -= 1
        if not self._holds:
            self._raise_noted()

    @contextmanager
    def divisible(self) -> Generator[None]:
        """A block that a request to end interrupts even after `hold` and inside `undivided`; one
        that has been noted is raised at its start."""
        holds, self._holds = self._holds, 0
        try:
            self._raise_noted()
            yield
        finally:
            self._holds = holds

    def noted(self) -> KeyboardInterrupt | None:
        """The request to end that waits for an occasion; the caller raises it."""
        if self._first is None or self._is_raised:
            return None
        self._is_raised = True
        return Terminated() if self._first[0] == signal.SIGTERM else KeyboardInterrupt()

    def takes_save(self) -> bool:
        """Whether SIGUSR1 has come since the last call."""
        asked, self._asks_save = self._asks_save, False
        return asked

    def _raise_noted(self) -> None:
        if (stop := self.noted()) is not None:
            raise stop

    def _stop(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (number, now)
            if not self._holds:
                self._raise_noted()
            self.say("interrupted; finishing the current step (press Ctrl-C again to abort)")
        elif now - self._first[1] > ECHO_S:
            self._is_raised = True
            raise BrokenOff

    def _save(self, number: int, frame: FrameType | None) -> None:
        self._asks_save = True


def exit_status(stop: KeyboardInterrupt) -> int:
    """What a command that `stop` ended exits with, as a shell reports a signal."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
