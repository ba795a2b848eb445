"""Sampling for any causal language model, with transformers' own cache or without any.

For architectures that the fast path refuses (recurrent layers, positional biases, unusual
attention). One prompt at a time, so nothing is padded: padding would enter a recurrent state. The
model makes its own cache, and whether decoding with it gives what a plain pass gives is tried once;
where it does not, every step computes the whole sequence again.

Shapes: R completions of the prompt, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from sdpo.engines.base import Sampling
from sdpo.engines.completions import OpenCompletion
from sdpo.engines.sampling import sample_tokens, uniforms
from sdpo.errors import EngineError, first_line
from sdpo.models.structure import (
    changing_rotation,
    evaluating,
    float32_weights,
    max_positions,
    name_of,
    once,
    probe_ids,
)
from sdpo.models.trials import agree, plain_logits

_logger = logging.getLogger(__name__)

_CACHE_NAMES = ("past_key_values", "cache_params", "state")
"""What models call the cache that they return and take: most, Mamba, RWKV."""
_TRIAL_PROMPT = 9
_TRIAL_STEPS = 2


class _CachedRows:
    """Equal rows after one prompt, continued a token at a time with the model's own cache."""

    def __init__(self, model: PreTrainedModel, prompt_ids: Sequence[int], num_rows: int) -> None:
        self._model = model
        # Not every forward pass can leave out the logits of a prompt.
        takes = inspect.signature(model.forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        ids_1T = torch.tensor([tuple(prompt_ids)], device=model.device)
        self.logits_RV = self._read(ids_1T, None)
        if num_rows == 1:
            return
        if self.can_select:
            self._cache.batch_repeat_interleave(num_rows)
            self.logits_RV = self.logits_RV.repeat(num_rows, 1)
        else:
            # A recurrent state beside the keys: transformers would repeat the keys alone.
            self.logits_RV = self._read(ids_1T.expand(num_rows, -1), None)

    @property
    def can_select(self) -> bool:
        """Whether rows can be dropped: every layer caches keys and values and nothing else."""
        layers = getattr(self._cache, "layers", [])
        return bool(layers) and all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers
        )

    def step(self, tokens_R: torch.Tensor) -> None:
        self.logits_RV = self._read(tokens_R[:, None], self._cache)

    def select(self, kept_R: torch.Tensor) -> None:
        self._cache.batch_select_indices(kept_R)

    def _read(self, ids_RT: torch.Tensor, cache: Any) -> torch.Tensor:
        """Logits [R, V] after the last token; the first time the model makes a cache itself."""
        given = {} if cache is None else {self._cache_name: cache}
        output = self._model(input_ids=ids_RT, use_cache=True, **given, **self._options)
        self._cache_name = next(name for name in _CACHE_NAMES if getattr(output, name, None))
        self._cache: Any = getattr(output, self._cache_name)
        return output.logits[:, -1]


@once
@torch.no_grad()
def can_cache(model: PreTrainedModel) -> bool:
    """Whether `model` can be decoded with its own cache. Raises `EngineError` for a model that does
    not even run plainly."""
    ids_T = probe_ids(model, _TRIAL_PROMPT + _TRIAL_STEPS)
    with evaluating(model), float32_weights(model):
        try:
            expected_TV = plain_logits(model, ids_T)
        except Exception as error:
            raise EngineError(
                f"{name_of(model)} cannot be sampled here: {first_line(error)}; take another model"
            ) from error
        try:
            reason = "" if _decodes(model, ids_T, expected_TV) else "it gives other logits"
        except Exception as error:  # noqa: BLE001  # the code of hundreds of models raises anything
            reason = first_line(error)
    if reason:
        _logger.warning(
            "%s is sampled without a cache, which takes time quadratic in the length: decoding "
            "with its own cache fails (%s)",
            name_of(model),
            reason,
        )
    return not reason


def _decodes(model: PreTrainedModel, ids_T: torch.Tensor, expected_TV: torch.Tensor) -> bool:
    rows = _CachedRows(model, ids_T[:_TRIAL_PROMPT].tolist(), num_rows=2)
    found = [rows.logits_RV]
    for place in range(_TRIAL_PROMPT, len(ids_T)):
        rows.step(ids_T[place].expand(2))
        found.append(rows.logits_RV)
    places = torch.arange(_TRIAL_PROMPT - 1, len(ids_T))
    return agree(torch.cat(found), expected_TV[places].repeat_interleave(2, dim=0))


def sample_prompt(
    model: PreTrainedModel,
    prompt_ids: tuple[int, ...],
    completions: Sequence[OpenCompletion],
    sampling: Sampling,
) -> None:
    """Fills `completions`, all of one prompt, computed together."""
    longest = len(prompt_ids) + max(completion.limit for completion in completions)
    if (kind := changing_rotation(model)) and longest > max_positions(model):
        raise EngineError(
            f"{name_of(model)}: its {kind} rotary scaling changes after {max_positions(model)} "
            f"tokens, and a prompt with its completion may have {longest}; lower "
            "rollout.max_completion_tokens, or take another model"
        )
    if can_cache(model):
        _sample_with_cache(model, prompt_ids, completions, sampling)
    else:
        _sample_without_cache(model, prompt_ids, completions, sampling)


def _sample_with_cache(
    model: PreTrainedModel,
    prompt_ids: tuple[int, ...],
    completions: Sequence[OpenCompletion],
    sampling: Sampling,
) -> None:
    live, device = list(completions), model.device
    uniforms_RT = uniforms([c.seed for c in live], sampling.max_new_tokens).to(device)
    rows = _CachedRows(model, prompt_ids, len(live))
    for step in range(sampling.max_new_tokens):
        tokens_R, logprobs_R = sample_tokens(rows.logits_RV, uniforms_RT[:, step], sampling)
        for completion, token, logprob in zip(
            live, tokens_R.tolist(), logprobs_R.tolist(), strict=True
        ):
            if not completion.is_finished:
                completion.append(token, logprob, sampling)
        kept = [row for row, completion in enumerate(live) if not completion.is_finished]
        if not kept:
            return
        if rows.can_select and len(kept) < len(live):
            kept_R = torch.tensor(kept, device=device)
            rows.select(kept_R)
            live = [live[row] for row in kept]
            tokens_R, uniforms_RT = tokens_R[kept_R], uniforms_RT[kept_R]
        rows.step(tokens_R)


def _sample_without_cache(
    model: PreTrainedModel,
    prompt_ids: tuple[int, ...],
    completions: Sequence[OpenCompletion],
    sampling: Sampling,
) -> None:
    """Computes every token's whole past again: quadratic in time, right for any model."""
    live = list(completions)
    while live:
        ids_RT = torch.tensor([[*prompt_ids, *c.token_ids] for c in live], device=model.device)
        step = len(live[0].token_ids)
        numbers_R = uniforms([c.seed for c in live], step + 1)[:, step].to(model.device)
        logits_RV = model(input_ids=ids_RT, use_cache=False).logits[:, -1]
        tokens_R, logprobs_R = sample_tokens(logits_RV, numbers_R, sampling)
        for completion, token, logprob in zip(
            live, tokens_R.tolist(), logprobs_R.tolist(), strict=True
        ):
            completion.append(token, logprob, sampling)
        live = [completion for completion in live if not completion.is_finished]
