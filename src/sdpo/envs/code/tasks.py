"""What a code task consists of: its tests, what else the judge needs, its prompt.

`rows.py` reads tasks in our own format, `formats.py` those of others.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

from sdpo.envs.code.assert_names import called_names
from sdpo.envs.code.compare import TOLERANCE
from sdpo.records import Message, Task
from sdpo.sandbox import LanguageName
from sdpo.seeds import derive

Kind = Literal["function", "stdio", "asserts"]
TestSplit = Literal["public", "private"]
Language = Literal["python"] | LanguageName
Judged = TestSplit | Literal["all"]

TIME_LIMIT_S = 1.0
MIN_TIME_LIMIT_S = 0.001
MEMORY_MB = 512

REQUEST = "Put your code in a ```{language} block."
"""The end of every prompt; short, because the demo model is tiny."""

_WORKED_EXAMPLES = {
    "function": (
        "Write a Python function `add_ten(n)` that returns n plus 10.",
        "def add_ten(n):\n    return n + 10",
    ),
    "stdio": (
        "Write a Python program that reads one integer and prints that integer plus 10.",
        "n = int(input())\nprint(n + 10)",
    ),
    "cpp": (
        "Write a C++ program that reads one integer and prints that integer plus 10.",
        "#include <iostream>\n\nint main() {\n    long long n;\n    std::cin >> n;\n"
        "    std::cout << n + 10 << std::endl;\n}",
    ),
    "javascript": (
        "Write a JavaScript program that reads one integer and prints that integer plus 10.",
        "const n = Number(require('fs').readFileSync(0, 'utf8'));\nconsole.log(n + 10);",
    ),
}
"""Question and program of `with_worked_example`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTest:
    """One test of a code task.

    Example:
        CodeTest(input=[5, 0, 3], output=3)
    """

    input: Any
    """`function`: the list of arguments; `stdio`: the text on standard input; `asserts`: Python
    source with an assert."""
    output: Any = None
    """`function`: the expected value; `stdio`: the expected text; `asserts`: None."""


class PackedTests(Sequence[CodeTest]):
    """Tests kept compressed and unpacked whenever they are judged: a whole release of LiveCodeBench
    is 12 GB of text. `indices` names the tests among all that `data` holds."""

    def __init__(self, data: bytes, indices: tuple[int, ...]) -> None:
        self._data = data
        self.indices = indices

    @classmethod
    def pack(cls, tests: Sequence[CodeTest]) -> PackedTests:
        """`tests`, whose inputs and outputs must be JSON."""
        text = json.dumps([[test.input, test.output] for test in tests])
        # The lowest level: a file must load in seconds.
        return cls(zlib.compress(text.encode(), 1), tuple(range(len(tests))))

    def only(self, indices: Iterable[int]) -> PackedTests:
        """Those at `indices`, which count all packed tests."""
        return PackedTests(self._data, tuple(indices))

    def unpack(self) -> tuple[CodeTest, ...]:
        """All tests, in order of `indices`."""
        pairs = json.loads(zlib.decompress(self._data))
        return tuple(
            CodeTest(input=given, output=output)
            for given, output in map(pairs.__getitem__, self.indices)
        )

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> CodeTest: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[CodeTest]: ...

    def __getitem__(self, index: int | slice) -> CodeTest | Sequence[CodeTest]:
        return self.unpack()[index]

    def __iter__(self) -> Iterator[CodeTest]:
        return iter(self.unpack())


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeReference:
    """What the judge needs to know about a code task; `Task.reference`.

    Example:
        CodeReference(kind="function", entry_point="clamp", public=(test,), private=(test,))
    """

    kind: Kind
    language: Language = "python"
    """`stdio` programs may be in another one."""
    entry_point: str | None = None
    """Function or class that the tests call; optional for `asserts`."""
    public: Sequence[CodeTest]
    """Tests whose inputs and outputs feedback may show."""
    private: Sequence[CodeTest]
    """Tests for evaluation, which nothing reveals."""
    judged: Judged = "private"
    """Which tests the judge runs: `public` for training, `private` for evaluation, `all` for a
    test-time search."""
    setup: str = ""
    """`asserts`: source that runs after the program and before each test, in the program's
    namespace."""
    prelude: str = ""
    """Source that runs before the program: helpers in the prompt that an answer need not repeat, or
    a library that the prompt does not show."""
    time_limit_s: float = TIME_LIMIT_S
    """CPU seconds per test."""
    memory_mb: int = MEMORY_MB
    tolerance: float = TOLERANCE
    """Absolute or relative error allowed where a float is expected."""
    packages: tuple[str, ...] = ()
    """Packages that programs may import besides the standard library, where they are installed."""
    checker: str = ""
    """Source of `check(input, output, expected)`, which decides instead of a comparison."""
    solution: str | None = None
    """A program that passes; `sdpo check` verifies it."""

    @property
    def names(self) -> tuple[str, ...]:
        """What a program must define: the entry point, or else what the tests call."""
        if self.entry_point is not None or self.kind != "asserts":
            return () if self.entry_point is None else (self.entry_point,)
        return called_names(tuple(test.input for test in self.private), self.solution, self.setup)

    def tests(self, split: Judged) -> tuple[CodeTest, ...]:
        """The tests of `split`; `all` are the public ones, then the private ones that are not
        public."""
        if split == "public":
            return tuple(self.public)
        if split == "private":
            return tuple(self.private)
        if isinstance(self.public, PackedTests) and isinstance(self.private, PackedTests):
            shown = self.public.indices
            others = [index for index in self.private.indices if index not in shown]
            return self.private.only((*shown, *others)).unpack()
        own = {id(test) for test in self.public}
        return (*self.public, *(test for test in self.private if id(test) not in own))


def make_task(
    task_id: str,
    prompt: str,
    reference: CodeReference,
    *,
    requests_block: bool = True,
    metadata: Mapping[str, str] | None = None,
) -> Task:
    """A code task that asks `prompt` and, unless it does so itself, requests a code block."""
    content = _asked(prompt, reference.language) if requests_block else prompt
    return Task(
        id=task_id,
        messages=({"role": "user", "content": content},),
        reference=reference,
        metadata={"kind": reference.kind, **(metadata or {})},
    )


def seeded_half(tests: Sequence[CodeTest], task_id: str) -> tuple[CodeTest, ...]:
    """Half of the tests, rounded up, in order; chosen by the task's id alone."""
    rng = random.Random(derive(0, "public tests", task_id))
    chosen = sorted(rng.sample(range(len(tests)), (len(tests) + 1) // 2))
    return tuple(tests[index] for index in chosen)


def with_worked_example(task: Task) -> Task:
    """`task` preceded by one solved example of its kind, as an earlier exchange."""
    language = task.reference.language
    kind = "function" if task.reference.kind != "stdio" else "stdio"
    question, answer = _WORKED_EXAMPLES[kind if language == "python" else language]
    return replace(task, messages=(*exchange(question, answer, language), *task.messages))


def exchange(prompt: str, solution: str, language: Language = "python") -> tuple[Message, Message]:
    """A solved task as an earlier exchange."""
    return (
        {"role": "user", "content": _asked(prompt, language)},
        {"role": "assistant", "content": as_block(solution, language)},
    )


def _asked(prompt: str, language: Language = "python") -> str:
    return f"{prompt.strip()}\n\n{REQUEST.format(language=language)}"


def as_block(program: str, language: Language = "python") -> str:
    """`program` as an answer gives it."""
    return f"```{language}\n{program.rstrip()}\n```"


def with_tests(task: Task, judged: Judged) -> Task:
    """`task` judged on its public tests, its private ones or both."""
    return replace(task, reference=replace(task.reference, judged=judged))
