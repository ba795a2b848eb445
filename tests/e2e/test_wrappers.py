"""Models that read images are trained on text: the wrapper stays, its towers as they were."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import sdpo
from sdpo.models.policy import load_policy
from sdpo.models.wrapper import tower_parameters
from sdpo.testing import byte_tokenizer

sys.path.insert(0, str(Path(__file__).parent.parent / "families"))
from tiny_wrappers import build_wrapper

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' notes about missing kernels


def judge(task, rollout):
    hits = sum(character in "abcdefgh" for character in rollout.text)
    return sdpo.Verdict(reward=float(hits > 0), solved=hits > 0, feedback=f"{hits} letters")


def train(family, tmp_path, *extra):
    build_wrapper(family, vocab_size=259).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text('{"do_resize": true}')
    env = sdpo.env([{"id": f"t{i}", "prompt": f"say {i}"} for i in range(2)], judge)
    sdpo.train(
        f"run={tmp_path / 'run'}", f"model.name={tmp_path / 'model'}", "model.dtype=float32",
        "steps=2", "rollout.tasks_per_step=2", "rollout.group_size=3", "optim.lr=1e-3",
        "rollout.max_completion_tokens=4", "rollout.max_prompt_tokens=100", "eval.every=0",
        "teacher.context.max_tokens=200", "objective.type=hybrid", *extra, env=env,
    )  # fmt: skip
    return tmp_path / "run" / "checkpoints" / "step-2"


@pytest.mark.parametrize("family", ["qwen3_5", "qwen2_5_vl", "mistral3", "gemma3", "llama4"])
def test_a_wrapper_trained_on_text_keeps_its_towers(family, tmp_path):
    checkpoint = train(family, tmp_path)
    before = load_file(tmp_path / "model" / "model.safetensors")
    saved = load_file(checkpoint / "model.safetensors")
    assert saved.keys() == before.keys()
    models = [
        AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        for folder in (tmp_path / "model", checkpoint)
    ]
    assert type(models[0]) is type(models[1])
    old, new = (dict(model.named_parameters()) for model in models)
    towers = {name for name, _ in tower_parameters(models[0])}
    assert any("vision" in name or "visual" in name for name in towers)
    assert all(torch.equal(old[name], new[name]) for name in towers)
    assert any(not torch.equal(old[name], new[name]) for name in old.keys() - towers)
    assert json.loads((checkpoint / "preprocessor_config.json").read_text()) == {"do_resize": True}
    again = load_policy(str(tmp_path / "run"), dtype="float32")
    assert type(again.model) is type(models[0])


def test_a_new_adapter_leaves_the_towers_alone(tmp_path):
    pytest.importorskip("peft")
    checkpoint = train("qwen2_5_vl", tmp_path, "model.adapter.type=lora")
    names = load_file(checkpoint / "adapter_model.safetensors").keys()
    assert names
    assert not [name for name in names if "language_model" not in name]
    merged = load_policy(str(checkpoint), dtype="float32").model
    assert type(merged).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert not any(p.requires_grad for _, p in tower_parameters(merged))
