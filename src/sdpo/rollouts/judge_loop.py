"""The event loop that judges run on: one per process, in a thread of its own.

A caller may itself be inside a running loop (Jupyter and Colab always are), where `asyncio.run`
refuses. And an async judge that keeps a session needs the same loop in every step. The loop starts
with the first judgement and is closed when the interpreter exits. A forked child gets a new one.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import contextvars
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

WAKE_S = 0.5
"""How often a waiting caller looks up: on Windows a thread that waits without end misses Ctrl-C."""
CLOSE_S = 2.0
"""Seconds that judges get to clean up at the interpreter's exit."""


class _Loop:
    """A running event loop with its thread."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        # A daemon: a judge that hangs must not keep the interpreter from exiting.
        self._thread = threading.Thread(target=self.loop.run_forever, name="judges", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def close(self) -> None:
        """Cancel what still runs and stop the loop."""
        if self.pid != os.getpid() or self.loop.is_closed():
            return
        ending = asyncio.run_coroutine_threadsafe(_end_all(self.loop), self.loop)
        with contextlib.suppress(concurrent.futures.TimeoutError):
            ending.result(CLOSE_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            self.loop.close()


_starting = threading.Lock()
_current: _Loop | None = None


def run_on_loop(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns or raises. An interrupt of the caller cancels it."""
    future = asyncio.run_coroutine_threadsafe(work, _running().loop)
    try:
        while not future.done():
            concurrent.futures.wait([future], timeout=WAKE_S)
    except BaseException:
        future.cancel()
        raise
    return future.result()


async def call_in_thread(function: Callable[..., T], *arguments: object) -> T:
    """What `function(*arguments)` returns or raises, called in a thread of its own.

    Not in a pool: a call that is given up keeps its thread, and neither later calls nor the end of
    the interpreter may wait for it.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
    context = contextvars.copy_context()

    def hand_over(value: Any, error: BaseException | None) -> None:
        if not done.done():
            # As a value: a future does not take every exception (StopIteration, SystemExit).
            done.set_result((value, error))

    def call() -> None:
        try:
            found = context.run(function, *arguments), None
        except BaseException as error:  # noqa: BLE001 - it is raised again by whoever waits
            found = None, error
        # The loop may be closed by the time a call returns that was given up.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(hand_over, *found)

    threading.Thread(target=call, name="judge", daemon=True).start()
    value, error = await done
    if error is not None:
        raise error
    return value


def _running() -> _Loop:
    global _current
    with _starting:
        if _current is None or _current.pid != os.getpid() or _current.loop.is_closed():
            _current = _Loop()
        return _current


async def _end_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop) - {asyncio.current_task(loop)}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await loop.shutdown_asyncgens()
