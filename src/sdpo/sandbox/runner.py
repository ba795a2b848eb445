"""The program's side: reads one input at a time, runs the program, and replies with a value or an
exception's text.

Runs in `python -I -S` without this package; see zygote.py. The judge trusts nothing here: at worst
it gives a wrong answer. Values are encoded by exact type, so that encoding them runs no method of
the program's objects.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import errno
import gc
import io
import json
import os
import struct
import sys
import threading
import types
from collections.abc import Sequence
from concurrent.futures import thread as pools
from typing import Any, NoReturn

from sdpo.sandbox import scratch
from sdpo.sandbox.values import decode, encode

MAX_VALUE_BYTES = 4 << 20
MAX_FRAMES = 12
MAX_CAUSES = 16
MAX_MESSAGE_CHARS = 2000
FILENAME, MODULE = "Solution.py", "Solution"
HELLO = {"hello": 1}
"""Sent after the lock-down and before anything is read, so no program can have forged it."""


def before_programs() -> None:
    """Set up what every program finds; done once, in the zygote."""
    # `site` would define these; programs call them without importing sys.
    vars(builtins).update(exit=sys.exit, quit=sys.exit)
    atexit._clear()


def describe(error: BaseException, at_load: bool) -> dict[str, Any]:
    """Kind, message and builtin bases of an exception and its frames within the program, outermost
    first; `at_load`: it came before the call."""
    frames: list[list[Any]] = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename == FILENAME:
            frames.append([trace.tb_lineno, code.co_name])
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename == FILENAME:
        frames.append([error.lineno or 1, "<module>"])
    try:
        message = error.msg if isinstance(error, SyntaxError) else str(error)
    except BaseException:  # noqa: BLE001 - the program's own __str__ may raise anything
        message = ""
    if len(frames) > MAX_FRAMES:
        frames = frames[: MAX_FRAMES // 2] + frames[-MAX_FRAMES // 2 :]
    kind = type(error)
    bases = [
        each.__name__ for each in type.mro(kind)[1:] if vars(builtins).get(each.__name__) is each
    ]
    return {
        "k": kind.__name__,
        "m": str(message)[:MAX_MESSAGE_CHARS],
        "f": frames,
        "b": bases[:MAX_CAUSES],
        "l": at_load,
    }


def fresh_module(mode: str) -> dict[str, Any]:
    """A new module for each input, so that globals and default arguments do not leak between tests.

    Only a program that reads standard input is `__main__`: what stands under `if __name__ ==
    "__main__"` must not run when a function is called.
    """
    module = types.ModuleType("__main__" if mode == "stdio" else MODULE)
    module.__dict__["__builtins__"] = builtins
    module.__dict__["__file__"] = FILENAME
    # Whatever its name, nothing else may be found as the main module, least of all the zygote.
    sys.modules["__main__"] = sys.modules[module.__name__] = module
    return module.__dict__


def call(namespace: dict[str, Any], job: dict[str, Any], request: dict[str, Any]) -> Any:
    if job["mode"] == "expressions":
        return eval(compile(request["x"], "<test>", "eval"), namespace)
    name = job["fn"]
    function = namespace.get(name)
    if function is None and "Solution" in namespace and hasattr(namespace["Solution"], name):
        function = getattr(namespace["Solution"](), name)
    if function is None:
        raise NameError(f"name '{name}' is not defined")
    return function(*decode(request["x"]))


class Streams:
    """Standard input and output for one input, whatever the program did to them before."""

    def __init__(self, stdin: int, stdout: int) -> None:
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
        os.lseek(0, 0, 0)
        reader = io.BufferedReader(io.FileIO(0, closefd=False))
        self.stdin = io.TextIOWrapper(reader, encoding="utf-8", errors="replace")
        writer = io.BufferedWriter(io.FileIO(1, "w", closefd=False))
        self.stdout = io.TextIOWrapper(writer, encoding="utf-8", errors="replace")
        sys.stdin = sys.__stdin__ = self.stdin
        sys.stdout = sys.__stdout__ = self.stdout

    def flush(self) -> None:
        """Send what was printed, also to a stream that the program replaced `sys.stdout` with."""
        for stream in (sys.stdout, self.stdout):
            # A program may have closed them or put anything there.
            with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
                stream.flush()


def end_of_script(namespace: dict[str, Any]) -> None:
    """Do what the interpreter does at the end of a script: join threads, run `atexit`, close."""
    if threading.active_count() > 1:
        wait_for_threads()
    atexit._run_exitfuncs()
    # Files that the program opened itself (`open(1, "w")`) are flushed when they are freed.
    namespace.clear()


def wait_for_threads() -> None:
    """Dismiss idle pool workers, as at the end of an interpreter, and join what still runs."""
    pools._shutdown = True
    for work in list(pools._threads_queues.values()):
        work.put(None)
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    pools._shutdown = False


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the memory limit caused an error, as reported by the interpreter, the kernel or a
    thread without a stack, even if the program raised another error while handling it."""
    for _ in range(MAX_CAUSES):
        match error:
            case None:
                return False
            case MemoryError() | OSError(errno=errno.ENOMEM):
                return True
            case RuntimeError(args=("can't start new thread",)):
                return True
        error = error.__context__
    return False


def free_frames(error: BaseException, namespace: dict[str, Any]) -> None:
    """Free what the program held, so that there is memory to describe the error."""
    namespace.clear()
    trace = error.__traceback__
    while trace is not None:
        with contextlib.suppress(RuntimeError):
            trace.tb_frame.clear()
        trace = trace.tb_next


def answer(job: dict[str, Any], code: Any, setup: Any, request: dict[str, Any]) -> dict[str, Any]:
    """The reply to one request; `SystemExit` and any other exception are replies too."""
    namespace = fresh_module(job["mode"])
    at_load = True
    try:
        for part in (setup, code):
            if isinstance(part, Exception):
                raise part.with_traceback(None)
            exec(part, namespace)
        if job["mode"] == "stdio":
            end_of_script(namespace)
            return {"v": None}
        at_load = False
        reply = {"v": encode(call(namespace, job, request))}
        return {"big": 1} if len(json.dumps(reply)) > MAX_VALUE_BYTES else reply
    except SystemExit as end:
        if job["mode"] == "stdio":
            end_of_script(namespace)
        return {"x": exit_code(end.code)}
    except BaseException as error:  # noqa: BLE001 - whatever a program raises is its answer
        if not is_out_of_memory(error):
            return {"e": describe(error, at_load)}
        free_frames(error, namespace)
        return {"mem": describe(error, at_load)}


def exit_code(code: Any) -> int:
    """The interpreter's exit code: None is 0, a number is itself, anything else is 1."""
    if code is None:
        return 0
    return int.__add__(code, 0) & 0xFF if isinstance(code, int) else 1


def compiled(source: str, name: str) -> Any:
    """A code object, or the exception that compiling raised, to be raised again for each input."""
    try:
        return compile(source, name, "exec", dont_inherit=True)
    except ValueError as error:  # null bytes; a SyntaxError from Python 3.12 on
        return SyntaxError(str(error))
    except Exception as error:  # noqa: BLE001 - SyntaxError, RecursionError, MemoryError, ...
        return error


def read_exactly(fd: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            os._exit(0)
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def receive(fd: int) -> dict[str, Any]:
    (length,) = struct.unpack(">I", read_exactly(fd, 4))
    return json.loads(read_exactly(fd, length))


def send(fd: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    data = struct.pack(">I", len(data)) + data
    while data:
        data = data[os.write(fd, data) :]


def serve(fds: Sequence[int], folder: str | None) -> NoReturn:
    """Answer requests until the judge closes the pipe; the program may write in `folder`."""
    commands, results, stdout, stdin = fds
    send(results, HELLO)
    job = receive(commands)
    code = compiled(job["code"], FILENAME)
    setup = compiled(job["setup"], "<setup>")
    # The zygote's objects are frozen, so only the program's own garbage is visited.
    gc.enable()
    is_first = True
    while True:
        request = receive(commands)
        if folder is not None and not is_first:
            # Like globals, files do not leak between tests.
            with contextlib.suppress(OSError):
                scratch.empty(folder)
        is_first = False
        streams = Streams(stdin, stdout)
        reply = answer(job, code, setup, request)
        streams.flush()
        reply["n"] = request["n"]
        send(results, reply)
