"""Commands other than `train` as several processes or one do them: `sharing_worker.py FOLDER MODEL`
writes what each returned to `FOLDER/RANK.json`, the searches to `FOLDER/search`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import sdpo
from sdpo.config.load import load_config
from sdpo.config.schema import RunConfig
from sdpo.discovery.result import Discovery
from sdpo.discovery.run import discover_tasks
from sdpo.records import Group
from sdpo.talk import Speaker, answers, unjudged

TASKS = [{"id": f"t{number}", "prompt": f"say {number}"} for number in range(3)]
JUDGED: list[str] = []


def judge(task: sdpo.Task, rollout: sdpo.Rollout) -> sdpo.Verdict:
    JUDGED.append(task.id)
    hits = sum(character in "abcdefgh" for character in rollout.text)
    # One task is never solved, so that its search trains to the end.
    solved = hits > 0 and task.id != "t0"
    said = None if solved else f"{hits} characters are letters from a to h"
    return sdpo.Verdict(reward=hits / 6, solved=solved, feedback=said)


ENV = sdpo.env(TASKS, judge)


def settings(model: Path, *more: str) -> RunConfig:
    return load_config(
        [
            f"model.name={model}", "model.device=cpu", "model.dtype=float32", "optim.lr=1e-3",
            "rollout.max_completion_tokens=6", "rollout.max_prompt_tokens=200",
            "teacher.context.max_tokens=400", "objective.type=sdpo", "eval.samples=3",
            "discover.seeds=1", "discover.batch=5", "discover.window_tokens=300", *more,
        ]
    )  # fmt: skip


def attempts(groups: tuple[Group, ...] | list[Group]) -> list[Any]:
    return [
        (group.task.id, rollout.index, rollout.text, verdict.reward, verdict.solved)
        for group in groups
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
    ]


def searched(found: list[Discovery]) -> list[Any]:
    return [{k: v for k, v in result.row().items() if k != "seconds"} for result in found]


def search(model: Path, run: Path) -> list[Any]:
    """A search that is continued with a larger budget, after tasks were selected."""
    select = "discover.select={pass_at=1, attempts=5, below=0.9}"
    for budget in (7, 11):
        config = settings(model, f"run={run}", f"discover.budget={budget}", select)
        found = discover_tasks(config, ENV)
    return searched(found)


def main(folder: Path, model: Path) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    work: dict[str, Callable[[], Any]] = {
        "evaluate": lambda: attempts(sdpo.evaluate(settings(model), env=ENV).groups),
        "probe": lambda: asdict(sdpo.probe(settings(model), env=ENV, tasks=3, samples=3)),
        "check": lambda: asdict(sdpo.check(settings(model), env=ENV)),
        "sample": lambda: [
            (task.id, [answer.text for answer in said])
            for task, said in answers(
                Speaker(moment="after", config=settings(model)),
                unjudged(["hello"]).load("eval"),
                samples=3,
            )
        ],
        "discover": lambda: searched(
            [sdpo.discover("t0", settings(model, "discover.budget=8"), env=ENV)]
        ),
        "search": lambda: search(model, folder / "search"),
    }
    for name, command in work.items():
        JUDGED.clear()
        found[name] = command()
        found[f"{name}: judged"] = len(JUDGED)
    rank = os.environ.get("RANK", "0")
    (folder / f"{rank}.json").write_text(json.dumps(found, default=str))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
