"""Compares formulas in a process of its own, which can be killed when it takes too long.

One process makes one comparison at a time; `math.py` keeps several. `math_worker.py` is what runs
in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shlex
import subprocess
import sys
import time
from pathlib import Path

from sdpo.errors import SdpoError

START_LIMIT_S = 120.0
"""Importing sympy takes a second, and far longer on a busy machine."""
WORKER = Path(__file__).with_name("math_worker.py")
NEEDED = ("SYSTEMROOT",)
"""Environment variables without which Python does not start; Windows has one."""
_READY = "ready "


class Comparer:
    """A process that compares formulas.

    Example:
        Comparer().compare("1/2", "0.5", time_limit_s=5)   # "right"
    """

    def __init__(self) -> None:
        # The worker gets our import path and nothing else: not the current directory, which may
        # have a `math.py` or `sympy.py`, and no environment, which may have secrets.
        command = [sys.executable, "-I", "-S", "-B", str(WORKER), json.dumps(_import_path())]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LANG": "C.UTF-8"} | {k: v for k, v in os.environ.items() if k in NEEDED},
        )
        ready = self._read(START_LIMIT_S)
        if ready is None or not ready.startswith(_READY):
            self.close()
            raise SdpoError(
                f"the process that compares formulas did not start; run `{shlex.join(command)}` "
                "to see why"
            )
        self.level = ready.removeprefix(_READY)
        """The layers that confine the process, or `none`."""

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

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


def _import_path() -> list[str]:
    """Where this process imports from, without the current directory; `sdpo` itself first."""
    own = str(Path(__file__).resolve().parents[2])
    return [own, *(folder for folder in sys.path if folder and Path(folder) != Path.cwd())]
