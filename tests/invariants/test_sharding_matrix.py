"""1 = 2 = 4 processes up to rounding: families of models, schedules, objectives, adapters, and
number formats, with shared weights and with replicas."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes_worker import train
from safetensors.torch import load_file
from test_sharding import (
    COMMON,
    LR,
    SHARD,
    assert_same_training,
    assert_same_weights,
    looked,
    processes,
    save_model,
)
from transformers import AutoConfig, AutoModelForCausalLM

from sdpo.metrics.jsonl import read_rows
from sdpo.testing import byte_tokenizer

STEPS = 5

# Model, and what differs from the common settings. Every kind of teacher, every kind of pass (the
# old policy's, the initial model's, wrong demonstrations, the teacher's own attempts).
# fmt: off
CASES = {
    "ema": ("untied", []),
    "live": ("qwen3", ["teacher.schedule.type=live", "optim.gradient_checkpointing=true"]),
    "snapshot": ("gemma3_text", ["teacher.schedule.type=snapshot", "teacher.schedule.every=2"]),
    "frozen": ("qwen3_moe", ["teacher.schedule.type=frozen"]),
    "gated": ("llama", ["teacher.schedule.type=gated", "teacher.schedule.every=2"]),
    "trust region": ("llama", ["teacher.schedule.type=trust_region"]),
    "kl": ("gemma3_text", ["objective.kl_coefficient=0.1"]),
    "old policy": ("qwen3", ["objective.type=hybrid", "optim.updates_per_step=2",
                             "rollout.tasks_per_step=5"]),
    "negatives": ("llama", ["objective.type=rlcsd"]),
    "sft": ("llama", ["objective.type=sft", "rollout.max_completion_tokens=24"]),
    "small micro-batches": ("llama", ["optim.micro_batch_tokens=64"]),
    "lora": ("untied", ["model.adapter.type=lora", "model.adapter.rank=4"]),
    # Compared loosely: sums of narrow gradients depend on how they are split.
    "bfloat16": ("untied", ["model.dtype=bfloat16"]),
}
# fmt: on
REPLICAS = ("ema", "frozen", "lora")
"""Cases that two replicas train as well."""
FOUR = ("ema", "frozen", "sft", "lora")
"""Cases that four processes train as well: three tasks, so one of them has none."""


def save_mixture(folder: Path) -> None:
    """Eight experts of which a token takes two."""
    shape = AutoConfig.for_model(
        "qwen3_moe", vocab_size=259, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=8,
        num_experts_per_tok=2, moe_intermediate_size=32, max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(shape, dtype=torch.float32).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("matrix")
    for family in ("llama", "qwen3", "gemma3_text"):
        save_model(folder / family, family)
    save_model(folder / "untied", tied=False)
    save_mixture(folder / "qwen3_moe")
    overrides = {
        case: [
            f"model.name={folder / model}", *COMMON, "model.dtype=float32", f"steps={STEPS}",
            "checkpoint.every=0", "eval.every=0", *own,
        ]
        for case, (model, own) in CASES.items()
    }  # fmt: skip
    for case, settings in overrides.items():
        train(folder / f"1-{case}", settings)
    shared = [(folder / f"2-{case}", [*own, SHARD]) for case, own in overrides.items()]
    shared += [(folder / f"r-{case}", overrides[case]) for case in REPLICAS]
    chain = [*overrides["ema"], SHARD]
    processes(2, [*shared, (folder / "chain", [*chain, "steps=2"])], timeout_s=2400)
    four = [(folder / f"4-{case}", [*overrides[case], SHARD]) for case in FOUR]
    processes(4, [*four, (folder / "chain", [*chain, "steps=4"])], timeout_s=2400)
    train(folder / "chain", overrides["ema"])
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("kind", "case"),
    [("2", case) for case in CASES if case != "bfloat16"]
    + [("r", case) for case in REPLICAS]
    + [("4", case) for case in FOUR],
)
def test_any_number_of_processes_trains_the_same(runs, kind, case):
    assert_same_training(runs / f"1-{case}", runs / f"{kind}-{case}", steps=STEPS)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_two_four_and_one_process_take_turns(runs, step):
    """Two processes train two steps, four the next two, one the last."""
    assert_same_weights(runs / "1-ema", runs / "chain", step=step)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_narrow_weights_train_alike(runs):
    """And each process keeps half of float32 weights, moments and teacher, and nothing narrow."""
    one, two = (list(read_rows(runs / f"{n}-bfloat16" / "metrics.jsonl")) for n in (1, 2))
    for key in ("loss/total", "optim/grad_norm"):
        assert two[1][key] == pytest.approx(one[1][key], rel=0.05), key
    for step in range(1, STEPS + 1):
        alone, shared = (
            load_file(f"{runs}/{n}-bfloat16.step-{step}.rank-0.safetensors") for n in (1, 2)
        )
        for name, weight in alone.items():
            assert shared[name].dtype == torch.bfloat16
            difference = (weight.float() - shared[name].float()).abs()
            assert (difference <= 2.5 * LR * step + weight.float().abs() / 128).all(), name
    count = sum(weight.numel() for weight in shared.values())
    assert looked(runs / "2-bfloat16", 0)["bytes"] == pytest.approx(16 * count / 2, rel=0.02)
