"""Rows of LiveCodeBench (`livecodebench/code_generation_lite`): the paper's prompt and tests, the
surroundings of the benchmark's own runner.

Training is judged on a seeded half of the *hidden* tests, as in the paper: the samples in the
statement are in the prompt, and a program that prints them would be solved. Evaluation is on all
tests. `contest_date` is kept for `env.contest_dates`; the paper's 131 questions are those from
2025-02-01 until, and without, 2025-05-01.

Hidden tests come as base64(zlib(pickle(JSON text))). The pickle is never executed: its one string
is read from its instructions, so a hostile file can cause an error but not run code.
"""

from __future__ import annotations

import base64
import json
import pickletools
import zlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sdpo.envs.code.tasks import CodeReference, CodeTest, PackedTests, make_task, seeded_half
from sdpo.envs.table import Line, kind_of
from sdpo.records import Task

LIVE_CODE_BENCH_KEYS = {"question_content", "public_test_cases", "private_test_cases"}

TIME_LIMIT_S = 6.0
"""The limit of the benchmark's runner; the prompt says less."""
PACKAGES = ("numpy", "sortedcontainers")
"""What programs of the paper's judge may import besides the standard library."""
_PROMPT = (
    "You are a coding expert. You will be given a coding problem, and you need to write a correct "
    "Python program that matches the specification and passes all tests. The time limit is 1 "
    "second. You may start by outlining your thought process. In the end, please provide the "
    "complete code in a code block enclosed with ``` ```.\n\n{problem}"
)
"""The paper's."""
_SIGNATURE = "\n\nYour solution should have the following signature: ```python\n{signature}\n```"
_MODULES = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random",
    "statistics", "itertools", "functools", "operator", "io", "sys", "json",
)  # fmt: skip
PRELUDE = "\n".join(
    [
        *(f"from {name} import *" for name in (*_MODULES, "builtins", "typing")),
        *(f"import {name}" for name in _MODULES),
        "sys.setrecursionlimit(50_000)",
        "sys.set_int_max_str_digits(0)",
        "class ListNode:",
        "    def __init__(self, val=0, next=None):",
        "        self.val, self.next = val, next",
        "class TreeNode:",
        "    def __init__(self, val=0, left=None, right=None):",
        "        self.val, self.left, self.right = val, left, right",
        "",
    ]
)
"""What the benchmark's runner puts before every program, and the classes that starting code has in
comments. `builtins` comes after `math`, `operator` and `io`, which shadow `pow`, `abs` and `open`.
"""
_MAX_UNPACKED_BYTES = 1 << 30


def live_code_bench_task(line: Line) -> tuple[str, Task]:
    """A LiveCodeBench row; uses question_id, question_content, starter_code, contest_date,
    metadata.func_name, public_test_cases and private_test_cases."""
    public = _tests(line, "public_test_cases")
    hidden = _tests(line, "private_test_cases")
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
    tests = [test for _, test in (*public, *hidden)]
    packed = PackedTests.pack(tests)
    trained = seeded_half(tests[len(public) :] or tests, task_id)
    own = {id(test) for test in trained}
    reference = CodeReference(
        kind="function" if is_function else "stdio",
        entry_point=name if is_function else None,
        public=packed.only(index for index, test in enumerate(tests) if id(test) in own),
        private=packed,
        prelude=PRELUDE,
        time_limit_s=TIME_LIMIT_S,
        memory_mb=1024,
        packages=PACKAGES,
    )
    problem = _problem(line)
    return "train", make_task(
        f"lcb/{task_id}",
        # The paper's own preprocessing: functions are asked for, methods of Solution accepted.
        _PROMPT.format(problem=problem).replace("(self, ", "("),
        reference,
        requests_block=False,
        metadata=_contest_date(line),
    )


def _problem(line: Line) -> str:
    problem, starter = line.row["question_content"], line.row.get("starter_code") or ""
    for key, value in (("question_content", problem), ("starter_code", starter)):
        if not isinstance(value, str):
            raise line.error(key, f"expected a string, got {kind_of(value)}")
    _, has_function, after = starter.partition("def ")
    if not has_function:
        return problem
    signature = "def " + after.partition("def ")[0].partition("Input\n")[0].strip()
    return problem + _SIGNATURE.format(signature=signature)


def _contest_date(line: Line) -> dict[str, str]:
    """`contest_date` as YYYY-MM-DD, if the row has one."""
    date = line.row.get("contest_date")
    if date is None:
        return {}
    try:
        return {"contest_date": datetime.fromisoformat(str(date)).date().isoformat()}
    except ValueError as error:
        raise line.error("contest_date", f"expected YYYY-MM-DD, got {date!r:.60}") from error


def _tests(line: Line, key: str) -> list[tuple[str, CodeTest]]:
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
