"""Reinforcement learning from rich feedback: the model rereads its own attempt knowing what the
environment said about it.

`sdpo.train`, `sdpo.evaluate`, `sdpo.discover`, `sdpo.check`, `sdpo.probe`, `sdpo.credit` and
`sdpo.env` do what the commands do; the records are what environments are written with. Importing
this loads no torch; the functions do when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdpo._version import __version__ as __version__
from sdpo.envs.base import env
from sdpo.errors import SdpoError, Unjudged
from sdpo.records import Group, Reply, Rollout, Task, TeacherContext, Turn, Verdict

if TYPE_CHECKING:
    from sdpo.api import check, discover, evaluate, probe, train
    from sdpo.inspection.attempt import credit

__all__ = [
    "Group",
    "Reply",
    "Rollout",
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
    "probe",
    "train",
]

_LAZY = ("check", "credit", "discover", "evaluate", "probe", "train")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from sdpo import api

        return getattr(api, name)
    raise AttributeError(f"module 'sdpo' has no attribute {name!r}")
