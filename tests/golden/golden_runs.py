"""Four tiny runs of 20 updates each, through the public interface alone, and what they left.

Everything a run needs is here: a random model over bytes, an environment that such a model solves
now and then, and the toy world, which it does not. Nothing below the public interface is imported,
so that these files outlive every change of layout.

Completions are short and few on purpose. A sampled token is a step function of the weights: where
its random number falls next to the border between two tokens, rounding chooses, and every later
step is another one. `regenerate.py --spread` shows how far from such borders these runs are.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import sdpo
from sdpo.cli import run as command
from sdpo.metrics.jsonl import read_rows
from sdpo.rollouts.record import with_contexts
from sdpo.testing import byte_tokenizer, tiny_model, toy_env

RUNS = ("sdpo", "srpo", "grpo", "discover")
BATCH = 4
"""Attempts between two updates of the search."""
SCALE = 3.0
"""Factor on every matrix of the random model. As it comes it hardly looks at its context, so that
teacher and student say the same."""

_COMMON = ("model.dtype=float32", "model.device=cpu", "rollout.max_prompt_tokens=200")
_TRAIN = (
    # At ten times the rate, noise of 1e-6 in the initial weights changes sampled tokens: Adam makes
    # a whole step of every gradient that is all rounding.
    "optim.lr=1e-4",
    "rollout.tasks_per_step=2",
    "rollout.group_size=4",
    "rollout.max_completion_tokens=4",
    "eval.every=0",
    "eval.samples=1",
    "eval.max_tasks=1",
    "checkpoint.every=0",
)
_OWN = {
    "sdpo": (*_TRAIN, "objective.type=sdpo", "objective.divergence.top_k=20", "steps=20"),
    "srpo": (*_TRAIN, "objective.type=srpo", "objective.divergence.top_k=20", "steps=20"),
    # The second update of a step trains on tokens of older weights: its ratios are not 1.
    "grpo": (*_TRAIN, "objective.type=grpo", "steps=10", "optim.updates_per_step=2"),
    "discover": (
        "optim.lr=3e-4",
        "objective.type=sdpo",
        "objective.divergence.type=reverse_kl",
        "objective.divergence.top_k=all",
        "rollout.max_completion_tokens=3",
        "env.type=custom",
        f"env.path={__name__}:search_env",
        'discover.methods=["self_distillation"]',
        "discover.seeds=1",
        f"discover.batch={BATCH}",
        # An update follows every batch but the last.
        f"discover.budget={21 * BATCH}",
    ),
}

_TASKS = [{"id": f"t{number}", "prompt": f"say {number}"} for number in range(6)]
_WANTED = set("abcdefghijklmnop")


def _judge(task: sdpo.Task, rollout: sdpo.Rollout) -> sdpo.Verdict:
    is_solved = not _WANTED.isdisjoint(rollout.text)
    length = len(rollout.text)
    feedback = None if is_solved else f"None of {length} characters is a letter from a to p."
    return sdpo.Verdict(reward=float(is_solved), solved=is_solved, feedback=feedback)


def search_env() -> Any:
    """The environment of the search: one task, whose code a random model does not guess."""
    return toy_env(1)


def save_model(folder: Path, *, noise: float = 0.0, noise_seed: int = 0) -> Path:
    """The initial model of all four runs, as a folder; `noise` is the standard deviation of what is
    added to every weight."""
    model, tokenizer = tiny_model(), byte_tokenizer()
    generator = torch.Generator().manual_seed(noise_seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(SCALE)
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=noise)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def carry_out(name: str, model: Path, folder: Path) -> list[dict[str, Any]]:
    """The run `name` of `model`, written to `folder`: all metrics, one row a step of training or an
    update of the search, each with a digest of what was sampled, judged and shown to the teacher
    (`rollouts`)."""
    settings = (f"run={folder}", f"model.name={model}", *_COMMON)
    if name == "discover":
        status = command(["discover", *settings, *_OWN[name]])
        assert status == 0, f"sdpo discover ended with status {status}"
        attempts = [(row["text"], row["feedback"]) for row in _lines(folder / "attempts.jsonl")]
        return [
            row | {"rollouts": _digest(attempts[index * BATCH : (index + 1) * BATCH])}
            for index, row in enumerate(_lines(folder / "updates.jsonl"))
        ]
    sdpo.train(*settings, *_OWN[name], env=sdpo.env(_TASKS, _judge))
    rows = [row for row in _lines(folder / "metrics.jsonl") if row["step"] > 0]
    rollouts = [row for row in read_rows(folder / "rollouts.jsonl") if row["split"] == "train"]
    for _, group in itertools.groupby(rollouts, lambda row: (row["step"], row["task"])):
        with_contexts(list(group))
    seen = ("task", "index", "text", "reward", "feedback", "teacher", "completion_tokens")
    for row in rows:
        own = [rollout for rollout in rollouts if rollout["step"] == row["step"]]
        taught = [rollout["completion_tokens"] for rollout in own if rollout["teacher"] is not None]
        row["tokens_with_teacher"] = sum(taught)
        row["rollouts"] = _digest([rollout[key] for key in seen] for rollout in own)
    return rows


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a model folder or the last checkpoint of a run holds."""
    checkpoints = sorted((folder / "checkpoints").glob("step-*"), key=lambda p: int(p.name[5:]))
    return load_file((checkpoints[-1] if checkpoints else folder) / "model.safetensors")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _digest(rows: Iterable[Any]) -> str:
    text = json.dumps(list(rows), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
