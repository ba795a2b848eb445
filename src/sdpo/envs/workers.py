"""Processes that look at a model's text in place of the trainer's, and a pool of them.

A library that parses what a model wrote may run it (sympy's parser evaluates Python), take for ever
or take all memory. So a worker does it: a script that imports the library, confines itself, says
`ready LEVEL`, and then answers each line of JSON with one line.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import selectors
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from sdpo.errors import ConfigError, SdpoError
from sdpo.machine import usable_cores

START_LIMIT_S = 120.0
"""Importing a library takes seconds, and far longer on a busy machine."""
NEEDED = ("SYSTEMROOT",)
"""Environment variables without which Python does not start; Windows has one."""
_READY = "ready "


def require_workers(env_type: str) -> None:
    """Raises `ConfigError` where workers cannot be waited for (Windows)."""
    if sys.platform == "win32":
        raise ConfigError(
            f"env.type = {env_type!r} reads answers in processes that it waits for in a way "
            "Windows does not have; run in WSL 2 or a Linux container (Dockerfile)"
        )


class Worker:
    """A process that runs `script`.

    Example:
        Worker(Path("math_worker.py")).ask(["1/2", "0.5"], time_limit_s=5)   # "right"
    """

    def __init__(self, script: Path) -> None:
        # The worker gets our import path and nothing else: not the current directory, which may
        # have a `math.py` or `sympy.py`, and no environment, which may have secrets.
        command = [sys.executable, "-I", "-S", "-B", str(script), json.dumps(_import_path())]
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
                f"the process of {script.name} did not start; `{shlex.join(command)}` shows why"
            )
        self.level = ready.removeprefix(_READY)
        """The layers that confine the process, or `none`."""

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """False once an answer has taken too long or crashed the process."""
        return self._process.poll() is None

    def ask(self, request: Any, time_limit_s: float) -> str | None:
        """The line that answers a request; None if the time is up or the process has crashed, which
        ends it."""
        assert self._process.stdin is not None
        # An earlier request may have crashed the process.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        answer = self._read(time_limit_s)
        if answer is None:
            self.close()
        return answer

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


class WorkerPool:
    """Workers of one script, started when they are needed, as many at once as there are cores.

    Example:
        WorkerPool(Path("math_worker.py")).ask(["1/2", "0.5"], time_limit_s=5)   # "right"
    """

    def __init__(self, script: Path) -> None:
        self._script = script
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._slots = threading.BoundedSemaphore(usable_cores())

    def ask(self, request: Any, time_limit_s: float) -> str | None:
        """What a free worker answers, as `Worker.ask`; thread-safe."""
        with self._slots:
            try:
                worker = self._idle.get_nowait()
            except queue.Empty:
                worker = Worker(self._script)
            answer = worker.ask(request, time_limit_s)
            if worker.is_alive:
                self._idle.put(worker)
        return answer

    def close(self) -> None:
        """End the workers; a later request starts new ones."""
        while not self._idle.empty():
            self._idle.get().close()


def _import_path() -> list[str]:
    """Where this process imports from, without the current directory; `sdpo` itself first."""
    own = str(Path(__file__).resolve().parents[2])
    return [own, *(folder for folder in sys.path if folder and Path(folder) != Path.cwd())]
