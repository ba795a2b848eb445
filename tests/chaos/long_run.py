"""Three hundred tiny steps with a judge that fails in one call of fifty: `long_run.py FOLDER`.

Prints as JSON what the run recorded and its resident memory (MB) at steps 50 and 300.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

import sdpo
from sdpo.config.load import load_config
from sdpo.metrics.jsonl import read_rows
from sdpo.testing import byte_tokenizer, tiny_model

STEPS, TASKS, GROUP = 300, 3, 4
PERCENT = 2


def fails(task: sdpo.Task, rollout: sdpo.Rollout) -> bool:
    """By the attempt, so the same in every run."""
    name = f"{task.id} {rollout.index} {rollout.text}"
    return int.from_bytes(hashlib.blake2b(name.encode()).digest()[:4], "big") % 100 < PERCENT


def judge(task: sdpo.Task, rollout: sdpo.Rollout) -> sdpo.Verdict:
    if fails(task, rollout):
        raise sdpo.Unjudged("the service is down")
    solved = any(character in "abcdefgh" for character in rollout.text)
    return sdpo.Verdict(reward=float(solved), solved=solved, feedback=None if solved else "no")


def resident_mb() -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) // 1024


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    tiny_model(hidden_size=16, num_layers=1).save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    memory: dict[int, int] = {}

    def note(row: Mapping[str, float]) -> None:
        if row["step"] % 50 == 0:
            memory[int(row["step"])] = resident_mb()

    result = sdpo.train(
        load_config(
            [
                f"run={folder}/run", f"model.name={folder}/model", "model.device=cpu",
                "model.dtype=float32", f"steps={STEPS}", f"rollout.tasks_per_step={TASKS}",
                f"rollout.group_size={GROUP}", "rollout.max_completion_tokens=6",
                "rollout.max_prompt_tokens=200", "eval.every=0", "eval.samples=1",
                "checkpoint.every=100", "env.retries=0", "env.max_unjudged=0.5",
                "objective.type=sdpo",
            ]
        ),
        env=sdpo.env([{"id": f"t{i}", "prompt": f"say {i}"} for i in range(6)], judge),
        on_step=note,
    )  # fmt: skip
    rows = [row for row in read_rows(folder / "run" / "metrics.jsonl") if row["step"]]
    kept = [row for row in read_rows(folder / "run" / "rollouts.jsonl") if row["split"] == "train"]
    found = {
        "finished": result.finished,
        "steps": len(rows),
        "kept": len(kept),
        "unjudged": sum(round(row["env/unjudged"] * TASKS * GROUP) for row in rows),
        "total": result.metrics["rollouts_total"],
        "memory_mb": memory,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
