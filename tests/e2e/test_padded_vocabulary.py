"""Rows of embedding and head beyond the tokenizer belong to no token: neither drawn nor trained."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import sdpo
from sdpo.config.load import load_config
from sdpo.metrics.jsonl import read_rows
from sdpo.testing import byte_tokenizer, tiny_model

ROWS = 300
"""Of embedding and head; the tokenizer has 259 tokens."""


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """A model that likes the rows without a token best."""
    folder = tmp_path_factory.mktemp("padded")
    model = tiny_model(vocab_size=ROWS)
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head.mul_(8)
        head[259:] *= 4
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("objective", ["sdpo", "grpo", "rlcsd"])
def test_rows_without_a_token_are_neither_sampled_nor_trained(padded, tmp_path, objective):
    sampled: list[int] = []

    def judge(task: sdpo.Task, rollout: sdpo.Rollout) -> sdpo.Verdict:
        sampled.extend(rollout.completion_ids)
        reward = float(rollout.index % 2)
        return sdpo.Verdict(reward=reward, solved=bool(reward), feedback="no")

    run = tmp_path / "run"
    config = load_config(
        [
            f"model.name={padded}", f"run={run}", "steps=2", f"objective.type={objective}",
            "rollout.tasks_per_step=2", "rollout.group_size=4", "rollout.max_completion_tokens=12",
            "rollout.max_prompt_tokens=200", "optim.updates_per_step=2", "optim.weight_decay=0",
            "optim.lr=1e-2", "eval.max_tasks=1", "eval.samples=1", "model.dtype=float32",
            "model.device=cpu", "objective.kl_coefficient=0.1",
        ]
    )  # fmt: skip
    sdpo.train(config, env=sdpo.env(["say a", "say b"], judge))
    assert len(sampled) > 100
    assert max(sampled) < 259
    before = load_file(padded / "model.safetensors")["model.embed_tokens.weight"]
    (checkpoint,) = run.glob("checkpoints/*/model.safetensors")
    after = load_file(checkpoint)["model.embed_tokens.weight"]
    assert torch.equal(before[259:], after[259:])
    assert not torch.equal(before[:259], after[:259])
    losses = [row["loss/total"] for row in read_rows(run / "metrics.jsonl") if "loss/total" in row]
    assert len(losses) == 2
    assert all(abs(loss) < 100 for loss in losses)
