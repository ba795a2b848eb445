"""Honest programs get what they deserve, hostile ones nothing; alone, together, at every level."""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from honest_tricky import FUNCTIONS, STDIO
from hostile_programs import CLASSES, HOSTILE

from sdpo.sandbox import Limits, Outcome, Program, Sandbox

LIMITS = Limits(cpu_s=0.4, memory_mb=128)
HONEST_LIMITS = Limits(cpu_s=2.0, memory_mb=512)
MAX_S = 5.0
FAST_HOSTILE = [
    "processes: fork",
    "processes: subprocess",
    "processes: thread bomb",
    "signals: kill its parent",
    "signals: kill through a pipe's owner",
    "signals: segmentation fault",
    "files: write outside",
    "files: read a file outside",
    "files: rename out of the scratch folder",
    "files: many full files",
    "network: tcp",
    "network: named socket from a datagram pair",
    "resources: endless loop",
    "resources: memory bit by bit",
    "resources: endless output",
    "forgery: exit 0",
    "forgery: many frames",
    "forgery: frame of a status",
    "forgery: set of equal hashes",
]


def run_function(sandbox: Sandbox, source: str, given: list, limits: Limits = LIMITS) -> Outcome:
    program = Program(source=source, mode="function", entry_point="f")
    (outcome,) = sandbox.run(program, [given], limits)
    return outcome


def check_function(sandbox: Sandbox, name: str) -> None:
    source, given, value = FUNCTIONS[name]
    outcome = run_function(sandbox, source, given, HONEST_LIMITS)
    assert outcome.status == "value", (name, outcome)
    assert outcome.value == value
    assert type(outcome.value) is type(value) or isinstance(value, frozenset)


def check_stdio(sandbox: Sandbox, name: str) -> None:
    source, given, text = STDIO[name]
    # Twice: what the first input left behind must not show in the second.
    program = Program(source=source, mode="stdio")
    for outcome in sandbox.run(program, [given, given], HONEST_LIMITS):
        assert outcome.status == "value", (name, outcome)
        assert outcome.stdout == text


def crowding() -> float:
    """How much longer everything takes while other processes want the same cores."""
    return max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


WEAKER_STATUSES = {
    # Without a file system of its own, what a program writes anywhere is counted.
    "resources: endless output to stderr": "output_limit",
    # Where no file can be opened, nothing can be imported late.
    "resources: memory by mmap": "exception",
}
"""How hostile programs may end at the weaker levels besides; contained all the same."""


def check_hostile(sandbox: Sandbox, outside, name: str) -> None:
    statuses, source = HOSTILE[name]
    if not sandbox.level.startswith("namespaces") and name in WEAKER_STATUSES:
        statuses = (*statuses, WEAKER_STATUSES[name])
    started = time.monotonic()
    outcome = run_function(sandbox, outside.source(source), [])
    took = time.monotonic() - started
    assert outcome.status in statuses, (name, outcome)
    assert outcome.value != "escaped", name
    assert took < MAX_S * crowding(), (name, took)
    outside.assert_untouched()


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_an_honest_function_answers(sandbox: Sandbox, name: str) -> None:
    check_function(sandbox, name)


@pytest.mark.parametrize("name", list(STDIO))
def test_an_honest_script_prints(sandbox: Sandbox, name: str) -> None:
    check_stdio(sandbox, name)


@pytest.mark.parametrize("name", FAST_HOSTILE)
def test_a_hostile_program_gets_nowhere(sandbox: Sandbox, outside, name: str) -> None:
    check_hostile(sandbox, outside, name)


def check_all_hostile(sandbox: Sandbox, outside, kind: str) -> None:
    names = [name for name in HOSTILE if name.startswith(f"{kind}: ")]
    with ThreadPoolExecutor(sandbox.width) as pool:
        for done in [pool.submit(check_hostile, sandbox, outside, name) for name in names]:
            done.result()


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(CLASSES))
def test_every_hostile_program_gets_nowhere(sandbox: Sandbox, outside, kind: str) -> None:
    check_all_hostile(sandbox, outside, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(CLASSES))
def test_weaker_levels_hold_too(weaker_sandbox: Sandbox, outside, kind: str) -> None:
    check_all_hostile(weaker_sandbox, outside, kind)


NEED_FOLDERS = {"temporary folder"}
"""Without namespaces the judge counts files in one folder, so a program makes none in it."""
NEED_FILES = {
    "file in the working folder",
    "file appended to and cut",
    "file renamed, copied and removed",
    "named temporary file",
    "nameless temporary file",
    "temporary folder",
    "path of pathlib",
    "csv and JSON files",
    "file of some size",
    "file that must be new",
    "print into a file",
    "stdin saved first",
    "/dev/stdin",
    "time zone",
}
"""Without Landlock a program opens no file, so it imports what is preloaded and nothing else."""


@pytest.mark.slow
def test_honest_programs_at_weaker_levels(weaker_sandbox: Sandbox) -> None:
    is_strict = "no file access" in weaker_sandbox.level
    for name in FUNCTIONS:
        if name not in NEED_FOLDERS and not (is_strict and name in NEED_FILES):
            check_function(weaker_sandbox, name)
    for name in STDIO:
        if not (is_strict and name in NEED_FILES):
            check_stdio(weaker_sandbox, name)


@pytest.mark.slow
def test_honest_programs_do_not_notice_hostile_neighbours(sandbox: Sandbox, outside) -> None:
    checks = [(check_function, (sandbox, name)) for name in FUNCTIONS]
    checks += [(check_stdio, (sandbox, name)) for name in STDIO]
    checks += [(check_hostile, (sandbox, outside, name)) for name in HOSTILE]
    random.Random(0).shuffle(checks)
    with ThreadPoolExecutor(sandbox.width) as pool:
        for done in [pool.submit(check, *given) for check, given in checks]:
            done.result()


def test_where_an_exception_was_raised(sandbox: Sandbox) -> None:
    source = "def g(x):\n    return x[3]\n\ndef f(x):\n    return g(x)\n"
    outcome = run_function(sandbox, source, [[1]])
    assert outcome.failure is not None
    assert (outcome.failure.kind, outcome.failure.message) == (
        "IndexError",
        "list index out of range",
    )
    assert [(frame.line, frame.function) for frame in outcome.failure.frames] == [
        (5, "f"),
        (2, "g"),
    ]


def test_where_a_syntax_error_is(sandbox: Sandbox) -> None:
    outcome = run_function(sandbox, "def f(:\n    pass", [])
    assert outcome.failure is not None
    assert outcome.failure.kind == "SyntaxError"
    assert [(frame.line, frame.function) for frame in outcome.failure.frames] == [(1, "<module>")]


def test_a_memory_error_says_where(sandbox: Sandbox) -> None:
    outcome = run_function(
        sandbox, "def f():\n    x = []\n    while True: x.append(bytes(1 << 24))", []
    )
    assert outcome.status == "memory_limit"
    assert outcome.failure is not None
    assert [frame.line for frame in outcome.failure.frames] == [3]


def test_each_input_finds_a_fresh_module(sandbox: Sandbox) -> None:
    source = (
        "calls = []\ndef f(x, seen=[]):\n    calls.append(x)\n    seen.append(x)\n"
        "    return calls, seen"
    )
    program = Program(source=source, mode="function", entry_point="f")
    outcomes = sandbox.run(program, [[1], [2]], LIMITS)
    assert [outcome.value for outcome in outcomes] == [([1], [1]), ([2], [2])]


@pytest.mark.parametrize("end", ["return 1", "os._exit(1)", "while True: pass"])
def test_files_are_gone_afterwards(sandbox: Sandbox, end: str) -> None:
    """Neither the next input of a program nor the next program finds what one has left."""
    source = f"import os\ndef f(x):\n open(f'left{{x}}','w').close()\n if x == 9:\n  {end}\n"
    program = Program(source=source + " return os.listdir()", mode="function", entry_point="f")
    outcomes = sandbox.run(program, [[1], [2], [9]], LIMITS)
    assert [outcome.value for outcome in outcomes[:2]] == [["left1"], ["left2"]]
    after = "import os\ndef f():\n return os.listdir('.')"
    for _ in range(sandbox.width):
        assert run_function(sandbox, after, []).value == []


def test_after_a_crash_the_next_input_runs(sandbox: Sandbox) -> None:
    source = "import os\ndef f(x):\n    if x < 2: os._exit(3)\n    return x"
    program = Program(source=source, mode="function", entry_point="f")
    outcomes = sandbox.run(program, [[0], [1], [2]], LIMITS)
    assert [outcome.status for outcome in outcomes] == ["exit", "exit", "value"]
    assert outcomes[0].exit_code == 3


def test_crashes_without_end_stop_the_program(sandbox: Sandbox) -> None:
    program = Program(source="import os\ndef f(): os._exit(1)", mode="function", entry_point="f")
    outcomes = sandbox.run(program, [[]] * 10, LIMITS)
    assert [outcome.status for outcome in outcomes] == ["exit"] * 4 + ["not_run"] * 6


def test_after_a_time_limit_nothing_runs(sandbox: Sandbox) -> None:
    program = Program(source="def f():\n while True: pass", mode="function", entry_point="f")
    outcomes = sandbox.run(program, [[], []], Limits(cpu_s=0.1))
    assert [outcome.status for outcome in outcomes] == ["time_limit", "not_run"]


def test_the_total_of_cpu_time_is_limited(sandbox: Sandbox) -> None:
    source = (
        "from time import process_time as now\ndef f():\n    t = now()\n"
        "    while now() < t + 0.1: pass"
    )
    program = Program(source=source, mode="function", entry_point="f")
    outcomes = sandbox.run(program, [[]] * 9, Limits(cpu_s=0.5, total_cpu_s=0.25))
    assert [outcome.status for outcome in outcomes] == ["value"] * 3 + ["not_run"] * 6


def test_the_caller_may_stop_early(sandbox: Sandbox) -> None:
    program = Program(source="def f(x): return x", mode="function", entry_point="f")
    outcomes = sandbox.run(program, [[1], [2], [3]], LIMITS, should_stop=lambda k, _: k == 1)
    assert [outcome.status for outcome in outcomes] == ["value", "value", "not_run"]


def test_expressions_see_the_program_and_its_setup(sandbox: Sandbox) -> None:
    program = Program(
        source="def f(x): return math.floor(x)", mode="expressions", setup="import math"
    )
    outcomes = sandbox.run(program, ["f(2.5)", "[f(1.5), math.pi > 3]", "g(1)", "f("], LIMITS)
    assert [outcome.value for outcome in outcomes[:2]] == [2, [1, True]]
    assert [outcome.failure.kind for outcome in outcomes[2:]] == ["NameError", "SyntaxError"]


def test_what_is_printed_comes_with_the_value(sandbox: Sandbox) -> None:
    outcome = run_function(sandbox, "print('load')\ndef f():\n    print('call')\n    return 1", [])
    assert (outcome.value, outcome.stdout) == (1, "load\ncall\n")


def test_a_generator_is_opaque(sandbox: Sandbox) -> None:
    outcome = run_function(sandbox, "def f():\n    yield 1", [])
    assert outcome.value.type_name == "generator"
    assert outcome.value != outcome.value
