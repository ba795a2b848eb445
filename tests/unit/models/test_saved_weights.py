"""A sampler's copy has what a checkpoint would have: names, buffers, merged adapters."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sdpo.config.schema import LoraConfig
from sdpo.models.adapters import new_adapter
from sdpo.models.saved_weights import merged_weights, saved_weights

sys.path.insert(0, str(Path(__file__).parents[2] / "families"))
from tiny_families import build, families

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' notes about missing kernels

UNUSUAL = ["glm4_moe", "qwen3_moe", "ernie4_5_moe", "gpt_oss", "gemma2", "mamba2"]
"""Correction biases, fused experts of several kinds, tied heads, no attention."""


def file_of(model, folder):
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert torch.equal(ours[name], weight), name


@pytest.mark.parametrize(
    "family",
    [
        *UNUSUAL,
        *(pytest.param(f, marks=pytest.mark.slow) for f in families() if f not in UNUSUAL),
    ],
)
def test_names_and_values_are_those_of_a_checkpoint(family, tmp_path):
    model = build(family)
    with torch.no_grad():
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(0.25)  # zeros would not show a missing one
    saved = file_of(model, tmp_path)
    assert_equal({name: w.contiguous() for name, w in saved_weights(model).items()}, saved)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"use_dora": True}),  # PEFT has none for experts
        ("qwen3_moe", {}),
        ("glm4_moe", {}),
        ("mixtral", {}),
        ("gpt_oss", {}),
    ],
)
def test_adapters_are_merged_as_peft_does_and_the_base_stays_exact(family, options, tmp_path):
    pytest.importorskip("peft")
    model = build(family)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    wanted = LoraConfig(rank=4, options={**options, "init_lora_weights": False})
    adapted = new_adapter(model, wanted, base="base", seed=0)
    ours = {name: weight.clone() for name, weight in saved_weights(adapted).items()}
    for name, weight in adapted.get_base_model().state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(weight, before[name.replace("base_layer.", "")]), name
    in_memory = merged_weights(adapted)
    assert in_memory.keys() == before.keys()
    merged = file_of(adapted.merge_and_unload(), tmp_path)
    assert_equal(ours, merged)
    changed = [name for name in before if not torch.equal(in_memory[name], before[name])]
    assert len(changed) >= 4
