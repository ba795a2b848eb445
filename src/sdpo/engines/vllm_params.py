"""What is asked of vLLM, in process or at a server, in vLLM's words. Imports no vLLM."""

from __future__ import annotations

from typing import Any

import torch

from sdpo.engines.base import GenerationRequest, Sampling
from sdpo.errors import EngineError
from sdpo.models.quantized import quantization_of
from sdpo.models.structure import causal_lm, name_of
from sdpo.models.wrapper import tower_parameters

_MAX_SEED = 2**63 - 1
"""vLLM takes signed 64-bit seeds."""
_NEVER = -100.0
"""The lowest bias that vLLM takes. A logit that far below the others has no mass in float32."""


def sampling_params(
    request: GenerationRequest, seed: int, sampling: Sampling, num_rows: int
) -> dict[str, Any]:
    """Fields of vLLM's SamplingParams for one completion; `num_rows` are those of the
    model's head."""
    params: dict[str, Any] = {
        "seed": seed & _MAX_SEED,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": request.limit(sampling),
        "stop_token_ids": [] if sampling.ignore_eos else list(sampling.stop_ids),
        # `stop_ids` are all tokens that end a completion; the model's folder may name others.
        "ignore_eos": True,
        "detokenize": False,
    }
    if sampling.vocabulary is not None and sampling.vocabulary < num_rows:
        # A list of what is allowed would be a megabyte for each completion.
        params["logit_bias"] = dict.fromkeys(range(sampling.vocabulary, num_rows), _NEVER)
    return params


def check_copied(model: torch.nn.Module) -> None:
    """Raises `EngineError` for a model of which vLLM's copy would be another: one with more than a
    language model in it, and a quantised one."""
    inner = causal_lm(model)
    if (found := quantization_of(inner.config)) != "none":
        raise EngineError(
            f"{name_of(inner)} is quantised ({found}), and vLLM's copy with the adapter added in "
            "would round its weights again; take rollout.engine.type = 'local'"
        )
    if any(True for _ in tower_parameters(model)):
        raise EngineError(
            f"{name_of(inner)} reads more than text, and vLLM is not given the files it "
            "would need for that; take rollout.engine.type = 'local'"
        )
