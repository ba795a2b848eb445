"""How fast programs are judged: the sandbox against a process per test, on the same programs.

    .venv/bin/python benchmarks/judge.py [--programs 256] [--tests 20]

Every way runs the same trivial solution on the same inputs and every value is checked. Besides wall
time it reports CPU time of all processes together, which a busy machine distorts less. The slow
ways run fewer programs; rates are per test.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from sdpo.sandbox import Limits, Program
from sdpo.sandbox.local import LocalSandbox, open_sandbox
from sdpo.sandbox.worker import Settings

SOURCE = "def add(a, b):\n    return a + b\n"
PROGRAM = Program(source=SOURCE, mode="function", entry_point="add")
LIMITS = Limits(cpu_s=2.0, memory_mb=256)
UNPROTECTED = Settings(jailed=False, namespaces=False, landlock=False)


NUM_TURNS = 16


def judge_subprocess(inputs: list[list[int]]) -> list[int]:
    """One `python -I -S` per test; the program prints its answer as JSON."""
    script = SOURCE + "import json, sys\nprint(json.dumps(add(*json.loads(sys.argv[1]))))\n"
    command = [sys.executable, "-I", "-S", "-c", script]
    return [
        json.loads(subprocess.run([*command, json.dumps(given)], capture_output=True).stdout)
        for given in inputs
    ]


def answer(queue: multiprocessing.SimpleQueue, given: list[int]) -> None:
    namespace: dict = {}
    exec(SOURCE, namespace)
    queue.put(namespace["add"](*given))


def judge_multiprocessing(inputs: list[list[int]]) -> list[int]:
    """One forked `multiprocessing.Process` per test."""
    context = multiprocessing.get_context("fork")
    values = []
    for given in inputs:
        queue = context.SimpleQueue()
        process = context.Process(target=answer, args=(queue, given))
        process.start()
        values.append(queue.get())
        process.join()
        queue.close()
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    wall_s: float
    cpu_s: float
    num_tests: int


def cpu_s() -> float:
    """CPU seconds of this process and of all it has waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, kinds))


def family_cpu_s(pid: int) -> float:
    """CPU seconds of the living descendants of `pid` and of all they have waited for."""
    total = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            total += family_cpu_s(int(child))
    return total


def measure(
    judge: Callable[[list[list[int]]], list[int]], num_programs: int, num_tests: int, width: int
) -> Measured:
    batches = [[[n, k] for k in range(num_tests)] for n in range(num_programs)]
    with ThreadPoolExecutor(width) as pool:
        list(pool.map(judge, batches[:width]))  # warm
        cpu, started = cpu_s() + family_cpu_s(os.getpid()), time.perf_counter()
        for n, values in enumerate(pool.map(judge, batches)):
            assert values == [n + k for k in range(num_tests)], values
        wall = time.perf_counter() - started
        cpu = cpu_s() + family_cpu_s(os.getpid()) - cpu
    return Measured(wall_s=wall, cpu_s=cpu, num_tests=num_programs * num_tests)


def in_sandbox(sandbox: LocalSandbox) -> Callable[[list[list[int]]], list[int]]:
    return lambda inputs: [each.value for each in sandbox.run(PROGRAM, inputs, LIMITS)]


def in_turns(
    jailed: LocalSandbox, unprotected: LocalSandbox, num_programs: int, num_tests: int, width: int
) -> list[tuple[str, Measured]]:
    """Both in short turns, so that a change of the machine's load hits them alike."""
    sandboxes = {jailed.level: jailed, "no lock-down": unprotected}
    turns: dict[str, list[Measured]] = {name: [] for name in sandboxes}
    for _ in range(NUM_TURNS):
        for name, sandbox in sandboxes.items():
            judge = in_sandbox(sandbox)
            turns[name].append(measure(judge, num_programs // NUM_TURNS, num_tests, width))
    return [
        (
            f"sdpo, {name}, width {width}",
            Measured(
                wall_s=sum(turn.wall_s for turn in measured),
                cpu_s=sum(turn.cpu_s for turn in measured),
                num_tests=sum(turn.num_tests for turn in measured),
            ),
        )
        for name, measured in turns.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=256)
    parser.add_argument("--tests", type=int, default=20)
    given = parser.parse_args()
    few = max(2, given.programs // 32)
    rows: list[tuple[str, Measured]] = []
    with open_sandbox("auto", width=2) as jailed, LocalSandbox(UNPROTECTED, 2) as unprotected:
        for width in (1, 2):
            rows += in_turns(jailed, unprotected, given.programs, given.tests, width)
    rows.append(("subprocess per test", measure(judge_subprocess, few, given.tests, 1)))
    rows.append(("multiprocessing per test", measure(judge_multiprocessing, few, given.tests, 1)))
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {platform.release()}, "
          f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}, "
          f"{given.tests} tests a program")  # fmt: skip
    print(f"{'way':<52}{'tests/s':>9}{'tests/CPU-s':>13}{'wall s':>9}{'tests':>8}")
    for name, result in rows:
        rate, per_cpu = result.num_tests / result.wall_s, result.num_tests / result.cpu_s
        print(f"{name:<52}{rate:>9.0f}{per_cpu:>13.0f}{result.wall_s:>9.2f}{result.num_tests:>8}")


if __name__ == "__main__":
    main()
