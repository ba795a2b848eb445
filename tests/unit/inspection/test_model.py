"""What `sdpo check` says about a model, and an engine that samples from another one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM, MambaConfig

from sdpo.engines.local import LocalEngine
from sdpo.engines.trial import check_sampler
from sdpo.errors import EngineError, ModelError
from sdpo.inspection.model import model_findings
from sdpo.testing import tiny_model


class Shifted(LocalEngine):
    """Reports log-probs that are not those it samples with."""

    shift = 0.1

    def generate(self, requests, sampling):
        return [
            [
                dataclasses.replace(c, logprobs=tuple(x + self.shift for x in c.logprobs))
                for c in group
            ]
            for group in super().generate(requests, sampling)
        ]


def test_the_ways_of_a_model_are_said():
    model = tiny_model("llama")
    said = model_findings(model, LocalEngine(model))
    assert said[0] == "model: LlamaForCausalLM (no name), float32 on cpu"
    assert said[1].startswith("sampling: prompts are computed once for all their attempts; ")
    assert said[2].endswith("computed once (blocks); the LM head is one matrix")


def test_slow_ways_come_with_their_reason():
    config = MambaConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, state_size=4, time_step_rank=2
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    _, sampling, training = model_findings(model, LocalEngine(model))
    reason = "because its attention does not go through transformers' registry"
    assert f"prompts together with its own cache, {reason}" in sampling
    assert f"one sequence at a time, {reason}" in training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sampler_of_the_same_model_is_close(dtype):
    model = tiny_model("qwen3", dtype=dtype)
    assert check_sampler(LocalEngine(model), model) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shift", [0.1, -0.1, float("nan")])
def test_a_sampler_that_reports_other_probabilities_is_refused(shift, dtype):
    model = tiny_model("qwen3", dtype=dtype)
    engine = Shifted(model)
    engine.shift = shift
    with pytest.raises(EngineError, match="nats from those of the model that is trained"):
        check_sampler(engine, model)


def test_a_sampler_with_other_weights_is_refused():
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)
    for parameter in other.parameters():
        parameter.data *= 3.0
    with pytest.raises(EngineError, match="nats from those of the model"):
        check_sampler(LocalEngine(other), model)


def test_gradients_that_are_not_finite_are_refused():
    class Cliff(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float("inf")

    model = tiny_model("llama")
    down = model.model.layers[1].mlp.down_proj
    down.register_forward_hook(lambda module, inputs, output: Cliff.apply(output))
    with pytest.raises(ModelError, match="its gradients are not finite in"):
        model_findings(model, LocalEngine(model))
