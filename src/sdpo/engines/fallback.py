"""Sampling and scoring for any causal language model, with transformers' own cache.

For architectures that the fast path refuses (recurrent layers, positional biases, unusual
attention). One prompt at a time, so nothing is padded: padding would enter a recurrent state.
Finished completions are dropped where the cache can select rows.

Shapes: R completions of the prompt, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from transformers import DynamicCache, PreTrainedModel

from sdpo.engines.base import Sampling
from sdpo.engines.completions import Attempt
from sdpo.engines.sampling import sample_tokens, uniforms


def sample_prompt(
    model: PreTrainedModel,
    prompt_ids: tuple[int, ...],
    attempts: Sequence[Attempt],
    sampling: Sampling,
) -> None:
    """Fills `attempts`, all of one prompt, computed together."""
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        # Another name for the cache (Mamba) would be swallowed silently and forget the prompt.
        _sample_without_cache(model, prompt_ids, attempts, sampling)
        return
    live, device = list(attempts), model.device
    uniforms_RT = uniforms([a.seed for a in live], sampling.max_new_tokens).to(device)
    cache = DynamicCache(config=model.config)
    can_repeat, can_select = (
        all(hasattr(layer, method) for layer in cache.layers) and bool(cache.layers)
        for method in ("batch_repeat_interleave", "batch_select_indices")
    )
    ids_RT = torch.tensor([prompt_ids], device=device)
    if not can_repeat:
        ids_RT = ids_RT.expand(len(live), -1)
    for step in range(sampling.max_new_tokens):
        output = model(input_ids=ids_RT, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits_RV = output.logits[:, -1]
        if step == 0 and can_repeat:
            cache.batch_repeat_interleave(len(live))
            logits_RV = logits_RV.repeat(len(live), 1)
        tokens_R, logprobs_R = sample_tokens(logits_RV, uniforms_RT[:, step], sampling)
        for attempt, token, logprob in zip(
            live, tokens_R.tolist(), logprobs_R.tolist(), strict=True
        ):
            if not attempt.is_finished:
                attempt.append(token, logprob, sampling)
        kept = [row for row, attempt in enumerate(live) if not attempt.is_finished]
        if not kept:
            return
        if can_select and len(kept) < len(live):
            kept_R = torch.tensor(kept, device=device)
            cache.batch_select_indices(kept_R)
            live = [live[row] for row in kept]
            tokens_R, uniforms_RT = tokens_R[kept_R], uniforms_RT[kept_R]
        ids_RT = tokens_R[:, None]


def _sample_without_cache(
    model: PreTrainedModel,
    prompt_ids: tuple[int, ...],
    attempts: Sequence[Attempt],
    sampling: Sampling,
) -> None:
    """Computes every token's whole past again: quadratic in time, right for any model."""
    live = list(attempts)
    while live:
        ids_RT = torch.tensor([[*prompt_ids, *a.token_ids] for a in live], device=model.device)
        step = len(live[0].token_ids)
        numbers_R = uniforms([a.seed for a in live], step + 1)[:, step].to(model.device)
        logits_RV = model(input_ids=ids_RT, use_cache=False).logits[:, -1]
        tokens_R, logprobs_R = sample_tokens(logits_RV, numbers_R, sampling)
        for attempt, token, logprob in zip(
            live, tokens_R.tolist(), logprobs_R.tolist(), strict=True
        ):
            attempt.append(token, logprob, sampling)
        live = [attempt for attempt in live if not attempt.is_finished]
