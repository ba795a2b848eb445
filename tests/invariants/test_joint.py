"""Processes that sample as one train what one process trains, and end together."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from processes_worker import train
from safetensors.torch import load_file
from under_torchrun import torchrun, two_processes

from sdpo.engines.peers import check_peers
from sdpo.errors import ConfigError
from sdpo.metrics.jsonl import read_rows
from sdpo.parallel import Parallel
from sdpo.testing import byte_tokenizer, tiny_model

WORKER = Path(__file__).with_name("joint_worker.py")
LR = 1e-3


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, list[str]]:
    """A folder and the settings of its runs; one held-out task, so that the second process has
    nothing to sample there."""
    folder = tmp_path_factory.mktemp("joint")
    tiny_model(num_layers=1).save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    return folder, [
        f"model.name={folder / 'model'}", "model.device=cpu", "model.dtype=float32", "steps=2",
        "rollout.group_size=4", "rollout.tasks_per_step=3", "rollout.max_completion_tokens=6",
        "rollout.max_prompt_tokens=200", f"optim.lr={LR}", "eval.samples=1", "eval.max_tasks=1",
        "eval.every=1", "checkpoint.every=0", "objective.type=sdpo",
    ]  # fmt: skip


def test_they_sample_and_train_what_one_process_does(world):
    folder, overrides = world
    train(folder / "one", overrides)
    two_processes(WORKER, folder / "two", json.dumps(overrides))
    calls = [(folder / f"two.joint-{rank}").read_text().split() for rank in (0, 1)]
    assert calls[0] == calls[1]
    one, two = (list(read_rows(folder / run / "rollouts.jsonl.gz")) for run in ("one", "two"))
    assert [row["text"] for row in one] == [row["text"] for row in two]
    weights = [load_file(f"{folder}/{run}.step-2.rank-0.safetensors") for run in ("one", "two")]
    for name, weight in weights[0].items():
        difference = (weight - weights[1][name]).abs()
        assert difference.max() <= 5 * LR, name
        assert (difference > 1e-3 * LR).float().mean() < 2e-3, name


@pytest.mark.parametrize(
    ("part", "expected"), [("judge", "cannot be judged"), ("sampler", "the sampler has failed")]
)
def test_what_fails_on_one_or_all_leaves_nobody_waiting(world, part, expected):
    folder, overrides = world
    process = torchrun(WORKER, folder / part, json.dumps(overrides), part)
    try:
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    said = [(folder / f"{part}.joint-{rank}").read_text().partition("\n")[2] for rank in (0, 1)]
    assert said[0] == said[1], err[-3000:]
    assert expected in said[0]


@pytest.mark.parametrize(
    ("count", "processes", "per_node", "said"),
    [
        (2, 1, None, "there is one process: start several with torchrun"),
        (3, 4, None, "does not divide the 4 processes of a node: take 1 or 2 or 4"),
        (4, 4, 2, "does not divide the 2 processes of a node: take 1 or 2"),
    ],
)
def test_rows_lie_within_a_node(count, processes, per_node, said, monkeypatch):
    if per_node is not None:
        monkeypatch.setitem(os.environ, "LOCAL_WORLD_SIZE", str(per_node))
    with pytest.raises(ConfigError, match=f"tensor_parallel = {count}.*{said}"):
        check_peers(count, Parallel(rank=0, world_size=processes))
    check_peers(1, Parallel(rank=0, world_size=processes))
