"""Packed and unpacked agree in hidden rows, loss and gradients, for every family and every
split."""

from __future__ import annotations

import random

import pytest
import torch

from sdpo.testing import tiny_model
from sdpo.training.packing import PackItem, _padded_rows, hidden_rows, pack, recomputing

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text"]


def items(seed=0, shared=True):
    rng = random.Random(seed)
    prompts = [tuple(rng.randrange(259) for _ in range(n)) for n in (7, 12, 3)]
    found = []
    for number in range(9):
        length = [0, 1, 2, 5, 9, 4, 1, 7, 3][number]
        completion = tuple(rng.randrange(259) for _ in range(length))
        prompt = prompts[number % 3] if shared else (*prompts[number % 3], number)
        mask = tuple(rng.random() < 0.8 for _ in completion)
        found.append(PackItem(prompt_ids=prompt, completion_ids=completion, loss_mask=mask))
    return found


def plain_rows(model, chosen):
    """One plain forward pass per item."""
    parts = []
    for item in chosen:
        ids = torch.tensor([item.prompt_ids + item.completion_ids])
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        start = len(item.prompt_ids) - 1
        parts.append(hidden[[start + t for t, m in enumerate(item.loss_mask) if m]])
    return parts


def packed_rows(model, chosen, budget, rows=hidden_rows):
    parts = {}
    for batch in pack(chosen, budget_tokens=budget):
        counts = [sum(chosen[i].loss_mask) for i in batch.item_indices]
        parts |= dict(zip(batch.item_indices, rows(model, batch).split(counts), strict=True))
    return [parts[i] for i in range(len(chosen))]


# transformers computes norms and rotary tables in float32 whatever the weights are, which bounds
# the agreement.
def loss_and_gradients(model, parts):
    model.zero_grad()
    weights = [torch.arange(p.numel(), dtype=p.dtype).view(p.shape).sin() for p in parts]
    loss = sum((p * w).sum() for p, w in zip(parts, weights, strict=True))
    with recomputing(model):
        loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shared", [True, False])
def test_packed_equals_plain_forward_in_value_and_gradient(family, shared):
    model = tiny_model(family, dtype=torch.float64)
    chosen = items(shared=shared)
    expected, expected_gradients = loss_and_gradients(model, plain_rows(model, chosen))
    for budget in (1, 20, 40, 10_000):
        loss, gradients = loss_and_gradients(model, packed_rows(model, chosen, budget))
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        for ours, theirs in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_agrees_to_rounding(family):
    model = tiny_model(family)
    chosen = items()
    for ours, theirs in zip(
        packed_rows(model, chosen, 10_000), plain_rows(model, chosen), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_fallback_gives_the_same_rows():
    model = tiny_model("llama", dtype=torch.float64)
    chosen = items()
    fallback = packed_rows(model, chosen, 40, rows=_padded_rows)
    for ours, theirs in zip(fallback, plain_rows(model, chosen), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_sliding_window_shorter_than_the_sequence_is_respected():
    model = tiny_model("mistral", dtype=torch.float64)
    model.config.sliding_window = 4
    chosen = items()
    for ours, theirs in zip(
        packed_rows(model, chosen, 10_000), plain_rows(model, chosen), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_gradient_checkpointing_changes_nothing():
    model = tiny_model("llama", dtype=torch.float64)
    chosen = items()
    expected, expected_gradients = loss_and_gradients(model, packed_rows(model, chosen, 40))
    model.activation_checkpointing_enable()
    loss, gradients = loss_and_gradients(model, packed_rows(model, chosen, 40))
    assert not model.training
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_prompt_is_computed_once_and_budgets_hold():
    chosen = [PackItem(prompt_ids=(1,) * 50, completion_ids=(2,) * 10, loss_mask=(True,) * 10)] * 8
    (batch,) = pack(chosen, budget_tokens=1000)
    assert len(batch.layout.ids) == 50 + 8 * 9
    batches = pack(chosen, budget_tokens=100)
    assert [len(b.item_indices) for b in batches] == [5, 3]
    assert sorted(i for b in batches for i in b.item_indices) == list(range(8))
    assert [len(b.item_indices) for b in pack(chosen, budget_tokens=1)] == [1] * 8
    assert pack([], budget_tokens=10) == []
