"""A zygote process seen from the judge, and the four descriptors of one child."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from sdpo.errors import SandboxError

SCRIPT = Path(__file__).with_name("zygote.py")
START_TIMEOUT_S = 30.0
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "LANG": "C.UTF-8",
}
"""Everything a program sees of the outside; hashing is fixed so that set order repeats."""


class ZygoteDiedError(Exception):
    """The zygote ended unexpectedly; the program is judged again on another."""


class Pipes:
    """Commands to and results from one child, its standard output, and a memory file as its standard input."""

    def __init__(self) -> None:
        self._command_out, self._commands = os.pipe2(os.O_CLOEXEC)
        self.results, self._results_in = os.pipe2(os.O_CLOEXEC)
        self.stdout, self._stdout_in = os.pipe2(os.O_CLOEXEC)
        self._stdin = os.memfd_create("stdin", os.MFD_CLOEXEC)
        for fd in (self._commands, self.results, self.stdout):
            os.set_blocking(fd, False)
        self._pending = bytearray()
        self._printed = bytearray()
        self.num_printed = 0
        """Bytes printed since the last `take_stdout`."""

    @property
    def child_fds(self) -> list[int]:
        return [self._command_out, self._results_in, self._stdout_in, self._stdin]

    def give_away(self) -> None:
        """Close what now belongs to the child alone."""
        for fd in (self._command_out, self._results_in, self._stdout_in):
            os.close(fd)

    def close(self) -> None:
        for fd in (self._commands, self.results, self.stdout, self._stdin):
            os.close(fd)

    def set_stdin(self, text: str) -> None:
        """Make `text` what the child reads from descriptor 0."""
        os.ftruncate(self._stdin, 0)
        data = text.encode("utf-8", errors="replace")
        offset = 0
        while offset < len(data):
            offset += os.pwrite(self._stdin, data[offset:], offset)

    def queue_command(self, data: bytes) -> None:
        self._pending += data
        self.flush_commands()

    def flush_commands(self) -> None:
        """Write what fits; a child that does not read cannot block the judge."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._pending:
                del self._pending[: os.write(self._commands, self._pending)]

    def drain_stdout(self, limit: int) -> None:
        """Take what is there, up to just over `limit` bytes."""
        while self.num_printed <= limit:
            try:
                part = os.read(self.stdout, 1 << 16)
            except BlockingIOError:
                return
            if not part:
                return
            self._printed += part
            self.num_printed += len(part)

    def take_stdout(self) -> str:
        text = self._printed.decode("utf-8", errors="replace")
        self._printed.clear()
        self.num_printed = 0
        return text


class Zygote:
    """One warm interpreter that forks children one after the other."""

    def __init__(self, *, is_jailed: bool) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mode = "jailed" if is_jailed else "open"
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(SCRIPT), str(theirs.fileno()), mode],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
            cwd="/",
            process_group=0,
        )
        theirs.close()
        ready = self._receive(timeout_s=START_TIMEOUT_S)
        if "error" in ready:
            self.close()
            raise SandboxError(
                f"the sandbox cannot start: {ready['error']}. Set env.sandbox = 'none' to run programs unprotected"
            )
        self.has_landlock = bool(ready["landlock"])

    def fork(self, job: dict[str, Any], pipes: Pipes) -> int:
        """A new child with `pipes`; its pidfd."""
        try:
            socket.send_fds(self._socket, [json.dumps(job).encode()], pipes.child_fds)
            _, fds, _, _ = socket.recv_fds(self._socket, 1 << 12, 1)
        except OSError as error:
            raise ZygoteDiedError from error
        if not fds:
            raise ZygoteDiedError
        pipes.give_away()
        return fds[0]

    def reap(self) -> int:
        """Wait status of the child, which must have been killed or have ended."""
        return int(self._receive(timeout_s=START_TIMEOUT_S)["status"])

    def close(self) -> None:
        """End the process and whatever child it has."""
        self._socket.close()
        try:
            self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _receive(self, *, timeout_s: float) -> dict[str, Any]:
        ready, _, _ = select.select([self._socket], [], [], timeout_s)
        data = self._socket.recv(1 << 16) if ready else b""
        if not data:
            raise ZygoteDiedError
        return json.loads(data)
