"""Judging outside of a run: one program, or files of tasks and responses (`sdpo judge`)."""

from __future__ import annotations

import atexit
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from sdpo.envs.code.formats import load_code_tasks
from sdpo.envs.code.judge import CodeJudge
from sdpo.envs.code.tasks import (
    TestSplit,
    parse_task,
    with_tests,
)
from sdpo.envs.table import Line, read_lines
from sdpo.envs.verdicts import guarded
from sdpo.errors import ConfigError, SdpoError
from sdpo.printable import printable_json
from sdpo.records import Task, Verdict
from sdpo.sandbox import Sandbox, open_sandbox

_shared: list[CodeJudge] = []
_shared_lock = threading.Lock()


def _shared_judge() -> CodeJudge:
    """The judge of every `judge_program` call that names no sandbox."""
    with _shared_lock:
        if not _shared:
            sandbox = open_sandbox("auto")
            atexit.register(sandbox.close)
            _shared.append(CodeJudge(sandbox))
        return _shared[0]


def judge_program(
    task: Task | Mapping[str, Any],
    program: str,
    *,
    sandbox: Sandbox | None = None,
    split: TestSplit = "private",
) -> Verdict:
    """The verdict on `program` (source without fences) for a code task or a row of a task file.

    Tests of `split` are run; feedback shows only public ones. Without a `sandbox`, the first call
    opens one, which is kept until the process ends.

    Example:
        judge_program({"id": "two", "prompt": "...", "kind": "function", "entry_point": "two",
                       "tests": {"public": [{"input": [], "output": 2}]}}, "def two(): return 2")
    """
    if split not in ("public", "private"):
        raise ConfigError(f"split = {split!r}: choose public or private")
    if not isinstance(task, Task):
        _, task = parse_task(Line(path="task", number=1, row=task))
    judge = _shared_judge() if sandbox is None else CodeJudge(sandbox)
    return judge.verdict(task.reference, program, split=split)


def judge_file(
    tasks: str | Path,
    responses: str | Path,
    *,
    split: TestSplit = "private",
    out: str | Path | None = None,
    sandbox: Literal["auto", "none"] = "auto",
) -> list[Verdict]:
    """The verdicts on a file of responses, in order, each written as one line once it is known.

    `responses` has lines `{"id": task id, "response": text, "truncated": false}`, any number per
    task. Verdict lines `{"id", "reward", "solved", "category", "feedback", "metrics", "sandbox"}`
    go to the file `out` or to standard output; one of category `error` has the traceback of the
    judge under `error`.
    """
    if split not in ("public", "private"):
        raise ConfigError(f"split = {split!r}: choose public or private")
    known = {task.id: task for _, task in load_code_tasks(str(tasks))}
    if not Path(responses).is_file():
        raise ConfigError(
            f"responses = {str(responses)!r}: there is no such file; it has a line "
            '{"id": ..., "response": ...} for every response'
        )
    attempts = [_response(line, known) for line in read_lines(Path(responses))]
    verdicts = []
    with ExitStack() as stack:
        judge = CodeJudge(stack.enter_context(open_sandbox(sandbox)))
        write = _writer(out, stack)
        for (task, _, _), verdict in zip(
            attempts, _verdicts(judge, attempts, split, stack), strict=True
        ):
            write(_verdict_line(task, verdict, judge.sandbox.level))
            verdicts.append(verdict)
    return verdicts


def _verdicts(
    judge: CodeJudge,
    attempts: Sequence[tuple[Task, str, bool]],
    split: TestSplit,
    stack: ExitStack,
) -> Iterator[Verdict]:
    pool = stack.enter_context(ThreadPoolExecutor(max_workers=judge.sandbox.width))
    # If one fails, do not wait for everything that is queued behind it.
    stack.callback(pool.shutdown, wait=True, cancel_futures=True)

    def verdict(attempt: tuple[Task, str, bool]) -> Verdict:
        task, text, is_truncated = attempt
        reference = with_tests(task, split).reference
        return guarded(lambda: judge.verdict_on_text(reference, text, is_truncated))

    return pool.map(verdict, attempts)


def _response(line: Line, known: Mapping[str, Task]) -> tuple[Task, str, bool]:
    """(task, text, truncated) of one line of responses."""
    for key in line.row:
        if key not in ("id", "response", "truncated"):
            raise line.error(key, "unknown key; a response has id, response, truncated")
    task_id, text = line.row.get("id"), line.row.get("response")
    is_truncated = line.row.get("truncated", False)
    if not isinstance(task_id, str) or task_id not in known:
        raise line.error("id", f"{json.dumps(task_id)} is not the id of a task")
    if not isinstance(text, str):
        raise line.error("response", "missing, or not a string; give the text of the answer")
    if not isinstance(is_truncated, bool):
        raise line.error("truncated", "expected true or false")
    return known[task_id], text, is_truncated


def _verdict_line(task: Task, verdict: Verdict, level: str) -> str:
    row = {
        "id": task.id,
        "reward": verdict.reward,
        "solved": verdict.solved,
        "category": verdict.info["category"],
        "feedback": verdict.feedback,
        "metrics": dict(verdict.metrics),
        "sandbox": level,
    }
    if "error" in verdict.info:
        row["error"] = verdict.info["error"]
    return printable_json(row) + "\n"


def _writer(out: str | Path | None, stack: ExitStack) -> Callable[[str], None]:
    """Writes a line and flushes it: whoever is killed leaves what is known."""
    file = sys.stdout
    if out is not None:
        try:
            file = stack.enter_context(Path(out).open("w", encoding="utf-8"))  # noqa: SIM115
        except OSError as error:
            raise SdpoError(f"cannot write {out}: {error.strerror}") from error

    def write(line: str) -> None:
        file.write(line)
        file.flush()

    return write
