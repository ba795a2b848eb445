"""The code environment: Python programs judged by tests, with feedback like a programming site's.

    answer -> extract.py -> program -> sandbox -> values -> compare.py -> code_judge.py -> verdict

The program runs in a jailed process that knows inputs only; expected values, the comparison and
every status stay here. Training tasks are judged on public tests, evaluation tasks on private
ones, about which feedback says nothing but the kind of failure and how many tests passed.

`judge_program` and `judge_file` are the same judge without training: one program, or a file of
responses (`sdpo judge`).
"""

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

from sdpo.config import schema
from sdpo.envs.asserts import defined_names
from sdpo.envs.base import CheckReport
from sdpo.envs.code_files import load_code_tasks
from sdpo.envs.code_judge import CodeJudge
from sdpo.envs.code_tasks import (
    CodeReference,
    Line,
    TestSplit,
    parse_task,
    read_lines,
    with_tests,
    with_worked_example,
)
from sdpo.errors import ConfigError, SdpoError, TaskError
from sdpo.records import Rollout, Task, Verdict
from sdpo.sandbox import Sandbox, open_sandbox

Progress = Callable[[int, int], None]
"""Called with (judged so far, all) after each response."""


class CodeEnv:
    """Code tasks of a built-in set or file.

    Example:
        env = CodeEnv(schema.CodeEnv(tasks="python-basics"))
        verdict = env.judge(env.load("train")[0], rollout)
    """

    def __init__(self, config: schema.CodeEnv) -> None:
        self.config = config
        self._lock = threading.Lock()
        self._judge: CodeJudge | None = None
        self._tasks: list[tuple[str, Task]] | None = None

    def load(self, split: str) -> Sequence[Task]:
        """`train` tasks on public tests or `eval` tasks on private ones, in file order.

        A file without rows for evaluation is evaluated on its training rows, with private tests.
        """
        if split not in ("train", "eval"):
            raise ConfigError(f"split {split!r} does not exist; code tasks have train and eval")
        rows = self._load()
        tasks = [task for row_split, task in rows if row_split == split]
        if split == "train":
            if not tasks:
                raise TaskError(
                    f"env.tasks = {self.config.tasks!r} has no training task; "
                    'give some rows "split": "train"'
                )
            return [with_tests(task, "public") for task in tasks]
        return [with_tests(task, "private") for task in tasks or [task for _, task in rows]]

    def for_discovery(self, task: Task) -> Task:
        """`task` judged on all its tests, the public ones first: what is found must pass hidden
        tests too, and feedback shows public ones."""
        return with_tests(task, "all")

    def judge(self, task: Task, rollout: Rollout) -> Verdict:
        """The verdict on the last Python block of the attempt's text; thread-safe."""
        return self._open().verdict_on_text(task.reference, rollout.text, rollout.truncated)

    def check(self) -> CheckReport:
        """Every reference passes public and private tests, and a program without effect fails."""
        tasks = [task for _, task in self._load()]
        judge = self._open()
        with ThreadPoolExecutor(max_workers=judge.sandbox.width) as pool:
            problems = list(pool.map(lambda task: _check_task(judge, task.reference), tasks))
        return CheckReport(
            num_tasks=len(tasks),
            failures={
                task.id: problem for task, problem in zip(tasks, problems, strict=True) if problem
            },
            skipped=sum(task.reference.solution is None for task in tasks),
        )

    def close(self) -> None:
        """Ends the sandbox's processes; a later `judge` opens them again."""
        with self._lock:
            judge, self._judge = self._judge, None
        if judge is not None:
            judge.sandbox.close()

    def _load(self) -> list[tuple[str, Task]]:
        with self._lock:
            if self._tasks is None:
                tasks = load_code_tasks(self.config.tasks)
                if self.config.worked_example:
                    tasks = [(split, with_worked_example(task)) for split, task in tasks]
                self._tasks = tasks
            return self._tasks

    def _open(self) -> CodeJudge:
        with self._lock:
            if self._judge is None:
                self._judge = CodeJudge(
                    open_sandbox(self.config.sandbox),
                    reward=self.config.reward,
                    stop_after_failures=self.config.stop_after_failures,
                    max_feedback_chars=self.config.max_feedback_chars,
                )
            return self._judge


def _check_task(judge: CodeJudge, reference: CodeReference) -> str | None:
    """What is wrong with a task; None when its reference passes and an empty program fails."""
    if reference.solution is None:
        return None
    for split in ("public", "private"):
        verdict = judge.verdict(reference, reference.solution, split=split, shows_private=True)
        if not verdict.solved:
            text = verdict.feedback or ""
            return f"the reference solution fails a {split} test: {text}"
    trivial = judge.verdict(reference, _without_effect(reference), split="private")
    return "a program that returns None or prints nothing passes" if trivial.solved else None


def _without_effect(reference: CodeReference) -> str:
    if reference.kind == "stdio":
        return "pass\n"
    names = {reference.entry_point} if reference.entry_point else set()
    if reference.kind == "asserts" and reference.solution is not None:
        names |= defined_names(reference.solution)
    return "".join(f"def {name}(*args, **kwargs):\n    return None\n" for name in sorted(names))


_shared: list[CodeJudge] = []
_shared_lock = threading.Lock()


def _shared_judge() -> CodeJudge:
    """One judge for every `judge_program` of this process that names no sandbox."""
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
    """The verdict on `program` (source code, no fences) at a code task or a line of a task file.

    Tests of `split` are run; only `public` ones are shown in the feedback. Without a `sandbox` one
    is opened on the first call and kept until the process ends.

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
    progress: Progress | None = None,
) -> list[Verdict]:
    """Verdicts on a file of responses, in their order, each written as a line when it is known.

    `responses` holds lines `{"id": task id, "response": text, "truncated": false}`; a task may
    have several. Verdict lines `{"id", "reward", "solved", "category", "feedback", "metrics"}` go
    to the file `out` or to standard output.
    """
    if split not in ("public", "private"):
        raise ConfigError(f"split = {split!r}: choose public or private")
    known = {task.id: task for _, task in load_code_tasks(str(tasks))}
    attempts = [_response(line, known) for line in read_lines(Path(responses))]
    verdicts = []
    with ExitStack() as stack:
        judge = CodeJudge(stack.enter_context(open_sandbox(sandbox)))
        write = _writer(out, stack)
        for (task, _, _), verdict in zip(
            attempts, _verdicts(judge, attempts, split, stack), strict=True
        ):
            write(_verdict_line(task, verdict))
            verdicts.append(verdict)
            if progress is not None:
                progress(len(verdicts), len(attempts))
    return verdicts


def _verdicts(
    judge: CodeJudge,
    attempts: Sequence[tuple[Task, str, bool]],
    split: TestSplit,
    stack: ExitStack,
) -> Iterator[Verdict]:
    pool = stack.enter_context(ThreadPoolExecutor(max_workers=judge.sandbox.width))
    # A failure of one leaves at once instead of after everything queued behind it.
    stack.callback(pool.shutdown, wait=True, cancel_futures=True)
    return pool.map(
        lambda attempt: judge.verdict_on_text(
            with_tests(attempt[0], split).reference, attempt[1], attempt[2]
        ),
        attempts,
    )


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
        raise line.error("response", "missing or no string; give the text of the answer")
    if not isinstance(is_truncated, bool):
        raise line.error("truncated", "expected true or false")
    return known[task_id], text, is_truncated


def _verdict_line(task: Task, verdict: Verdict) -> str:
    row = {
        "id": task.id,
        "reward": verdict.reward,
        "solved": verdict.solved,
        "category": verdict.info["category"],
        "feedback": verdict.feedback,
        "metrics": dict(verdict.metrics),
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def _writer(out: str | Path | None, stack: ExitStack) -> Callable[[str], object]:
    if out is None:
        return sys.stdout.write
    try:
        return stack.enter_context(Path(out).open("w", encoding="utf-8")).write
    except OSError as error:
        raise SdpoError(f"cannot write {out}: {error.strerror}") from error
