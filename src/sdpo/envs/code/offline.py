"""Judging one program outside of a run; `sdpo.rollouts.responses` judges files of answers."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Mapping
from typing import Any

from sdpo.envs.code.env import preloadable
from sdpo.envs.code.judge import CodeJudge
from sdpo.envs.code.rows import parse_task
from sdpo.envs.code.tasks import TestSplit
from sdpo.envs.table import Line
from sdpo.errors import ConfigError
from sdpo.records import Task, Verdict
from sdpo.sandbox import Sandbox, open_sandbox

_shared: dict[tuple[str, ...], CodeJudge] = {}
_shared_lock = threading.Lock()


def _shared_judge(packages: tuple[str, ...]) -> CodeJudge:
    """The judge of every `judge_program` call that names no sandbox, by packages in it."""
    with _shared_lock:
        if packages not in _shared:
            sandbox = open_sandbox("auto", preload=packages)
            _shared[packages] = CodeJudge(sandbox)
            atexit.register(_shared[packages].close)
        return _shared[packages]


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
    packages = preloadable([task.reference])
    judge = _shared_judge(packages) if sandbox is None else CodeJudge(sandbox)
    try:
        return judge.verdict(task.reference, program, split=split)
    finally:
        if sandbox is not None:
            judge.close_languages()
