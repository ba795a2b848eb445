"""Sampler = plain forward pass; batch, order and limits do not change a completion."""

from __future__ import annotations

import pytest
import torch
from engine_requests import make_requests, token_ids
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sdpo.engines.base import GenerationRequest, Sampling
from sdpo.engines.cache_use import cache_use_of
from sdpo.engines.completions import open_completions
from sdpo.engines.decode import Decoder
from sdpo.engines.decode_state import DecodeState
from sdpo.engines.fallback import SlowSampler
from sdpo.engines.graphs import CapturedStep, StepGraphs
from sdpo.engines.local import LocalEngine
from sdpo.kernels import sdpa as fused_attention
from sdpo.kernels.plan import fast_layers
from sdpo.kernels.tree import tree_plan
from sdpo.models.qualify import FastPath, fast_path_of
from sdpo.testing import tiny_model

WINDOW = 8
FAST = {
    "llama": {},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {},
    "mistral": {"sliding_window": WINDOW},
    "gemma2": {"sliding_window": WINDOW, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"sliding_window": WINDOW},
    "granite": {"logits_scaling": 3.0, "attention_multiplier": 0.3},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4},
}
GENERIC = {
    "bloom": {"n_layer": 2, "n_head": 4},  # position biases in the scores
    "gpt_oss": {"sliding_window": WINDOW, "num_local_experts": 4},  # sinks beside a window
    "inkling_text": {"sliding_window": WINDOW, "num_experts": 4},  # convolutions in attention
    "lfm2": {"layer_types": ["conv", "full_attention"]},  # a recurrent layer
    "llama4_text": {"attention_chunk_size": WINDOW, "num_local_experts": 4},  # chunks
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2},  # no keys at all
}
LENGTHS = (1, 7, 12, 20)
SAMPLING = Sampling(max_new_tokens=26, stop_ids=(3, 9, 40, 41, 42, 43))


def build(family, extra):
    """A tiny model with weights large enough that its distributions are far from flat."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "pad_token_id": None,
        "eos_token_id": None,
    }
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**{**sizes, **extra}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model.eval()


@pytest.fixture(params=[False, True], ids=["explicit", "fused"])
def both_attentions(request, monkeypatch):
    """The test runs with explicit scores, and with the fused attention of CPUs with AMX."""
    monkeypatch.setattr(fused_attention, "_has_matrix_units", lambda dtype: request.param)


def plain_logprobs(model, prompt_ids, completion_ids, temperature=1.0):
    ids = torch.tensor([prompt_ids + completion_ids])
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt_ids) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt_ids) :, None])[:, 0].tolist()


def flatten(requests, groups):
    return [
        (request.prompt_ids, completion)
        for request, group in zip(requests, groups, strict=True)
        for completion in group
    ]


@pytest.mark.usefixtures("both_attentions")
@pytest.mark.filterwarnings("ignore")  # transformers' notes about missing kernels
@pytest.mark.parametrize("family", [*FAST, *GENERIC])
def test_sampler_and_plain_forward_agree(family):
    model = build(family, FAST.get(family) or GENERIC.get(family, {}))
    engine, requests = LocalEngine(model), make_requests(LENGTHS, group=3)
    groups = engine.generate(requests, SAMPLING)
    assert isinstance(fast_path_of(model), FastPath) == (family in FAST)
    pairs = flatten(requests, groups)
    assert len({len(completion.token_ids) for _, completion in pairs}) > 2
    for prompt_ids, completion in pairs:
        plain = plain_logprobs(model, prompt_ids, completion.token_ids)
        assert completion.logprobs == pytest.approx(plain, abs=1e-4)


@pytest.mark.usefixtures("both_attentions")
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_completion_is_the_same_in_any_batch(family):
    model, requests = build(family, FAST[family]), make_requests(lengths=(1, 7, 20), group=2)
    whole = LocalEngine(model).generate(requests, SAMPLING)

    backwards = LocalEngine(model).generate(requests[::-1], SAMPLING)[::-1]
    alone = [LocalEngine(model).generate([request], SAMPLING)[0] for request in requests]
    few = LocalEngine(model, max_sequences=3, max_prefill_tokens=8).generate(requests, SAMPLING)
    single = LocalEngine(model, max_sequences=1).generate(requests, SAMPLING)
    split = [
        GenerationRequest(prompt_ids=request.prompt_ids, seeds=(seed,))
        for request in requests
        for seed in request.seeds
    ]
    apart = [group[0].token_ids for group in LocalEngine(model).generate(split, SAMPLING)]
    assert (
        token_ids(backwards)
        == token_ids(alone)
        == token_ids(few)
        == token_ids(single)
        == token_ids(whole)
    )
    assert apart == [ids for group in token_ids(whole) for ids in group]


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_temperature_enters_logprobs_alike(temperature):
    model, requests = build("llama", {}), make_requests(LENGTHS, group=3)
    engine = LocalEngine(model)
    options = Sampling(max_new_tokens=8, stop_ids=(), temperature=temperature)
    pairs = flatten(requests, engine.generate(requests, options))
    for prompt_ids, completion in pairs:
        plain = plain_logprobs(model, prompt_ids, completion.token_ids, temperature)
        assert completion.logprobs == pytest.approx(plain, abs=1e-4)


def test_both_paths_sample_the_same():
    model, requests = build("gemma2", FAST["gemma2"]), make_requests(LENGTHS, group=3)
    fast = LocalEngine(model).generate(requests, SAMPLING)
    prompts, groups = open_completions(requests, SAMPLING)
    completions = [completion for group in groups for completion in group]
    sampler = SlowSampler(
        model, prompts, completions, SAMPLING, max_sequences=5, max_prefill_tokens=20
    )
    with torch.no_grad():
        sampler.run()
    assert [[c.token_ids for c in group] for group in fast] == [
        [completion.close().token_ids for completion in group] for group in groups
    ]


@pytest.mark.usefixtures("both_attentions")
def test_steps_of_fixed_size_sample_the_same():
    """What CUDA graphs replay: padded rows, columns and prompt slots, here run without a graph."""
    model, requests = build("gemma3_text", FAST["gemma3_text"]), make_requests(LENGTHS, group=5)
    whole = LocalEngine(model).generate(requests, SAMPLING)
    fast = fast_path_of(model)
    prompts, groups = open_completions(requests, SAMPLING)
    completions = [completion for group in groups for completion in group]
    captured = []

    def capture(step, undo):
        tokens, logprobs = (output.clone() for output in step())
        undo()

        def replay():
            for held, output in zip((tokens, logprobs), step(), strict=True):
                held.copy_(output)

        captured.append(len(tokens))
        return CapturedStep(replay, tokens, logprobs)

    with torch.no_grad(), fast_layers(model):
        state = DecodeState(
            fast, num_prompts=3, prompt_columns=32, num_rows=7, suffix_columns=26, max_group=5
        )
        graphs = StepGraphs(capture=capture)
        Decoder(fast, state, prompts, completions, SAMPLING, 4096, graphs).run()
    assert {7, 4, 2} <= set(captured)
    assert [[completion.close().token_ids for completion in group] for group in groups] == [
        [completion.token_ids for completion in group] for group in whole
    ]


def test_equal_prompts_of_different_requests_share_and_keep_their_order():
    model = tiny_model()
    twice = [
        GenerationRequest(prompt_ids=(5, 6, 7), seeds=(1, 2)),
        GenerationRequest(prompt_ids=(8,), seeds=(3,)),
        GenerationRequest(prompt_ids=(5, 6, 7), seeds=(2, 4)),
    ]
    first, _, third = LocalEngine(model).generate(twice, SAMPLING)
    assert first[1] == third[0]
    assert len({first[0].token_ids, first[1].token_ids, third[1].token_ids}) == 3


@pytest.mark.usefixtures("both_attentions")
@pytest.mark.parametrize("device_kind", ["blocks", "branches"])
def test_a_beginning_that_prompts_share_is_computed_once(device_kind, monkeypatch):
    model, (system, *own) = (
        build("gemma3_text", FAST["gemma3_text"]),
        make_requests([20, 5, 1, 9], 2),
    )
    requests = [
        GenerationRequest(prompt_ids=system.prompt_ids + r.prompt_ids, seeds=r.seeds) for r in own
    ]
    alone = [LocalEngine(model).generate([request], SAMPLING)[0] for request in requests]
    lengths, backbone = [], model.base_model.forward

    def noting(*args, input_ids, **options):
        lengths.append(input_ids.shape[1])
        return backbone(*args, input_ids=input_ids, **options)

    monkeypatch.setattr(model.base_model, "forward", noting)
    engine = LocalEngine(model)
    fast_path_of(model)
    monkeypatch.setattr(
        "sdpo.engines.decode.tree_plan",
        lambda segments, device: tree_plan(segments, device, kind=device_kind),
    )
    lengths.clear()
    assert token_ids(engine.generate(requests, SAMPLING)) == token_ids(alone)
    assert lengths[0] == 20 + 4 + 0 + 8


@pytest.mark.parametrize("family", GENERIC)
def test_prompts_of_any_length_are_sampled_together_as_each_alone(family):
    model = build(family, GENERIC[family])
    requests = make_requests((9, 1, 20, 9), group=3)
    together = LocalEngine(model).generate(requests, SAMPLING)
    few = LocalEngine(model, max_sequences=4, max_prefill_tokens=9).generate(requests, SAMPLING)
    assert cache_use_of(model) == "any"
    alone = [LocalEngine(model).generate([request], SAMPLING)[0] for request in requests]
    assert token_ids(together) == token_ids(few) == token_ids(alone)


def test_a_cache_that_cannot_be_copied_is_used_for_one_prompt_at_a_time(monkeypatch):
    def fails(*_):
        raise NotImplementedError

    expected = LocalEngine(build("lfm2", GENERIC["lfm2"])).generate(
        make_requests((9, 9), group=3), SAMPLING
    )
    monkeypatch.setattr("transformers.cache_utils.Cache.reorder_cache", fails)
    model = build("lfm2", GENERIC["lfm2"])
    found = LocalEngine(model).generate(make_requests((9, 9), group=3), SAMPLING)
    assert cache_use_of(model) == "one"
    assert [[c.token_ids for c in g] for g in found] == [[c.token_ids for c in g] for g in expected]
