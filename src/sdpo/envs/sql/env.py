"""The SQL environment: questions about a SQLite database whose tables the model may not have seen.

    answer -> query -> sandbox (child.py) -> rows -> compared with the right query's -> verdict

With `tables = "hidden"` nothing in the prompt names a table, so no attempt can guess one; feedback
names the tables that the question is about (`hints`), and held-out questions about the same
database show whether that was learnt. The right query and its rows are never shown.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

from sdpo.config import schema
from sdpo.envs.base import CheckReport
from sdpo.envs.rows import RowsEnv
from sdpo.envs.sql import wording
from sdpo.envs.sql.formats import SCRIPT, parse_task, read_tasks, with_tables
from sdpo.envs.sql.judge import SqlJudge
from sdpo.envs.table import Line
from sdpo.machine import usable_cores
from sdpo.records import Task, Verdict
from sdpo.sandbox import open_sandbox, require_linux


class SqlEnv(RowsEnv):
    """Questions of a built-in set, a file, or a Spider or BIRD folder. Raises `SandboxError` at
    once on systems that cannot judge programs (macOS, Windows).

    Example:
        env = SqlEnv(schema.SqlEnvConfig(tasks="company"))
        verdict = env.judge(env.load("train")[0], rollout)
    """

    def __init__(self, config: schema.SqlEnvConfig) -> None:
        require_linux()
        super().__init__(config)
        self.config = config
        self._judge: SqlJudge | None = None
        self._opening = threading.Lock()

    def load(self, split: str) -> Sequence[Task]:
        """Tasks of `train` or `eval`, in file order, with tables where prompts list them."""
        tasks = super().load(split)
        if self.config.tables == "hidden":
            return tasks
        return [self._with_tables(task) for task in tasks]

    @property
    def judges_at_once(self) -> int:
        """As many as there are cores."""
        return usable_cores()

    def judge_text(self, task: Task, text: str, *, is_truncated: bool) -> Verdict:
        """The verdict on one answer; thread-safe."""
        return self._open().verdict(task.reference, text, is_truncated=is_truncated)

    def check(self) -> CheckReport:
        """Every right query runs within the limits and returns rows: without any, every query that
        finds nothing would be right."""
        splits = self._load()
        tasks = [*splits["train"], *splits["eval"]]
        problems = {task.id: self._problem(task) for task in tasks}
        return CheckReport(
            num_tasks=len(tasks),
            failures={name: problem for name, problem in problems.items() if problem},
            skipped=0,
        )

    def facts(self) -> Mapping[str, str]:
        """The sandbox's level, which opens it."""
        return {"sandbox": self._open().sandbox.level}

    def close(self) -> None:
        """Ends the sandbox's processes; a later `judge` opens them again."""
        with self._opening:
            judge, self._judge = self._judge, None
        if judge is not None:
            judge.sandbox.close()

    def parse(self, line: Line) -> Task:
        """The task of one row. Raises `TaskError` naming file, line and key."""
        return parse_task(
            line,
            uses_evidence=self.config.evidence,
            shows_examples=self.config.worked_examples,
        )

    def reference_answer(self, task: Task) -> str:
        """The right query."""
        return task.reference.query

    def trivial_answer(self, task: Task) -> str:
        """A query without rows."""
        return "SELECT NULL LIMIT 0"

    def _problem(self, task: Task) -> str | None:
        right = self._open().right_answer(task.reference)
        if right.category != "ran":
            return f"its query fails: {right.message or right.category.replace('_', ' ')}"
        if not right.rows:
            return "its query returns no rows, so that any query without rows is right"
        return None

    def _read(self) -> list[tuple[str, Task]]:
        return self.parse_all(read_tasks(self.config.tasks))

    def table_heads(self, task: Task) -> str:
        """The tables of the task's database with their columns, one a line."""
        tables = self._open().tables(task.reference.database)
        return "\n".join(wording.table_head(name, columns) for name, columns in tables.items())

    def _with_tables(self, task: Task) -> Task:
        return replace(task, messages=with_tables(task.messages, self.table_heads(task)))

    def _open(self) -> SqlJudge:
        splits = self._load()
        with self._opening:
            if self._judge is None:
                files = {
                    task.reference.database
                    for tasks in splits.values()
                    for task in tasks
                    if task.reference.database.suffix.lower() != SCRIPT
                }
                self._judge = SqlJudge(
                    open_sandbox(self.config.sandbox, preload=("sqlite3",), readable=sorted(files)),
                    hints=self.config.hints,
                    time_limit_s=self.config.time_limit_s,
                    max_rows=self.config.max_rows,
                    max_feedback_chars=self.config.max_feedback_chars,
                )
            return self._judge
