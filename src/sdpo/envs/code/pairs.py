"""Rows whose tests are inputs and outputs: APPS, TACO, PRIME and other verl rows, DeepCoder,
open-r1's verifiable coding and Codeforces, CodeContests, and the paper's own JSON.

They differ in where the tests stand and agree in what they are: lists of inputs and outputs, and
the name of a function if one is called (otherwise the program reads standard input). All tests
judge for evaluation, a seeded half of those that the statement does not show for training. The
paper's train.json holds its half already, so that in a folder with test.json all of it is used.

Where a function is called, an output may stand in a list of its own (`[[3], [4]]`, as APPS wraps
those of Codewars); it is taken out where every output of the row is wrapped so and the code to
start from does not announce a list. `sdpo check` finds rows for which that is wrong, if they have
a solution.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdpo.envs.code.assert_names import parse_python
from sdpo.envs.code.live_code_bench import PACKAGES, PRELUDE, TIME_LIMIT_S
from sdpo.envs.code.tasks import CodeReference, CodeTest, make_task, seeded_half
from sdpo.envs.table import Line, id_of, kind_of, text_of
from sdpo.records import Message, Task

MEMORY_MB = 1024
READS_INPUT = "Write a Python program that reads standard input and prints the answer."
PYTHON_3 = 3
"""CodeContests' number for it."""

_FENCE = re.compile(r"^\s*```(?:python3?|py)?\s*\n(.*?)\n?```\s*$", re.DOTALL)
_RETURNS_LIST = re.compile(r"->\s*(?:typing\.)?(?:List|list|Tuple|tuple)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tests:
    """Tests as a row has them.

    Example:
        Tests(inputs=["3\\n"], outputs=["9\\n"])
    """

    inputs: Sequence[Any]
    outputs: Sequence[Any]
    function: str | None = None
    """Name of the function that is called; None for programs."""
    num_shown: int = 0
    """How many, from the first, the statement shows."""


def is_pairs_row(row: Mapping[str, Any]) -> bool:
    """Whether this module reads rows like `row`."""
    if row.get("kind") == "code" and isinstance(row.get("tests"), str):
        return True
    if isinstance(row.get("reward_model"), Mapping):
        return True
    shapes = (
        ("question", "input_output"), ("problem", "verification_info"), ("problem", "tests"),
        ("prompt", "verification_info"), ("description", "public_tests"),
        ("description", "official_tests"),
    )  # fmt: skip
    return any(all(key in row for key in shape) for shape in shapes)


def pairs_task(line: Line) -> tuple[str, Task]:
    """(split, task) of one row."""
    row = line.row
    tests = _tests(line)
    starter = row.get("starter_code") or ""
    if tests.function is not None:
        tests = _unwrapped(tests, starter)
    every = tuple(_test(line, tests, index) for index in range(len(tests.inputs)))
    messages = _messages(line)
    task_id = _id(line, messages[-1]["content"])
    is_half_already = row.get("kind") == "code" and line.split is not None
    hidden = every[tests.num_shown :] or every
    solution = _solution(row)
    reference = CodeReference(
        kind="stdio" if tests.function is None else "function",
        entry_point=tests.function,
        public=every if is_half_already else seeded_half(hidden, task_id),
        private=every,
        # Shorter limits of a row were meant for faster languages.
        time_limit_s=max(TIME_LIMIT_S, _seconds(row.get("time_limit"))),
        memory_mb=MEMORY_MB,
        # The runners of these sets come from one source, LiveCodeBench's.
        prelude=PRELUDE,
        packages=PACKAGES,
        solution=solution,
    )
    if row.get("kind") == "code" or "reward_model" in row:
        # These prompts say themselves how to answer.
        task = Task(
            id=task_id, messages=messages, reference=reference, metadata={"kind": reference.kind}
        )
        return "train", task
    prompt = messages[-1]["content"]
    if starter:
        prompt += f"\n\nStart from this code:\n\n```python\n{starter.rstrip()}\n```"
    elif tests.function is None:
        prompt += f"\n\n{READS_INPUT}"
    else:
        prompt += f"\n\nWrite a Python function `{tests.function}`."
    return "train", make_task(task_id, prompt, reference)


def _id(line: Line, prompt: str) -> str:
    extra = line.row.get("extra_info")
    if isinstance(extra, Mapping) and isinstance(extra.get("index"), str | int):
        return str(extra["index"])
    name = line.row.get("name")
    return name if isinstance(name, str) and name else id_of(line, prompt)


def _messages(line: Line) -> tuple[Message, ...]:
    row = line.row
    prompt = row.get("prompt")
    if isinstance(prompt, Sequence) and not isinstance(prompt, str) and prompt:
        return tuple({"role": m["role"], "content": m["content"]} for m in prompt)
    key = next((k for k in ("prompt", "question", "problem") if k in row), "description")
    text = text_of(line, key)
    for title, part in (("Input", "input_format"), ("Output", "output_format"), ("Note", "note")):
        if key == "description" and isinstance(row.get(part), str) and row[part].strip():
            text += f"\n\n{title}\n{row[part].strip()}"
    if key == "description" and isinstance(row.get("examples"), Sequence):
        for example in row["examples"]:
            text += f"\n\nExample input\n{example['input']}\nExample output\n{example['output']}"
    system = row.get("system")
    first: tuple[Message, ...] = ()
    if isinstance(system, str) and system.strip():
        first = ({"role": "system", "content": system},)
    return (*first, {"role": "user", "content": text})


def _tests(line: Line) -> Tests:
    row = line.row
    if isinstance(row.get("reward_model"), Mapping):
        return _of_lists(line, "reward_model.ground_truth", row["reward_model"].get("ground_truth"))
    if "input_output" in row:
        return _of_lists(line, "input_output", row["input_output"])
    if "verification_info" in row:
        info = _parsed(line, "verification_info", row["verification_info"])
        language = info.get("language", "python") if isinstance(info, Mapping) else None
        if language != "python":
            raise line.error("verification_info.language", f"{language!r}: only Python is judged")
        return _of_lists(line, "verification_info.test_cases", info.get("test_cases"))
    if "public_tests" in row:
        return _code_contests(line)
    if "official_tests" in row:
        if row.get("generated_checker"):
            raise line.error(
                "generated_checker",
                "several answers are right, which needs a checker; keep only the rows without one",
            )
        return _of_lists(line, "official_tests", row["official_tests"])
    return _of_lists(line, "tests", row["tests"])


def _code_contests(line: Line) -> Tests:
    inputs: list[str] = []
    outputs: list[str] = []
    num_shown = 0
    for key in ("public_tests", "private_tests", "generated_tests"):
        part = line.row.get(key) or {}
        if not isinstance(part, Mapping) or not {"input", "output"} <= part.keys():
            raise line.error(key, "expected an object with the lists input and output")
        inputs += part["input"]
        outputs += part["output"]
        num_shown = num_shown or (len(inputs) if key == "public_tests" else 0)
    return _checked(line, "private_tests", Tests(inputs=inputs, outputs=outputs,
                                                 num_shown=num_shown))  # fmt: skip


def _of_lists(line: Line, key: str, value: Any) -> Tests:
    """Tests given as {"inputs", "outputs", "fn_name"} or as a list of {"input", "output"}, possibly
    as JSON text."""
    value = _parsed(line, key, value)
    if isinstance(value, Mapping):
        if not {"inputs", "outputs"} <= value.keys():
            raise line.error(key, "expected an object with the lists inputs and outputs")
        name = value.get("fn_name") or None
        return _checked(
            line, key, Tests(inputs=value["inputs"], outputs=value["outputs"], function=name)
        )
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise line.error(key, f"expected inputs and outputs, got {kind_of(value)}")
    for index, test in enumerate(value):
        if not isinstance(test, Mapping) or not {"input", "output"} <= test.keys():
            raise line.error(f"{key}[{index}]", "expected an object with input and output")
    names = {_function_of(test) for test in value}
    if len(names) > 1:
        raise line.error(key, "the tests call several functions, or only some call one")
    return _checked(
        line,
        key,
        Tests(
            inputs=[test["input"] for test in value],
            outputs=[test["output"] for test in value],
            function=next(iter(names), None),
        ),
    )


def _function_of(test: Mapping[str, Any]) -> str | None:
    metadata = test.get("metadata")
    named = metadata.get("func_name") if isinstance(metadata, Mapping) else None
    return test.get("fn_name") or named or None


def _checked(line: Line, key: str, tests: Tests) -> Tests:
    for part in (tests.inputs, tests.outputs):
        if not isinstance(part, Sequence) or isinstance(part, str):
            raise line.error(key, f"inputs and outputs are lists, got {kind_of(part)}")
    if not tests.inputs or len(tests.inputs) != len(tests.outputs):
        raise line.error(
            key, f"{len(tests.inputs)} inputs and {len(tests.outputs)} outputs; give as many, "
            "at least one"
        )  # fmt: skip
    if tests.function is not None and not str(tests.function).isidentifier():
        raise line.error(key, f"fn_name {tests.function!r:.60} is not the name of a function")
    return tests


def _unwrapped(tests: Tests, starter: str) -> Tests:
    is_wrapped = all(isinstance(output, list) and len(output) == 1 for output in tests.outputs)
    if not is_wrapped or _RETURNS_LIST.search(starter):
        return tests
    return Tests(
        inputs=tests.inputs,
        outputs=[output[0] for output in tests.outputs],
        function=tests.function,
    )


def _test(line: Line, tests: Tests, index: int) -> CodeTest:
    given, wanted = tests.inputs[index], tests.outputs[index]
    if tests.function is None:
        return CodeTest(input=_text(line, given, index), output=_text(line, wanted, index))
    if isinstance(given, str):
        # One JSON value per line, as LiveCodeBench writes arguments.
        try:
            given = [json.loads(text) for text in given.split("\n") if text.strip()]
            wanted = json.loads(wanted) if isinstance(wanted, str) else wanted
        except ValueError as error:
            raise line.error(
                f"test {index}", f"arguments are one JSON value a line: {error}"
            ) from (error)
    if not isinstance(given, list):
        raise line.error(f"test {index}", f"expected a list of arguments, got {kind_of(given)}")
    return CodeTest(input=given, output=wanted)


def _text(line: Line, value: Any, index: int) -> str:
    """Standard input or output; APPS has some as a list of lines."""
    if isinstance(value, list):
        return "\n".join(map(str, value))
    if not isinstance(value, str):
        raise line.error(f"test {index}", f"expected text, got {kind_of(value)}")
    return value


def _parsed(line: Line, key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        try:
            return ast.literal_eval(value)  # PrimeIntellect writes Python literals.
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise line.error(key, f"not JSON: {error}") from error


def _seconds(limit: Any) -> float:
    if isinstance(limit, Mapping):  # CodeContests, as protobuf writes a duration
        return float(limit.get("seconds") or 0)
    try:
        return float(limit or 0)
    except (TypeError, ValueError):
        return 0.0  # TACO has words such as "2.0 seconds"; such a limit is never the longer one.


def _solution(row: Mapping[str, Any]) -> str | None:
    """The first solution that is Python 3; None without one."""
    found = row.get("solutions") or row.get("gold_standard_solution") or []
    if isinstance(found, Mapping):
        pairs = zip(found["language"], found["solution"], strict=True)
        found = [text for language, text in pairs if language == PYTHON_3]
    elif isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            found = [found]
    for text in found if isinstance(found, list) else []:
        fenced = _FENCE.match(text)
        source = (fenced[1] if fenced else text).replace("\r\n", "\n")
        try:
            parse_python(source)
        except (SyntaxError, ValueError):
            continue
        return source
    return None
