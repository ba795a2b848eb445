"""The judge's side: a pool of zygotes, one child per program, every status decided here.

The child's word is at most an answer or an exception's text. Time comes from the child's CPU clock as the kernel keeps it, exit
and signal from the zygote's wait, sizes from the pipes. A frame that is early, too long or malformed is tampering.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import struct
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

from sdpo.errors import SandboxError
from sdpo.sandbox import plain
from sdpo.sandbox.protocol import Failure, Frame, Limits, Outcome, Program, never
from sdpo.sandbox.worker import Pipes, Zygote, ZygoteDiedError

POLL_MS = 20
"""How often CPU clocks are read; an overrun costs at most this much more."""
MAX_FRAME = 16 << 20
MAX_RESTARTS = 3
"""New children after crashes, per program; later inputs are not run."""
MAX_RETRIES = 3
"""Times a program is judged again from the start when its zygote was killed."""
WALL_FACTOR, WALL_EXTRA_S = 3.0, 1.0
"""Wall-clock cap per input for programs that sleep: generous, so that a busy machine fails nobody."""


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


def open_sandbox(
    name: Literal["auto", "none"] = "auto", *, width: int | None = None
) -> LocalSandbox:
    """The strongest isolation that works here, tested by doing.

    `auto` raises `SandboxError` naming the layer that failed; `none` runs programs with time and memory limits only and warns.
    """
    sandbox = LocalSandbox(is_jailed=name != "none", width=width or usable_cores())
    if name == "none":
        warnings.warn(
            "sandbox = none: model-written programs run unprotected as this user", stacklevel=2
        )
    return sandbox


class LocalSandbox:
    """Programs in child processes of this machine; see `Sandbox` for the contract."""

    def __init__(self, *, is_jailed: bool, width: int) -> None:
        self.width = width
        self._is_jailed = is_jailed
        self._idle: queue.SimpleQueue[Zygote] = queue.SimpleQueue()
        self._all: list[Zygote] = []
        for _ in range(width):
            self._add()
        self.level = "none"
        if is_jailed:
            read = "landlock" if self._all[0].has_landlock else "no file access"
            self.level = f"seccomp, {read}, limits"
            self_test(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process. The sandbox cannot be used afterwards."""
        for zygote in self._all:
            zygote.close()
        self._all.clear()

    def run(
        self,
        program: Program,
        inputs: Sequence[Any],
        limits: Limits,
        *,
        should_stop: Callable[[int, Outcome], bool] = never,
    ) -> list[Outcome]:
        """One outcome per input, in order. Raises `SandboxError` when the judge itself keeps failing."""
        for _ in range(MAX_RETRIES):
            zygote = self._idle.get()
            try:
                outcomes = _run(zygote, program, inputs, limits, should_stop)
            except ZygoteDiedError:
                zygote.close()
                self._all.remove(zygote)
                self._add()
                continue
            except BaseException:
                # A half-read child must not meet the next program.
                zygote.close()
                self._all.remove(zygote)
                self._add()
                raise
            self._idle.put(zygote)
            return outcomes
        raise SandboxError(f"the judge's worker died {MAX_RETRIES} times on one program; see dmesg")

    def _add(self) -> None:
        zygote = Zygote(is_jailed=self._is_jailed)
        self._all.append(zygote)
        self._idle.put(zygote)


NOT_RUN = Outcome(status="not_run")


def _run(
    zygote: Zygote,
    program: Program,
    inputs: Sequence[Any],
    limits: Limits,
    should_stop: Callable[[int, Outcome], bool],
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    child: _Child | None = None
    starts = 0
    total_cpu_s = 0.0
    try:
        for index, value in enumerate(inputs):
            if child is None:
                if starts > MAX_RESTARTS:
                    break
                child = _Child(zygote, program, inputs, limits)
                starts += 1
            outcome = child.ask(index, value)
            total_cpu_s += outcome.cpu_s
            outcomes.append(outcome)
            if not child.is_alive:
                child = None
            if (
                should_stop(index, outcome)
                or outcome.status in ("time_limit", "tampering")
                or total_cpu_s > limits.total_cpu_s
            ):
                break
    finally:
        if child is not None:
            child.end()
    return outcomes + [NOT_RUN] * (len(inputs) - len(outcomes))


class _Child:
    """One jailed process with the program in it."""

    def __init__(
        self, zygote: Zygote, program: Program, inputs: Sequence[Any], limits: Limits
    ) -> None:
        self.is_alive = True
        self._program = program
        self._limits = limits
        largest = max((len(i.encode()) for i in inputs if isinstance(i, str)), default=0)
        job = {
            "memory_bytes": limits.memory_mb << 20,
            "file_bytes": largest + (1 << 20),
            "cpu_s": int(limits.total_cpu_s + limits.cpu_s) + 2,
        }
        self._zygote = zygote
        self._pipes = Pipes()
        self._pidfd = zygote.fork(job, self._pipes)
        self._clock = (~_pid_of(self._pidfd) << 3) | 2
        self._send(
            {
                "code": program.source,
                "mode": program.mode,
                "fn": program.entry_point,
                "setup": program.setup,
            }
        )

    def ask(self, index: int, value: Any) -> Outcome:
        """The outcome of one input; afterwards `is_alive` says whether the child can take another."""
        request: dict[str, Any] = {"n": index}
        if self._program.mode == "stdio":
            self._pipes.set_stdin(value)
        else:
            request["x"] = plain.encode(value) if self._program.mode == "function" else value
            self._pipes.set_stdin("")
        started, cpu = time.monotonic(), self._cpu_s()
        self._send(request)
        result = self._wait(started, cpu)
        stdout, spent = self._pipes.take_stdout(), max(0.0, self._last_cpu_s - cpu)
        if isinstance(result, str):
            self.end()
            return Outcome(status=result, stdout=stdout, cpu_s=spent)  # ty: ignore[invalid-argument-type]
        if result is None:
            return self._ended(stdout, spent)
        return self._read(result, index, stdout, spent)

    def end(self) -> int:
        """Kill whatever is left; the wait status."""
        if not self.is_alive:
            return 0
        self.is_alive = False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        status = self._zygote.reap()
        os.close(self._pidfd)
        self._pipes.close()
        return status

    def _wait(self, started: float, cpu: float) -> dict[str, Any] | str | None:
        """The frame that answers, the name of a broken limit, or None when the child ended by itself."""
        poller = select.poll()
        for fd in (self._pipes.results, self._pipes.stdout, self._pidfd):
            poller.register(fd, select.POLLIN)
        wall = WALL_FACTOR * self._limits.cpu_s + WALL_EXTRA_S
        buffer = bytearray()
        while True:
            ready = {fd for fd, _ in poller.poll(POLL_MS)}
            self._pipes.flush_commands()
            if self._pipes.stdout in ready:
                self._pipes.drain_stdout(self._limits.output_bytes)
            if self._pipes.results in ready:
                _read_available(self._pipes.results, buffer)
            frame = _frame(buffer)
            if frame is not None:
                self._pipes.drain_stdout(self._limits.output_bytes)
            if self._pipes.num_printed > self._limits.output_bytes:
                return "output_limit"
            self._last_cpu_s = self._cpu_s()
            if frame is not None:
                return frame if isinstance(frame, dict) else "tampering"
            if self._pidfd in ready:
                self._pipes.drain_stdout(self._limits.output_bytes)
                return None
            over_cpu = self._last_cpu_s - cpu > self._limits.cpu_s
            if over_cpu or time.monotonic() - started > wall:
                return "time_limit"

    def _ended(self, stdout: str, cpu_s: float) -> Outcome:
        """The child is gone without an answer: exit code or signal, as the kernel reports it."""
        status = self.end()
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number == signal.SIGXCPU:
                return Outcome(status="time_limit", stdout=stdout, cpu_s=cpu_s)
            return Outcome(status="signal", signal=number, stdout=stdout, cpu_s=cpu_s)
        return self._exited(os.WEXITSTATUS(status), stdout, cpu_s)

    def _exited(self, code: int, stdout: str, cpu_s: float) -> Outcome:
        if self._program.mode == "stdio" and code == 0:
            # A program may end itself once it has printed its answer.
            return Outcome(status="value", stdout=stdout, cpu_s=cpu_s)
        return Outcome(status="exit", exit_code=code, stdout=stdout, cpu_s=cpu_s)

    def _read(self, frame: dict[str, Any], index: int, stdout: str, cpu_s: float) -> Outcome:
        """An answer frame, taken apart with suspicion."""
        try:
            if frame.get("n") != index or len(frame) != 2:
                raise ValueError("an answer to another question")
            if "v" in frame:
                value = plain.decode(frame["v"])
                return Outcome(status="value", value=value, stdout=stdout, cpu_s=cpu_s)
            if "e" in frame:
                failure = _failure(frame["e"])
                is_memory = failure.kind == "MemoryError"
                return Outcome(
                    status="memory_limit" if is_memory else "exception",
                    failure=failure,
                    stdout=stdout,
                    cpu_s=cpu_s,
                )
            if "x" in frame and type(frame["x"]) is int:
                return self._exited(frame["x"] & 0xFF, stdout, cpu_s)
            if "mem" in frame:
                self.end()
                return Outcome(status="memory_limit", stdout=stdout, cpu_s=cpu_s)
            if "big" in frame:
                return Outcome(status="output_limit", stdout=stdout, cpu_s=cpu_s)
            raise ValueError("no known answer")
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            self.end()
            return Outcome(status="tampering", stdout=stdout, cpu_s=cpu_s)

    def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode()
        self._pipes.queue_command(struct.pack(">I", len(data)) + data)

    def _cpu_s(self) -> float:
        try:
            self._last_cpu_s = time.clock_gettime(self._clock)
        except OSError:
            pass  # The process has ended; its last reading stands.
        return self._last_cpu_s

    _last_cpu_s = 0.0


def _pid_of(pidfd: int) -> int:
    """The pid behind a pidfd as this process numbers it."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        for line in file:
            if line.startswith("Pid:"):
                return int(line.split()[1])
    raise SandboxError("no Pid in /proc/self/fdinfo")


def _read_available(fd: int, buffer: bytearray) -> None:
    while len(buffer) <= MAX_FRAME + 4:
        try:
            part = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        if not part:
            return
        buffer += part


def _frame(buffer: bytearray) -> dict[str, Any] | Literal["bad"] | None:
    """The one frame in `buffer`, None while it is incomplete, "bad" when it is none or more than one."""
    if len(buffer) < 4:
        return None
    (length,) = struct.unpack(">I", buffer[:4])
    if length > MAX_FRAME or len(buffer) > length + 4:
        return "bad"
    if len(buffer) < length + 4:
        return None
    try:
        message = json.loads(bytes(buffer[4:]))
    except (ValueError, RecursionError):
        return "bad"
    return message if isinstance(message, dict) else "bad"


def _failure(data: Any) -> Failure:
    """Exception text from the child; every field is checked, none is believed to be more than text."""
    frames = tuple(
        Frame(line=line, function=name)
        for line, name in data["f"][:32]
        if type(line) is int and type(name) is str
    )
    kind, message = data["k"], data["m"]
    if type(kind) is not str or type(message) is not str:
        raise TypeError("exception text")
    return Failure(kind=kind[:200], message=message, frames=frames)


PROBES = {
    "fork": "import os\ndef f():\n    os.fork()",
    "exec": "import os\ndef f():\n    os.execv('/bin/true', ['true'])",
    "socket": "import socket\ndef f():\n    socket.socket()",
    "write a file": "def f():\n    open('/tmp/sdpo-self-test', 'w')",
    "read /etc/passwd": "def f():\n    open('/etc/passwd').read()",
    "list processes": "import os\ndef f():\n    os.listdir('/proc')",
    "signal the parent": "import os\ndef f():\n    os.kill(os.getppid(), 0)",
    "allocate 1 GiB": "def f():\n    bytearray(1 << 30)",
}
"""What a jailed program must not be able to do, tried when a sandbox opens."""


def self_test(sandbox: LocalSandbox) -> None:
    """Try what must fail, in a jailed child. Raises `SandboxError` naming the first thing that worked."""
    for what, source in PROBES.items():
        program = Program(source=source, mode="function", entry_point="f")
        (outcome,) = sandbox.run(program, [[]], Limits(cpu_s=0.5, memory_mb=256))
        if outcome.status in ("value", "not_run", "exit"):
            sandbox.close()
            raise SandboxError(
                f"the sandbox does not hold here: a jailed program could {what}. Use a Linux kernel with seccomp, "
                "run inside a container, or set env.sandbox = 'none' to run programs unprotected"
            )
