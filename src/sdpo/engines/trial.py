"""Whether an engine samples from the model that is trained, tried on a few tokens."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from sdpo.engines.base import Engine, GenerationRequest, Sampling
from sdpo.errors import EngineError
from sdpo.models.structure import evaluating, float32_weights, name_of, probe_ids
from sdpo.models.trials import plain_logits

_PROMPT_LENGTHS = (5, 12, 3)
_NEW_TOKENS = 8
_FREE = 0.02
"""Nats that any sampler may be off, on average over tokens."""
_ROUNDINGS = 4.0
"""How many times as far as a plain pass in the model's own number format a sampler may be from one
in float32: in bfloat16 SmolLM2 itself is off by a tenth of a nat on nonsense."""


@torch.no_grad()
def check_sampler(engine: Engine, model: PreTrainedModel) -> float:
    """Mean |difference| between the log-probs `engine` reports and those of a plain pass of `model`
    in float32 at the tokens it sampled, in nats.

    Raises `EngineError` above what rounding explains: the loss would take other probabilities for
    those that the tokens were drawn with.
    """
    requests = [
        GenerationRequest(prompt_ids=tuple(probe_ids(model, length).tolist()), seeds=(length,))
        for length in _PROMPT_LENGTHS
    ]
    sampling = Sampling(max_new_tokens=_NEW_TOKENS, stop_ids=())
    sampled, rounded, exact = [], [], []
    for request, (completion,) in zip(requests, engine.generate(requests, sampling), strict=True):
        ids_T = torch.tensor(request.prompt_ids + completion.token_ids, device=model.device)
        start = len(request.prompt_ids)
        sampled.append(torch.tensor(completion.logprobs))
        with evaluating(model):
            rounded.append(_logprobs(model, ids_T, start))
            with float32_weights(model):
                exact.append(_logprobs(model, ids_T, start))
    gap, rounding = (
        float((torch.cat(parts) - torch.cat(exact)).abs().mean()) for parts in (sampled, rounded)
    )
    if not gap <= _FREE + _ROUNDINGS * rounding:
        raise EngineError(
            f"{name_of(model)}: the sampler's log-probs are {gap:.2g} nats from those of the model "
            "that is trained, more than rounding explains; take rollout.engine.type = 'local', or "
            "another model"
        )
    return gap


def _logprobs(model: PreTrainedModel, ids_T: torch.Tensor, start: int) -> torch.Tensor:
    """Of the tokens from `start` on, by a plain pass."""
    logprobs_TV = plain_logits(model, ids_T)[start - 1 : -1].float().log_softmax(-1)
    return logprobs_TV.gather(1, ids_T[start:, None])[:, 0].cpu()
