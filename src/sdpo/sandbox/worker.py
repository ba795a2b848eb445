"""The judge's handle of a zygote process, and the four descriptors of one child."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdpo.sandbox import scratch

SCRIPT = Path(__file__).with_name("zygote.py")
ANSWER_TIMEOUT_S = 30.0
"""A zygote forks and reaps within milliseconds; one that takes this long is abandoned."""
CLOSE_TIMEOUT_S = 1.0
READ_AT_ONCE = 1 << 16
MAX_UNREAD = 1 << 20
"""Most bytes read from a pipe before clocks are checked again, so that a child cannot hold up the
judge by flooding it."""
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "LANG": "C.UTF-8",
    # By default each thread reserves 64 MiB of the program's address space.
    "MALLOC_ARENA_MAX": "1",
}
"""The whole environment of a zygote. Hashing is fixed so that the order of sets is reproducible."""


class ZygoteDiedError(Exception):
    """The zygote ended unexpectedly; the program is judged again by another."""


class ZygoteRefusedError(Exception):
    """The zygote could not put a layer in place; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a zygote is started.

    Example:
        Settings(jailed=True, namespaces=True, landlock=True, preload=(), folders=(), packages=())
    """

    jailed: bool
    """System-call filter and no privileges; False only for `sandbox = "none"`."""
    namespaces: bool
    landlock: bool
    """Use Landlock where it exists; without it, programs cannot open files at all."""
    preload: tuple[str, ...] = ()
    """Modules that programs find loaded."""
    folders: tuple[str, ...] = ()
    """Where `preload` is found; on `sys.path` only while it is imported."""
    packages: tuple[str, ...] = ()
    """Folders and files that programs may read, besides the standard library."""
    native: bool = False
    """Children become compilers, which may read `packages`, and programs in other languages."""
    runs: tuple[str, ...] = ()
    """With `native`: what a program may read, besides itself and shared libraries."""


class Pipes:
    """Commands to one child, its results and output, and a memory file as its standard input."""

    def __init__(self) -> None:
        self._opened: list[int] = []
        try:
            command_out, self.commands = self._keep(*os.pipe2(os.O_CLOEXEC))
            self.results, results_in = self._keep(*os.pipe2(os.O_CLOEXEC))
            self.stdout, stdout_in = self._keep(*os.pipe2(os.O_CLOEXEC))
            (self._stdin,) = self._keep(os.memfd_create("stdin", os.MFD_CLOEXEC))
        except OSError:
            self.close()
            raise
        for fd in (self.commands, self.results, self.stdout):
            os.set_blocking(fd, False)
        self.child_fds = [command_out, results_in, stdout_in, self._stdin]
        self.unsent = bytearray()
        self._printed = bytearray()
        self._has_stdin = False

    def _keep(self, *fds: int) -> tuple[int, ...]:
        self._opened += fds
        return fds

    def give_away(self) -> None:
        """Close the ends that now belong to the child alone."""
        for fd in self.child_fds[:3]:
            os.close(fd)
            self._opened.remove(fd)

    def close(self) -> None:
        while self._opened:
            os.close(self._opened.pop())

    @property
    def num_printed(self) -> int:
        """Bytes printed since the last `take_stdout`."""
        return len(self._printed)

    def set_stdin(self, text: str) -> None:
        """Make `text` what the child reads from descriptor 0."""
        if not text and not self._has_stdin:
            return
        os.ftruncate(self._stdin, 0)
        data = utf8(text)
        offset = 0
        while offset < len(data):
            offset += os.pwrite(self._stdin, data[offset:], offset)
        self._has_stdin = True

    def flush_commands(self) -> None:
        """Write what fits now; a child that does not read cannot block the judge."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self.unsent:
                del self.unsent[: os.write(self.commands, self.unsent[: 1 << 20])]
            return

    def read_stdout(self, limit: int) -> bool:
        """Read what is available, up to just over `limit` bytes; False at the end of the pipe."""
        while self.num_printed <= limit:
            part = _read(self.stdout)
            if not part:
                return part is None
            self._printed += part
        return True

    def read_results(self, buffer: bytearray) -> bool:
        """Append what is available to `buffer`; False at the end of the pipe."""
        bound = len(buffer) + MAX_UNREAD
        while len(buffer) < bound:
            part = _read(self.results)
            if not part:
                return part is None
            buffer += part
            if len(part) < READ_AT_ONCE:
                break
        return True

    def take_stdout(self) -> str:
        text = self._printed.decode("utf-8", errors="replace")
        self._printed.clear()
        return text


def utf8(text: str) -> bytes:
    """`text` as a program reads it; unpaired surrogates, which no encoding has, become `?`."""
    return text.encode("utf-8", errors="replace")


def _read(fd: int) -> bytes | None:
    """What is in the pipe: None if it is empty for now, no bytes at its end."""
    try:
        return os.read(fd, READ_AT_ONCE)
    except BlockingIOError:
        return None


class Zygote:
    """A warm interpreter that forks one child at a time."""

    def __init__(self, settings: Settings) -> None:
        # Namespaces have a folder of their own.
        self._scratch = "" if settings.namespaces else tempfile.mkdtemp(prefix="sdpo-scratch-")
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(ANSWER_TIMEOUT_S)
        fd = theirs.fileno()
        started_with = {**asdict(settings), "scratch": self._scratch}
        with theirs:
            self._process = subprocess.Popen(
                [*self._command(), str(fd), json.dumps(started_with)],
                pass_fds=[fd],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=ENVIRONMENT,
                cwd="/",
                process_group=0,
            )
        try:
            ready = self._receive()
        except BaseException:
            self.close()
            raise
        if "error" in ready:
            self.close()
            raise ZygoteRefusedError(ready["error"])
        self.has_landlock = bool(ready["landlock"])
        self.watched = self._scratch if ready["is_watched"] else None
        """A folder that the child may write to and whose size nothing but the judge bounds."""

    @staticmethod
    def _command() -> list[str]:
        # Isolated, without site-packages, without writing bytecode.
        return [sys.executable, "-I", "-S", "-B", str(SCRIPT)]

    @property
    def pid(self) -> int:
        return self._process.pid

    def fork(self, job: dict[str, Any], pipes: Pipes) -> int:
        """A new child with `pipes`; its pidfd."""
        try:
            socket.send_fds(self._socket, [json.dumps(job).encode()], pipes.child_fds)
            _, fds, _, _ = socket.recv_fds(self._socket, 1 << 12, 1)
        except OSError as error:
            raise ZygoteDiedError from error
        if not fds:
            raise ZygoteDiedError
        os.set_inheritable(fds[0], False)
        pipes.give_away()
        return fds[0]

    def reap(self) -> tuple[int, float, int]:
        """Wait status, CPU seconds and peak resident KiB of the child, which has ended."""
        report = self._receive()
        return report["status"], report["cpu_s"], report["resident_kb"]

    def close(self) -> None:
        """End the process and its child."""
        self._socket.close()
        try:
            self._process.wait(timeout=CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._scratch:
            with contextlib.suppress(OSError):  # the zygote removes it unless it was killed
                scratch.remove(self._scratch)

    def _receive(self) -> dict[str, Any]:
        try:
            data = self._socket.recv(1 << 16)
        except OSError as error:
            raise ZygoteDiedError from error
        if not data:
            raise ZygoteDiedError
        return json.loads(data)
