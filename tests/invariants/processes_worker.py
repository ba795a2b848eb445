"""Training runs as `torchrun` starts them: `processes_worker.py JOBS`, a JSON object of run
directory to overrides, trained one after the other.

Beside each run directory every rank leaves what the test cannot see otherwise: its weights after
each step, the names of all files it touched inside the run directory, and the tasks it judged.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import sdpo
from sdpo import parallel
from sdpo.config.load import load_config
from sdpo.training.learner import Learner

TASKS = [{"id": f"t{i}", "prompt": f"say {i}"} for i in range(6)]
RANK = os.environ.get("RANK", "0")


JUDGED: list[str] = []


def judge(task: sdpo.Task, rollout: sdpo.Rollout) -> sdpo.Verdict:
    JUDGED.append(task.id)
    hits = sum(character in "abcdefgh" for character in rollout.text)
    said = None if hits else f"none of the {len(rollout.text)} characters is a letter from a to h"
    return sdpo.Verdict(reward=float(hits > 0), solved=hits > 0, feedback=said)


def train(run: Path, overrides: list[str]) -> None:
    """One run that leaves its weights after each step in `RUN.step-S.rank-R.safetensors`."""
    publish = Learner.publish

    def publish_and_save(self: Learner) -> None:
        publish(self)
        weights = {n: p.detach().clone() for n, p in self._sampler.policy.model.named_parameters()}
        save_file(weights, f"{run}.step-{self.step}.rank-{RANK}.safetensors")

    Learner.publish = publish_and_save  # ty: ignore[invalid-assignment]
    try:
        sdpo.train(load_config([f"run={run}", *overrides]), env=sdpo.env(TASKS, judge))
    finally:
        Learner.publish = publish


def main(jobs: dict[str, list[str]]) -> None:
    torch.set_num_threads(1)
    # Gradients of a tiny model in several buckets, so that some travel during the backward pass.
    parallel._BUCKET_BYTES = 8192
    touched: set[str] = set()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.remove") and arguments:
            touched.add(str(arguments[0]))

    sys.addaudithook(watch)
    for run, overrides in jobs.items():
        touched.clear()
        JUDGED.clear()
        train(Path(run), overrides)
        inside = sorted(name for name in touched if name.startswith(f"{run}/") or name == run)
        Path(f"{run}.rank-{RANK}.json").write_text(json.dumps(inside))
        Path(f"{run}.judged-{RANK}.json").write_text(json.dumps(JUDGED))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
