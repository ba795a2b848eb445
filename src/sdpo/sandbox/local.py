"""A pool of zygotes on this machine: each program runs in one child, and again if the judge's side
fails.

`child.py` decides what happened with an input. `jail.py`, `landlock.py` and `namespaces.py` lock a
process down; they run in the zygote and its children.
"""

from __future__ import annotations

import importlib.util
import os
import queue
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from sdpo.errors import SandboxError
from sdpo.machine import system_file, usable_cores
from sdpo.sandbox.child import Child, Spent
from sdpo.sandbox.protocol import Limits, Outcome, Program, never
from sdpo.sandbox.selftest import FIX, require_calls, self_test
from sdpo.sandbox.worker import Settings, Zygote, ZygoteDiedError, ZygoteRefusedError

MAX_RESTARTS = 3
"""Crashes after which a program gets no new child; its remaining inputs are not run."""
MAX_RETRIES = 5
"""How often a program is started over because its zygote died."""
MEMORY_PER_PROGRAM = 512 << 20
SENT_SIGNALS = (1, 9, 15)
"""HUP, KILL and TERM by Linux's numbers, since Windows names no KILL: signals that others send,
unlike those of a crash."""
NOT_RUN = Outcome(status="not_run")


def open_sandbox(
    name: Literal["auto", "none"] = "auto",
    *,
    width: int | None = None,
    preload: Sequence[str] = (),
    readable: Sequence[Path] = (),
) -> LocalSandbox:
    """The strongest isolation that works here, established by trying it.

    `auto` raises `SandboxError` naming what failed and the fix; `none` limits only time and memory,
    and warns. `width` is how many programs run at once (default: usable cores). `preload` names
    modules that programs find loaded, installed packages included; `readable` are absolute paths of
    files that programs may open, unless `can_read` says that they can open none.
    """
    require_linux()
    require_calls()
    settings = Settings(jailed=name != "none", namespaces=False, landlock=True)
    settings = replace(settings, **_where(preload, readable))
    if name == "none":
        warnings.warn(
            "sandbox = none: model-written programs run unprotected, as this user", stacklevel=2
        )
        return LocalSandbox(settings, width or usable_width())
    problems = []
    for has_namespaces in (True, False):
        trial = replace(settings, namespaces=has_namespaces)
        sandbox = LocalSandbox(trial, width or usable_width())
        try:
            self_test(sandbox)
        except SandboxError as error:
            sandbox.close()
            problems.append(str(error))
        else:
            return sandbox
    raise SandboxError(f"programs cannot be isolated here: {problems[-1]}. {FIX}")


def require_linux() -> None:
    """Raises `SandboxError`, with a way out, on systems other than Linux: the jail is built from
    what only Linux has."""
    if not sys.platform.startswith("linux"):
        raise SandboxError(
            f"programs are judged in Linux processes, but this is {sys.platform}. A Linux "
            "container runs every command: in a checkout of sdpo, `docker build -t sdpo .`, then "
            "`docker run --rm -v $PWD/runs:/work/runs sdpo train ...`. Environments without "
            "programs run here"
        )


def usable_width() -> int:
    """How many programs should run at once: bounded by usable cores and half of the free memory."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in system_file("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) << 10
    return max(1, min(usable_cores(), free // 2 // MEMORY_PER_PROGRAM))


def _where(modules: Sequence[str], readable: Sequence[Path]) -> dict[str, tuple[str, ...]]:
    """Where `modules` are imported from, and what programs must be able to read: their folders and
    `readable`."""
    folders, packages = set(), {str(path) for path in readable}
    for name in modules:
        if name.partition(".")[0] in sys.stdlib_module_names:
            continue
        try:
            spec = importlib.util.find_spec(name.partition(".")[0])
        except (ImportError, ValueError):
            spec = None
        if spec is None or spec.origin is None:
            raise SandboxError(f"sandbox preload: no module {name!r}; install it first")
        origin = Path(spec.origin)
        own = origin.parent if spec.submodule_search_locations else origin
        folders.add(str(own.parent))
        packages.add(str(own))
        # Wheels put their shared libraries beside the package.
        libraries = own.with_name(f"{own.stem}.libs")
        if libraries.is_dir():
            packages.add(str(libraries))
    return {
        "preload": tuple(modules),
        "folders": tuple(sorted(folders)),
        "packages": tuple(sorted(packages)),
    }


class LocalSandbox:
    """Programs in child processes of this machine; see `Sandbox` for the contract."""

    def __init__(self, settings: Settings, width: int) -> None:
        self.width = width
        self._settings = settings
        self._lock = threading.Lock()
        self._open: set[Zygote] = set()
        self._is_closed = False
        # A place gets its zygote when it is first used.
        self._places: queue.SimpleQueue[Zygote | None] = queue.SimpleQueue()
        for _ in range(width):
            self._places.put(None)
        self._has_landlock = False

    @property
    def level(self) -> str:
        """The layers of isolation in use, strongest first, or `none`."""
        if not self._settings.jailed:
            return "none"
        reading = "landlock" if self._has_landlock else "no file access"
        namespaces = "namespaces+" if self._settings.namespaces else ""
        return f"{namespaces}{reading}+seccomp"

    @property
    def can_read(self) -> bool:
        """Whether programs can open files; known once one has run."""
        return self._has_landlock or not self._settings.jailed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process. The sandbox cannot be used afterwards."""
        with self._lock:
            self._is_closed = True
            zygotes, self._open = self._open, set()
        for zygote in zygotes:
            zygote.close()

    def run(
        self,
        program: Program,
        inputs: Sequence[Any],
        limits: Limits,
        *,
        should_stop: Callable[[int, Outcome], bool] = never,
        keeps_values: bool = True,
    ) -> list[Outcome]:
        """One outcome per input, in order. Raises `SandboxError` when the judge's own side fails.

        When a zygote dies, the program starts over with its first input, so `should_stop` may be
        asked about an index again.
        """
        for _ in range(MAX_RETRIES):
            zygote = self._places.get()
            try:
                zygote = zygote or self._start()
                outcomes = self._outcomes(
                    zygote, program, inputs, limits, should_stop, keeps_values
                )
            except ZygoteDiedError:
                self._give_up(zygote)
                continue
            except BaseException:
                # Its child may be in the middle of an answer; no other program may get that.
                self._give_up(zygote)
                raise
            self._places.put(zygote)
            return outcomes
        raise SandboxError(f"the judge's worker died {MAX_RETRIES} times on one program; see dmesg")

    def _outcomes(
        self,
        zygote: Zygote,
        program: Program,
        inputs: Sequence[Any],
        limits: Limits,
        should_stop: Callable[[int, Outcome], bool],
        keeps_values: bool,
    ) -> list[Outcome]:
        return _Run(zygote, program, inputs, limits).outcomes(should_stop, keeps_values)

    def _start(self) -> Zygote:
        try:
            zygote = Zygote(self._settings)
        except ZygoteRefusedError as error:
            raise SandboxError(f"a layer of the sandbox failed: {error}") from error
        with self._lock:
            if not self._is_closed:
                self._open.add(zygote)
                self._has_landlock = zygote.has_landlock
                return zygote
        zygote.close()
        raise SandboxError("the sandbox is closed")

    def _give_up(self, zygote: Zygote | None) -> None:
        if zygote is not None:
            with self._lock:
                self._open.discard(zygote)
            zygote.close()
        self._places.put(None)


class _Run:
    """One program on all its inputs, in as many children of one zygote as that takes."""

    def __init__(
        self, zygote: Zygote, program: Program, inputs: Sequence[Any], limits: Limits
    ) -> None:
        self._start = lambda: Child(zygote, program, inputs, limits, self._spent)
        self._inputs = inputs
        self._limits = limits
        self._spent = Spent()
        self._child: Child | None = None
        self._num_crashes = 0
        self._was_repeated = False

    def outcomes(
        self, should_stop: Callable[[int, Outcome], bool], keeps_values: bool
    ) -> list[Outcome]:
        outcomes: list[Outcome] = []
        try:
            for index, value in enumerate(self._inputs):
                outcome = self._ask(index, value)
                is_last = should_stop(index, outcome) or self._is_over(outcome)
                outcomes.append(
                    outcome if keeps_values else replace(outcome, value=None, stdout="")
                )
                if is_last:
                    break
        finally:
            if self._child is not None:
                self._child.end()
        return outcomes + [NOT_RUN] * (len(self._inputs) - len(outcomes))

    def _ask(self, index: int, value: Any) -> Outcome:
        self._child = self._child or self._start()
        outcome = self._child.ask(index, value)
        if outcome.signal in SENT_SIGNALS and not self._was_repeated:
            # It may come from the out-of-memory killer or an administrator. A program that sends
            # it to itself will do so again.
            self._was_repeated = True
            self._child = self._start()
            outcome = self._child.ask(index, value)
        if not self._child.is_alive:
            self._child = None
            # A program that ends its own process after its answer has not crashed.
            self._num_crashes += outcome.status != "value"
        return outcome

    def _is_over(self, outcome: Outcome) -> bool:
        return (
            outcome.status in ("time_limit", "tampering")
            or self._spent.cpu_s > self._limits.total_cpu_s
            or self._num_crashes > MAX_RESTARTS
        )
