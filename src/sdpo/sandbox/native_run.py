"""Runs programs in other languages in the same jail: one process builds the program, then one per
input is the program.

What is left of a jailed interpreter becomes the compiler or the program by `exec`, so clocks, exit
status, signals and limits are read as for Python (`child.py`). Building may start processes and
write to the scratch folder; the program may do neither, and reads nothing but itself, its
interpreter and shared libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sdpo.errors import SandboxError
from sdpo.sandbox.child import Child, Spent
from sdpo.sandbox.frames import Answer
from sdpo.sandbox.languages import (
    LANGUAGES,
    OUT_OF_MEMORY,
    Language,
    LanguageName,
    compile_failure,
    readable_paths,
)
from sdpo.sandbox.local import NOT_RUN, LocalSandbox, require_linux, usable_width
from sdpo.sandbox.protocol import Limits, Outcome, Program, Status
from sdpo.sandbox.selftest import FIX, require_calls
from sdpo.sandbox.worker import Settings, Zygote

BUILD = Limits(cpu_s=20.0, memory_mb=2048, total_cpu_s=20.0)
"""Bounds of a compiler; a task's own are for its program."""
MAX_STDERR_BYTES = 1 << 16
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C", "TMPDIR": ".", "HOME": "/nonexistent",
               "OPENSSL_CONF": "/dev/null", "UV_THREADPOOL_SIZE": "1"}  # fmt: skip


def open_language(name: LanguageName, *, width: int | None = None) -> NativeSandbox:
    """A sandbox for programs in a language, tried out. Raises `SandboxError` naming what is not
    installed or what does not hold."""
    require_linux()
    require_calls()
    language = LANGUAGES[name]
    missing = language.missing()
    if missing is not None:
        raise SandboxError(missing)
    building, running = readable_paths(language)
    problem = ""
    for has_namespaces in (True, False):
        settings = Settings(
            jailed=True,
            namespaces=has_namespaces,
            landlock=True,
            packages=tuple(building),
            runs=tuple(running),
            native=True,
        )
        sandbox = NativeSandbox(language, settings, width or usable_width())
        try:
            _self_test(sandbox)
        except SandboxError as error:
            sandbox.close()
            problem = str(error)
        else:
            return sandbox
    raise SandboxError(f"programs in {language.title} cannot be isolated here: {problem}. {FIX}")


def _self_test(sandbox: NativeSandbox) -> None:
    program = Program(source=sandbox.language.self_test, mode="stdio")
    (outcome,) = sandbox.run(program, [""], Limits(cpu_s=5.0, memory_mb=256))
    if outcome.status != "value" or outcome.stdout != "held\n":
        said = outcome.failure.message if outcome.failure else outcome.stdout
        raise SandboxError(f"its trial program ended as {outcome.status} ({said[:300]!r})")


class NativeSandbox(LocalSandbox):
    """Programs of one language in child processes of this machine; `stdio` only."""

    def __init__(self, language: Language, settings: Settings, width: int) -> None:
        super().__init__(settings, width)
        self.language = language

    def _outcomes(
        self,
        zygote: Zygote,
        program: Program,
        inputs: Sequence[Any],
        limits: Limits,
        should_stop: Callable[[int, Outcome], bool],
        keeps_values: bool,
    ) -> list[Outcome]:
        assert program.mode == "stdio", "only programs are judged in other languages"
        language, spent = self.language, Spent()
        failed = _built(zygote, program, language)
        outcomes: list[Outcome] = []
        for index, value in enumerate(inputs):
            outcome = failed or _ran(zygote, program, language, value, limits, spent)
            is_last = should_stop(index, outcome) or outcome.status == "time_limit"
            outcomes.append(outcome if keeps_values else replace(outcome, stdout=""))
            if is_last or spent.cpu_s > limits.total_cpu_s:
                break
        return outcomes + [NOT_RUN] * (len(inputs) - len(outcomes))


def _built(zygote: Zygote, program: Program, language: Language) -> Outcome | None:
    """None if the program compiles, else the outcome of every input."""
    argv = [language.tool() or "", *language.compile_arguments]
    job = {"phase": "build", **_memory(language, BUILD)}
    files = {**language.beside, language.source: program.source}
    child = _NativeChild(zygote, program, [], BUILD, Spent(), job=job, argv=argv, files=files)
    try:
        outcome = child.ask(0, "")
        if outcome.status == "value":
            return None
        if outcome.status == "time_limit":
            return replace(outcome, stdout="")
        failure = compile_failure(child.stderr, language.source)
        return Outcome(status="exception", failure=failure)
    finally:
        child.end()


def _ran(
    zygote: Zygote,
    program: Program,
    language: Language,
    value: str,
    limits: Limits,
    spent: Spent,
) -> Outcome:
    names = {"tool": language.tool(), "memory_mb": limits.memory_mb}
    argv = [word.format(**names) for word in language.run_command]
    job = {"phase": "run", **_memory(language, limits)}
    child = _NativeChild(zygote, program, [value], limits, spent, job=job, argv=argv, files={})
    try:
        outcome = child.ask(0, value)
        if outcome.status not in ("exit", "signal"):
            return outcome
        failure = language.explain(child.stderr)
        if failure is None:
            return outcome
        status: Status = "memory_limit" if failure.kind in OUT_OF_MEMORY else "exception"
        return replace(outcome, status=status, failure=failure)
    finally:
        child.end()


def _memory(language: Language, limits: Limits) -> dict[str, int | None]:
    """Limits of the memory that is written to and of the address space."""
    space = language.address_mb
    return {
        "stack_bytes": language.stack_mb << 20,
        "data_bytes": (limits.memory_mb + language.extra_mb) << 20,
        "address_bytes": None if space is None else (limits.memory_mb + space) << 20,
    }


class _NativeChild(Child):
    """A process that becomes `argv`: it answers with what it prints and how it ends."""

    def __init__(
        self,
        zygote: Zygote,
        program: Program,
        inputs: Sequence[str],
        limits: Limits,
        spent: Spent,
        *,
        job: dict[str, Any],
        argv: list[str],
        files: dict[str, str],
    ) -> None:
        self._extra = job
        self._command = {"argv": argv, "files": files, "environment": ENVIRONMENT}
        super().__init__(zygote, program, inputs, limits, spent)

    @property
    def stderr(self) -> str:
        """The end of what the process printed as errors."""
        return self._buffer.decode("utf-8", errors="replace")

    def _job(self) -> dict[str, Any]:
        return super()._job() | self._extra

    def _introduction(self) -> dict[str, Any]:
        return self._command

    def _next_frame(self) -> Answer | Status | None:
        if not self._has_greeted:
            found = self._greeting()
            if found is None:
                return None
        # From here on the pipe carries diagnostics; of a flood, only the end is kept.
        del self._buffer[:-MAX_STDERR_BYTES]
        return None
