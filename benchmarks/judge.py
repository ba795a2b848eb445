"""How fast programs are judged: the sandbox against a process per test, on the same programs.

    .venv/bin/python benchmarks/judge.py [--programs 256] [--tests 20] [--rounds 12]

Every way runs the same trivial solution on the same inputs and every value is checked. What each
layer of the lock-down costs is measured with the same judge and layers taken away, in short rounds
that take turns, so that a change of the machine's load hits all alike; the medians of the rounds
and of their ratios are told. Beside wall time there is the CPU time (user and system) of all
processes together, which a busy machine distorts less. The slow ways run fewer programs; rates are
per test.
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
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from sdpo.sandbox import Limits, Program
from sdpo.sandbox.local import LocalSandbox, open_sandbox
from sdpo.sandbox.worker import Settings

SOURCE = "def add(a, b):\n    return a + b\n"
PROGRAM = Program(source=SOURCE, mode="function", entry_point="add")
LIMITS = Limits(cpu_s=2.0, memory_mb=256)
WITHOUT_NAMESPACES = Settings(jailed=True, namespaces=False, landlock=True)
UNPROTECTED = Settings(jailed=False, namespaces=False, landlock=False)


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
        for child in (task / "children").read_text(encoding="utf-8").split():
            fields = (
                Path(f"/proc/{child}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            )
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
    sandboxes: dict[str, LocalSandbox], num_rounds: int, num_programs: int, num_tests: int
) -> dict[str, list[Measured]]:
    """A short round of each, `num_rounds` times, one program at a time."""
    rounds: dict[str, list[Measured]] = {name: [] for name in sandboxes}
    for number in range(num_rounds):
        # Each goes first equally often: what runs after another finds its memory in the caches.
        names = list(sandboxes)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            judge = in_sandbox(sandboxes[name])
            rounds[name].append(measure(judge, num_programs, num_tests, 1))
    return rounds


def print_layers(rounds: dict[str, list[Measured]]) -> None:
    """A line for each set of layers; the last is the one without any."""
    *_, bare = rounds.values()
    print(f"{'layers, one program at a time (medians)':<52}"
          f"{'tests/s':>9}{'tests/CPU-s':>13}{'CPU ratio':>11}{'wall ratio':>12}")  # fmt: skip
    for name, measured in rounds.items():
        rate = median(each.num_tests / each.wall_s for each in measured)
        per_cpu = median(each.num_tests / each.cpu_s for each in measured)
        pairs = list(zip(measured, bare, strict=True))
        of_cpu = median(each.cpu_s / other.cpu_s for each, other in pairs)
        of_wall = median(each.wall_s / other.wall_s for each, other in pairs)
        print(f"{name:<52}{rate:>9.0f}{per_cpu:>13.0f}{of_cpu:>11.3f}{of_wall:>12.3f}")


def print_ways(ways: list[tuple[str, Measured]]) -> None:
    print(f"{'way':<52}{'tests/s':>9}{'tests/CPU-s':>13}{'wall s':>11}{'tests':>12}")
    for name, result in ways:
        rate, per_cpu = result.num_tests / result.wall_s, result.num_tests / result.cpu_s
        print(f"{name:<52}{rate:>9.0f}{per_cpu:>13.0f}{result.wall_s:>11.2f}{result.num_tests:>12}")


def open_levels(stack: ExitStack) -> dict[str, LocalSandbox]:
    """Judges with fewer and fewer layers, strongest first, last the one without any."""
    levels: dict[str, LocalSandbox] = {}
    strongest = stack.enter_context(open_sandbox("auto", width=1))
    levels[strongest.level] = strongest
    for settings in (WITHOUT_NAMESPACES, UNPROTECTED):
        sandbox = stack.enter_context(LocalSandbox(settings, 1))
        sandbox.run(PROGRAM, [[1, 2]], LIMITS)
        levels.setdefault(sandbox.level, sandbox)
    return levels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=256)
    parser.add_argument("--tests", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    few = max(2, given.programs // 32)
    with ExitStack() as stack:
        rounds = in_turns(open_levels(stack), given.rounds, 4 * few, given.tests)
    with open_sandbox("auto", width=2) as sandbox:
        judge = in_sandbox(sandbox)
        all_at_once = measure(judge, given.programs, given.tests, 2)
    ways = [(f"sdpo, {sandbox.level}, width 2", all_at_once)]
    ways.append(("subprocess per test", measure(judge_subprocess, few, given.tests, 1)))
    ways.append(("multiprocessing per test", measure(judge_multiprocessing, few, given.tests, 1)))
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {platform.release()}, "
          f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}, "
          f"{given.tests} tests a program")  # fmt: skip
    print_layers(rounds)
    print_ways(ways)


if __name__ == "__main__":
    main()
