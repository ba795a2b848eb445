"""Which prompts a model decodes together with the cache that it makes itself, found out by trying.

Shapes: T tokens, V vocabulary, R rows.
"""

from __future__ import annotations

import logging

import torch
from transformers import PreTrainedModel

from sdpo.engines.own_cache import CachedRows, Together
from sdpo.errors import EngineError, first_line
from sdpo.models.structure import evaluating, float32_weights, name_of, once, probe_ids
from sdpo.models.trials import agree, plain_logits

_logger = logging.getLogger(__name__)

_LENGTHS = (9, 5, 2)
"""Tokens of the prompts that are tried; the shortest ends within a convolution."""
_STEPS = 3
_SLOWER: dict[Together, str] = {
    "equal": "%s is sampled prompts of one length at a time: beside others its cache fails (%s)",
    "one": "%s is sampled one prompt at a time: its cache cannot be copied (%s)",
    "none": "%s is sampled without a cache, which takes time quadratic in the length: decoding "
    "with its own cache fails (%s)",
}


@once
@torch.no_grad()
def cache_use_of(model: PreTrainedModel) -> Together:
    """Which prompts `model` decodes together. Raises `EngineError` for a model that does not even
    run plainly, or not from left to right."""
    ids_T = probe_ids(model, _LENGTHS[0] + _STEPS)
    with evaluating(model), float32_weights(model):
        try:
            expected_TV = plain_logits(model, ids_T)
            beginning_TV = plain_logits(model, ids_T[: _LENGTHS[0]])
        except Exception as error:
            raise EngineError(
                f"{name_of(model)} cannot be sampled here: {first_line(error)}; take another model"
            ) from error
        if not agree(beginning_TV, expected_TV[: _LENGTHS[0]]):
            # PaliGemma attends to a whole prompt; the loss would see other probabilities.
            raise EngineError(
                f"{name_of(model)} cannot be sampled here: its logits depend on later tokens; take "
                "a causal language model"
            )
        reason = _why_not(model, "any")
        if not reason:
            return "any"
        found: Together = "none"
        if not (next_reason := _why_not(model, "equal")):
            found = "equal"
        elif not _why_not(model, "one"):
            found, reason = "one", next_reason
        else:
            reason = next_reason
    _logger.warning(_SLOWER[found], name_of(model), reason)
    return found


def _why_not(model: PreTrainedModel, together: Together) -> str:
    """Why decoding so would not give the logits of plain passes; empty if it does."""
    try:
        return "" if _decodes(model, together) else "it gives other logits"
    except Exception as error:  # noqa: BLE001  # the code of hundreds of models raises anything
        return first_line(error)


def _decodes(model: PreTrainedModel, together: Together) -> bool:
    """Tried on three rows after two prompts: after a step the first one ends and, among prompts of
    any length, that of a third comes."""
    first_T = probe_ids(model, _LENGTHS[0] + _STEPS)
    texts = (first_T, first_T.flip(0), first_T.roll(_STEPS))
    expected = [plain_logits(model, text_T) for text_T in texts]
    lengths = _LENGTHS if together == "any" else (_LENGTHS[0],) * len(_LENGTHS)
    begun = [text_T[:length].tolist() for text_T, length in zip(texts, lengths, strict=True)]
    if together == "any":
        rows, text_of = CachedRows(model, begun[:1], [0], together), [0, 1, 1]
        rows.join([CachedRows(model, begun[1:2], [0, 0], together)])
    elif together == "equal":
        rows, text_of = CachedRows(model, begun[:2], [0, 1, 1], together), [0, 1, 1]
    else:
        rows, text_of = CachedRows(model, begun[:1], [0, 0], together), [0, 0]
    read = [lengths[text] for text in text_of]
    agrees = []
    for step in range(_STEPS):
        now = list(zip(text_of, read, strict=True))
        agrees.append(agree(rows.logits_RV, torch.stack([expected[t][n - 1] for t, n in now])))
        if rows.moves and step == 1:
            rows.select([2, 1])
            now = [now[2], now[1]]
            if together == "any":
                rows.join([CachedRows(model, begun[2:], [0], together)])
                now.append((2, lengths[2]))
        text_of, read = [t for t, _ in now], [n + 1 for _, n in now]
        rows.step(torch.stack([texts[t][n] for t, n in now]))
    now = zip(text_of, read, strict=True)
    agrees.append(agree(rows.logits_RV, torch.stack([expected[t][n - 1] for t, n in now])))
    return all(agrees)
