"""Environments whose tasks are the rows of files: `RowTasks` loads and splits them, `RowsEnv` also
judges answers against references.

Whether a row is held out for evaluation is decided by a hash of its id, so adding or removing rows
moves no other row, and a larger `eval_fraction` only adds to the held-out ones. Files of training
and of evaluation rows keep their split, and so does a file whose rows have a `split` key.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence

from sdpo.config import schema
from sdpo.config.environments import RowsEnvConfig
from sdpo.envs.base import CheckReport
from sdpo.envs.shapes import told_what_would_fit
from sdpo.envs.sources import read_sources
from sdpo.envs.table import Line, is_held_out, unique_ids
from sdpo.envs.verdicts import guarded
from sdpo.errors import ConfigError, TaskError
from sdpo.records import Rollout, Task, Verdict

_SPLITS = {"train": "train", "eval": "eval", "test": "eval", "validation": "eval"}
"""Split names that occur in rows to ours."""


RowsConfig = (
    schema.ChoiceEnvConfig
    | schema.ToolsEnvConfig
    | schema.MathEnvConfig
    | schema.SqlEnvConfig
    | schema.LlmJudgeEnvConfig
)


class RowTasks(ABC):
    """Tasks that are the rows of files (`sources.py` says which).

    A subclass turns a row into a task; loading and splitting are done here.
    """

    def __init__(self, config: RowsConfig) -> None:
        self._source = config
        self._lock = threading.Lock()
        self._splits: dict[str, list[Task]] | None = None

    def load(self, split: str) -> Sequence[Task]:
        """Tasks of `train` or `eval`, in file order.

        When no row is held out (`eval_fraction = 0`), the training tasks are evaluated.
        """
        if split not in ("train", "eval"):
            raise ConfigError(f"split {split!r} does not exist; choose train or eval")
        splits = self._load()
        if split == "train" and not splits["train"]:
            raise TaskError(
                f"env.tasks = {self._source.tasks!r} has no training row; lower env.eval_fraction "
                f'= {self._source.eval_fraction:g} or give some rows "split": "train"'
            )
        return splits[split] or splits["train"]

    @abstractmethod
    def parse(self, line: Line) -> Task:
        """The task of one row. Raises `TaskError` naming file, line and key."""

    def _load(self) -> dict[str, list[Task]]:
        with self._lock:
            if self._splits is None:
                rows = self._read()
                self._splits = {
                    name: [task for split, task in rows if split == name]
                    for name in ("train", "eval")
                }
            return self._splits

    def _read(self) -> list[tuple[str, Task]]:
        config = self._source
        assert isinstance(config, RowsEnvConfig)
        return self.parse_all(list(read_sources(config.tasks, config.eval_tasks, config.fields)))

    def parse_all(self, lines: Sequence[Line]) -> list[tuple[str, Task]]:
        """(split, task) of every row. Raises `TaskError` when only some rows name a split."""
        own = [line.split is not None or "split" in line.row for line in lines]
        if any(own) and not all(own):
            raise lines[own.index(False)].error("split", "missing, but other rows have one")
        with told_what_would_fit(lines, self._source.type):
            return unique_ids((self._split(line), line) for line in lines)

    def _split(self, line: Line) -> tuple[str, Task]:
        task = self.parse(line)
        if line.split is not None:
            return line.split, task
        if "split" not in line.row:
            return "eval" if is_held_out(task.id, self._source.eval_fraction) else "train", task
        name = line.row["split"]
        if not isinstance(name, str) or name not in _SPLITS:
            raise line.error("split", f"{name!r} is not a split; use {', '.join(_SPLITS)}")
        return _SPLITS[name], task


class RowsEnv(RowTasks):
    """An environment whose tasks are rows with a reference.

    A subclass turns a row into a task, judges an answer, and writes the answer that the reference
    stands for; checking is done here.
    """

    def judge(self, task: Task, rollout: Rollout) -> Verdict:
        """The verdict on the attempt's text; thread-safe."""
        return guarded(lambda: self.judge_text(task, rollout.text, is_truncated=rollout.truncated))

    def check(self) -> CheckReport:
        """Whether every row's reference passes and a trivial answer does not; and which rows are
        doubtful."""
        failures, warnings = {}, {}
        splits = self._load()
        tasks = [*splits["train"], *splits["eval"]]
        for task in tasks:
            verdict = self.judge_text(task, self.reference_answer(task), is_truncated=False)
            if not verdict.solved:
                failures[task.id] = f"the reference fails: {verdict.feedback}"
            elif self.judge_text(task, self.trivial_answer(task), is_truncated=False).solved:
                failures[task.id] = "a trivial answer passes"
            elif (doubt := self.doubt(task)) is not None:
                warnings[task.id] = doubt
        return CheckReport(num_tasks=len(tasks), failures=failures, skipped=0, warnings=warnings)

    @abstractmethod
    def judge_text(self, task: Task, text: str, *, is_truncated: bool) -> Verdict:
        """The verdict on one answer."""

    def doubt(self, task: Task) -> str | None:
        """Why nobody may be able to solve `task`, or a wrong answer may pass; None if nothing is
        known."""
        return None

    @abstractmethod
    def reference_answer(self, task: Task) -> str:
        """A completion that must pass, built from the reference."""

    @abstractmethod
    def trivial_answer(self, task: Task) -> str:
        """A completion that must not pass."""
