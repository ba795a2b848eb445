"""The contract of a sandbox: what it takes and returns. Plain data only; every status is decided on
this side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

Status = Literal[
    "value",
    "exception",
    "exit",
    "signal",
    "time_limit",
    "memory_limit",
    "output_limit",
    "tampering",
    "not_run",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one program.

    Example:
        Limits(cpu_s=1.0, memory_mb=512)
    """

    cpu_s: float = 1.0
    """CPU seconds per input; the first includes compiling. A program that sleeps gets three times
    this plus one second of wall time, not counting time spent waiting for a busy core."""
    memory_mb: int = 512
    """MiB of address space beyond the interpreter's own."""
    output_bytes: int = 1 << 20
    """Bytes printed per input; a value may have 4 MiB."""
    total_cpu_s: float = 30.0
    """CPU seconds over all inputs; once they are used up, the remaining inputs are not run. Wall
    time is limited to three times this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Source code and how it is called.

    Example:
        Program(source="def f(x): return x", mode="function", entry_point="f")
    """

    source: str
    mode: Literal["function", "stdio", "expressions"]
    """What an input is. `function`: a list of arguments; `stdio`: the text on standard input;
    `expressions`: a Python expression to evaluate in the program's namespace."""
    entry_point: str | None = None
    """Function to call, or a method of a class `Solution`."""
    setup: str = ""
    """Code run before the source, in the same namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One level of a traceback, within the program.

    Example:
        Frame(line=3, function="clamp")
    """

    line: int
    """1-based line in the program's source."""
    function: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An exception as the program's process described it: text, never a status.

    Example:
        Failure(kind="NameError", message="name 'x' is not defined", frames=())
    """

    kind: str
    message: str
    frames: tuple[Frame, ...] = ()
    """Outermost first."""
    bases: tuple[str, ...] = ()
    """Builtin classes that its class derives from, nearest first."""
    at_load: bool = False
    """Whether it came while the program was compiled or its module body ran, before any call."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """Stands for a value that is not plain data; equal to nothing.

    Example:
        Opaque("generator")
    """

    type_name: str

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What happened with one input.

    Example:
        Outcome(status="value", value=4)
    """

    status: Status
    """`value`: an answer, or in stdio mode an exit with code 0. `exit`: any other exit without an
    answer. `tampering`: the program broke the judge's protocol."""
    value: Any = None
    """Plain data, for `value` in function and expressions mode."""
    num_bytes: int = 0
    """Size of the encoded `value`; in memory it may take 20 times as much."""
    stdout: str = ""
    """What was printed, in every mode; undecodable bytes are replaced."""
    failure: Failure | None = None
    """For `exception`, and for `memory_limit` if Python raised it."""
    exit_code: int | None = None
    """For `exit`."""
    signal: int | None = None
    """For `signal`: its number, 11 for a segmentation fault."""
    cpu_s: float = 0.0
    """CPU seconds of this input."""


def never(index: int, outcome: Outcome) -> bool:
    """A `should_stop` that never stops."""
    return False


class Sandbox(Protocol):
    """Runs programs; thread-safe."""

    @property
    def level(self) -> str:
        """The layers of isolation in use, or `none`."""
        ...

    @property
    def width(self) -> int:
        """How many programs run at once."""
        ...

    def run(
        self,
        program: Program,
        inputs: Sequence[Any],
        limits: Limits,
        *,
        should_stop: Callable[[int, Outcome], bool] = never,
        keeps_values: bool = True,
    ) -> list[Outcome]:
        """One outcome per input, in order; those after a stop are `not_run`.

        With `keeps_values = False`, only `should_stop` sees values and printed text; the outcomes
        returned come without them, so that memory holds one at a time.
        """
        ...

    def close(self) -> None:
        """End every process."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...
