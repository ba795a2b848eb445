"""What is counted on a model without weights against what real tensors take, and what is advised.

Measured is the memory of tensors that are alive (`LiveBytes`) in a real update of a real model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config

from sdpo.cli import run
from sdpo.config.load import builtin_recipes, load_config
from sdpo.errors import ConfigError, ModelError
from sdpo.memory import Cards, advice, plan_memory
from sdpo.memory.live_bytes import LiveBytes
from sdpo.memory.plan import Outlines
from sdpo.models.hidden import enable_checkpointing
from sdpo.models.outline import shape_of, shipped_shapes
from sdpo.objectives import objective_spec
from sdpo.parallel import Parallel
from sdpo.records import Sample
from sdpo.report.memory_table import memory_lines
from sdpo.teacher.schedule import TeacherSchedule
from sdpo.testing import byte_tokenizer, tiny_model
from sdpo.training.optim import Optimizer
from sdpo.training.step import Updater

ROOT = Path(__file__).parents[3]
PROMPT, TEACHER_PROMPT, COMPLETION, ATTEMPTS = 4, 12, 252, 4
TOKENS = PROMPT + ATTEMPTS * COMPLETION
QWEN3_8B = Qwen3Config(
    hidden_size=4096, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
    intermediate_size=12288, vocab_size=151936, head_dim=128, tie_word_embeddings=False,
)  # fmt: skip


def attempts():
    """A group whose prompt is short, so that nearly every token trains, as a plan assumes."""
    return [
        Sample(
            task_id="t", index=index, prompt_ids=(1,) * PROMPT,
            completion_ids=tuple((7 * t + index) % 250 for t in range(COMPLETION)),
            loss_mask=(True,) * COMPLETION, sampler_logprobs=(-5.0,) * COMPLETION,
            teacher_prompt_ids=(2,) * TEACHER_PROMPT, advantage=0.0,
            component_weights={"distill": 1.0},
        )
        for index in range(ATTEMPTS)
    ]  # fmt: skip


def told_and_measured(folder, dtype, schedule, *, checkpointing):
    """The plan's most and the most that was alive, weights and teacher included."""
    name = str(dtype).removeprefix("torch.")
    model = tiny_model("qwen3", hidden_size=256, num_layers=4, dtype=dtype)
    model.config.save_pretrained(folder)
    config = load_config(
        [
            f"model.name={folder}", "model.device=cpu", f"model.dtype={name}",
            "rollout.tasks_per_step=1", f"rollout.group_size={ATTEMPTS}",
            f"rollout.max_prompt_tokens={PROMPT}", f"rollout.max_completion_tokens={COMPLETION}",
            f"teacher.context.max_tokens={TEACHER_PROMPT}", f"teacher.schedule.type={schedule}",
            f"optim.micro_batch_tokens={TOKENS}",
            f"optim.gradient_checkpointing={str(checkpointing).lower()}",
        ]
    )  # fmt: skip
    plan = plan_memory(config, Cards.parse("1x1"))
    if checkpointing:
        enable_checkpointing(model)
    weights = sum(p.nbytes for p in model.parameters())
    with LiveBytes(known=[*model.parameters(), *model.buffers()]) as live:
        watched = TeacherSchedule(config.teacher.schedule, model)
        spec = objective_spec(
            config.objective, step=0, temperature=1.0, max_completion_tokens=COMPLETION,
            trust=watched.trust,
        )  # fmt: skip
        updater = Updater(
            model, byte_tokenizer(), Optimizer(config.optim, model), watched,
            config=config.optim, objective=config.objective, parallel=Parallel(),
        )  # fmt: skip
        updater.step([attempts()], spec, where="test")
    return max(plan.phases["update"], plan.phases["teacher"]), weights + live.peak


@pytest.mark.parametrize(
    ("dtype", "schedule", "checkpointing"),
    [
        (torch.float32, "ema", False),
        (torch.float32, "trust_region", True),
        (torch.bfloat16, "ema", False),
        (torch.bfloat16, "live", True),
    ],
)
def test_an_update_takes_what_was_told(tmp_path, dtype, schedule, checkpointing):
    told, measured = told_and_measured(tmp_path, dtype, schedule, checkpointing=checkpointing)
    print(f"TOLD {told / 1e6:.1f} MB, measured {measured / 1e6:.1f} MB, {told / measured:.3f}")
    assert told == pytest.approx(measured, rel=0.15)


def test_activations_without_weights_are_those_of_a_real_pass(tmp_path):
    """Whatever the number of layers: a long model is counted by two short ones."""
    from sdpo.config.schema import ModelConfig
    from sdpo.memory.passes import Passes

    model = tiny_model("llama", num_layers=6)
    model.config.save_pretrained(tmp_path)
    passes = Passes(shape_of(str(tmp_path)), ModelConfig(), torch.float32, "cpu")
    assert passes.weights().num_all == sum(p.numel() for p in model.parameters())
    whole = passes.student(300, 300)
    passes._layers = None
    passes._found.clear()
    assert passes.student(300, 300) == whole
    assert passes.cache_token() == 6 * 2 * 2 * 16 * 4


def test_the_papers_recipe_fits_on_four_cards_of_96_gb_and_not_on_one():
    outlines = Outlines()
    config = load_config(["paper-lcb-sdpo"])
    plan = plan_memory(config, Cards.parse("4x96"), outlines)
    assert plan.weights.num_all == 8_190_735_360
    assert plan.mode == "shard"
    assert plan.fits
    # float32 masters, moments, EMA teacher: 16 bytes a weight over four cards.
    names = ("float32 masters", "Adam moments", "teacher")
    assert sum(plan.parts[name] for name in names) == 4 * plan.weights.num_all
    alone = plan_memory(config, Cards.parse("1x80"), outlines)
    # The review's arithmetic: 24 bytes a weight, 197 GB before any activation.
    standing = sum(alone.parts[name] for name in ("weights", "gradients", *names))
    assert standing / 1e9 == pytest.approx(197, abs=1)
    assert not alone.fits
    assert "model.adapter.type=lora" in advice(alone, outlines)


def test_a_second_node_saves_memory_only_where_weights_are_shared_over_both():
    outlines = Outlines()
    standing = {}
    for cards, parallel in (("8x80", "auto"), ("2x8x80", "auto"), ("2x8x80", "shard_all")):
        config = load_config(["qwen3-8b-8gpu", f"model.parallel={parallel}"])
        plan = plan_memory(config, Cards.parse(cards), outlines)
        standing[cards, parallel] = plan.parts["Adam moments"]
        assert plan.checkpoint == pytest.approx(18 * plan.weights.num_all)
    assert standing["2x8x80", "auto"] == standing["8x80", "auto"]
    assert standing["2x8x80", "shard_all"] == standing["8x80", "auto"] / 2
    config = load_config(["qwen3-8b-8gpu", "rollout.engine.memory_fraction=0.5"])
    small = plan_memory(config, Cards.parse("4x2x80"), outlines)
    assert not small.fits
    assert "model.parallel=shard_all" in advice(small, outlines)


def test_offloading_is_counted_and_advised(tmp_path):
    """Qwen3-1.7B on one card of 40 GB: 16 of 24 bytes a weight are AdamW's."""
    shape = {**QWEN3_8B.to_dict(), "hidden_size": 2048, "num_hidden_layers": 28}
    shape |= {"num_attention_heads": 16, "intermediate_size": 6144, "tie_word_embeddings": True}
    del shape["layer_types"]
    (tmp_path / "config.json").write_text(json.dumps(shape))
    outlines = Outlines(tmp_path / "config.json")
    told = ["quickstart", "model.name=nobody/none", "optim.micro_batch_tokens=1024"]
    plan = plan_memory(load_config(told), Cards.parse("1x40"), outlines)
    assert not plan.fits
    assert advice(plan, outlines).startswith("fits with optim.offload=true")
    moved = plan_memory(load_config([*told, "optim.offload=true"]), plan.cards, outlines)
    assert moved.fits
    assert moved.in_cpu == 16 * plan.weights.num_trained
    assert plan.peak - moved.peak == pytest.approx(moved.in_cpu)
    assert moved.checkpoint == plan.checkpoint
    assert dict(memory_lines(moved))["CPU memory beside it"]
    # Shared out, float32 weights and their gradient stay where FSDP has them.
    outlines = Outlines()
    shared = [load_config(["paper-lcb-sdpo", f"optim.offload={v}"]) for v in ("false", "true")]
    here, there = (plan_memory(config, Cards.parse("4x96"), outlines) for config in shared)
    assert here.phases["update"] - there.phases["update"] == here.parts["Adam moments"]
    assert there.in_cpu == 16 * here.weights.num_trained / 4
    # Adapters are whole everywhere, and all that AdamW keeps of them moves.
    adapted = ["qwen3-8b-lora-1gpu", "model.parallel=shard", "optim.offload=true"]
    parts = plan_memory(load_config(adapted), Cards.parse("2x48"), outlines).parts
    assert parts["gradients"] == parts["float32 masters"] == parts["Adam moments"] == 0


def test_a_smaller_micro_batch_is_advised_where_it_is_enough():
    outlines = Outlines()
    config = load_config(["learn-schema", "optim.micro_batch_tokens=65536"])
    plan = plan_memory(config, Cards.parse("1x24"), outlines)
    assert not plan.fits
    advised = advice(plan, outlines)
    assert advised.startswith("fits with optim.")
    changed = load_config(["learn-schema", "optim.micro_batch_tokens=65536", advised.split()[2]])
    assert plan_memory(changed, Cards.parse("1x24"), outlines).fits


def test_a_config_json_stands_for_a_model_that_is_out_of_reach(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sdpo.models.outline.is_reachable", lambda source: False)
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_8B.to_dict()))
    with pytest.raises(ModelError, match=r"'nobody/none'.*--model-shape FILE"):
        shape_of("nobody/none")
    arguments = ["check", "paper-lcb-sdpo", "model.name=nobody/none", "--gpus", "2x8x80"]
    assert run(arguments) == 2
    assert "--model-shape FILE" in capsys.readouterr().err
    assert run([*arguments, "--model-shape", str(tmp_path / "config.json")]) == 0
    shown = capsys.readouterr().out
    assert "8.19 B weights" in shown
    assert "2 nodes of 8 cards with 80 GB" in shown


def test_every_hub_model_of_a_recipe_is_known_without_a_network():
    named = {load_config([name]).model.name for name in builtin_recipes()}
    assert {name for name in named if name[:4] != "runs" and "/" in name} <= shipped_shapes().keys()
    for name in shipped_shapes():
        assert shape_of(name).num_hidden_layers > 0


@pytest.mark.parametrize("written", ["", "80", "8x", "0x80", "1x2x3x4", "8x80GB"])
def test_cards_are_written_in_one_way(written):
    with pytest.raises(ConfigError, match="such as 8x80 or 2x8x80"):
        Cards.parse(written)


@pytest.mark.slow
def test_the_page_on_scale_says_what_the_command_says():
    """Every row of its table of recipes."""
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| ([0-9x]+) \| (.+) \|$", text, re.MULTILINE)
    assert {name for name, _, _ in rows} >= {
        name for name in builtin_recipes() if name.startswith(("qwen3", "paper-lcb"))
    }
    outlines = Outlines()
    for name, cards, written in rows:
        plan = plan_memory(load_config([name]), Cards.parse(cards), outlines)
        lines = dict(memory_lines(plan))
        found = [
            lines.get(key, "-")
            for key in (
                "peak while sampling", "peak while the teacher reads",
                "peak while the policy trains", "one checkpoint on disk",
            )
        ]  # fmt: skip
        assert (name, found) == (name, written.split(" | "))
