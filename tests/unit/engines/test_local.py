"""The local engine at its edges: limits, stop tokens, errors, what it leaves behind."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from transformers import AutoModelForCausalLM

from sdpo.engines import local
from sdpo.engines.base import GenerationRequest, Sampling
from sdpo.engines.local import LocalEngine
from sdpo.errors import EngineError, ModelError
from sdpo.testing import tiny_model


def sampling(**kwargs):
    return Sampling(**{"max_new_tokens": 6, "stop_ids": (), **kwargs})


def request(*prompt_ids, seeds=(1, 2)):
    return GenerationRequest(prompt_ids=prompt_ids, seeds=seeds)


def test_stop_token_ends_a_completion_and_is_kept():
    engine = LocalEngine(tiny_model())
    [[free]] = engine.generate([request(5, 6, seeds=(3,))], sampling())
    stop = free.token_ids[2]
    assert stop not in free.token_ids[:2]
    [[stopped]] = engine.generate([request(5, 6, seeds=(3,))], sampling(stop_ids=(stop,)))
    assert (stopped.token_ids, stopped.truncated) == (free.token_ids[:3], False)
    assert (len(free.token_ids), free.truncated) == (6, True)
    [[ignoring]] = engine.generate(
        [request(5, 6, seeds=(3,))], sampling(stop_ids=(stop,), ignore_eos=True)
    )
    assert ignoring == free


def test_a_stop_token_at_the_limit_is_not_truncation():
    engine = LocalEngine(tiny_model())
    [[free]] = engine.generate([request(5, 6, seeds=(3,))], sampling(max_new_tokens=3))
    stop = free.token_ids[2]
    [[stopped]] = engine.generate(
        [request(5, 6, seeds=(3,))], sampling(max_new_tokens=3, stop_ids=(stop,))
    )
    assert (stopped.token_ids, stopped.truncated) == (free.token_ids, False)


def test_greedy_follows_the_argmax():
    model = tiny_model()
    [[first, second]] = LocalEngine(model).generate([request(5, 6, 7)], sampling(temperature=0.0))
    ids = [5, 6, 7]
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert first.token_ids == second.token_ids == tuple(ids[3:])
    assert first.logprobs == (0.0,) * 6


def test_nothing_asked_gives_nothing():
    engine = LocalEngine(tiny_model())
    assert engine.generate([], sampling()) == []
    assert engine.generate([request(5, seeds=())], sampling()) == [[]]


def test_empty_prompts_are_refused():
    engine = LocalEngine(tiny_model())
    with pytest.raises(EngineError, match="no tokens"):
        engine.generate([request()], sampling())


def test_damaged_weights_are_an_error_and_not_a_rollout():
    model = tiny_model()
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        LocalEngine(model).generate([request(5, 6)], sampling())


def test_weights_that_diverge_while_training_are_an_error_and_not_a_rollout():
    model = tiny_model()
    engine = LocalEngine(model)
    engine.generate([request(5, 6)], sampling())
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    with pytest.raises(EngineError, match="not finite"):
        engine.generate([request(5, 6)], sampling())


def test_what_a_models_code_raises_becomes_one_sentence():
    model = tiny_model()

    def broken(*args, **options):
        raise KeyError("conv_state")

    model.forward = broken
    with pytest.raises(
        EngineError, match=r"^LlamaForCausalLM \(no name\) cannot be sampled here: 'conv_state'; "
    ):
        LocalEngine(model).generate([request(5, 6)], sampling())


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_rotary_scaling_that_changes_on_the_way_is_refused(kind):
    """Phi-3's factors change after 4,096 tokens, and with them the log-probs of earlier tokens."""
    scaling = {"rope_type": kind, "factor": 4.0, "rope_theta": 10_000.0}
    scaling |= {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    config = tiny_model().config
    config.max_position_embeddings = 16 if kind == "dynamic" else 64
    config.rope_parameters = {**scaling, "original_max_position_embeddings": 16}
    engine = LocalEngine(AutoModelForCausalLM.from_config(config).eval())
    assert len(engine.generate([request(*range(10))], sampling())[0]) == 2
    with pytest.raises(EngineError, match=rf"its {kind} rotary scaling changes after 16 tokens"):
        engine.generate([request(*range(10))], sampling(max_new_tokens=7))


def test_the_module_is_left_as_it_was_found():
    model = tiny_model().train()
    model.model.layers[0].eval()
    engine = LocalEngine(model)
    before = [module.training for module in model.modules()], model.config._attn_implementation
    engine.generate([request(5, 6)], sampling(max_new_tokens=30))
    with pytest.raises(IndexError):  # a token that the model does not have
        engine.generate([request(5, 10**6, 6)], sampling(max_new_tokens=30))
    after = [module.training for module in model.modules()], model.config._attn_implementation
    assert before == after
    assert not any("forward" in module.__dict__ for module in model.modules())
    model(torch.tensor([[5, 6]])).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_weights_changed_in_place_are_used_at_once():
    model, other = tiny_model(seed=0), tiny_model(seed=1)
    engine, options = LocalEngine(model), sampling(max_new_tokens=30)
    before = engine.generate([request(5, 6)], options)
    model.load_state_dict(other.state_dict())
    engine.load_weights(model, version=3)
    after = engine.generate([request(5, 6)], options)
    assert after == LocalEngine(other).generate([request(5, 6)], options)
    assert (after != before, engine.policy_version) == (True, 3)


def test_another_module_can_take_over():
    engine, other = LocalEngine(tiny_model("llama")), tiny_model("gemma2")
    engine.generate([request(5, 6)], sampling())
    engine.load_weights(other, version=1)
    expected = LocalEngine(other).generate([request(5, 6)], sampling())
    assert engine.generate([request(5, 6)], sampling()) == expected


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own
def test_adapters_take_part():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(), config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    engine, options = LocalEngine(model), sampling(max_new_tokens=30)
    [[adapted]] = engine.generate([request(5, 6, seeds=(1,))], options)
    [[base]] = LocalEngine(tiny_model()).generate([request(5, 6, seeds=(1,))], options)
    assert adapted != base
    ids = torch.tensor([[5, 6, *adapted.token_ids]])
    with torch.no_grad():
        logprobs = model(ids).logits[0, 1:-1].log_softmax(-1).gather(1, ids[0, 2:, None])[:, 0]
    assert adapted.logprobs == pytest.approx(logprobs.tolist(), abs=1e-4)


def test_a_cache_took_what_was_free(monkeypatch):
    """64 completions of 8,192 tokens of an 8B model: 77 GB. Fewer are decoded at once, with the
    same result; where not even one fits, an error says so."""
    engine = LocalEngine(tiny_model())
    requests = [request(*range(3, 20), seeds=(1, 2, 3)), request(5, 6, seeds=(4, 5))]
    expected = engine.generate(requests, sampling())
    rows = []
    opened = local.DecodeState

    def state(*args, **sizes):
        rows.append((sizes["num_rows"], sizes["num_prompts"]))
        return opened(*args, **sizes)

    monkeypatch.setattr(local, "DecodeState", state)
    # A token takes 2 layers x 2 heads x (16 + 16) x 4 bytes.
    monkeypatch.setattr(local, "free_bytes", lambda device: 2 * 512 * 30)
    found = engine.generate(requests, sampling())
    for fewer, many in zip(chain(*found), chain(*expected), strict=True):
        assert fewer.token_ids == many.token_ids
        assert fewer.logprobs == pytest.approx(many.logprobs, abs=1e-5)
    assert rows == [(2, 2)]
    monkeypatch.setattr(local, "free_bytes", lambda device: 512 * 5)
    with pytest.raises(EngineError, match=r"lower rollout\.max_completion_tokens"):
        engine.generate(requests, sampling())
