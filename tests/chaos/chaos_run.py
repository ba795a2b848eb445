"""Runs and searches under fire: `chaos_run.py FOLDER --seed S --faults N`.

Everything heavy is imported once; each attempt at a run is a forked child with one fault: a signal
from outside, a kill at a numbered file operation, a full disk, a judge that fails, dead workers, or
a second process in the same folder. After at most `PER_RUN` faults a run is left in peace, and what
it leaves is compared with the run that nothing happened to. Prints a line per fault and a summary;
exits with 1 at the first difference.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

import sdpo
from sdpo.config.load import load_config
from sdpo.discovery import records
from sdpo.discovery.run import discover_tasks
from sdpo.envs.code import CodeEnv
from sdpo.errors import SdpoError, Terminated, Unjudged
from sdpo.metrics.jsonl import read_rows
from sdpo.rollouts import judging
from sdpo.testing import byte_tokenizer, tiny_model
from sdpo.training.loop import train

Command = Literal["train", "discover"]

PER_RUN = 6
"""Faults of one run."""
LEFTOVERS = (".partial-", ".old-", ".deleted-")
CLEAN, USER_ERROR, OUR_BUG = 0, 1, 99
KINDS = (
    "kill", "kill_at_file", "kill_in_save", "sigterm", "sigint", "twice", "at_once", "full_disk",
    "no_space", "judge_raises", "judge_down", "judge_late", "workers", "second",
)  # fmt: skip
ANSWERS = (
    "def f(n):\n    return 2 * n",
    "def f(n):\n    return 3 * n",
    "def f(n):\n    return [][n]",
    "def f(n) return",
)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to one attempt, and when: seconds, or the number of an event."""

    kind: str
    when: float
    second: float = 0.0


def settings(command: Command, folder: Path, run: Path) -> list[str]:
    common = [
        f"run={run}", f"model.name={folder}/model", "model.device=cpu", "model.dtype=float32",
        f"env.tasks={folder}/tasks.jsonl", "env.max_unjudged=0", "env.timeout_s=3",
        "rollout.group_size=3", "rollout.max_completion_tokens=6", "rollout.max_prompt_tokens=400",
        "teacher.context.max_tokens=1200", "optim.lr=1e-3", "objective.type=sdpo",
    ]  # fmt: skip
    if command == "train":
        return [
            *common, "steps=6", "rollout.tasks_per_step=2", "eval.samples=1", "eval.every=3",
            "checkpoint.every=2", "checkpoint.keep=1", "credit.rollouts=1",
        ]  # fmt: skip
    return [*common, "discover.budget=6", "discover.batch=3", "discover.seeds=1"]


def prepare(folder: Path) -> None:
    tiny_model(hidden_size=16, num_layers=1).save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    with (folder / "tasks.jsonl").open("w") as file:
        for number in range(4):
            test = {"input": [number + 1], "output": 2 * (number + 1)}
            row = {
                "id": f"t{number}", "prompt": f"Write f(n), case {number}.", "kind": "function",
                "entry_point": "f", "split": "eval" if number >= 2 else "train",
                "tests": {"public": [test], "private": [test]},
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")


def attempt(command: Command, folder: Path, run: Path, fault: Fault | None) -> int:
    """What a process of the command does; its exit status."""
    torch.set_num_threads(1)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    judging.FIRST_PAUSE_S = 0.05
    records.write_plot = lambda *_: None  # seconds of drawing, and it is not under fire
    arm(fault, run)
    try:
        config = load_config(settings(command, folder, run))
        if command == "train":
            return train(config).exit_status
        discover_tasks(config)
    except SdpoError as error:
        print(f"    said: {str(error).splitlines()[0][:150]}")
        return error.exit_code
    except KeyboardInterrupt as stop:
        return 143 if isinstance(stop, Terminated) else 130
    except BaseException:  # noqa: BLE001 - whatever it is, it fails the test
        traceback.print_exc()
        return OUR_BUG
    return CLEAN


def arm(fault: Fault | None, run: Path) -> None:
    """The answers that the judge sees, and the faults that come from inside."""
    calls, lock, judge = itertools.count(), threading.Lock(), CodeEnv.judge

    def answered(self: CodeEnv, task: sdpo.Task, rollout: sdpo.Rollout) -> Any:
        with lock:
            number = next(calls)
        if fault is not None and fault.kind.startswith("judge_") and number >= int(fault.when):
            if fault.kind == "judge_raises":
                raise ValueError("a bug of the judge's")
            if fault.kind == "judge_down":
                raise Unjudged("down")
            if number == int(fault.when):
                time.sleep(4)
        program = ANSWERS[sum(rollout.text.encode(errors="replace")) % len(ANSWERS)]
        return judge(self, task, replace(rollout, text=f"```python\n{program}\n```"))

    CodeEnv.judge = answered  # ty: ignore[invalid-assignment]
    if fault is None:
        return
    if fault.kind == "full_disk":
        limit = int(fault.when)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    if fault.kind in ("kill_at_file", "kill_in_save", "no_space", "count"):
        sys.addaudithook(at_file(fault, run))


def changed(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The file that an audited event is about to change."""
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return None
    events = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
    return str(arguments[0]) if event in events else None


def at_file(fault: Fault, run: Path) -> Callable[[str, tuple[Any, ...]], None]:
    """Kills, or finds the disk full, at the n-th change of the run's files; or counts them."""
    inside = str(run / "checkpoints") if fault.kind == "kill_in_save" else str(run)
    count = itertools.count()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        path = changed(event, arguments)
        if path is None or not path.startswith(inside) or path.endswith(".count"):
            return
        number = next(count)
        if fault.kind == "count":
            place = "saves" if path.startswith(f"{run}/checkpoints") else "others"
            with open(f"{run}.{place}.count", "a") as file:
                file.write("x")
        elif fault.kind == "no_space":
            if event in ("open", "os.mkdir") and number >= int(fault.when):
                raise OSError(errno.ENOSPC, "No space left on device", path)
        elif number == int(fault.when):
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def start(command: Command, folder: Path, run: Path, fault: Fault | None, log: Path) -> int:
    """The pid of a child that makes one attempt."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = OUR_BUG
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        status = attempt(command, folder, run, fault)
        sys.stdout.flush()
    finally:
        # As an interpreter that ends: judges and workers get to clean up.
        import atexit

        atexit._run_exitfuncs()
        os._exit(status)


def wait(pid: int, seconds: float = 120.0) -> int:
    """Exit status of the child; minus the signal that ended it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"an attempt hung for {seconds:g} s")


def is_running(pid: int) -> bool:
    """Whether the child has not ended; it stays to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def pause(pid: int, seconds: float) -> bool:
    """Let `seconds` pass while the child runs; whether it still does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and is_running(pid):
        time.sleep(0.01)
    return is_running(pid)


def send(pid: int, *numbers: int) -> None:
    for number in numbers:
        if is_running(pid):
            os.kill(pid, number)


def descendants(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    own = [int(word) for word in text.split()]
    return [*own, *(below for each in own for below in descendants(each))]


def trouble(pid: int, fault: Fault, again: Callable[[], int]) -> None:
    """The faults that come from outside."""
    if fault.kind == "second":
        if pause(pid, fault.when):
            other = again()
            pause(other, 0.3)
        return
    if fault.kind not in ("kill", "sigterm", "sigint", "twice", "at_once", "workers"):
        return
    if not pause(pid, fault.when):
        return
    match fault.kind:
        case "kill":
            send(pid, signal.SIGKILL)
        case "sigterm":
            send(pid, signal.SIGTERM)
        case "sigint":
            send(pid, signal.SIGINT)
        case "at_once":
            send(pid, signal.SIGTERM, signal.SIGTERM)
        case "twice":
            send(pid, signal.SIGINT)
            if pause(pid, fault.second):
                send(pid, signal.SIGINT)
        case "workers":
            for _ in range(3):
                for each in descendants(pid):
                    try:
                        os.kill(each, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                pause(pid, 0.15)


def plain(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if not k.startswith("time/") and k != "seconds"}


def left(command: Command, run: Path) -> dict[str, Any]:
    """What a run leaves, times aside."""
    names = {
        "train": ("metrics.jsonl", "alerts.jsonl"),
        "discover": ("discovery.jsonl", "attempts.jsonl", "updates.jsonl"),
    }[command]
    found: dict[str, Any] = {name: [plain(row) for row in read_rows(run / name)] for name in names}
    bytes_of = ["rollouts.jsonl.gz", "credit.jsonl"] if command == "train" else []
    bytes_of += [str(p.relative_to(run)) for p in run.glob("checkpoints/*/model.safetensors")]
    bytes_of += [str(p.relative_to(run)) for p in run.glob("solutions/*")]
    for name in sorted(bytes_of):
        found[name] = (run / name).read_bytes()
    if command == "discover":
        found["discovery.json"] = timeless(json.loads((run / "discovery.json").read_text()))
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if "second" not in k}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def compare(command: Command, run: Path, whole: dict[str, Any]) -> None:
    found = left(command, run)
    different = [name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name)]
    assert not different, f"{run}: {different} differ from the uninterrupted run"
    rest = [path for path in run.rglob("*") if path.name.startswith(LEFTOVERS)]
    assert not rest, f"{run}: {rest} are left"


@dataclass
class Reference:
    """The run that nothing happens to, and its size."""

    whole: dict[str, Any]
    seconds: float
    changes: int
    saves: int
    judged: int
    largest: int


def reference(command: Command, folder: Path) -> Reference:
    run = folder / f"{command}-whole"
    begun = time.monotonic()
    count = Fault(kind="count", when=0)
    assert wait(start(command, folder, run, count, folder / "log")) == CLEAN
    seconds = time.monotonic() - begun
    records = "rollouts.jsonl" if command == "train" else "attempts.jsonl"
    counts = [Path(f"{run}.{place}.count") for place in ("saves", "others")]
    saves, others = (path.stat().st_size if path.exists() else 0 for path in counts)
    return Reference(
        whole=left(command, run),
        seconds=seconds,
        changes=saves + others,
        saves=saves,
        judged=len(list(read_rows(run / records))),
        largest=max(path.stat().st_size for path in run.rglob("*") if path.is_file()),
    )


def draw(rng: random.Random, kind: str, known: Reference) -> Fault:
    when = {
        "kill_at_file": rng.randrange(known.changes),
        "no_space": rng.randrange(known.changes),
        "kill_in_save": rng.randrange(known.saves or 1),
        "full_disk": rng.randrange(2_000, known.largest),
        "judge_raises": rng.randrange(known.judged),
        "judge_down": rng.randrange(known.judged),
        "judge_late": rng.randrange(known.judged),
    }.get(kind, rng.uniform(0, known.seconds * 0.9))
    return Fault(kind=kind, when=when, second=rng.choice([0.05, 0.5, 1.2]))


def endure(
    command: Command, folder: Path, rng: random.Random, kinds: list[str], known: Reference
) -> Counter[str]:
    """One run with up to `PER_RUN` of the faults `kinds`; uses up those that hit."""
    run = folder / f"{command}-{len(kinds):03}"
    hit: Counter[str] = Counter()
    finished = False
    for number in range(PER_RUN + 1):
        is_troubled = kinds and number < PER_RUN and not finished
        fault = draw(rng, kinds.pop(), known) if is_troubled else None
        log = folder / f"{run.name}.log"
        pid = start(command, folder, run, fault, log)
        others: list[int] = []

        def again(others: list[int] = others, log: Path = log) -> int:
            others.append(start(command, folder, run, None, log))
            return others[-1]

        if fault is not None:
            trouble(pid, fault, again)
        statuses = [wait(each) for each in (pid, *others)]
        if fault is not None:
            finished = CLEAN in statuses
            is_hit = not finished or fault.kind in ("judge_late", "workers", "second")
            print(
                f"  {run.name} {fault.kind} at {fault.when:.4g}: ended with {statuses}"
                + ("" if is_hit else ", missed")
            )
            if is_hit:
                hit[fault.kind] += 1
            else:
                kinds.insert(0, fault.kind)
        assert OUR_BUG not in statuses, f"{run}: a traceback\n{log.read_text()[-5000:]}"
        if fault is None:
            assert statuses == [CLEAN], (
                f"{run}: left in peace, ended with {statuses}\n" + (log.read_text()[-3000:])
            )
    compare(command, run, known.whole)
    shutil.rmtree(run)
    return hit


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--command", choices=["train", "discover"])
    options = parser.parse_args()
    print(f"seed {options.seed}")
    options.folder.mkdir(parents=True, exist_ok=True)
    prepare(options.folder)
    rng = random.Random(options.seed)
    hit: Counter[str] = Counter()
    commands: tuple[Command, ...] = ("train", "discover")
    for command in [c for c in commands if options.command in (None, c)]:
        known = reference(command, options.folder)
        print(f"{command}: {known.seconds:.1f} s undisturbed, {known.judged} attempts judged")
        count = -(-options.faults // 2)
        possible = [kind for kind in KINDS if known.saves or kind != "kill_in_save"]
        kinds = [possible[i % len(possible)] for i in range(count)]
        rng.shuffle(kinds)
        while kinds:
            hit += endure(command, options.folder, rng, kinds, known)
    print(f"{sum(hit.values())} faults, all runs as undisturbed: {dict(sorted(hit.items()))}")


if __name__ == "__main__":
    main()
