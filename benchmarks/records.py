"""What the records of a run cost: short runs with the defaults against the same runs without
credit, rollouts.jsonl and metrics.jsonl.

    .venv/bin/python benchmarks/records.py [--hidden 256] [--vocab 16000] [--steps 6] [--rounds 3]

Both arms train the same steps of the default size (8 tasks x 8 attempts x 128 tokens unless
changed) in this process and take turns, the second order reversed. A step lasts from the end of one
record to the end of the next, so that it holds all work of a step; the first of a run warms up.
CPU time is what to read on a busy machine. `inside_cpu_share` is the CPU time of the recording
functions themselves over that of the steps: free of the noise between two runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
from eos import ignoring_eos

import sdpo
from sdpo.config.load import load_config
from sdpo.losses.head import chunks
from sdpo.metrics.canaries import Canaries
from sdpo.metrics.dashboard import Dashboard
from sdpo.metrics.writer import MetricsWriter
from sdpo.rollouts.record import RolloutRecorder
from sdpo.rollouts.sampler import Sampler
from sdpo.testing import byte_tokenizer, tiny_model
from sdpo.training import learner, run, step
from sdpo.training.loop import train
from sdpo.training.run import Run

RECORDING = (
    (RolloutRecorder, "write"), (RolloutRecorder, "record_credit"),
    (MetricsWriter, "write"), (MetricsWriter, "write_rollouts"), (Dashboard, "update"),
    (Canaries, "observe"),
    (run, "rollout_metrics"), (learner, "choose_inspected"), (step, "credit_of"),
    (chunks, "fill_top_tokens"),
)  # fmt: skip
TASKS = [{"id": f"t{i}", "prompt": f"Write a word with the letter {i:04}. " * 3} for i in range(8)]


def judge(task: sdpo.Task, rollout: sdpo.Rollout) -> sdpo.Verdict:
    """Every attempt fails with feedback: all are taught, which is the most there is to record."""
    return sdpo.Verdict(reward=0.0, solved=False, feedback=f"not the right word for {task.id}")


@contextmanager
def unrecorded() -> Generator[None]:
    """Nothing written about steps and rollouts."""
    with (
        mock.patch.object(RolloutRecorder, "write"),
        mock.patch.object(MetricsWriter, "write"),
    ):
        yield


@contextmanager
def accounted(spent: list[float]) -> Generator[None]:
    """Adds the CPU seconds inside recording functions to `spent`; none of them calls another."""

    def timed(owner: Any, name: str) -> Any:
        original = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            start = time.process_time()
            try:
                return original(*arguments, **named)
            finally:
                spent.append(time.process_time() - start)

        return mock.patch.object(owner, name, call)

    with ExitStack() as stack:
        for owner, name in RECORDING:
            stack.enter_context(timed(owner, name))
        yield


def steps_of_run(folder: Path, options: argparse.Namespace, overrides: list[str]) -> list[Any]:
    """(wall, CPU) seconds of every step of one run but the first."""
    stamps: list[tuple[float, float]] = []
    record = Run.record

    def stamped(run: Run, *arguments: Any) -> None:
        record(run, *arguments)
        stamps.append((time.perf_counter(), time.process_time()))

    config = load_config(
        [
            f"model.name={options.model}", f"run={folder}", f"steps={options.steps + 1}",
            "eval.every=0", "eval.max_tasks=1", "eval.samples=1", "checkpoint.every=0",
            f"rollout.max_completion_tokens={options.tokens}",
            *overrides,
        ]
    )  # fmt: skip
    to_the_limit = mock.patch.object(Sampler, "sampling", ignoring_eos(Sampler.sampling))
    with mock.patch.object(Run, "record", stamped), to_the_limit, redirect_stdout(None):
        train(config, env=sdpo.env(TASKS, judge))
    pairs = itertools.pairwise(stamps[1:])
    return [(later[0] - sooner[0], later[1] - sooner[1]) for sooner, later in pairs]


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("hidden", 256), ("vocab", 16_000), ("steps", 6), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a completion")
    options = parser.parse_args()
    torch.set_num_threads(1)
    spent: list[float] = []
    found: dict[str, list[tuple[float, float]]] = {"defaults": [], "off": []}
    with tempfile.TemporaryDirectory() as name:
        options.model = Path(name) / "model"
        tiny_model(vocab_size=options.vocab, hidden_size=options.hidden).save_pretrained(
            options.model
        )
        byte_tokenizer().save_pretrained(options.model)
        for turn in range(options.rounds):
            arms = ["defaults", "off"] if turn % 2 == 0 else ["off", "defaults"]
            for arm in arms:
                folder = Path(name) / f"{arm}-{turn}"
                if arm == "off":
                    with unrecorded():
                        found[arm] += steps_of_run(folder, options, ["credit.rollouts=0"])
                else:
                    with accounted(spent):
                        found[arm] += steps_of_run(folder, options, [])
    medians = {
        arm: [statistics.median(column) for column in zip(*steps, strict=True)]
        for arm, steps in found.items()
    }
    report = {
        "steps_per_arm": len(found["off"]),
        # The first step of a run is recorded, but not among those timed.
        "inside_cpu_share": round(
            sum(spent) / options.rounds / (options.steps + 1) / medians["defaults"][1], 5
        ),
        **{f"{arm}_{kind}_s": round(medians[arm][i], 4)
           for arm in medians for i, kind in enumerate(("wall", "cpu"))},
        **{f"{kind}_ratio": round(medians["defaults"][i] / medians["off"][i], 4)
           for i, kind in enumerate(("wall", "cpu"))},
    }  # fmt: skip
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
