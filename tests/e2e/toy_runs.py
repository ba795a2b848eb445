"""Runs in the toy world, where feedback alone reveals what is asked, and what they learnt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import sdpo
from sdpo.chat import Chat
from sdpo.config.load import load_config
from sdpo.metrics.jsonl import read_rows
from sdpo.testing import toy_env, toy_model, toy_tokenizer

NUM_TASKS = 4
STEPS = 36
LEARNT = 0.4
"""Solved rate from the bare task that counts as learnt; chance is 1 in 10,000."""


SKILL = 0.9
"""Probability of every code from which `teach_codes` stops."""


@dataclass(frozen=True)
class Learnt:
    """What a run left: its metrics, its attempts and how likely the hidden codes became."""

    rows: list[dict[str, Any]]
    attempts: list[dict[str, Any]]
    """rollouts.jsonl."""
    nats: float
    """Mean log-probability of the right code after the bare task; ln(1 / 10,000) = -9.2 is a
    guess."""

    @property
    def solved(self) -> float:
        """Share of attempts at the bare tasks that the final weights solve."""
        return self.rows[-1]["eval/solved"]

    @property
    def peak(self) -> float:
        """The largest such share of any evaluation."""
        return max(row["eval/solved"] for row in self.rows if "eval/solved" in row)

    @property
    def never_guessed(self) -> set[str]:
        """Tasks that no attempt of training solved. An attempt at an unknown code does so in 1 of
        10,000 cases; a run makes 2,304, and rounding decides whether one of them hits."""
        solved = {row["task"] for row in self.attempts if row["solved"] and row["split"] == "train"}
        return {row["task"] for row in self.attempts} - solved

    def peak_of(self, tasks: set[str]) -> float:
        """The largest share of the attempts at `tasks` that an evaluation saw solved."""
        own = [row for row in self.attempts if row["split"] == "eval" and row["task"] in tasks]
        steps = {row["step"] for row in own}
        hits = [[row["solved"] for row in own if row["step"] == step] for step in steps]
        return max(sum(solved) / len(solved) for solved in hits)

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Rows of training steps."""
        return [row for row in self.rows if row["step"] > 0]


def teach(folder: Path) -> Path:
    """A model folder with the tiny reader, taught anew (half a minute of one core)."""
    model, tokenizer = toy_model(0, cache=folder / "cache"), toy_tokenizer()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def teach_codes(reader: Path, folder: Path, env: Any) -> Path:
    """A model folder with the reader after supervised lessons in the codes of `env`, until it gives
    each with probability `SKILL`: where that takes more updates, it gets them (two seconds)."""
    model = AutoModelForCausalLM.from_pretrained(reader, dtype=torch.float32)
    tokenizer = toy_tokenizer()
    chat, tasks = Chat(tokenizer), env.load("train")
    codes = [(*chat.text_ids(task.reference), chat.end_of_turn_id) for task in tasks]
    prompts = [chat.prompt_ids(task.messages) for task in tasks]
    # Prompts and codes take the same number of tokens in every task.
    ids = torch.tensor([[*prompt, *code] for prompt, code in zip(prompts, codes, strict=True)])
    targets = torch.tensor(codes)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(1000):
        logprobs = model(ids).logits[:, -targets.shape[1] - 1 : -1].log_softmax(-1)
        known = logprobs.gather(2, targets[..., None]).sum(dim=(1, 2))
        if known.exp().min() >= SKILL:
            break
        optimizer.zero_grad()
        (-known.mean()).backward()
        optimizer.step()
    else:
        raise AssertionError(f"after 1000 updates the codes are known to {known.exp().tolist()}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def learn(model: Path, run: Path, *overrides: str, reveal: str = "all", seed: int = 0) -> Learnt:
    """Train `model` on four items whose codes only the feedback reveals, if `reveal` says so."""
    config = load_config(
        [
            f"run={run}", f"model.name={model}", "model.device=cpu", "model.dtype=float32",
            f"seed={seed}", f"steps={STEPS}", "rollout.tasks_per_step=4", "rollout.group_size=16",
            "rollout.max_completion_tokens=4", "rollout.max_prompt_tokens=100", "optim.lr=4e-3",
            "eval.every=0", "eval.samples=16", "eval.temperature=1.0", "eval.top_p=1.0",
            "checkpoint.every=0", *overrides,
        ]
    )  # fmt: skip
    env = toy_env(NUM_TASKS, seed=seed, reveal=reveal)
    result = sdpo.train(config, env=env)
    rows, attempts = (list(read_rows(run / name)) for name in ("metrics.jsonl", "rollouts.jsonl"))
    trained = run / "checkpoints" / f"step-{result.step}"
    learnt = Learnt(rows=rows, attempts=attempts, nats=code_nats(trained, env))
    # `pytest -rP` shows it: the numbers of docs/results.md.
    print(f"LEARNT seed {seed}: solved {learnt.solved:.2f}, code {learnt.nats:.2f} nats")
    return learnt


@torch.no_grad()
def code_nats(folder: Path, env: Any) -> float:
    """Mean log-probability of the right code after the bare task."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    chat = Chat(toy_tokenizer())
    found = []
    for task in env.load("train"):
        prompt, code = chat.prompt_ids(task.messages), chat.text_ids(task.reference)
        logits = model(torch.tensor([[*prompt, *code]])).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.log_softmax(-1).gather(1, torch.tensor(code)[:, None])
        found.append(float(logprobs.sum()))
    return sum(found) / len(found)
