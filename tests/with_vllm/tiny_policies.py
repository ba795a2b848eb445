"""Tiny random policies of four families, with and without adapters, and what they say
themselves.

The folder is not called vllm: a folder of that name on the path is a package to Python.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Glm4MoeConfig, LlamaConfig, Qwen3Config
from transformers import Qwen3MoeConfig as QwenMoeConfig

from sdpo.config.schema import LoraConfig
from sdpo.engines.base import Engine, GenerationRequest, Sampling
from sdpo.models.adapters import new_adapter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, tie_word_embeddings=False),
    "qwen3_moe": QwenMoeConfig(**SIZES, **EXPERTS, num_experts=8),
    # Its routers' correction biases are buffers.
    "glm4_moe": Glm4MoeConfig(
        **SIZES, **EXPERTS, n_routed_experts=8, n_shared_experts=1, n_group=1, topk_group=1,
        first_k_dense_replace=1, use_qk_norm=True,
    ),
}  # fmt: skip


@torch.no_grad()
def build(family: str, *, has_adapter: bool, seed: int = 0) -> Any:
    """A model with opinions; an adapter that is not zero."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[family], dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(3.0)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    for name, buffer in model.named_buffers():
        if "correction_bias" in name:
            buffer.normal_(0, 0.5)
    if has_adapter:
        model = new_adapter(model, LoraConfig(rank=4, alpha=8), base="tiny", seed=seed)
        move(model)
    return model.to(DEVICE).eval()


@torch.no_grad()
def move(model: Any) -> None:
    """An update of what trains."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter) * 0.05)


@torch.no_grad()
def plain(model: Any, prompt_ids: Any, completion_ids: Any, temperature: float) -> list[float]:
    """Log-probs of the completion by a plain pass."""
    ids = torch.tensor([[*prompt_ids, *completion_ids]], device=DEVICE)
    logits = model(ids).logits[0, len(prompt_ids) - 1 : -1].float() / temperature
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt_ids) :, None])[:, 0].tolist()


def check(engine: Engine, model: Any, *, vocabulary: int | None = None) -> None:
    """Log-probs are the module's own, stop tokens end, and seeds decide."""
    requests = [
        GenerationRequest(prompt_ids=tuple(range(5, 5 + n)), seeds=(n, 2**63 + n)) for n in (3, 40)
    ]
    sampling = Sampling(max_new_tokens=12, stop_ids=(9, 17), temperature=0.7, vocabulary=vocabulary)
    groups = engine.generate(requests, sampling)
    for request, group in zip(requests, groups, strict=True):
        for completion in group:
            assert max(completion.token_ids) < (vocabulary or 10**9)
            *before, last = completion.token_ids
            assert not {9, 17} & set(before)
            assert completion.truncated == (last not in (9, 17))
            if vocabulary is None:
                expected = plain(model, request.prompt_ids, completion.token_ids, 0.7)
                assert completion.logprobs == pytest.approx(expected, abs=1e-4)
    assert engine.generate(requests, sampling) == groups
