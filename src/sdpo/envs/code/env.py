"""The code environment: Python programs judged by tests, with feedback like that of a programming
site.

    answer -> extract.py -> program -> sandbox -> values -> compare.py -> judge.py -> verdict

The program runs in a jailed process that gets nothing but inputs; expected values, the comparison
and every status stay here. Training tasks are judged on public tests, evaluation tasks on private
ones. About private tests, feedback reveals only the kind of failure and how many passed.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from sdpo.config import schema
from sdpo.envs.base import CheckReport
from sdpo.envs.code.assert_names import defined_names
from sdpo.envs.code.formats import load_code_tasks
from sdpo.envs.code.judge import CodeJudge
from sdpo.envs.code.tasks import (
    CodeReference,
    as_block,
    with_tests,
    with_worked_example,
)
from sdpo.envs.verdicts import guarded
from sdpo.errors import ConfigError, TaskError
from sdpo.machine import usable_cores
from sdpo.records import Rollout, Task, Verdict
from sdpo.sandbox import LANGUAGES, open_sandbox, require_linux


class CodeEnv:
    """The code tasks of a built-in set or a file. Raises `SandboxError` at once on systems that
    cannot judge programs (macOS, Windows).

    Example:
        env = CodeEnv(schema.CodeEnvConfig(tasks="python-basics"))
        verdict = env.judge(env.load("train")[0], rollout)
    """

    def __init__(self, config: schema.CodeEnvConfig) -> None:
        require_linux()
        self.config = config
        self._lock = threading.Lock()
        self._judge: CodeJudge | None = None
        self._tasks: list[tuple[str, Task]] | None = None

    def load(self, split: str) -> Sequence[Task]:
        """`train` tasks on public tests or `eval` tasks on private ones, in file order.

        If a file has no rows for evaluation, its training rows are evaluated, on private tests.
        """
        if split not in ("train", "eval"):
            raise ConfigError(f"split {split!r} does not exist; choose train or eval")
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
        """`task` judged on all its tests, public ones first: a solution must pass the hidden ones
        too, and feedback may show the public ones."""
        return with_tests(task, "all")

    @property
    def judges_at_once(self) -> int:
        """As many as there are cores."""
        return usable_cores()

    def judge(self, task: Task, rollout: Rollout) -> Verdict:
        """The verdict on the last Python block of the attempt's text; thread-safe."""
        judge = self._open()
        return guarded(
            lambda: judge.verdict_on_text(task.reference, rollout.text, rollout.truncated)
        )

    def reference_answer(self, task: Task) -> str | None:
        """The reference solution as a Python block."""
        solution = task.reference.solution
        return None if solution is None else as_block(solution, task.reference.language)

    def check(self) -> CheckReport:
        """Whether every reference passes all tests, and a program without effect does not."""
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
            notes=tuple(_known_wrong(tasks)),
        )

    def facts(self) -> Mapping[str, str]:
        """The sandbox's level, which opens it, and packages that programs find."""
        packages = preloadable([task.reference for _, task in self._load()])
        found = {"packages": ", ".join(packages)} if packages else {}
        return {"sandbox": self._open().sandbox.level, **found}

    def close(self) -> None:
        """End the sandbox's processes; a later `judge` starts them again."""
        with self._lock:
            judge, self._judge = self._judge, None
        if judge is not None:
            judge.close()

    def _load(self) -> list[tuple[str, Task]]:
        with self._lock:
            if self._tasks is None:
                config = self.config
                tasks = self._in_window(
                    load_code_tasks(config.tasks, config.eval_tasks, config.fields)
                )
                if self.config.worked_example:
                    tasks = [(split, with_worked_example(task)) for split, task in tasks]
                self._tasks = tasks
            return self._tasks

    def _in_window(self, tasks: list[tuple[str, Task]]) -> list[tuple[str, Task]]:
        """The tasks whose contest was between `env.contest_dates`."""
        if not self.config.contest_dates:
            return tasks
        first, end = self.config.contest_dates
        undated = [task.id for _, task in tasks if "contest_date" not in task.metadata]
        if undated:
            raise TaskError(
                f"env.contest_dates: {len(undated)} tasks have no contest_date, the first of them "
                f"{undated[0]!r}; set it to [], or give every row the key"
            )
        kept = [pair for pair in tasks if first <= pair[1].metadata["contest_date"] < end]
        if not kept:
            dates = sorted(task.metadata["contest_date"] for _, task in tasks)
            raise TaskError(
                f"env.contest_dates: no task from {first} on and before {end}; those of "
                f"{self.config.tasks} are from {dates[0]} to {dates[-1]}"
            )
        return kept

    def _open(self) -> CodeJudge:
        packages = preloadable([task.reference for _, task in self._load()])
        with self._lock:
            if self._judge is None:
                self._judge = CodeJudge(
                    open_sandbox(self.config.sandbox, preload=packages),
                    reward=self.config.reward,
                    stop_after_failures=self.config.stop_after_failures,
                    max_feedback_chars=self.config.max_feedback_chars,
                )
            return self._judge


def preloadable(references: Iterable[CodeReference]) -> tuple[str, ...]:
    """The installed ones of the packages that programs of these tasks may import."""
    wanted = {name for reference in references for name in reference.packages}
    return tuple(name for name in sorted(wanted) if importlib.util.find_spec(name) is not None)


def _known_wrong(tasks: Sequence[Task]) -> Iterator[str]:
    """A line on tasks whose tests are known to contradict their text."""
    sources: dict[str, list[str]] = {}
    for task in tasks:
        if "known_wrong" in task.metadata:
            sources.setdefault(task.metadata["known_wrong"], []).append(task.id)
    for source, ids in sources.items():
        yield f"{len(ids)} tasks have tests that contradict their text ({source}): {', '.join(ids)}"


def _check_task(judge: CodeJudge, reference: CodeReference) -> str | None:
    """What is wrong with a task, or None."""
    if reference.language != "python":
        missing = LANGUAGES[reference.language].missing()
        if missing is not None:
            return missing
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
        return {"python": "pass\n", "cpp": "int main() {}\n", "javascript": "\n"}[
            reference.language
        ]
    names = {reference.entry_point} if reference.entry_point else set()
    if reference.kind == "asserts" and reference.solution is not None:
        names |= defined_names(reference.solution)
    return "".join(f"def {name}(*args, **kwargs):\n    return None\n" for name in sorted(names))
