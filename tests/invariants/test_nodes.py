"""Two nodes of two processes: weights are shared within a node and repeated on the other. That
trains what one process trains, up to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes_worker import train
from test_sharding import (
    COMMON,
    SHARD,
    assert_same_training,
    assert_same_weights,
    looked,
    processes,
    save_model,
)

from sdpo.models.weights import trainable
from sdpo.testing import tiny_model

STEPS = 5
# fmt: off
CASES = {
    "ema": [],
    "trust region": ["teacher.schedule.type=trust_region", "optim.micro_batch_tokens=64"],
    "lora": ["model.adapter.type=lora", "model.adapter.rank=4"],
}
# fmt: on


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Run directories: of one process (`1-CASE`), of four on two nodes (`4-CASE`), of four that
    share weights over both nodes (`all`), one that four, two and one process take turns at
    (`chain`), and one that one process begins and four go on with, twice (`back`)."""
    folder = tmp_path_factory.mktemp("nodes")
    model = save_model(folder / "model", num_layers=1, tied=False)
    overrides = {
        case: [
            f"model.name={model}", *COMMON, "model.dtype=float32", f"steps={STEPS}",
            "checkpoint.every=0", "eval.every=0", *own,
        ]
        for case, own in CASES.items()
    }  # fmt: skip
    for case, settings in overrides.items():
        train(folder / f"1-{case}", settings)
    ema = overrides["ema"]
    jobs = [(folder / f"4-{case}", [*own, SHARD]) for case, own in overrides.items()]
    jobs.append((folder / "all", [*ema, "model.parallel=shard_all"]))
    jobs.append((folder / "chain", [*ema, SHARD, "steps=2"]))
    train(folder / "back", [*ema, "steps=1"])
    jobs += [(folder / "back", [*ema, SHARD, f"steps={step}"]) for step in (3, STEPS)]
    processes(4, jobs, per_node=2, timeout_s=2400)
    processes(2, [(folder / "chain", [*ema, SHARD, "steps=4"])], timeout_s=2400)
    train(folder / "chain", ema)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("run", [*(f"4-{case}" for case in CASES), "all"])
def test_two_nodes_train_what_one_process_trains(runs, run):
    """Losses, the norms of gradients, and the weights after every step."""
    alone = "1-ema" if run == "all" else run.replace("4-", "1-")
    assert_same_training(runs / alone, runs / run, steps=STEPS)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("run", "share"), [("4-ema", 1 / 2), ("all", 1 / 4)])
def test_each_process_keeps_its_share(runs, run, share):
    """Of float32 weights, two moments and the average of the teacher: half of them with two
    processes a node, a quarter where all four share."""
    model = tiny_model("llama", num_layers=1)
    model.config.tie_word_embeddings = False
    count = sum(p.numel() for p in trainable(model).values()) + model.lm_head.weight.numel()
    for rank in range(4):
        assert looked(runs / run, rank)["bytes"] == pytest.approx(16 * count * share, rel=0.02)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("run", ["chain", "back"])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_two_nodes_one_node_and_one_process_take_turns(runs, run, step):
    """Two nodes train two steps, one the next two, one process the last; and one process the first,
    two nodes the rest, started twice."""
    assert_same_weights(runs / "1-ema", runs / run, step=step)
