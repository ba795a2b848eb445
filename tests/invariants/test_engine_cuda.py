"""Sampling on CUDA: captured steps give what one completion at a time gives."""

from __future__ import annotations

import pytest
import torch
from engine_requests import make_requests, token_ids

from sdpo.engines.base import Sampling
from sdpo.engines.completions import open_completions
from sdpo.engines.fallback import SlowSampler
from sdpo.engines.local import LocalEngine
from sdpo.models.qualify import FastPath, fast_path_of
from sdpo.testing import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text"]
LENGTHS = (1, 7, 12, 140, 3, 60)
SAMPLING = Sampling(max_new_tokens=70, stop_ids=(3, 9, 40, 41))
"""Captured steps hold 64 columns of suffix: completions here cross that line."""


def build(family: str, dtype: torch.dtype = torch.float32, window: int | None = None):
    """A model whose distributions are far from flat."""
    model = tiny_model(family)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 4.0
    for module in model.modules() if window else ():
        if getattr(module, "sliding_window", None) is not None:
            module.sliding_window = window
    if window:
        model.config.sliding_window = window
    return model.to("cuda", dtype)


def one_at_a_time(model, requests, sampling):
    prompts, groups = open_completions(requests, sampling)
    with torch.no_grad():
        for completions in groups:
            SlowSampler(
                model,
                prompts,
                completions,
                sampling,
                max_sequences=len(completions),
                max_prefill_tokens=4096,
            ).run()
    return [[completion.close() for completion in group] for group in groups]


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_steps_sample_the_same(family):
    windowed = family in ("mistral", "gemma2", "gemma3_text")
    model, requests = (
        build(family, window=33 if windowed else None),
        make_requests(LENGTHS, group=5, vocab_size=259),
    )
    engine = LocalEngine(model)
    ours, expected = engine.generate(requests, SAMPLING), one_at_a_time(model, requests, SAMPLING)
    assert isinstance(fast_path_of(model), FastPath)
    assert engine._state is not None, "no captured steps were kept"
    assert token_ids(ours) == token_ids(expected)
    assert token_ids(LocalEngine(model, max_sequences=7).generate(requests, SAMPLING)) == token_ids(
        expected
    )
    for mine, theirs in zip(ours, expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_captured_steps_see_weights_changed_in_place(dtype):
    model, requests = build("qwen3", dtype), make_requests(LENGTHS, group=5, vocab_size=259)
    engine = LocalEngine(model)
    engine.generate(requests, SAMPLING)
    kept = engine._state
    for parameter in model.parameters():
        parameter.data += 0.3 * parameter.data.roll(1, 0)
    engine.load_weights(model, 1)
    again = engine.generate(requests, SAMPLING)
    assert engine._state is kept
    assert token_ids(again) == token_ids(LocalEngine(model).generate(requests, SAMPLING))


def test_bfloat16_samples_with_the_probabilities_of_a_plain_pass():
    """They round differently, and no more than that."""
    model, requests = (
        build("llama", torch.bfloat16),
        make_requests(LENGTHS, group=5, vocab_size=259),
    )
    differences = []
    for request, group in zip(
        requests, LocalEngine(model).generate(requests, SAMPLING), strict=True
    ):
        for completion in group:
            ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]], device="cuda")
            start = len(request.prompt_ids)
            with torch.no_grad():
                logprobs = model(ids).logits[0, start - 1 : -1].float().log_softmax(-1)
            plain = logprobs.gather(1, ids[0, start:, None])[:, 0].cpu()
            differences.append(torch.tensor(completion.logprobs) - plain)
    difference = torch.cat(differences)
    assert difference.abs().mean() < 0.05
    assert difference.mean().abs() < 0.01
