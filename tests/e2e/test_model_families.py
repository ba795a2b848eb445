"""Models whose heads or layers are unusual train through the public interface, sampled by the
probabilities that they are trained with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sdpo
from sdpo.testing import byte_tokenizer

sys.path.insert(0, str(Path(__file__).parent.parent / "families"))
from tiny_families import build

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' notes about missing kernels

FAMILIES = ["gemma2", "granite", "cohere2", "phi", "deepseek_v3", "falcon_h1", "llama4_text"]


def judge(task, rollout):
    hits = sum(character in "abcdefgh" for character in rollout.text)
    return sdpo.Verdict(reward=float(hits > 0), solved=hits > 0, feedback=f"{hits} letters")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_checked_trained_and_reloaded(family, tmp_path):
    model, tokenizer = build(family, vocab_size=259), byte_tokenizer()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    settings = [
        f"run={tmp_path / 'run'}", f"model.name={tmp_path / 'model'}", "model.dtype=float32",
        "steps=2", "rollout.tasks_per_step=2", "rollout.group_size=3", "optim.lr=1e-3",
        "rollout.max_completion_tokens=5", "rollout.max_prompt_tokens=100", "eval.every=0",
        "teacher.context.max_tokens=200", "objective.type=hybrid",
    ]  # fmt: skip
    env = sdpo.env([{"id": f"t{i}", "prompt": f"say {i}"} for i in range(4)], judge)
    notes = sdpo.check(*settings, env=env).notes
    assert len(notes) == 3
    sdpo.train(*settings, env=env)
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-2" / "model.safetensors")
    before = load_file(tmp_path / "model" / "model.safetensors")
    assert saved.keys() == before.keys()
    assert all(bool(weight.isfinite().all()) for weight in saved.values())
    assert any(not torch.equal(saved[name], before[name]) for name in saved)
