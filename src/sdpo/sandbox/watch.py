"""Watches a child for what its CPU clock does not show: sleep, threads, files written.

All of it is read from the kernel, nothing from the child.
"""

from __future__ import annotations

import time

from sdpo.sandbox import scratch
from sdpo.sandbox.protocol import Status

POLL_MS = 20
"""How often clocks are read, which bounds an overrun."""
WALL_FACTOR, WALL_EXTRA_S = 3.0, 1.0
"""Wall-clock limit per input, for programs that sleep: this factor of the CPU limit, plus this.
Time that a ready program waits for a busy core is not counted."""
MAX_WALL_FACTOR = 20.0
"""Wall-clock limit per input, busy cores included, as a factor of the one without."""
MAX_THREADS = 256
"""Each costs kernel memory that no limit of a process covers."""


class Watch:
    """Watches one child during one input.

    Example:
        Watch(pid, folder=None, max_written=1 << 26, input_s=4.0, total_s=90.0).broken_limit()
    """

    def __init__(
        self, pid: int, *, folder: str | None, max_written: int, input_s: float, total_s: float
    ) -> None:
        """`folder` is where the child writes if nothing else bounds that; `input_s` and `total_s`
        are the wall-clock seconds left for this input and for the program."""
        self._pid = pid
        self._folder = folder
        self._max_written = max_written
        self._input_s = input_s
        self._allowed_s = min(input_s, total_s)
        self._started = time.monotonic()
        self._looked = self._started
        self._waited_before: float | None = None

    def broken_limit(self) -> Status | None:
        """The limit that is exceeded now; looks at most every `POLL_MS`."""
        now = time.monotonic()
        if now - self._looked < POLL_MS / 1000:
            return None
        self._looked = now
        if self._waited_before is None:
            self._waited_before = waited_for_core_s(self._pid)
        if num_threads(self._pid) > MAX_THREADS:
            return "memory_limit"
        if self._folder is not None and (
            scratch.num_written(self._pid) > self._max_written
            or scratch.num_entries(self._folder) > scratch.MAX_ENTRIES
        ):
            return "output_limit"
        if now - self._started < self._allowed_s:
            return None
        is_late = (
            self.seconds() > self._allowed_s
            or now - self._started > MAX_WALL_FACTOR * self._input_s
        )
        return "time_limit" if is_late else None

    def seconds(self) -> float:
        """Wall-clock seconds so far, not counting the wait for a busy core; 0 for an input that was
        answered before anyone looked."""
        if self._waited_before is None:
            return 0.0
        starved = waited_for_core_s(self._pid) - self._waited_before
        return max(0.0, time.monotonic() - self._started - max(0.0, starved))


def num_threads(pid: int) -> int:
    """Threads of a process; 0 if it has just ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[17])
    except (OSError, IndexError, ValueError):
        return 0


def waited_for_core_s(pid: int) -> float:
    """Seconds that the main thread was ready to run while no core was free; 0 if the process has
    just ended, or the kernel does not count this."""
    try:
        with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
