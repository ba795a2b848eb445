"""One jailed process with a program in it, and how the judge decides what happened with an input.

The child is believed for answers and texts of exceptions only. Time comes from the kernel's clock
of the child, exit codes and signals from the zygote's wait, sizes from the pipes. A frame that is
early, too long, malformed or about another input is tampering.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdpo.sandbox import plain
from sdpo.sandbox.frames import Answer, kind_and_body, make_frame, read_failure, take_frame
from sdpo.sandbox.protocol import Limits, Outcome, Program, Status
from sdpo.sandbox.watch import POLL_MS, WALL_EXTRA_S, WALL_FACTOR, Watch
from sdpo.sandbox.worker import Pipes, Zygote, ZygoteDiedError, utf8

INTERPRETER_KB = 32 << 10
"""Resident memory that is not the program's. A program that a signal ended while it held half of
its memory limit ran out of memory, which code in C cannot report otherwise."""
HELLO = {"hello": 1}
EXTRA_FILE_BYTES = 8 << 20
"""Beyond the largest input, whose memory file the program may also write to."""
MAX_WRITTEN_BYTES, MAX_ANSWER_BYTES = 64 << 20, 5 << 20
"""Bytes that a program may write, over all inputs, to a scratch folder whose size nothing else
bounds. What it prints and answers is allowed on top, because the kernel counts them together."""
MAX_SPENT_FACTOR = 3.0
"""Wall-clock limit over all inputs, as a factor of the CPU limit over all inputs."""


@dataclass(slots=True)
class Spent:
    """What a program has used up over all inputs, in whatever children it ran.

    Example:
        Spent(cpu_s=1.5, wall_s=2.0)
    """

    cpu_s: float = 0.0
    wall_s: float = 0.0
    """Not counting time spent waiting for a busy core, nor inputs that take milliseconds."""


class Child:
    """The judge's side of a process that answers one input after another."""

    def __init__(
        self,
        zygote: Zygote,
        program: Program,
        inputs: Sequence[Any],
        limits: Limits,
        spent: Spent,
    ) -> None:
        self._zygote = zygote
        self._program = program
        self._limits = limits
        self._spent = spent
        self._largest = max(
            (len(utf8(each)) for each in inputs if isinstance(each, str)), default=0
        )
        self._is_over = False
        self._last_cpu_s = 0.0
        self._resident_kb = 0
        self._num_asked = 0
        self._buffer = bytearray()
        self._has_greeted = False
        self._pipes = Pipes()
        try:
            self._pidfd = zygote.fork(self._job(), self._pipes)
        except BaseException:
            self._pipes.close()
            raise
        self._pid = _pid_of(self._pidfd)
        self._poller = select.poll()
        for fd in (self._pipes.results, self._pipes.stdout, self._pidfd):
            self._poller.register(fd, select.POLLIN)
        self._send(self._introduction())

    def _job(self) -> dict[str, Any]:
        """What the zygote must know."""
        return {
            "memory_bytes": self._limits.memory_mb << 20,
            "file_bytes": self._largest + EXTRA_FILE_BYTES,
            "cpu_s": int(self._limits.total_cpu_s + self._limits.cpu_s) + 2,
        }

    def _introduction(self) -> dict[str, Any]:
        """The first message to the process."""
        program = self._program
        return {
            "code": program.source,
            "mode": program.mode,
            "fn": program.entry_point,
            "setup": program.setup,
        }

    @property
    def is_alive(self) -> bool:
        """Whether it can answer another input."""
        if not self._is_over and self._pidfd in dict(self._poller.poll(0)):
            self.end()
        return not self._is_over

    def ask(self, index: int, value: Any) -> Outcome:
        """The outcome for one input."""
        if self._has_greeted and (self._pipes.read_results(self._buffer) and self._buffer):
            return self._kill("tampering", 0.0)
        self._num_asked += 1
        request: dict[str, Any] = {"n": index}
        if self._program.mode == "stdio":
            self._pipes.set_stdin(value)
        else:
            request["x"] = plain.encode(value) if self._program.mode == "function" else value
        cpu = self._cpu_s()
        self._send(request)
        result = self._wait(cpu)
        cpu_s = max(0.0, self._last_cpu_s - cpu)
        if isinstance(result, str):
            outcome = self._kill(result, cpu_s)
        elif result is None:
            outcome = self._ended(cpu)
        else:
            outcome = self._read(result, index, cpu_s)
        self._spent.cpu_s += outcome.cpu_s
        return outcome

    def end(self) -> int:
        """Kill the process and return its wait status. Closes everything even if it raises
        `ZygoteDiedError`."""
        if self._is_over:
            return 0
        self._is_over = True
        try:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            status, cpu_s, self._resident_kb = self._zygote.reap()
            self._last_cpu_s = max(self._last_cpu_s, cpu_s)
            return status
        finally:
            os.close(self._pidfd)
            self._pipes.close()

    def _kill(self, status: Status, cpu_s: float) -> Outcome:
        stdout = self._pipes.take_stdout()[: self._limits.output_bytes]
        self.end()
        return Outcome(status=status, stdout=stdout, cpu_s=cpu_s)

    def _wait(self, cpu: float) -> Answer | Status | None:
        """The answer, the limit that was exceeded, or None if the child has ended."""
        per_input = self._limits.output_bytes + MAX_ANSWER_BYTES
        watch = Watch(
            self._pid,
            folder=self._zygote.watched,
            max_written=MAX_WRITTEN_BYTES + self._num_asked * per_input,
            input_s=WALL_FACTOR * self._limits.cpu_s + WALL_EXTRA_S,
            total_s=MAX_SPENT_FACTOR * self._limits.total_cpu_s - self._spent.wall_s,
        )
        try:
            return self._watch(watch, cpu)
        finally:
            self._spent.wall_s += watch.seconds()

    def _watch(self, watch: Watch, cpu: float) -> Answer | Status | None:
        limit = self._limits.output_bytes
        while True:
            ready = dict(self._poller.poll(POLL_MS))
            has_ended = self._pidfd in ready
            if self._pipes.commands in ready:
                self._flush()
            if self._pipes.stdout in ready and not self._pipes.read_stdout(limit):
                self._poller.unregister(self._pipes.stdout)
            # A child that has ended may have answered since the results were last read.
            is_open = has_ended or self._pipes.results in ready
            if is_open and not self._pipes.read_results(self._buffer) and not has_ended:
                self._poller.unregister(self._pipes.results)
            frame = self._next_frame()
            if frame is not None or has_ended:
                self._pipes.read_stdout(limit)
            if self._pipes.num_printed > limit:
                return "output_limit"
            if self._cpu_s() - cpu > self._limits.cpu_s:
                return "time_limit"
            if frame is not None:
                return frame
            if has_ended:
                return None
            broken = watch.broken_limit()
            if broken is not None:
                return broken

    def _next_frame(self) -> Answer | Status | None:
        """The answer in the buffer, None while it is incomplete, "tampering" if it is not an answer
        or more than one."""
        if not self._has_greeted and self._greeting() is None:
            return None
        frame = take_frame(self._buffer)
        if frame is not None and self._buffer:
            return "tampering"
        return frame

    def _greeting(self) -> Answer | None:
        """The frame that a locked-down process begins with, once it is complete."""
        frame = take_frame(self._buffer)
        if frame is None:
            return None
        if not isinstance(frame, Answer) or frame.message != HELLO:
            raise ZygoteDiedError
        self._has_greeted = True
        return frame

    def _ended(self, cpu: float) -> Outcome:
        """The outcome of a child that ended without an answer, from what the kernel reports."""
        if not self._has_greeted:
            # It never reached the program: the jail failed, not what was to be judged.
            self.end()
            raise ZygoteDiedError
        stdout = self._pipes.take_stdout()
        status = self.end()
        cpu_s = max(0.0, self._last_cpu_s - cpu)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            is_kernels = number == signal.SIGXCPU or (
                number == signal.SIGKILL and self._last_cpu_s > self._limits.total_cpu_s
            )
            if is_kernels:
                return Outcome(status="time_limit", stdout=stdout, cpu_s=cpu_s)
            if self._resident_kb - INTERPRETER_KB > self._limits.memory_mb * 1024 // 2:
                # Code in C that got no memory, or the kernel's OOM killer.
                return Outcome(status="memory_limit", stdout=stdout, cpu_s=cpu_s)
            return Outcome(status="signal", signal=number, stdout=stdout, cpu_s=cpu_s)
        return self._exited(os.WEXITSTATUS(status), stdout, cpu_s)

    def _exited(self, code: int, stdout: str, cpu_s: float) -> Outcome:
        if self._program.mode == "stdio" and code == 0:
            # A program may exit once it has printed its answer.
            return Outcome(status="value", stdout=stdout, cpu_s=cpu_s)
        return Outcome(status="exit", exit_code=code, stdout=stdout, cpu_s=cpu_s)

    def _read(self, answer: Answer, index: int, cpu_s: float) -> Outcome:
        """The outcome that an answer stands for; anything irregular is tampering."""
        try:
            kind, body = kind_and_body(answer, index)
            if kind == "v":
                return Outcome(
                    status="value",
                    value=plain.decode(body),
                    num_bytes=answer.num_bytes,
                    stdout=self._pipes.take_stdout(),
                    cpu_s=cpu_s,
                )
            if kind in ("e", "mem"):
                failure = read_failure(body)
                stdout = self._pipes.take_stdout()
                if kind == "mem":
                    # It may not have enough memory left for the next input.
                    self.end()
                    status: Status = "memory_limit"
                else:
                    status = "exception"
                return Outcome(status=status, failure=failure, stdout=stdout, cpu_s=cpu_s)
            if kind == "x" and type(body) is int:
                return self._exited(body & 0xFF, self._pipes.take_stdout(), cpu_s)
            if kind != "big":
                raise ValueError("an unknown kind of answer")
        except plain.TooLargeError:
            pass
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            return self._kill("tampering", cpu_s)
        stdout = self._pipes.take_stdout()
        return Outcome(status="output_limit", stdout=stdout, cpu_s=cpu_s)

    def _send(self, message: dict[str, Any]) -> None:
        self._pipes.unsent += make_frame(message)
        self._flush()

    def _flush(self) -> None:
        self._pipes.flush_commands()
        if self._pipes.unsent:
            self._poller.register(self._pipes.commands, select.POLLOUT)
        else:
            with contextlib.suppress(KeyError):
                self._poller.unregister(self._pipes.commands)

    def _cpu_s(self) -> float:
        # A process that is gone has no clock; its last reading stands.
        if self._pid > 0:
            with contextlib.suppress(OSError):
                self._last_cpu_s = time.clock_gettime((~self._pid << 3) | 2)
        return self._last_cpu_s


def _pid_of(pidfd: int) -> int:
    """The pid behind a pidfd as this process numbers it; -1 when it is gone."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        for line in file:
            if line.startswith("Pid:"):
                return int(line.split()[1])
    return -1
