"""Processes that share weights (`model.parallel=shard`) train what one process trains, up to
rounding, and each keeps its part."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from processes_worker import train
from safetensors.torch import load_file

from sdpo.export.folder import export_run
from sdpo.metrics.jsonl import read_rows
from sdpo.models.shard_files import read_shards
from sdpo.testing import byte_tokenizer, tiny_model

WORKER = Path(__file__).with_name("sharding_worker.py")
LR = 1e-3
COMMON = [
    "model.device=cpu", "steps=2", "rollout.group_size=4", "rollout.tasks_per_step=3",
    "rollout.max_completion_tokens=6", "rollout.max_prompt_tokens=200", f"optim.lr={LR}",
    "eval.samples=1", "eval.max_tasks=1", "checkpoint.every=1", "objective.type=sdpo",
]  # fmt: skip
SHARD = "model.parallel=shard"
ADAPTERS = ("model.adapter.type=lora", "model.adapter.rank=4", "optim.micro_batch_tokens=64")


def processes(
    count: int,
    jobs: list[tuple[Path, list[str]]],
    *,
    per_node: int | None = None,
    timeout_s: float = 500,
) -> None:
    """Train `jobs` in `count` processes, each of which must end well. They are started as torchrun
    starts them, on one node or `per_node` on each of several, without its agent, which would take
    another second of import."""
    per_node = per_node or count
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = json.dumps([(str(run), overrides) for run, overrides in jobs])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    shared |= {"LOCAL_WORLD_SIZE": str(per_node), "OMP_NUM_THREADS": "1"}
    shared |= {"CUDA_VISIBLE_DEVICES": ""}
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        started = []
        for rank, file in enumerate(files):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank % per_node)}
            process = subprocess.Popen(
                [sys.executable, str(WORKER), arguments],
                env={**os.environ, **shared, **own},
                stdout=subprocess.DEVNULL,
                stderr=file,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            started.append(process)
        for process, file in zip(started, files, strict=True):
            status = process.wait(timeout=timeout_s)
            file.seek(0)
            assert status == 0, file.read()[-6000:].decode()


def save_model(folder: Path, family: str = "llama", *, tied: bool = True, **settings) -> Path:
    model = tiny_model(family, **settings)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0).clone())
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def looked(run: Path, rank: int) -> dict[str, Any]:
    return json.loads(Path(f"{run}.looked-{rank}.json").read_text())


def assert_same_training(one: Path, many: Path, *, steps: int) -> None:
    """Metrics and weights of run `many`, of several processes, are those of run `one`."""
    for alone, shared in zip(
        read_rows(one / "metrics.jsonl"), read_rows(many / "metrics.jsonl"), strict=True
    ):
        assert alone.keys() == shared.keys()
        for key, value in alone.items():
            if value is None or key.startswith("time/"):
                continue
            assert shared[key] == pytest.approx(value, rel=2e-3, abs=2e-6), key
    for step in range(1, steps + 1):
        assert_same_weights(one, many, step=step)
        first, last = (load_file(f"{many}.step-{step}.rank-{rank}.safetensors") for rank in (0, 1))
        assert all(first[name].equal(weight) for name, weight in last.items())


def assert_same_weights(one: Path, many: Path, *, step: int) -> None:
    alone, shared = (load_file(f"{run}.step-{step}.rank-0.safetensors") for run in (one, many))
    assert alone.keys() == shared.keys()
    for name, weight in alone.items():
        difference = (weight - shared[name]).abs()
        # Where a gradient is itself rounding, AdamW's step of about lr may have either sign.
        assert difference.max() <= 2.5 * LR * step, name
        assert (difference > 1e-2 * LR).float().mean() < 5e-3, name


def copy_at(run: Path, to: Path, *, step: int) -> Path:
    """A copy of `run` as if it had been killed after the checkpoint of `step`."""
    shutil.copytree(run, to)
    for later in (to / "checkpoints").glob("step-*"):
        if int(later.name.removeprefix("step-")) > step:
            shutil.rmtree(later)
    config = to / "config.json"
    config.write_text(config.read_text().replace(json.dumps(str(run)), json.dumps(str(to))))
    return to


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with run directories: `one` of a single process, `two` of two that share weights,
    `two-of-one` and `one-of-two` that took over from the other's first checkpoint."""
    folder = tmp_path_factory.mktemp("sharded")
    common = [f"model.name={save_model(folder / 'model', num_layers=1)}", *COMMON]
    common.append("model.dtype=float32")
    train(folder / "one", common)
    train(folder / "one-lora", [*common, *ADAPTERS])
    jobs = [(folder / "two", [*common, SHARD])]
    jobs.append((copy_at(folder / "one", folder / "two-of-one", step=1), [*common, SHARD]))
    jobs.append((folder / "behind", [*common, SHARD, "checkpoint.background=true"]))
    jobs.append((folder / "offloaded", [*common, SHARD, "optim.offload=true"]))
    jobs.append((folder / "two-lora", [*common, SHARD, *ADAPTERS]))
    jobs.append((folder / "not-finite", [*common, SHARD]))
    processes(2, jobs)
    train(copy_at(folder / "two", folder / "one-of-two", step=1), common)
    return folder


def test_two_processes_train_what_one_trains(runs):
    assert_same_training(runs / "one", runs / "two", steps=2)


def test_whole_adapters_wait_for_passes_that_gather_what_is_under_them(runs):
    """One process has two groups and the other one, so that the other's last passes are idle."""
    assert_same_training(runs / "one-lora", runs / "two-lora", steps=2)


def test_offloaded_state_trains_the_same(runs):
    assert_same_training(runs / "one", runs / "offloaded", steps=2)


@pytest.mark.parametrize("run", ["two-of-one", "one-of-two"])
def test_another_number_of_processes_goes_on(runs, run):
    assert list(read_rows(runs / run / "metrics.jsonl"))[-1]["step"] == 2
    assert_same_weights(runs / "one", runs / run, step=2)


def test_a_checkpoint_written_while_the_run_goes_on_is_the_same(runs):
    for step in (1, 2):
        states = []
        for run in ("two", "behind"):
            folder = runs / run / "checkpoints" / f"step-{step}"
            state = torch.load(folder / "state.pt", weights_only=True)
            states.append(read_shards(state, folder / "shards", None, torch.device("cpu")))
        found = [dict(tensors_of(state)) for state in states]
        assert found[0].keys() == found[1].keys()
        assert all(found[1][path].equal(tensor) for path, tensor in found[0].items())


def tensors_of(node: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(node, torch.Tensor):
        yield path, node
    items = node.items() if isinstance(node, dict) else ()
    for key, value in enumerate(node) if isinstance(node, list | tuple) else items:
        yield from tensors_of(value, f"{path}/{key}")


def test_each_process_keeps_its_half(runs):
    model = tiny_model(num_layers=1)
    # In float32 weights, two moments and the average of the teacher.
    whole = 4 * 4 * sum(parameter.numel() for parameter in model.parameters())
    kept = [looked(runs / "two", rank)["bytes"] for rank in (0, 1)]
    # 259 rows are padded to 260, and small tensors are a memory block each.
    assert all(0.5 * whole * 0.98 <= part <= 0.5 * whole * 1.02 for part in kept)


def test_the_copy_that_samples_is_empty_during_an_update(runs):
    assert [looked(runs / "two", rank)["sampler"] for rank in (0, 1)] == [0, 0]


def test_a_teacher_of_zeros_changes_the_logits(runs):
    """Under `fully_shard` a swap of `Parameter.data` had no effect: the teacher was the student."""
    for rank in (0, 1):
        found = looked(runs / "two", rank)
        assert found["before"] > 0.1
        assert found["inside"] == 0.0
        assert found["change"] == 0.0


def test_a_loss_that_is_not_finite_on_one_process_stops_all(runs):
    """And leaves every process the weights it began with, in the copy that samples."""
    found = [looked(runs / "not-finite", rank) for rank in (0, 1)]
    assert found[0] == found[1]
    assert "step 1: the loss is nan on tasks" in found[0]["said"]
    before = load_file(runs / "model" / "model.safetensors")
    total = float(sum(weight.double().sum() for weight in before.values()))
    assert found[0]["sampler"] == pytest.approx(total, rel=1e-9)


def test_a_sharded_checkpoint_is_a_model_folder(runs, tmp_path):
    folder = runs / "two" / "checkpoints" / "step-2"
    assert {path.name for path in (folder / "shards").iterdir()} >= {".metadata"}
    state = torch.load(folder / "state.pt", weights_only=True)
    assert state["optimizer"]["num_updates"] == 2
    weights = load_file(folder / "model.safetensors")
    published = load_file(f"{runs}/two.step-2.rank-0.safetensors")
    assert all(published[name].equal(weight) for name, weight in weights.items())
    exported = export_run(runs / "two", tmp_path / "exported").folder
    assert not {path.name for path in exported.iterdir()} & {"shards", "state.pt"}
