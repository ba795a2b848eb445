"""Code tasks in our own format: JSON lines, one task per line, every key checked.

A malformed line is a `TaskError` that names file, line, key and the fix; nothing is skipped or
guessed. `formats.py` reads the formats of others.

    {"id": "clamp", "prompt": "Write a Python function `clamp(x, lo, hi)` that ...", "kind":
    "function", "entry_point": "clamp",
     "tests": {"public": [{"input": [5, 0, 3], "output": 3}], "private": [{"input": [-1, 0, 3],
     "output": 0}]}, "time_limit_s": 1.0, "memory_mb": 512, "tolerance": 1e-6, "split": "train"}
"""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from sdpo.envs.code.assert_forms import parse_python
from sdpo.envs.code.compare import TOLERANCE
from sdpo.envs.table import Line, kind_of
from sdpo.records import Message, Task
from sdpo.seeds import derive

Kind = Literal["function", "stdio", "asserts"]
TestSplit = Literal["public", "private"]
Judged = TestSplit | Literal["all"]

TIME_LIMIT_S = 1.0
MIN_TIME_LIMIT_S = 0.001
MEMORY_MB = 512

KEYS = (
    "id",
    "prompt",
    "kind",
    "entry_point",
    "tests",
    "setup",
    "library",
    "examples",
    "time_limit_s",
    "memory_mb",
    "tolerance",
    "split",
    "reference_solution",
)
SPLITS = {"train": "train", "eval": "eval", "test": "eval"}
"""Values of `split` to ours; elsewhere, held-out rows are usually called `test`."""

REQUEST = "Put your code in a ```python block."
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


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeReference:
    """What the judge needs to know about a code task; `Task.reference`.

    Example:
        CodeReference(kind="function", entry_point="clamp", public=(test,), private=(test,))
    """

    kind: Kind
    entry_point: str | None = None
    """Function or class that the tests call; optional for `asserts`."""
    public: tuple[CodeTest, ...]
    """Tests whose inputs and outputs feedback may show."""
    private: tuple[CodeTest, ...]
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
    solution: str | None = None
    """A program that passes; `sdpo check` verifies it."""

    def tests(self, split: Judged) -> tuple[CodeTest, ...]:
        """The tests of `split`; `all` are the public ones, then the private ones that are not
        public."""
        if split == "public":
            return self.public
        if split == "private":
            return self.private
        shown = {id(test) for test in self.public}
        return self.public + tuple(test for test in self.private if id(test) not in shown)


def parse_task(line: Line) -> tuple[str, Task]:
    """(split, task) of one line in our own format; raises `TaskError` naming file, line and key."""
    for key in line.row:
        if key not in KEYS:
            raise line.error(key, f"unknown key; a code task has {', '.join(KEYS)}")
    kind = cast("Kind", _choice(line, "kind", ("function", "stdio", "asserts")))
    entry_point = _entry_point(line, kind)
    setup = _text(line, "setup", default="")
    if "setup" in line.row and kind != "asserts":
        raise line.error(
            "setup", f"only tasks of kind 'asserts' have it; remove it from this {kind!r} task"
        )
    _compiles(line, "setup", setup)
    public, private = _tests(line, kind)
    split = SPLITS[_choice(line, "split", tuple(SPLITS), default="train")]
    library = _library(line)
    solution = _text(line, "reference_solution") if "reference_solution" in line.row else None
    reference = CodeReference(
        kind=kind,
        entry_point=entry_point,
        public=public,
        private=private,
        setup=setup,
        prelude="" if library is None else library.source,
        time_limit_s=_number(line, "time_limit_s", TIME_LIMIT_S, least=MIN_TIME_LIMIT_S, most=3600),
        memory_mb=int(_number(line, "memory_mb", MEMORY_MB, least=1, most=1 << 20, is_whole=True)),
        tolerance=_number(line, "tolerance", TOLERANCE, least=0, most=1_000_000_000),
        solution=solution,
    )
    task = make_task(_text(line, "id"), _text(line, "prompt"), reference)
    if library is not None:
        # What feedback says about one task of a library holds for all of them.
        task = replace(task, metadata={**task.metadata, "family": library.name})
    return split, replace(task, messages=(*_examples(line), *task.messages))


def make_task(task_id: str, prompt: str, reference: CodeReference) -> Task:
    """A code task that asks `prompt` and requests a code block."""
    return Task(
        id=task_id,
        messages=({"role": "user", "content": _asked(prompt)},),
        reference=reference,
        metadata={"kind": reference.kind},
    )


def seeded_half(tests: Sequence[CodeTest], task_id: str) -> tuple[CodeTest, ...]:
    """Half of the tests, rounded up, in order; chosen by the task's id alone."""
    rng = random.Random(derive(0, "public tests", task_id))
    chosen = sorted(rng.sample(range(len(tests)), (len(tests) + 1) // 2))
    return tuple(tests[index] for index in chosen)


def with_worked_example(task: Task) -> Task:
    """`task` preceded by one solved example of its kind, as an earlier exchange."""
    question, answer = _WORKED_EXAMPLES["stdio" if task.reference.kind == "stdio" else "function"]
    return replace(task, messages=(*_exchange(question, answer), *task.messages))


def _exchange(prompt: str, solution: str) -> tuple[Message, Message]:
    return (
        {"role": "user", "content": _asked(prompt)},
        {"role": "assistant", "content": as_block(solution)},
    )


def _asked(prompt: str) -> str:
    return f"{prompt.strip()}\n\n{REQUEST}"


def as_block(program: str) -> str:
    """`program` as an answer gives it."""
    return f"```python\n{program.rstrip()}\n```"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Library:
    """Python source that programs find loaded.

    Example:
        _Library(name="fleet", source="class Depot: ...")
    """

    name: str
    source: str


def _library(line: Line) -> _Library | None:
    """The library beside the task file that the line names."""
    if "library" not in line.row:
        return None
    path = Path(line.path).parent / _text(line, "library")
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise line.error(
            "library", f"cannot read {path} ({error}); the path is relative to the task file"
        ) from error
    _compiles(line, "library", source)
    return _Library(name=path.stem, source=source)


def _examples(line: Line) -> tuple[Message, ...]:
    """The line's solved examples as earlier exchanges."""
    shape = '[{"prompt": "...", "solution": "def ..."}]'
    examples = line.row.get("examples", [])
    if not isinstance(examples, list):
        raise line.error("examples", f"expected {shape}, got {kind_of(examples)}")
    messages: list[Message] = []
    for index, example in enumerate(examples):
        key = f"examples[{index}]"
        if not isinstance(example, dict) or set(example) != {"prompt", "solution"}:
            raise line.error(key, "an example has prompt and solution, and nothing else")
        fields = {f"{key}.{name}": value for name, value in example.items()}
        part = Line(path=line.path, number=line.number, row=fields)
        solution = _text(part, f"{key}.solution")
        _compiles(part, f"{key}.solution", solution)
        messages += _exchange(_text(part, f"{key}.prompt"), solution)
    return tuple(messages)


def with_tests(task: Task, judged: Judged) -> Task:
    """`task` judged on its public tests, its private ones or both."""
    return replace(task, reference=replace(task.reference, judged=judged))


def _entry_point(line: Line, kind: Kind) -> str | None:
    if kind == "stdio":
        if "entry_point" in line.row:
            raise line.error(
                "entry_point", "a 'stdio' task is a whole program; remove it or use kind 'function'"
            )
        return None
    if kind == "asserts" and "entry_point" not in line.row:
        return None
    name = _text(line, "entry_point")
    if not name.isidentifier():
        raise line.error(
            "entry_point",
            f"{name!r} is not a valid Python identifier; give the name that the tests call",
        )
    return name


def _tests(line: Line, kind: Kind) -> tuple[tuple[CodeTest, ...], tuple[CodeTest, ...]]:
    """Public and private tests; each falls back to the other when its key is missing."""
    example = '{"public": [...], "private": [...]}'
    tests = line.row.get("tests")
    if not isinstance(tests, dict):
        problem = "missing" if tests is None else f"expected {example}, got {kind_of(tests)}"
        raise line.error("tests", f"{problem}; write {example}, of which one may be omitted")
    for key in tests:
        if key not in ("public", "private"):
            raise line.error(f"tests.{key}", "unknown key; tests has public and private")
    lists = {key: _test_list(line, kind, f"tests.{key}", value) for key, value in tests.items()}
    if not lists:
        raise line.error("tests", f"no tests; write {example}, of which one may be omitted")
    one = next(iter(lists.values()))
    return lists.get("public", one), lists.get("private", one)


def _test_list(line: Line, kind: Kind, key: str, value: Any) -> tuple[CodeTest, ...]:
    if not isinstance(value, list):
        raise line.error(key, f"expected a list of tests, got {kind_of(value)}")
    if not value:
        raise line.error(key, "an empty list; add a test, or omit the key to use the other list")
    parse: Callable[[Line, str, Any], CodeTest] = {
        "function": _function_test,
        "stdio": _stdio_test,
        "asserts": _assert_test,
    }[kind]
    return tuple(parse(line, f"{key}[{index}]", test) for index, test in enumerate(value))


def _pair(line: Line, key: str, test: Any) -> tuple[Any, Any]:
    if not isinstance(test, dict):
        raise line.error(key, f'expected {{"input": ..., "output": ...}}, got {kind_of(test)}')
    for name in test:
        if name not in ("input", "output"):
            raise line.error(f"{key}.{name}", "unknown key; a test has input and output")
    for name in ("input", "output"):
        if name not in test:
            raise line.error(f"{key}.{name}", "missing; a test has input and output")
    return test["input"], test["output"]


def _function_test(line: Line, key: str, test: Any) -> CodeTest:
    arguments, expected = _pair(line, key, test)
    if not isinstance(arguments, list):
        raise line.error(
            f"{key}.input",
            f"expected the list of arguments, got {kind_of(arguments)}; write [x] for one x",
        )
    return CodeTest(input=arguments, output=expected)


def _stdio_test(line: Line, key: str, test: Any) -> CodeTest:
    given, expected = _pair(line, key, test)
    for name, text in (("input", given), ("output", expected)):
        if not isinstance(text, str):
            raise line.error(f"{key}.{name}", f"expected a string, got {kind_of(text)}")
    return CodeTest(input=given, output=expected)


def _assert_test(line: Line, key: str, test: Any) -> CodeTest:
    if not isinstance(test, str):
        raise line.error(key, f'expected a line like "assert f(1) == 2", got {kind_of(test)}')
    tree = _compiles(line, key, test)
    if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
        raise line.error(key, 'no assert statement; write a line like "assert f(1) == 2"')
    return CodeTest(input=test)


def _compiles(line: Line, key: str, source: str) -> ast.Module:
    try:
        return parse_python(source.strip())
    except (SyntaxError, ValueError) as error:
        raise line.error(key, f"not Python: {error}") from error


def _text(line: Line, key: str, default: str | None = None) -> str:
    value = line.row.get(key, default)
    if value is None and key not in line.row:
        raise line.error(key, "missing; give a non-empty string")
    if not isinstance(value, str):
        raise line.error(key, f"expected a string, got {kind_of(value)}")
    if not value.strip() and default is None:
        raise line.error(key, "empty; give a non-empty string")
    return value


def _choice(line: Line, key: str, choices: Sequence[str], default: str | None = None) -> str:
    value = line.row.get(key, default)
    if value not in choices or not isinstance(value, str):
        got = "missing" if key not in line.row else f"{json.dumps(value)} is not allowed"
        raise line.error(key, f"{got}; choose one of {', '.join(choices)}")
    return value


def _number(
    line: Line, key: str, default: float, *, least: float, most: float, is_whole: bool = False
) -> float:
    value = line.row.get(key, default)
    is_number = isinstance(value, int if is_whole else (int, float)) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:
        what = "a whole number" if is_whole else "a number"
        raise line.error(
            key, f"expected {what} from {least} to {most:,}, got {json.dumps(value)[:80]}"
        )
    return value
