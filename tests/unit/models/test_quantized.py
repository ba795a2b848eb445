"""A base in four bits under adapters that train: right where bitsandbytes is installed, else one
sentence."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sdpo
from sdpo.config.schema import FullWeightsConfig, LoraConfig, ModelConfig
from sdpo.engines.local import LocalEngine
from sdpo.engines.trial import check_sampler
from sdpo.engines.vllm import VllmEngine
from sdpo.errors import ConfigError, EngineError, ModelError
from sdpo.export import export_run
from sdpo.inspection.model import model_findings
from sdpo.models.adapters import save_model
from sdpo.models.packing import hidden_rows, pack, pack_item
from sdpo.models.policy import load_policy
from sdpo.models.qualify import FastPath, check_trainable, fast_path_of
from sdpo.models.quantized import (
    check_quantization,
    dequantized,
    num_weights,
    quantization_of,
    recorded_quantization,
)
from sdpo.models.quiet import quiet
from sdpo.models.structure import causal_lm
from sdpo.models.weights import trainable
from sdpo.records import Sample
from sdpo.rollouts.sampler import with_adapter
from sdpo.testing import byte_tokenizer, tiny_model

pytest.importorskip("peft")
has_library = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes (sdpo[qlora])"
)
PLAIN = LoraConfig(rank=4, alpha=8)
FOUR_BITS = LoraConfig(rank=4, alpha=8, quantization="nf4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    with quiet():
        tiny_model("qwen3").save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    return folder


def adapted(folder: Path, adapter: LoraConfig = FOUR_BITS):
    """A policy whose adapters do something."""
    policy = load_policy(str(folder), dtype="float32", device="cpu", adapter=adapter)
    policy = with_adapter(policy, ModelConfig(name=str(folder), adapter=adapter), seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in trainable(policy.model).values():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
    return policy


def logits(policy):
    with torch.no_grad():
        return policy.model(torch.arange(40, 60)[None], use_cache=False).logits


def gradients(model):
    ids = tuple(range(40, 52))
    sample = Sample(
        task_id="t", index=0, prompt_ids=ids[:5], completion_ids=ids[5:], loss_mask=(True,) * 7,
        sampler_logprobs=(), teacher_prompt_ids=None, advantage=0.0, component_weights={},
    )  # fmt: skip
    (batch,) = pack([pack_item(sample, sample.prompt_ids)], budget_tokens=100)
    model.zero_grad()
    hidden_rows(model, batch).square().sum().backward()
    return {name: p.grad.clone() for name, p in trainable(model).items()}


@has_library
def test_samples_trains_and_is_saved_as_what_its_four_bits_stand_for(folder, tmp_path):
    policy = adapted(folder)
    model, inner = policy.model, causal_lm(policy.model)
    assert quantization_of(inner.config) == "nf4"
    assert all(".lora_" in name for name in trainable(model))
    assert num_weights(tiny_model("qwen3").parameters()) == num_weights(
        p for name, p in model.named_parameters() if ".lora_" not in name
    )
    check_trainable(model)
    assert isinstance(fast_path_of(inner), FastPath)
    assert check_sampler(LocalEngine(model), inner) < 1e-4

    before, ours = logits(policy), gradients(model)
    save_model(model, tmp_path)
    assert recorded_quantization(tmp_path) == "nf4"
    merged = load_policy(str(tmp_path), dtype="float32", device="cpu")
    assert quantization_of(merged.model.config) == "none"
    assert all(p.dtype == torch.float32 for p in merged.model.parameters())
    torch.testing.assert_close(logits(merged), before, rtol=1e-4, atol=1e-4)
    on = load_policy(str(tmp_path), dtype="float32", device="cpu", adapter=FOUR_BITS)
    torch.testing.assert_close(logits(on), before, rtol=0, atol=0)

    # The same adapter over the plain weights that the four bits stand for has the same gradients.
    twin = load_policy(str(folder), dtype="float32", device="cpu", adapter=FOUR_BITS)
    with quiet():
        dequantized(twin.model).save_pretrained(tmp_path / "plain")
        byte_tokenizer().save_pretrained(tmp_path / "plain")
    theirs = gradients(adapted(tmp_path / "plain", PLAIN).model)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-5)


@has_library
def test_in_bfloat16_it_still_goes_the_fast_way(folder):
    policy = load_policy(str(folder), dtype="bfloat16", device="cpu", adapter=FOUR_BITS)
    assert isinstance(fast_path_of(policy.model), FastPath)
    layers = [module for module in policy.model.modules() if hasattr(module, "compute_dtype")]
    assert {layer.compute_dtype for layer in layers} == {torch.bfloat16}


@has_library
def test_what_would_round_again_or_train_four_bits_is_refused(folder, tmp_path):
    policy = load_policy(str(folder), dtype="float32", device="cpu", adapter=FOUR_BITS)
    with pytest.raises(ConfigError, match="such weights cannot train"):
        check_trainable(policy.model)
    with pytest.raises(ConfigError, match=r"set model.adapter.type = 'lora' and .*'nf4'"):
        check_quantization(policy.model, PLAIN)
    with pytest.raises(EngineError, match="would round its weights again"):
        VllmEngine(policy.model)
    save_model(adapted(folder).model, tmp_path)
    other = FOUR_BITS.model_copy(update={"rank": 2})
    with pytest.raises(ModelError, match=r"sdpo export --merge"):
        load_policy(str(tmp_path), dtype="float32", device="cpu", adapter=other)


@has_library
def test_check_says_bits_and_bytes(folder):
    policy = adapted(folder)
    said = model_findings(policy.model, LocalEngine(policy.model))
    assert ", linear layers in 4 bits (nf4): " in said[0]
    assert said[0].endswith(" GB of weights")


def last_row(run: Path) -> dict[str, float]:
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return {name: value for name, value in row.items() if not name.startswith("time/")}


@has_library
@pytest.mark.slow
def test_a_run_goes_the_whole_way(folder, tmp_path):
    def judge(task, rollout):
        hits = sum(character in "abcdefgh" for character in rollout.text)
        return sdpo.Verdict(reward=float(hits > 0), solved=hits > 0, feedback=f"{hits} letters")

    env = sdpo.env([{"id": f"t{i}", "prompt": f"say {i}"} for i in range(4)], judge)
    settings = [
        f"model.name={folder}", "model.dtype=float32", "model.device=cpu",
        "model.adapter.type=lora", "model.adapter.quantization=nf4", "optim.lr=1e-2",
        "rollout.tasks_per_step=2", "rollout.group_size=3", "rollout.max_completion_tokens=5",
        "rollout.max_prompt_tokens=100", "eval.every=0", "eval.samples=1",
        "teacher.context.max_tokens=200", "objective.type=hybrid",
    ]  # fmt: skip
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    sdpo.train(f"run={whole}", "steps=2", *settings, env=env)
    for steps in (1, 2):
        sdpo.train(f"run={resumed}", f"steps={steps}", *settings, env=env)
    rows = [
        json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) for run in (whole, resumed)
    ]
    ours, again = ({k: v for k, v in row.items() if not k.startswith("time/")} for row in rows)
    assert ours == again
    assert ours["policy/sampler_gap_max"] < 1e-3
    exported = export_run(whole, tmp_path / "exported", merge=True)
    trained = load_policy(str(whole), dtype="float32", device="cpu")
    plain = load_policy(str(exported.folder), dtype="float32", device="cpu")
    torch.testing.assert_close(logits(plain), logits(trained), rtol=0, atol=0)
    assert not list(exported.folder.glob("*quantization*"))


def test_a_checkpoint_in_fp8_trains_as_the_weights_that_it_stands_for(folder, tmp_path):
    weights, stood_for = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        weights[name] = stood_for[name] = weight
        if "layers" in name and name.endswith("proj.weight"):
            scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            blocks = [-(-size // 128) for size in weight.shape]
            weights[name] = (weight / scale).to(torch.float8_e4m3fn)
            weights[f"{name}_scale_inv"] = scale.expand(blocks).contiguous()
            stood_for[name] = weights[name].float() * scale
    copy = shutil.copytree(folder, tmp_path / "fp8")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic",
    }  # fmt: skip
    (copy / "config.json").write_text(json.dumps(config))
    policy = load_policy(str(copy), dtype="float32", device="cpu")
    assert quantization_of(policy.model.config) == "none"
    check_trainable(policy.model)
    for name, weight in policy.model.state_dict().items():
        if name in stood_for:
            torch.testing.assert_close(weight, stood_for[name])


def test_without_the_library_the_sentence_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes: pip install 'sdpo\[qlora\]'"):
        load_policy(str(folder), device="cpu", adapter=FOUR_BITS)


@pytest.mark.parametrize("adapter", [FullWeightsConfig(), PLAIN, FOUR_BITS], ids=str)
@pytest.mark.parametrize("method", ["gptq", "awq", "fp8"])
def test_weights_of_another_format_are_not_trained_on(method, adapter):
    model = tiny_model()
    model.config.quantization_config = {"quant_method": method}
    with pytest.raises(ModelError, match=rf"is quantised \({method}\), which nothing is trained"):
        check_quantization(model, adapter)


def test_plain_weights_under_a_quantised_adapter_are_refused():
    with pytest.raises(ConfigError, match="was loaded without"):
        check_quantization(tiny_model(), FOUR_BITS)


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "base_quantization.json").write_text("{")
    with pytest.raises(ModelError, match=r"base_quantization\.json cannot be read"):
        recorded_quantization(tmp_path)
