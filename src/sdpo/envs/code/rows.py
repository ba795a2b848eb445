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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from sdpo.envs.code.assert_forms import compile_test, own_sources
from sdpo.envs.code.assert_names import missing_names, parse_python
from sdpo.envs.code.checker import checker_problem
from sdpo.envs.code.compare import TOLERANCE
from sdpo.envs.code.tasks import (
    MEMORY_MB,
    MIN_TIME_LIMIT_S,
    TIME_LIMIT_S,
    CodeReference,
    CodeTest,
    Kind,
    Language,
    exchange,
    make_task,
)
from sdpo.envs.table import Line, kind_of
from sdpo.records import Message, Task
from sdpo.sandbox import LANGUAGES

KEYS = (
    "id",
    "prompt",
    "kind",
    "language",
    "entry_point",
    "tests",
    "setup",
    "checker",
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


def parse_task(line: Line) -> tuple[str, Task]:
    """(split, task) of one line in our own format; raises `TaskError` naming file, line and key."""
    for key in line.row:
        if key not in KEYS:
            raise line.error(key, f"unknown key; a code task has {', '.join(KEYS)}")
    kind = cast("Kind", _choice(line, "kind", ("function", "stdio", "asserts")))
    language = _language(line, kind)
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
        language=language,
        entry_point=entry_point,
        public=public,
        private=private,
        setup=setup,
        checker=_checker(line, kind),
        prelude="" if library is None else library.source,
        time_limit_s=_number(line, "time_limit_s", TIME_LIMIT_S, least=MIN_TIME_LIMIT_S, most=3600),
        memory_mb=int(_number(line, "memory_mb", MEMORY_MB, least=1, most=1 << 20, is_whole=True)),
        tolerance=_number(line, "tolerance", TOLERANCE, least=0, most=1_000_000_000),
        solution=solution,
    )
    if kind == "asserts":
        _require_runnable(line, reference)
    task = make_task(_text(line, "id"), _text(line, "prompt"), reference)
    if library is not None:
        # What feedback says about one task of a library holds for all of them.
        task = replace(task, metadata={**task.metadata, "family": library.name})
    return split, replace(task, messages=(*_examples(line, language), *task.messages))


def _language(line: Line, kind: Kind) -> Language:
    language = cast("Language", _choice(line, "language", ("python", *LANGUAGES), default="python"))
    if language != "python" and kind != "stdio":
        raise line.error("language", f"{language!r} programs are judged by kind 'stdio' only")
    if language != "python" and "library" in line.row:
        raise line.error("library", f"a library is Python; remove it from this {language!r} task")
    return language


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
    name = _text(line, "library")
    source = _beside(line, "library", name)
    _compiles(line, "library", source)
    return _Library(name=Path(name).stem, source=source)


def _beside(line: Line, key: str, name: str) -> str:
    """The text of the file `name`, whose path is relative to the task file."""
    path = Path(line.path).parent / name
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise line.error(
            key, f"cannot read {path} ({error}); the path is relative to the task file"
        ) from error


def _checker(line: Line, kind: Kind) -> str:
    """The source of the line's checker: as given, or in a file beside the task file."""
    if "checker" not in line.row:
        return ""
    if kind == "asserts":
        raise line.error("checker", "an assert decides itself; use kind 'function' or 'stdio'")
    source = _text(line, "checker")
    if source.endswith(".py") and "\n" not in source:
        source = _beside(line, "checker", source)
    problem = checker_problem(source)
    if problem is not None:
        raise line.error("checker", problem)
    return source


def _examples(line: Line, language: Language) -> tuple[Message, ...]:
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
        if language == "python":
            _compiles(part, f"{key}.solution", solution)
        messages += exchange(_text(part, f"{key}.prompt"), solution, language)
    return tuple(messages)


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
        # A checker may need no expected output.
        if name not in test and not (name == "output" and "checker" in line.row):
            raise line.error(f"{key}.{name}", "missing; a test has input and output")
    return test["input"], test.get("output")


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
        if not isinstance(text, str) and not (text is None and name == "output"):
            raise line.error(f"{key}.{name}", f"expected a string, got {kind_of(text)}")
    if expected is None and "checker" not in line.row:
        raise line.error(f"{key}.output", "expected a string, got null")
    return CodeTest(input=given, output=expected)


def _assert_test(line: Line, key: str, test: Any) -> CodeTest:
    if not isinstance(test, str):
        raise line.error(key, f'expected a line like "assert f(1) == 2", got {kind_of(test)}')
    tree = _compiles(line, key, test)
    if not any(map(_tests_something, ast.walk(tree))):
        raise line.error(key, 'no assert statement; write a line like "assert f(1) == 2"')
    return CodeTest(input=test)


def _tests_something(node: ast.AST) -> bool:
    match node:
        case ast.Assert() | ast.Raise():
            return True
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name.startswith("assert") or name in ("raises", "fail")
    return False


def _require_runnable(line: Line, reference: CodeReference) -> None:
    """Raises `TaskError` for an assert test that no process of ours could run: it would fail every
    program."""
    defining = (reference.prelude, reference.solution or "", reference.setup)
    tests = {"public": reference.public, "private": reference.private}
    for split in line.row["tests"]:
        for index, test in enumerate(tests[split]):
            key = f"tests.{split}[{index}]"
            try:
                asserts = compile_test(
                    test.input, reference.entry_point, reference.solution, reference.setup
                )
            except ValueError as error:
                raise line.error(key, str(error)) from error
            own = [source for each in asserts for source in own_sources(each)]
            missing = missing_names(own, defining)
            if missing:
                raise line.error(
                    key,
                    f"the judge cannot run it: {', '.join(missing)} is not defined. Import it in "
                    "the test or in setup (standard library only), define it in "
                    "reference_solution, or name the program's function as entry_point",
                )


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
