"""The engine that samples with vLLM servers, in front of small ones that keep what they are
sent."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stub_vllm import serving

import sdpo
from sdpo.config.load import load_config
from sdpo.engines.base import GenerationRequest, Sampling
from sdpo.engines.local import LocalEngine
from sdpo.engines.server import ServerEngine
from sdpo.engines.server_http import Server, in_threads
from sdpo.engines.weight_transfer import FolderTransfer, NcclTransfer
from sdpo.errors import EngineError
from sdpo.metrics.jsonl import read_rows
from sdpo.models.saved_weights import saved_weights
from sdpo.testing import byte_tokenizer, tiny_model

REQUESTS = [
    GenerationRequest(prompt_ids=(1, 5, 9), seeds=(11, 12, 13)),
    GenerationRequest(prompt_ids=(7,), seeds=(14,)),
    GenerationRequest(prompt_ids=(3, 3), seeds=(15, 16), max_new_tokens=4),
]
SAMPLING = Sampling(max_new_tokens=12, stop_ids=(2, 9), temperature=0.7, vocabulary=250)
UPDATE = [
    "/pause?mode=wait", "/collective_rpc", "/collective_rpc", "/reset_prefix_cache",
    "/update_weight_version", "/resume",
]  # fmt: skip


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def servers(model):
    """Two, with weights of their own to begin with."""
    with serving(tiny_model(seed=7), tiny_model(seed=8)) as found:
        yield found


def engine_of(model, servers, folder, **settings):
    return ServerEngine(
        model,
        [Server(server.url, timeout_s=20) for server in servers],
        FolderTransfer(folder),
        waits_s=settings.pop("waits_s", (0.0, 0.01)),
        **settings,
    )


def move(model, by=0.05):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by)


def sampled_at(server):
    return [body for path, body in server.requests if path == "/inference/v1/generate"]


def test_completions_are_those_of_the_policy_before_and_after_updates(model, servers, tmp_path):
    engine, local = engine_of(model, servers, tmp_path), LocalEngine(model)
    for version in (0, 1, 2):
        for group, expected in zip(
            engine.generate(REQUESTS, SAMPLING), local.generate(REQUESTS, SAMPLING), strict=True
        ):
            for completion, wanted in zip(group, expected, strict=True):
                assert completion.token_ids == wanted.token_ids
                assert completion.truncated == wanted.truncated
                assert completion.logprobs == pytest.approx(wanted.logprobs, abs=1e-5)
        move(model)
        engine.load_weights(model, version + 1)
        assert engine.policy_version == version + 1


def test_what_servers_are_sent(model, servers, tmp_path):
    engine = engine_of(model, servers, tmp_path)
    (folder,) = tmp_path.iterdir()
    file, expected = load_file(folder / "model.safetensors"), saved_weights(model)
    assert file.keys() == expected.keys()
    assert all(torch.equal(file[name], expected[name]) for name in expected)
    for server in servers:
        assert server.paths()[:6] == UPDATE
        assert server.label == folder.name
        assert not server.is_paused
        assert len(sampled_at(server)) == 1  # which tries its options
        server.requests.clear()
    engine.generate(REQUESTS, SAMPLING)
    bodies = [body for server in servers for body in sampled_at(server)]
    # All completions of a prompt go to one server, and prompts go round.
    assert [len(sampled_at(server)) for server in servers] == [5, 1]
    assert sorted(body["sampling_params"]["seed"] for body in bodies) == [11, 12, 13, 14, 15, 16]
    body = next(body for body in bodies if body["token_ids"] == [3, 3])
    seed = body["sampling_params"].pop("seed")
    assert seed in (15, 16)
    assert body["sampling_params"] == {
        "temperature": 0.7, "top_p": 1.0, "max_tokens": 4, "stop_token_ids": [2, 9],
        "ignore_eos": True, "detokenize": False, "logprobs": 0,
        "logit_bias": {str(token): -100.0 for token in range(250, 259)},
    }  # fmt: skip


def test_only_the_newest_weights_lie_in_the_folder_and_none_afterwards(model, servers, tmp_path):
    engine = engine_of(model, servers, tmp_path)
    for version in (1, 2):
        engine.load_weights(model, version)
    assert [folder.name for folder in tmp_path.iterdir()] == [servers[0].label]
    del engine
    assert not list(tmp_path.iterdir())


def test_a_server_that_dies_leaves_its_share_to_the_others(model, servers, tmp_path):
    engine = engine_of(model, servers, tmp_path)
    expected = engine.generate(REQUESTS, SAMPLING)
    servers[0].answers_before_death = 2
    assert engine.generate(REQUESTS, SAMPLING) == expected
    assert servers[0].is_dead
    # It misses an update, and is not asked even once it is back.
    move(model)
    engine.load_weights(model, 1)
    servers[0].answers_before_death = 10**9
    servers[0].requests.clear()
    expected = engine.generate(REQUESTS, SAMPLING)
    assert not sampled_at(servers[0])
    engine.load_weights(model, 2)
    assert engine.generate(REQUESTS, SAMPLING) == expected
    assert sampled_at(servers[0])


def test_no_server_at_all_is_an_error_that_names_them(model, servers, tmp_path):
    engine = engine_of(model, servers, tmp_path)
    for server in servers:
        server.answers_before_death = -1
    for attempt in (
        lambda: engine.generate(REQUESTS, SAMPLING),
        lambda: engine.load_weights(model, 1),
    ):
        with pytest.raises(EngineError, match="no vLLM server") as raised:
            attempt()
        assert all(server.url in str(raised.value) for server in servers)
    assert engine.policy_version == 0


def test_a_busy_server_is_asked_again(model, servers, tmp_path):
    engine = engine_of(model, servers[:1], tmp_path)
    expected = engine.generate(REQUESTS, SAMPLING)
    servers[0].broken = {"/inference/v1/generate": [503], "/collective_rpc": [500]}
    assert engine.generate(REQUESTS, SAMPLING) == expected
    engine.load_weights(model, 1)
    assert engine.policy_version == 1
    assert not servers[0].is_paused


def test_weights_of_another_run_are_noticed(model, servers, tmp_path):
    first = engine_of(model, servers[:1], tmp_path / "a")
    other = engine_of(tiny_model(seed=3), servers[:1], tmp_path / "b")
    with pytest.raises(EngineError, match=r"instead of sdpo-.*another run uses it"):
        first.generate(REQUESTS, SAMPLING)
    other.generate(REQUESTS, SAMPLING)


def test_an_answer_by_older_weights_is_refused(model, servers, tmp_path):
    """The server is well when asked, and started anew when it samples."""
    engine = engine_of(model, servers[:1], tmp_path, waits_s=(0.0,))
    generate = servers[0].generate

    def forgetful(body):
        servers[0].label = "default"
        return generate(body)

    servers[0].generate = forgetful
    with pytest.raises(EngineError, match="weights default instead of"):
        engine.generate(REQUESTS, SAMPLING)


def test_servers_that_were_started_otherwise_are_refused(model, servers, tmp_path):
    with pytest.raises(EngineError, match=r"sequences of 512 tokens.*--max-model-len 600"):
        engine_of(model, servers, tmp_path, max_model_len=600)
    servers[1].is_raw = True
    with pytest.raises(EngineError, match="--logprobs-mode processed_logprobs"):
        engine_of(model, servers, tmp_path)
    servers[1].is_raw = False
    servers[1].broken = {"/pause": [404]}
    with pytest.raises(EngineError, match="VLLM_SERVER_DEV_MODE=1"):
        engine_of(model, servers, tmp_path)
    servers[1].broken = {"/inference/v1/generate": [403]}
    with pytest.raises(EngineError, match="--tokens-only"):
        engine_of(model, servers, tmp_path)


def test_a_folder_that_cannot_be_written_is_named(model, servers, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match=r"rollout\.engine\.weights\.path"):
        engine_of(model, servers, tmp_path / "file")


def test_weights_on_a_cpu_do_not_go_by_nccl(model, servers):
    with pytest.raises(EngineError, match=r"are on cpu; take rollout\.engine\.weights\.type"):
        ServerEngine(model, [Server(servers[0].url, timeout_s=20)], NcclTransfer("127.0.0.1"))


def test_log_probs_that_are_not_finite_are_refused(model, servers, tmp_path):
    engine = engine_of(model, servers[:1], tmp_path)
    generate = servers[0].generate

    def broken(body):
        said = generate(body)
        said["choices"][0]["logprobs"]["content"][0]["logprob"] = -9999.0
        return said

    servers[0].generate = broken
    with pytest.raises(EngineError, match="not finite"):
        engine.generate(REQUESTS, SAMPLING)


def test_the_first_error_of_a_thread_ends_all():
    def work(item):
        if item == 3:
            raise EngineError("three")
        return item + 1

    assert in_threads(work, range(3), at_once=2) == [1, 2, 3]
    with pytest.raises(EngineError, match="three"):
        in_threads(work, range(9), at_once=2)


TASKS = [{"id": f"t{i}", "prompt": f"say {i}"} for i in range(4)]


def judge(task, rollout):
    hits = sum(character in "abcdefgh" for character in rollout.text)
    said = None if hits else f"none of the {len(rollout.text)} characters is a letter from a to h"
    return sdpo.Verdict(reward=float(hits > 0), solved=hits > 0, feedback=said)


@pytest.mark.parametrize("objective", ["sdpo", "sft"])
def test_training_with_servers_is_training_with_the_local_engine(tmp_path, objective, monkeypatch):
    """Steps, evaluations and the self-teacher's attempts: everything is sampled from the weights of
    its time."""
    generate = LocalEngine.generate

    def with_their_seeds(self, requests, sampling):
        """vLLM's seeds have a bit less."""
        requests = [replace(r, seeds=tuple(s % 2**63 for s in r.seeds)) for r in requests]
        return generate(self, requests, sampling)

    monkeypatch.setattr(LocalEngine, "generate", with_their_seeds)
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    common = [
        f"model.name={tmp_path / 'model'}", "model.device=cpu", "model.dtype=float32", "steps=3",
        "rollout.tasks_per_step=3", "rollout.group_size=4", "rollout.max_completion_tokens=8",
        "rollout.max_prompt_tokens=200", "optim.lr=1e-2", "eval.samples=1", "checkpoint.every=0",
        "eval.every=1", f"objective.type={objective}", "teacher.schedule.type=ema",
        "teacher.context.max_tokens=400", "discover.window_tokens=400",
    ]  # fmt: skip

    def rows(name, *overrides):
        config = load_config([f"run={tmp_path / name}", *common, *overrides])
        sdpo.train(config, env=sdpo.env(TASKS, judge))
        return [
            {k: v for k, v in row.items() if not k.startswith(("time/", "memory/", "seconds"))}
            for row in read_rows(Path(config.run) / "metrics.jsonl")
        ]

    local = rows("local")
    with serving(copy.deepcopy(model), tiny_model(seed=5)) as servers:
        urls = json.dumps([server.url for server in servers])
        served = rows(
            "served", "rollout.engine.type=server", f"rollout.engine.urls={urls}",
            f"rollout.engine.weights.path={tmp_path / 'weights'}",
        )  # fmt: skip
        assert all(sampled_at(server) for server in servers)
    assert len(served) == len(local) == 4
    for row, expected in zip(served, local, strict=True):
        assert row.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(value, float):
                assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
            else:
                assert row[name] == value, name
