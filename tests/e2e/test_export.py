"""A run's weights leave for other tools: transformers and PEFT load what `sdpo export` writes, GGUF
comes back as the same model, the card says what the run's records say, the hub gets the folder."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from sdpo.cli import run
from sdpo.errors import ModelError
from sdpo.export.gguf import write_gguf
from sdpo.models.policy import Policy, load_policy
from sdpo.models.quiet import quiet
from sdpo.testing import CHAT_TEMPLATE, byte_tokenizer, tiny_model

ENV_FILE = """
import sdpo


def judge(task, rollout):
    return float("a" in rollout.text), "write an a"


env = sdpo.env([f"say {i}" for i in range(9)], judge)
"""
IDS = torch.tensor([[5, 9, 11, 40, 77, 3]])


def gpt2_tokenizer():
    """The byte tokenizer with two merges, cutting text as GPT-2 does, which GGUF has a name for."""
    settings = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    vocabulary = settings["model"]["vocab"] | {"sa": 256, "say": 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("s", "a"), ("sa", "y")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    with quiet():
        tiny_model(vocab_size=261).save_pretrained(folder / "tiny")
        gpt2_tokenizer().save_pretrained(folder / "tiny")
    (folder / "own.py").write_text(ENV_FILE)
    return folder


def settings(work, name, *more):
    return [
        f"run={work / name}", f"model.name={work / 'tiny'}", "model.dtype=float32",
        "env.type=custom", f"env.path={work / 'own.py'}:env", "steps=2",
        "rollout.tasks_per_step=2", "rollout.group_size=2", "rollout.max_completion_tokens=6",
        "rollout.max_prompt_tokens=200", "optim.lr=1e-2", "eval.samples=2", "eval.every=0",
        "checkpoint.every=1", "checkpoint.keep=3", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def full(work):
    assert run(["train", "quickstart", *settings(work, "full")]) == 0
    return work / "full"


@pytest.fixture(scope="module")
def lora(work):
    adapter = ("model.adapter.type=lora", "model.adapter.rank=4")
    assert run(["train", "quickstart", *settings(work, "lora", *adapter)]) == 0
    return work / "lora"


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def front(folder):
    _, head, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), body


def test_transformers_loads_an_exported_run(full, work, capsys):
    to = work / "out" / "full"
    capsys.readouterr()
    assert run(["export", str(full), "--to", str(to)]) == 0
    shown = capsys.readouterr().out
    assert f"{to}: the model of {full / 'checkpoints' / 'step-2'}" in shown
    assert f'from_pretrained("{to}")' in shown
    assert not {"state.pt", "trainable.safetensors"} & {path.name for path in to.iterdir()}
    model = AutoModelForCausalLM.from_pretrained(to)
    expected = load_policy(str(full), dtype="float32").model
    torch.testing.assert_close(logits(model), logits(expected))
    tokenizer = AutoTokenizer.from_pretrained(to)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)


def test_an_earlier_step_and_a_checkpoints_own_folder(full, work):
    for number, name in enumerate((f"{full}@1", str(full / "checkpoints" / "step-1"))):
        to = work / "out" / f"first-{number}"
        assert run(["export", name, "--to", str(to)]) == 0
        assert "1 of 2 steps" in (to / "README.md").read_text()
        torch.testing.assert_close(
            logits(AutoModelForCausalLM.from_pretrained(to)),
            logits(load_policy(f"{full}@1", dtype="float32").model),
        )


def test_the_card_says_what_the_records_say(full, work):
    to = work / "out" / "card"
    assert run(["export", str(full), "--to", str(to)]) == 0
    head, body = front(to)
    assert head["library_name"] == "transformers"
    assert {"sdpo", "srpo"} <= set(head["tags"])
    # A folder of this machine is no name for others, and no part of it is told.
    assert "base_model" not in head
    assert str(work) not in body
    assert "`tiny`" in body
    rows = [json.loads(line) for line in (full / "metrics.jsonl").read_text().splitlines()]
    for row in (rows[0], rows[-1]):
        assert f"{row['eval/solved']:.2f}" in body
    assert "90% interval" in body
    assert "optim.lr = 0.01" in body
    recorded = json.loads((full / "config.json").read_text())
    assert f"torch {recorded['versions']['torch']}" in body
    if commit := recorded["git"].get("commit"):
        assert commit[:12] in body
        assert ("uncommitted" in body) == bool(recorded["git"]["diff"])


@pytest.mark.filterwarnings("ignore")
def test_peft_loads_an_exported_adapter_and_transformers_a_merged_one(lora, work, capsys):
    adapter, merged = work / "out" / "adapter", work / "out" / "merged"
    assert run(["export", str(lora), "--to", str(adapter)]) == 0
    assert "others need --merge" in capsys.readouterr().out
    assert run(["export", str(lora), "--to", str(merged), "--merge"]) == 0
    peft = pytest.importorskip("peft")
    expected = logits(load_policy(str(lora), dtype="float32").model)
    plain = logits(AutoModelForCausalLM.from_pretrained(work / "tiny"))
    assert not torch.allclose(expected, plain)
    with quiet():
        found = peft.AutoPeftModelForCausalLM.from_pretrained(adapter)
    torch.testing.assert_close(logits(found), expected, rtol=1e-4, atol=1e-4)
    whole = AutoModelForCausalLM.from_pretrained(merged)
    torch.testing.assert_close(logits(whole), expected, rtol=1e-4, atol=1e-4)
    assert front(adapter)[0]["library_name"] == "peft"
    assert front(merged)[0]["library_name"] == "transformers"
    assert "AutoPeftModelForCausalLM" in front(adapter)[1]
    assert "merged into the weights" in front(merged)[1]
    assert AutoTokenizer.from_pretrained(merged).chat_template


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_gguf_file_comes_back_as_the_same_model(kind, work, request, tmp_path, monkeypatch):
    source = request.getfixturevalue(kind)
    to = work / "out" / f"gguf-{kind}"
    merge = ["--merge"] if kind == "lora" else []
    assert run(["export", str(source), "--to", str(to), "--gguf", *merge]) == 0
    monkeypatch.setenv("SDPO_CACHE", str(tmp_path / "cache"))
    back = load_policy(str(to / f"{to.name}.gguf"), dtype="float32")
    expected = load_policy(str(to), dtype="float32")
    # The converted file is kept as bfloat16.
    torch.testing.assert_close(logits(back.model), logits(expected.model), rtol=0.02, atol=0.02)
    text = "<|im_start|>user\nsay naïve 你好, 12 345<|im_end|>\n"
    assert back.tokenizer(text).input_ids == expected.tokenizer(text).input_ids
    assert back.tokenizer.chat_template == expected.tokenizer.chat_template


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_family_that_gguf_is_written_for(family, dtype, tmp_path):
    # Three rows without a token; transformers reads every qwen3 file as one with heads of 128.
    width = 512 if family == "qwen3" else 64
    model = tiny_model(family, vocab_size=264, hidden_size=width, dtype=dtype)
    policy = Policy(model=model, tokenizer=gpt2_tokenizer(), name="tiny")
    write_gguf(policy, tmp_path / "m.gguf", name="tiny")
    with quiet():
        back = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=dtype)
    ours, theirs = model.state_dict(), back.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_gguf_of_what_is_not_known_names_llama_cpps_converter(tmp_path):
    for family, tokenizer in (("gemma2", gpt2_tokenizer()), ("llama", byte_tokenizer())):
        policy = Policy(model=tiny_model(family), tokenizer=tokenizer, name="tiny")
        with pytest.raises(ModelError, match=r"convert_hf_to_gguf\.py"):
            write_gguf(policy, tmp_path / "m.gguf", name="tiny")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{tiny}", "--to", "{new}"], "is not a run's folder"),
        (["{full}", "--to", "{tiny}"], "is not an empty folder"),
        (["{full}", "--to", "{new}", "--merge"], "no adapter to merge"),
        (["{lora}", "--to", "{new}", "--gguf"], "add --merge"),
        (["{full}@7", "--to", "{new}"], "no checkpoint of step 7; it has 1, 2"),
        (["{full}", "--to", "{new}", "--push", "name"], "write OWNER/NAME"),
        (["{full}", "--to", "{new}", "--public"], "--public needs --push"),
    ],
)
def test_what_cannot_be_exported_names_the_fix(arguments, said, full, lora, work, capsys):
    new = work / "never"
    places = {"tiny": work / "tiny", "full": full, "lora": lora, "new": new}
    capsys.readouterr()
    assert run(["export", *(a.format(**places) for a in arguments)]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not new.exists()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files asks for."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.seen[self.path.partition("?")[0]] = body
        if self.headers.get("authorization") != "Bearer hf_right":
            return self.answer(401, {"error": "no"})
        if self.path == "/api/repos/create":
            return self.answer(200, {"url": "https://huggingface.co/ada/mine"})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        return self.answer(
            200, {"commitUrl": "https://huggingface.co/ada/mine/commit/1", "commitOid": "1"}
        )

    def do_GET(self):
        self.answer(200, {"id": "ada/mine", "sha": "0", "siblings": []})

    def answer(self, status, value):
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen = {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def push(hub, full, to, token):
    left = {
        k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE" and "proxy" not in k.lower()
    }
    env = left | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(to.parent / "hf"),
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "sdpo",
        "export",
        str(full),
        "--to",
        str(to),
        "--push",
        "ada/mine",
    ]
    return subprocess.run(
        command, capture_output=True, text=True, env=env, check=False, timeout=120
    )


def test_push_sends_the_folder_to_a_private_repository(hub, full, work):
    to = work / "out" / "pushed"
    done = push(hub, full, to, "hf_right")
    assert done.returncode == 0, done.stderr
    assert "ada/mine" in done.stdout.splitlines()[-1]
    made = json.loads(hub.seen["/api/repos/create"])
    assert made["name"] == "mine"
    assert made["organization"] == "ada"
    assert made.get("private") is True or made.get("visibility") == "private"
    lines = hub.seen["/api/models/ada/mine/commit/main"].decode().splitlines()
    files = {
        v["path"]: base64.b64decode(v["content"])
        for v in (json.loads(line)["value"] for line in lines)
        if "path" in v
    }
    assert files == {path.name: path.read_bytes() for path in to.iterdir()}
    assert {"README.md", "model.safetensors", "config.json", "tokenizer.json"} <= set(files)


def test_a_refused_push_leaves_the_folder_and_says_how_to_go_on(hub, full, work):
    to = work / "out" / "refused"
    done = push(hub, full, to, "hf_wrong")
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "hf auth login" in said
    assert f"hf upload ada/mine {to}" in said
    assert (to / "model.safetensors").is_file()


@pytest.mark.model
@pytest.mark.slow
def test_the_demo_model_as_gguf_keeps_the_original_files_tokens(tmp_path):
    import gguf

    from sdpo.models.gguf import DEMO, demo_file

    policy = load_policy(DEMO, dtype="bfloat16", device="cpu")
    path = tmp_path / "demo.gguf"
    write_gguf(policy, path, name="demo")
    ours, theirs = gguf.GGUFReader(path), gguf.GGUFReader(demo_file())
    for key in (
        "llama.block_count", "llama.context_length", "llama.embedding_length",
        "llama.feed_forward_length", "llama.attention.head_count", "llama.rope.freq_base",
        "llama.attention.head_count_kv", "llama.vocab_size", "llama.rope.dimension_count",
        "llama.attention.layer_norm_rms_epsilon", "tokenizer.ggml.model", "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.padding_token_id", "tokenizer.ggml.add_bos_token",
    ):  # fmt: skip
        assert ours.fields[key].contents() == theirs.fields[key].contents(), key
    shapes = [{t.name: list(t.shape) for t in reader.tensors} for reader in (ours, theirs)]
    assert shapes[0] == shapes[1]
    shutil.copy(path, tmp_path / "again.gguf")
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        back = AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file="again.gguf", dtype=torch.bfloat16
        )
    mine, loaded = policy.model.state_dict(), back.state_dict()
    assert all(torch.equal(mine[name], loaded[name]) for name in mine)
