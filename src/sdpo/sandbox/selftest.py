"""Tries what the judge needs, and what a jailed program must not be able to do; runs whenever a
sandbox is opened."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

from sdpo.errors import SandboxError
from sdpo.sandbox.protocol import Limits, Outcome, Program, Sandbox

SOURCE = """
import os, socket, ctypes
libc = ctypes.CDLL(None, use_errno=True)
def raw(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
parent = os.getppid()
actions = {
    "start a process": lambda path: os.fork() or os._exit(9),
    "run a program": lambda path: os.execv("/bin/sh", ["sh", "-c", "exit 9"]),
    "open a network socket": lambda path: socket.socket().close(),
    "reach named sockets": lambda path: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
    "write a file": lambda path: open(path, "w").close(),
    "remove a file": lambda path: os.unlink(path),
    "read a file outside": lambda path: open(path).close(),
    "list processes": lambda path: os.listdir("/proc"),
    "signal its parent": lambda path: os.kill(parent, 0),
    "read its parent's memory": lambda path: open(f"/proc/{parent}/mem", "rb").close(),
    "trace its parent": lambda path: raw("ptrace", 16, parent, 0, 0),
    "raise its own limits": lambda path: __import__("resource").setrlimit(0, (-1, -1)),
    "make a memory file": lambda path: os.close(os.memfd_create("x")),
}
def attempt(action, path):
    try:
        actions[action](path)
    except (OSError, ValueError) as error:
        return getattr(error, "errno", 1) or 1
    return "possible"
def allocate(size):
    return len(bytearray(size))
def spin():
    while True:
        pass
"""
REFUSED = {1, 2, 13, 38}
"""EPERM, ENOENT, EACCES, ENOSYS."""
OUTSIDE = (
    "run a program", "open a network socket", "reach named sockets", "write a file",
    "remove a file", "read a file outside", "list processes", "signal its parent",
    "read its parent's memory", "trace its parent", "raise its own limits", "make a memory file",
    "start a process",
)  # fmt: skip
FIX = (
    "Use a Linux kernel with seccomp, run inside a container that has it, or set "
    "env.sandbox = 'none' to run programs unprotected"
)


def require_calls() -> None:
    """Raises `SandboxError` naming a system call that the judge needs and the kernel lacks."""
    calls: dict[str, Callable[[], None]] = {
        "memfd_create": lambda: os.close(os.memfd_create("sdpo")),
        "pidfd_open": lambda: os.close(os.pidfd_open(os.getpid())),
        "pidfd_send_signal": _signal_nothing,
    }
    for name, call in calls.items():
        try:
            call()
        except (OSError, AttributeError) as error:
            raise SandboxError(
                f"the system call {name} does not work here ({error}), and judging programs needs "
                "it; use Linux 5.3 or later, and a container runtime that passes it on"
            ) from error


def _signal_nothing() -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(pidfd, 0)
    finally:
        os.close(pidfd)


def self_test(sandbox: Sandbox) -> None:
    """Raises `SandboxError` naming the first thing that a jailed program could do."""
    with tempfile.TemporaryDirectory(prefix="sdpo-self-test-") as folder:
        path = Path(folder, "outside")
        path.touch()
        name = str(path)
        program = Program(source=SOURCE, mode="function", entry_point="attempt")
        limits = Limits(cpu_s=2.0, memory_mb=256)
        # Stop at the first that works: without a jail, the rest would do harm.
        outcomes = sandbox.run(
            program,
            [[what, name] for what in OUTSIDE],
            limits,
            should_stop=lambda _, outcome: not _is_refused(outcome),
        )
        for what, outcome in zip(OUTSIDE, outcomes, strict=True):
            if not _is_refused(outcome):
                raise SandboxError(
                    f"the sandbox does not hold here: whether a program could {what} ended as "
                    f"{outcome.status} ({outcome.value!r}). {FIX}"
                )
        if not path.exists() or path.stat().st_size:
            raise SandboxError(f"the sandbox does not hold here: {name} was changed. {FIX}")
    _expect(sandbox, "allocate", [1 << 30], "memory_limit", "use 1 GiB under a limit of 256 MiB")
    _expect(sandbox, "spin", [], "time_limit", "run longer than its CPU limit")


def _is_refused(outcome: Outcome) -> bool:
    return outcome.status == "value" and outcome.value in REFUSED


def _expect(sandbox: Sandbox, function: str, given: list[int], status: str, what: str) -> None:
    program = Program(source=SOURCE, mode="function", entry_point=function)
    (outcome,) = sandbox.run(program, [given], Limits(cpu_s=0.05, memory_mb=256))
    if outcome.status != status:
        raise SandboxError(
            f"the sandbox does not hold here: a program could {what} ({outcome.status}). {FIX}"
        )
