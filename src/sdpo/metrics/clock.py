"""Where the wall-clock time of a step went."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from sdpo.metrics import names


class Clock:
    """Seconds of one step and of its parts; the step begins when the clock is made.

    Example:
        clock = Clock()
        with clock("update"):
            ...
        clock.seconds()  # {"time/update_s": 3.1, "time/step_s": 4.0}
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._parts: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Generator[None]:
        """Count the block's time as `part`; blocks of one part add up."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._parts[part] = self._parts.get(part, 0.0) + time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """`time/PART_s` of every part so far, and `time/step_s` since the clock was made."""
        seconds = {names.time_s(part): value for part, value in self._parts.items()}
        return seconds | {names.TIME_STEP_S: time.perf_counter() - self._start}
