"""Packing on CUDA: FlexAttention runs, agrees with plain rows, and saves time and memory."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from sdpo.models import packing
from sdpo.models.hidden import enable_checkpointing
from sdpo.models.packing import PackItem, hidden_rows, pack
from sdpo.models.qualify import Refusal, tree_kind_of
from sdpo.testing import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    # torch's own compiler warns on import paths and recompilation; nothing of ours does.
    pytest.mark.filterwarnings("default"),
]

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text"]


@pytest.fixture(autouse=True)
def _compiled_anew():
    """After a few compilations for other models torch runs flex attention uncompiled."""
    torch._dynamo.reset()


def contexts(seed=0, prompt=90, completion=40, num_tasks=3):
    """Per task a prompt, two demonstrations, and two attempts after each."""
    rng = random.Random(seed)

    def tokens(count):
        return tuple(rng.randrange(259) for _ in range(count))

    items = []
    for _ in range(num_tasks):
        task = tokens(prompt)
        for demonstration in (tokens(50), tokens(70)):
            for n in (completion, completion // 2):
                mask = tuple(rng.random() < 0.8 for _ in range(n))
                items.append(
                    PackItem(
                        prompt_ids=task + demonstration,
                        completion_ids=tokens(n),
                        loss_mask=mask,
                    )
                )
    return items


def gradients_of(model, rows, batch):
    model.zero_grad()
    weights = torch.linspace(-1, 1, rows.numel(), device=rows.device).view(rows.shape)
    # Rows in the order of items, so that every way of computing them gets the same weights.
    order = batch.row_items.argsort(stable=True).to(rows.device)
    (rows[order].float() * weights).sum().backward()
    return {n: p.grad.float().clone() for n, p in model.named_parameters() if p.grad is not None}


def rows_by(kind, model, batch):
    """Hidden rows by attention of one kind; a `Refusal`: each item in a row of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "tree_kind_of", lambda model: kind)
        return hidden_rows(model, batch)


def plain(model, batch):
    return rows_by(Refusal(reason="a test"), model, batch)


def largest_difference(ours, theirs):
    return max(
        float((ours[n] - theirs[n]).norm() / theirs[n].norm().clamp_min(1e-6)) for n in theirs
    )


def test_flex_is_chosen():
    assert tree_kind_of(tiny_model("llama").cuda()) == "flex"
    assert tree_kind_of(tiny_model("llama", dtype=torch.bfloat16).cuda()) == "flex"


@pytest.mark.parametrize("kind", ["flex", "branches"])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_rows_and_gradients_agree(family, kind):
    model = tiny_model(family).cuda()
    (batch,) = pack(contexts(), budget_tokens=100_000)
    expected = plain(model, batch)
    expected_gradients = gradients_of(model, expected, batch)
    rows = rows_by(kind, model, batch)
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=2e-5)
    assert largest_difference(gradients_of(model, rows, batch), expected_gradients) < 1e-4


@pytest.mark.parametrize("kind", ["flex", "branches"])
@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
def test_short_windows_agree(family, kind):
    model = tiny_model(family).cuda()
    model.config.sliding_window = 33
    for module in model.modules():
        if getattr(module, "sliding_window", None) is not None:
            module.sliding_window = 33
    (batch,) = pack(contexts(), budget_tokens=100_000)
    expected = plain(model, batch)
    torch.testing.assert_close(rows_by(kind, model, batch), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["flex", "branches"])
def test_bfloat16_is_as_close_as_plain_bfloat16(kind):
    """The error against float32 is at most that of plain rows in bfloat16, with a margin."""
    model = tiny_model("qwen3").cuda()
    (batch,) = pack(contexts(), budget_tokens=100_000)
    exact = gradients_of(model, plain(model, batch), batch)
    model = model.bfloat16()
    rounded = largest_difference(gradients_of(model, plain(model, batch), batch), exact)
    ours = largest_difference(gradients_of(model, rows_by(kind, model, batch), batch), exact)
    assert ours < 1.5 * rounded + 1e-3


def test_rows_of_many_lengths_and_without_gradients():
    """Dynamic shapes: compiled code serves every length, with and without a graph."""
    model = tiny_model("llama").cuda()
    assert tree_kind_of(model) == "flex"
    for seed, prompt in enumerate((5, 90, 300, 17, 700, 120)):
        (batch,) = pack(contexts(seed, prompt), budget_tokens=100_000)
        rows = hidden_rows(model, batch)
        with torch.no_grad():
            torch.testing.assert_close(hidden_rows(model, batch), rows.detach())
            expected = plain(model, batch)
        torch.testing.assert_close(rows.detach(), expected, rtol=1e-4, atol=2e-5)


def test_recomputed_layers_give_the_same_gradients():
    model = tiny_model("llama").cuda()
    (batch,) = pack(contexts(), budget_tokens=100_000)
    expected = gradients_of(model, hidden_rows(model, batch), batch)
    enable_checkpointing(model)
    rows = hidden_rows(model, batch)
    assert largest_difference(gradients_of(model, rows, batch), expected) < 1e-5


def test_long_prompts_cost_a_fraction_of_padded_rows():
    """SmolLM2's shape, 8 rollouts of 96 tokens after 2,048: a sixth of the tokens."""
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=8,
        num_attention_heads=9, num_key_value_heads=3, head_dim=64, max_position_embeddings=8192,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).cuda().eval()
    rng = random.Random(0)
    prompt = tuple(rng.randrange(49152) for _ in range(2048))
    items = [
        PackItem(
            prompt_ids=prompt,
            completion_ids=tuple(rng.randrange(49152) for _ in range(96)),
            loss_mask=(True,) * 96,
        )
        for _ in range(8)
    ]
    (batch,) = pack(items, budget_tokens=100_000)

    def cost(kind):
        times = []
        for _ in range(6):
            torch.cuda.reset_peak_memory_stats()
            base = torch.cuda.memory_allocated()
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            rows_by(kind, model, batch).float().sum().backward()
            stop.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(stop))
            model.zero_grad()
        return min(times), torch.cuda.max_memory_allocated() - base

    kinds = {"separate": Refusal(reason="a test"), "branches": "branches", "flex": "flex"}
    found = {name: cost(kind) for name, kind in kinds.items()}
    print({kind: (round(ms, 1), size >> 20) for kind, (ms, size) in found.items()})
    assert found["flex"][0] < 0.6 * found["separate"][0]
    assert found["flex"][1] < 0.4 * found["separate"][1]
