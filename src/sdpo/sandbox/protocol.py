"""What running an untrusted program takes and gives: plain data, statuses from this side only."""

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
    """CPU seconds per input, compiling included on the first. A program that sleeps has three times
    this plus one second; time in which it waits for a busy core does not count."""
    memory_mb: int = 512
    """MiB of address space on top of the interpreter's own."""
    output_bytes: int = 1 << 20
    """Bytes printed per input; a value may take 4 MiB."""
    total_cpu_s: float = 30.0
    """CPU seconds over all inputs; the inputs after it is used up are not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Source and how it is called.

    Example:
        Program(source="def f(x): return x", mode="function", entry_point="f")
    """

    source: str
    mode: Literal["function", "stdio", "expressions"]
    """function: an input is an argument list; stdio: the text of standard input; expressions: a
    Python expression evaluated in the program's namespace."""
    entry_point: str | None = None
    """Function to call; a class `Solution` with that method is accepted too."""
    setup: str = ""
    """Code run before the source, in the same namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One level of a traceback inside the program.

    Example:
        Frame(line=3, function="clamp")
    """

    line: int
    """1-based line of the program's own source."""
    function: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An exception as the program's process described it; text only, never a status.

    Example:
        Failure(kind="NameError", message="name 'x' is not defined", frames=())
    """

    kind: str
    message: str
    frames: tuple[Frame, ...] = ()
    """Outermost first."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """Stands for a value of a type that is not plain data; equal to nothing.

    Example:
        Opaque("generator")
    """

    type_name: str

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What happened on one input.

    Example:
        Outcome(status="value", value=4)
    """

    status: Status
    """`value`: an answer, in stdio mode an end with exit code 0. `exit`: any other end of the
    process without an answer. `tampering`: the program broke the judge's protocol."""
    value: Any = None
    """Plain data for `value` in function and expressions mode."""
    stdout: str = ""
    """What was printed, in every mode; undecodable bytes replaced."""
    failure: Failure | None = None
    """For `exception`, and for `memory_limit` where Python noticed."""
    exit_code: int | None = None
    """For `exit`."""
    signal: int | None = None
    """For `signal`: what ended the process, 11 for a segmentation fault."""
    cpu_s: float = 0.0
    """CPU seconds of this input."""


def never(index: int, outcome: Outcome) -> bool:
    """A `should_stop` that runs every input."""
    return False


class Sandbox(Protocol):
    """Runs programs; thread-safe."""

    @property
    def level(self) -> str:
        """The layers in use, or `none`."""
        ...

    @property
    def width(self) -> int:
        """Programs that run at once."""
        ...

    def run(
        self,
        program: Program,
        inputs: Sequence[Any],
        limits: Limits,
        *,
        should_stop: Callable[[int, Outcome], bool] = never,
    ) -> list[Outcome]:
        """One outcome per input, in order; those after a stop are `not_run`."""
        ...

    def close(self) -> None:
        """End every process."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...
