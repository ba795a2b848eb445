"""The task format: what is read, and which sentence a wrong line gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdpo.config import schema
from sdpo.envs.code.env import CodeEnv
from sdpo.envs.code.formats import load_code_tasks
from sdpo.envs.code.tasks import REQUEST as REQUEST_OF
from sdpo.errors import ConfigError, SdpoError, TaskError

REQUEST = REQUEST_OF.format(language="python")

FUNCTION = {
    "id": "clamp",
    "prompt": "Write a Python function `clamp(x, lo, hi)`.",
    "kind": "function",
    "entry_point": "clamp",
    "tests": {
        "public": [{"input": [5, 0, 3], "output": 3}],
        "private": [{"input": [-1, 0, 3], "output": 0}],
    },
}
STDIO = {
    "id": "sum",
    "prompt": "Print the sum.",
    "kind": "stdio",
    "tests": {"private": [{"input": "1 2\n", "output": "3\n"}]},
}
ASSERTS = {
    "id": "two",
    "prompt": "Write two().",
    "kind": "asserts",
    "setup": "import math",
    "tests": {"public": ["assert two() == 2"]},
}


def write(tmp_path: Path, *rows: object) -> str:
    path = tmp_path / "tasks.jsonl"
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return str(path)


def test_the_three_kinds_load(tmp_path: Path) -> None:
    rows = load_code_tasks(write(tmp_path, FUNCTION, "", STDIO, ASSERTS))
    assert [task.id for _, task in rows] == ["clamp", "sum", "two"]
    assert {split for split, _ in rows} == {"train"}
    task = rows[0][1]
    assert task.messages == ({"role": "user", "content": f"{FUNCTION['prompt']}\n\n{REQUEST}"},)
    assert task.reference.time_limit_s == 1.0
    assert task.reference.memory_mb == 512
    assert task.reference.tolerance == 1e-6


def test_a_worked_example_of_the_same_kind_comes_first(tmp_path: Path) -> None:
    source = write(tmp_path, FUNCTION, STDIO, ASSERTS)
    plain = CodeEnv(schema.CodeEnvConfig(tasks=source)).load("train")
    shown = CodeEnv(schema.CodeEnvConfig(tasks=source, worked_example=True)).load("train")
    questions = []
    for task, alone in zip(shown, plain, strict=True):
        assert task.messages[2:] == alone.messages
        assert [message["role"] for message in task.messages] == ["user", "assistant", "user"]
        assert task.messages[1]["content"].startswith("```python\n")
        questions.append(task.messages[0]["content"])
    assert questions[0] == questions[2] != questions[1]
    assert all(question.endswith(REQUEST) for question in questions)


LIBRARY = """
class Depot:
    def __init__(self, parcels):
        self.bay_list = parcels

def depot():
    return Depot([3, 1])
"""
SHELF = {
    "prompt": "Write `answer(shelf)`: how many books?",
    "solution": "def answer(shelf):\n    return 0",
}
WITH_LIBRARY = {
    "id": "count",
    "prompt": "Write `answer(depot)`: how many parcels?",
    "kind": "asserts",
    "entry_point": "answer",
    "library": "fleet.py",
    "examples": [SHELF, SHELF],
    "tests": {"public": ["assert answer(depot()) == 2"]},
    "reference_solution": "def answer(depot):\n    return len(depot.bay_list)",
}


@pytest.fixture
def with_library(tmp_path: Path) -> CodeEnv:
    (tmp_path / "fleet.py").write_text(LIBRARY)
    return CodeEnv(schema.CodeEnvConfig(tasks=write(tmp_path, WITH_LIBRARY)))


def test_a_library_is_given_to_programs_and_never_shown(with_library: CodeEnv) -> None:
    (task,) = with_library.load("train")
    assert not any("bay_list" in message["content"] for message in task.messages)
    assert task.metadata["family"] == "fleet"
    report = with_library.check()
    with_library.close()
    assert (report.num_tasks, dict(report.failures), report.skipped) == (1, {}, 0)


def test_what_a_library_lacks_is_told_in_pythons_own_words(with_library: CodeEnv) -> None:
    (task,) = with_library.load("train")
    program = "def answer(depot):\n    return len(depot.parcels)"
    verdict = with_library._open().verdict(task.reference, program)
    with_library.close()
    assert verdict.info["category"] == "runtime_error"
    assert verdict.feedback is not None
    assert "'Depot' object has no attribute 'parcels'" in verdict.feedback


def test_examples_are_earlier_exchanges_in_the_form_that_is_asked_for(
    with_library: CodeEnv,
) -> None:
    (task,) = with_library.load("train")
    roles = [message["role"] for message in task.messages]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    assert task.messages[0]["content"] == f"{SHELF['prompt']}\n\n{REQUEST}"
    assert task.messages[1]["content"] == f"```python\n{SHELF['solution']}\n```"


def test_each_list_of_tests_falls_back_to_the_other(tmp_path: Path) -> None:
    (_, stdio), (_, asserts) = load_code_tasks(write(tmp_path, STDIO, ASSERTS))
    assert stdio.reference.public == stdio.reference.private
    assert asserts.reference.public == asserts.reference.private


def test_training_carries_public_tests_and_evaluation_private_ones(tmp_path: Path) -> None:
    held_out = {**FUNCTION, "id": "held-out", "split": "eval"}
    test = {**FUNCTION, "id": "test-row", "split": "test"}
    env = CodeEnv(schema.CodeEnvConfig(tasks=write(tmp_path, FUNCTION, held_out, test)))
    assert [task.id for task in env.load("train")] == ["clamp"]
    assert env.load("train")[0].reference.judged == "public"
    assert [task.id for task in env.load("eval")] == ["held-out", "test-row"]
    assert env.load("eval")[0].reference.judged == "private"
    with pytest.raises(ConfigError, match="split 'dev'"):
        env.load("dev")


def test_a_file_without_evaluation_rows_evaluates_on_its_training_rows(tmp_path: Path) -> None:
    env = CodeEnv(schema.CodeEnvConfig(tasks=write(tmp_path, FUNCTION)))
    assert [task.id for task in env.load("eval")] == ["clamp"]
    assert env.load("eval")[0].reference.judged == "private"


def test_a_file_without_training_rows_cannot_train(tmp_path: Path) -> None:
    env = CodeEnv(schema.CodeEnvConfig(tasks=write(tmp_path, {**FUNCTION, "split": "eval"})))
    with pytest.raises(TaskError, match="no training task"):
        env.load("train")


def without(key: str) -> dict[str, object]:
    return {name: value for name, value in FUNCTION.items() if name != key}


def with_tests_field(tests: object) -> dict[str, object]:
    return {**FUNCTION, "tests": tests}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not a JSON object on one line"),
        ("[1]", "expected a JSON object {...}, got a list"),
        ('{"id": "a", "id": "b"}', "key 'id' occurs twice"),
        ({**FUNCTION, "entrypoint": "x"}, "entrypoint: unknown key; a code task has id, prompt"),
        (without("id"), "id: missing"),
        ({**FUNCTION, "id": 3}, "id: expected a string, got a number"),
        ({**FUNCTION, "id": " "}, "id: empty"),
        (without("prompt"), "prompt: missing"),
        (without("kind"), "kind: missing; choose one of function, stdio, asserts"),
        ({**FUNCTION, "kind": "class"}, 'kind: "class" is not allowed; choose one of'),
        ({**FUNCTION, "kind": ["function"]}, 'kind: ["function"] is not allowed'),
        (without("entry_point"), "entry_point: missing"),
        ({**FUNCTION, "entry_point": "a b"}, "entry_point: 'a b' is not a valid Python identifier"),
        ({**STDIO, "entry_point": "f"}, "entry_point: a 'stdio' task is a whole program"),
        ({**FUNCTION, "setup": "x = 1"}, "setup: only tasks of kind 'asserts' have it"),
        ({**ASSERTS, "setup": "x ="}, "setup: not Python"),
        ({**FUNCTION, "library": "none.py"}, "library: cannot read"),
        ({**FUNCTION, "library": 3}, "library: expected a string"),
        ({**FUNCTION, "examples": "x"}, "examples: expected [{"),
        ({**FUNCTION, "examples": [{"prompt": "x"}]}, "examples[0]: an example has prompt and"),
        (
            {**FUNCTION, "examples": [{"prompt": "x", "solution": "def"}]},
            "examples[0].solution: not Python",
        ),
        (
            {**FUNCTION, "examples": [SHELF, {"prompt": "", "solution": "x"}]},
            "examples[1].prompt: empty",
        ),
        (without("tests"), "tests: missing"),
        (with_tests_field([]), "tests: expected"),
        (with_tests_field({}), "tests: no tests"),
        (with_tests_field({"hidden": []}), "tests.hidden: unknown key"),
        (with_tests_field({"public": []}), "tests.public: an empty list"),
        (with_tests_field({"public": {}}), "tests.public: expected a list of tests"),
        (with_tests_field({"public": [3]}), "tests.public[0]: expected"),
        (with_tests_field({"public": [{"input": [1]}]}), "tests.public[0].output: missing"),
        (
            with_tests_field({"public": [{"input": [1], "output": 1, "x": 2}]}),
            "tests.public[0].x: unknown key",
        ),
        (
            with_tests_field({"private": [{"input": 1, "output": 1}]}),
            "tests.private[0].input: expected the list of arguments, got a number; write [x]",
        ),
        (
            {**STDIO, "tests": {"public": [{"input": ["1"], "output": "1"}]}},
            "tests.public[0].input: expected a string, got a list",
        ),
        ({**ASSERTS, "tests": {"public": [1]}}, "tests.public[0]: expected a line like"),
        ({**ASSERTS, "tests": {"public": ["assert f("]}}, "tests.public[0]: not Python"),
        ({**ASSERTS, "tests": {"public": ["f(1) == 2"]}}, "tests.public[0]: no assert statement"),
        (
            {**FUNCTION, "time_limit_s": 0},
            "time_limit_s: expected a number from",
        ),
        (
            {**FUNCTION, "time_limit_s": "1"},
            '0.001 to 3,600, got "1"',
        ),
        (
            {**FUNCTION, "time_limit_s": True},
            "3,600, got true",
        ),
        (
            '{"id": "a", "prompt": "p", "kind": "function", "entry_point": "f", "tests": '
            '{"public": [{"input": [], "output": 1}]}, "time_limit_s": Infinity}',
            "time_limit_s",
        ),
        (
            {**FUNCTION, "memory_mb": 1.5},
            "memory_mb: expected a whole number from 1",
        ),
        (
            {**FUNCTION, "tolerance": -1},
            "tolerance: expected a number from 0 to 1,",
        ),
        ({**FUNCTION, "split": "valid"}, 'split: "valid" is not allowed; choose one of train'),
        ({**FUNCTION, "reference_solution": None}, "reference_solution: expected a string"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(TaskError) as caught:
        load_code_tasks(write(tmp_path, {**FUNCTION, "id": "fine"}, row))
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'tasks.jsonl'}:2: ")
    assert message in text


def test_ids_are_unique(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r":3: id: 'clamp' is already the id of .*:1;"):
        load_code_tasks(write(tmp_path, FUNCTION, STDIO, FUNCTION))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(
        TaskError, match=r"no such file.*python-basics, private-api, private-api-v2, human-eval"
    ):
        load_code_tasks(str(tmp_path / "none.jsonl"))
    with pytest.raises(TaskError, match=r"the file holds no row"):
        load_code_tasks(write(tmp_path, ""))
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}')
    with pytest.raises(TaskError, match=r"latin.jsonl:1: not UTF-8"):
        load_code_tasks(str(tmp_path / "latin.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskError, match=r"no file of rows in this folder"):
        load_code_tasks(str(tmp_path / "empty"))
    assert issubclass(TaskError, SdpoError)
    assert TaskError.exit_code == 2


def test_a_folder_is_all_its_files(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({**FUNCTION, "id": name}))
    assert [task.id for _, task in load_code_tasks(str(tmp_path))] == ["a", "b"]
