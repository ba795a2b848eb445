"""Models of many families go the whole way through the public interface: checked, trained, resumed
to the same numbers, evaluated, exported, and loaded by transformers from what was exported."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import sdpo
from sdpo.export import export_run
from sdpo.testing import byte_tokenizer

sys.path.insert(0, str(Path(__file__).parent.parent / "families"))
from tiny_families import build
from tiny_wrappers import TEXT, build_wrapper

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' notes about missing kernels

UNUSUAL = ["gemma2", "phi", "deepseek_v3"]
"""Heads and layers that took work here; the others are marked slow."""
OTHERS = [
    "cohere", "cohere2", "ernie4_5_moe", "exaone4", "falcon_h1", "gemma", "gemma3_text",
    "gemma3n_text", "gemma4_text", "glm4_moe", "gpt2", "gpt_oss", "granite", "granitemoehybrid",
    "hunyuan_v1_dense", "jamba", "lfm2", "llama", "llama4_text", "mamba2", "minicpm3", "mistral",
    "mixtral", "nemotron_h", "olmo2", "olmoe", "phi3", "qwen2", "qwen3", "qwen3_5_text",
    "qwen3_moe", "qwen3_next", "recurrent_gemma", "smollm3", "starcoder2",
    # wrappers, trained on text
    "gemma3", "llama4", "mistral3", "qwen2_5_vl", "qwen3_5", "qwen3_vl",
]  # fmt: skip
VOCABULARY = 259


def judge(task, rollout):
    hits = sum(character in "abcdefgh" for character in rollout.text)
    return sdpo.Verdict(reward=float(hits > 0), solved=hits > 0, feedback=f"{hits} letters")


def make(family: str) -> torch.nn.Module:
    if family in TEXT:
        return build_wrapper(family, vocab_size=VOCABULARY)
    # Gemma 3n has a second embedding of the same tokens.
    more = {"vocab_size_per_layer_input": VOCABULARY} if family == "gemma3n_text" else {}
    return build(family, vocab_size=VOCABULARY, **more)


def last_row(run: Path) -> dict[str, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {name: value for name, value in rows[-1].items() if not name.startswith("time/")}


@pytest.mark.parametrize(
    "family", [*UNUSUAL, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_a_family_goes_the_whole_way(family, tmp_path):
    folder = tmp_path / "model"
    make(family).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    settings = [
        f"model.name={folder}", "model.dtype=float32", "model.device=cpu",
        "rollout.tasks_per_step=2", "rollout.group_size=3", "optim.lr=1e-3",
        "rollout.max_completion_tokens=5", "rollout.max_prompt_tokens=100", "eval.every=0",
        "eval.samples=1", "teacher.context.max_tokens=200", "objective.type=hybrid",
    ]  # fmt: skip
    env = sdpo.env([{"id": f"t{i}", "prompt": f"say {i}"} for i in range(4)], judge)
    assert len(sdpo.check(*settings, env=env).notes) == 3

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    sdpo.train(f"run={whole}", "steps=2", *settings, env=env)
    for steps in (1, 2):
        sdpo.train(f"run={resumed}", f"steps={steps}", *settings, env=env)
    row = last_row(whole)
    assert last_row(resumed) == row
    assert row["policy/sampler_gap_max"] < 1e-3
    before = load_file(folder / "model.safetensors")
    saved, again = (
        load_file(run / "checkpoints" / "step-2" / "model.safetensors") for run in (whole, resumed)
    )
    assert saved.keys() == again.keys() == before.keys()
    assert all(torch.equal(saved[name], again[name]) for name in saved)
    assert all(bool(weight.isfinite().all()) for weight in saved.values())
    assert any(not torch.equal(saved[name], before[name]) for name in saved)

    exported = export_run(whole, tmp_path / "exported")
    evaluation = sdpo.evaluate(str(whole), env=env, split="train")
    assert set(evaluation.num_judged.values()) == {1}
    loads = getattr(transformers, exported.loader)
    original = loads.from_pretrained(folder)
    reloaded, info = loads.from_pretrained(exported.folder, output_loading_info=True)
    assert type(reloaded) is type(original)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
