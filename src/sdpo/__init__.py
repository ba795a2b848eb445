"""Reinforcement learning from rich feedback: the model rereads its own attempt knowing what the
environment said about it.

`sdpo.train`, `sdpo.evaluate`, `sdpo.discover`, `sdpo.check`, `sdpo.probe`, `sdpo.credit`,
`sdpo.report` and `sdpo.env` do what the commands do; `sdpo.Run` opens what they wrote;
`sdpo.RunConfig` holds settings; the records are what environments are written with. Importing this
loads no torch; the functions do when they are first used.

    result = sdpo.train("quickstart", env=sdpo.env(tasks, judge), steps=3, optim={"lr": 1e-5})
    model, tokenizer = result.load()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sdpo._version import __version__ as __version__
from sdpo.envs.base import env
from sdpo.errors import SdpoError, Unjudged
from sdpo.records import Group, Reply, Rollout, Task, TeacherContext, Turn, Verdict
from sdpo.waiting import wait_politely

if TYPE_CHECKING:
    from sdpo.api import check, discover, evaluate, probe, train
    from sdpo.config.load import load_config
    from sdpo.config.schema import RunConfig
    from sdpo.inspection.attempt import credit
    from sdpo.report import write_report as report
    from sdpo.runs import Run

__all__ = [
    "Group",
    "Reply",
    "Rollout",
    "Run",
    "RunConfig",
    "SdpoError",
    "Task",
    "TeacherContext",
    "Turn",
    "Unjudged",
    "Verdict",
    "check",
    "credit",
    "discover",
    "env",
    "evaluate",
    "load_config",
    "probe",
    "report",
    "train",
]

wait_politely()

_LAZY = {
    "Run": "sdpo.runs",
    "RunConfig": "sdpo.config.schema",
    "check": "sdpo.api",
    "credit": "sdpo.api",
    "discover": "sdpo.api",
    "evaluate": "sdpo.api",
    "load_config": "sdpo.config.load",
    "probe": "sdpo.api",
    "train": "sdpo.api",
}
"""Where to find what is imported when it is first used."""


def __getattr__(name: str) -> Any:
    if name == "report":
        return importlib.import_module("sdpo.report")  # a module that is called like a function
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'sdpo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
