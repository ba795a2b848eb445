"""Sampling for any causal language model, with transformers' own cache or without any.

For architectures that the fast path refuses (recurrent layers, positional biases, unusual
attention). Prompts of one length at a time, so nothing is padded: padding would enter a recurrent
state. The model makes its own cache; whether it can be copied from a prompt to its completions, and
whether decoding with it gives what plain passes give, is tried once. Where it does not, every step
computes the whole sequence again.

Shapes: P prompts, R completions of them, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

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
    """Rows after prompts of equal length, continued a token at a time with the model's own cache.

    `moves`: each prompt is computed once and its cache copied to its rows, and rows can be dropped,
    by what transformers has for beam search; else every row computes its prompt, and all stay.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        prompt_of_row: Sequence[int],
        *,
        moves: bool,
    ) -> None:
        self.moves = moves
        self._model = model
        # Not every forward pass can leave out the logits of a prompt.
        takes = inspect.signature(model.forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        ids_PT = torch.tensor([tuple(prompt) for prompt in prompts], device=model.device)
        rows_R = torch.tensor(prompt_of_row, device=model.device)
        if moves:
            self.logits_RV = self._read(ids_PT, None)
            self.select(rows_R)
        else:
            self.logits_RV = self._read(ids_PT[rows_R], None)

    def step(self, tokens_R: torch.Tensor) -> None:
        self.logits_RV = self._read(tokens_R[:, None], self._cache)

    def select(self, rows_R: torch.Tensor) -> None:
        """Go on with these rows, in this order; the same one may be there twice."""
        self._cache.reorder_cache(rows_R)
        self.logits_RV = self.logits_RV[rows_R]

    def _read(self, ids_RT: torch.Tensor, cache: Any) -> torch.Tensor:
        """Logits [R, V] after the last token; the first time the model makes a cache itself."""
        given = {} if cache is None else {self._cache_name: cache}
        output = self._model(input_ids=ids_RT, use_cache=True, **given, **self._options)
        self._cache_name = next(name for name in _CACHE_NAMES if getattr(output, name, None))
        self._cache: Any = getattr(output, self._cache_name)
        return output.logits[:, -1]


@once
@torch.no_grad()
def _cache_use_of(model: PreTrainedModel) -> Literal["prompts", "prompt", "none"]:
    """How many prompts at a time `model` can be decoded with its own cache. Raises `EngineError`
    for a model that does not even run plainly."""
    ids_T = probe_ids(model, _TRIAL_PROMPT + _TRIAL_STEPS)
    with evaluating(model), float32_weights(model):
        try:
            expected_TV = plain_logits(model, ids_T)
            beginning_TV = plain_logits(model, ids_T[:_TRIAL_PROMPT])
        except Exception as error:
            raise EngineError(
                f"{name_of(model)} cannot be sampled here: {first_line(error)}; take another model"
            ) from error
        if not agree(beginning_TV, expected_TV[:_TRIAL_PROMPT]):
            # PaliGemma attends to a whole prompt; the loss would see other probabilities.
            raise EngineError(
                f"{name_of(model)} cannot be sampled here: its logits depend on later tokens; take "
                "a causal language model"
            )
        reason = _why_not(model, ids_T, expected_TV, moves=True)
        if not reason:
            return "prompts"
        if not _why_not(model, ids_T, expected_TV, moves=False):
            _logger.warning(
                "%s is sampled one prompt at a time: its cache cannot be copied (%s)",
                name_of(model),
                reason,
            )
            return "prompt"
    _logger.warning(
        "%s is sampled without a cache, which takes time quadratic in the length: decoding with "
        "its own cache fails (%s)",
        name_of(model),
        reason,
    )
    return "none"


def can_cache(model: PreTrainedModel) -> bool:
    """Whether `model` can be decoded with its own cache. Raises `EngineError` for a model that does
    not even run plainly."""
    return _cache_use_of(model) != "none"


def can_batch(model: PreTrainedModel) -> bool:
    """Whether prompts of equal length can be sampled together."""
    return _cache_use_of(model) != "prompt"


def _why_not(
    model: PreTrainedModel, ids_T: torch.Tensor, expected_TV: torch.Tensor, *, moves: bool
) -> str:
    """Why decoding with the cache would not give the logits of plain passes; empty if it does."""
    try:
        return "" if _decodes(model, ids_T, expected_TV, moves) else "it gives other logits"
    except Exception as error:  # noqa: BLE001  # the code of hundreds of models raises anything
        return first_line(error)


def _decodes(
    model: PreTrainedModel, ids_T: torch.Tensor, expected_TV: torch.Tensor, moves: bool
) -> bool:
    """Tried on three rows after two prompts, of which the middle one is dropped after a step."""
    other_T = ids_T.flip(0)
    prompts = [each[:_TRIAL_PROMPT].tolist() for each in (ids_T, other_T)]
    if not moves:
        prompts = prompts[:1]
    both_2TV = torch.stack((expected_TV, plain_logits(model, other_T)))
    row_of = [0, 1, 1] if moves else [0, 0]
    rows = _CachedRows(model, prompts, row_of, moves=moves)
    found, expected = [rows.logits_RV], [both_2TV[row_of, _TRIAL_PROMPT - 1]]
    ids_2T = torch.stack((ids_T, other_T))
    for place in range(_TRIAL_PROMPT, len(ids_T)):
        rows.step(ids_2T[row_of, place])
        if moves and place == _TRIAL_PROMPT:
            rows.select(torch.tensor([2, 0], device=model.device))
            row_of = [1, 0]
        found.append(rows.logits_RV)
        expected.append(both_2TV[row_of, place])
    return agree(torch.cat(found), torch.cat(expected))


def sample_prompts(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    completions: Sequence[OpenCompletion],
    sampling: Sampling,
) -> None:
    """Fills `completions`, computed together: of prompts of equal length, and of a single one
    unless `can_batch`."""
    length = len(prompts[completions[0].prompt])
    longest = length + max(completion.limit for completion in completions)
    if (kind := changing_rotation(model)) and longest > max_positions(model):
        raise EngineError(
            f"{name_of(model)}: its {kind} rotary scaling changes after {max_positions(model)} "
            f"tokens, and a prompt with its completion may have {longest}; lower "
            "rollout.max_completion_tokens, or take another model"
        )
    if can_cache(model):
        _sample_with_cache(model, prompts, completions, sampling)
    else:
        _sample_without_cache(model, prompts, completions, sampling)


def _sample_with_cache(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    completions: Sequence[OpenCompletion],
    sampling: Sampling,
) -> None:
    live, device = list(completions), model.device
    uniforms_RT = uniforms([c.seed for c in live], sampling.max_new_tokens).to(device)
    used = sorted({c.prompt for c in live})
    rows = _CachedRows(
        model,
        [prompts[index] for index in used],
        [used.index(c.prompt) for c in live],
        moves=can_batch(model),
    )
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
        if rows.moves and len(kept) < len(live):
            kept_R = torch.tensor(kept, device=device)
            rows.select(kept_R)
            live = [live[row] for row in kept]
            tokens_R, uniforms_RT = tokens_R[kept_R], uniforms_RT[kept_R]
        rows.step(tokens_R)


def _sample_without_cache(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    completions: Sequence[OpenCompletion],
    sampling: Sampling,
) -> None:
    """Computes every token's whole past again: quadratic in time, right for any model."""
    live = list(completions)
    while live:
        ids_RT = torch.tensor(
            [[*prompts[c.prompt], *c.token_ids] for c in live], device=model.device
        )
        step = len(live[0].token_ids)
        numbers_R = uniforms([c.seed for c in live], step + 1)[:, step].to(model.device)
        logits_RV = model(input_ids=ids_RT, use_cache=False).logits[:, -1]
        tokens_R, logprobs_R = sample_tokens(logits_RV, numbers_R, sampling)
        for completion, token, logprob in zip(
            live, tokens_R.tolist(), logprobs_R.tolist(), strict=True
        ):
            completion.append(token, logprob, sampling)
        live = [completion for completion in live if not completion.is_finished]
