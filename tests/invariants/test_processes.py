"""Two processes train what one process trains: same rollouts, same weights up to rounding, and the
files of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes_worker import train
from safetensors.torch import load_file
from under_torchrun import two_processes

from sdpo.metrics.jsonl import read_rows
from sdpo.testing import byte_tokenizer, tiny_model

WORKER = Path(__file__).with_name("processes_worker.py")
LR = 1e-3

# fmt: off
CASES = {
    # More tasks than ranks and not a multiple: ranks have unequal shares. One task is evaluated,
    # so the second rank has none.
    "sdpo": ["objective.type=sdpo", "rollout.tasks_per_step=3", "eval.max_tasks=1"],
    # Three tasks are probed by two ranks.
    "grpo": ["objective.type=grpo", "rollout.tasks_per_step=4", "eval.probe_tasks=3"],
    # One task, as at test time: its attempts are shared.
    "lone": ["objective.type=sdpo", "rollout.tasks_per_step=1", "eval.max_tasks=1"],
    # The self-teacher's attempts are shared too, and an evaluation of one attempt is not.
    "lone sft": [
        "objective.type=sft", "rollout.tasks_per_step=1", "rollout.group_size=8",
        "rollout.max_completion_tokens=24", "eval.max_tasks=1",
    ],
    # Which groups are flat is known to all ranks only once they are gathered.
    "redraws": [
        "objective.type=grpo", "rollout.tasks_per_step=3", "rollout.group_size=3",
        "rollout.max_completion_tokens=12", "rollout.redraws=2",
    ],
    # Token weights relative to their mean over the whole batch, and one count for two components.
    "srpo": ["objective.type=srpo", "rollout.tasks_per_step=5", "rollout.group_size=6"],
    # Off-policy: an update must see the same tasks, however many processes share them.
    "updates": ["objective.type=hybrid", "rollout.tasks_per_step=5", "optim.updates_per_step=2"],
}
# fmt: on


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with run directories `one-CASE` and `two-CASE`, by one and by two processes."""
    folder = tmp_path_factory.mktemp("runs")
    model = folder / "model"
    tiny_model(num_layers=1).save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    common = [
        f"model.name={model}", "model.device=cpu", "model.dtype=float32", "steps=2",
        "rollout.group_size=4",
        "rollout.max_completion_tokens=6", "rollout.max_prompt_tokens=200", f"optim.lr={LR}",
        "eval.samples=1", "checkpoint.every=1",
    ]  # fmt: skip
    cases = {str(folder / f"two-{case}"): common + own for case, own in CASES.items()}
    two_processes(WORKER, json.dumps(cases))
    for case, overrides in CASES.items():
        train(folder / f"one-{case}", common + overrides)
    return folder


def lines(path):
    return list(read_rows(path))


@pytest.mark.parametrize("case", CASES)
def test_rollouts_are_the_same_whoever_sampled_them(case, runs):
    one, two = (lines(runs / f"{count}-{case}" / "rollouts.jsonl") for count in ("one", "two"))
    keys = ("step", "split", "task", "index", "text", "reward", "teacher")
    assert [[row[key] for key in keys] for row in one] == [
        [row[key] for key in keys] for row in two
    ]


@pytest.mark.parametrize("case", ["lone", "lone sft"])
def test_a_rank_without_a_task_waited_for_the_others(case, runs):
    alone, other = (
        json.loads((runs / f"two-{case}.judged-{rank}.json").read_text()) for rank in (0, 1)
    )
    rows = lines(runs / f"one-{case}" / "rollouts.jsonl")
    sampled = sum(row["split"] == "train" for row in rows)
    assert len(other) >= sampled / 2
    assert len(alone) >= sampled / 2


@pytest.mark.parametrize("case", CASES)
def test_weights_are_the_same_up_to_rounding(case, runs):
    before = load_file(runs / "model" / "model.safetensors")
    for step in (1, 2):
        alone = load_file(f"{runs}/one-{case}.step-{step}.rank-0.safetensors")
        ranks = [load_file(f"{runs}/two-{case}.step-{step}.rank-{r}.safetensors") for r in (0, 1)]
        for name, weight in alone.items():
            assert ranks[0][name].equal(ranks[1][name]), name
            difference = (weight - ranks[0][name]).abs()
            # Where a gradient is itself rounding, AdamW's step of about lr may have either sign.
            assert difference.max() <= 2.5 * LR * step, name
            assert (difference > 1e-3 * LR).float().mean() < 2e-3, name
            assert (weight - before[name]).abs().mean() > 1e-2 * LR, name


@pytest.mark.parametrize("case", CASES)
def test_metrics_are_those_of_the_whole_batch(case, runs):
    one, two = (lines(runs / f"{count}-{case}" / "metrics.jsonl") for count in ("one", "two"))
    for alone, shared in zip(one, two, strict=True):
        assert alone.keys() == shared.keys()
        for key in alone:
            if key.startswith("time/"):
                continue
            if alone[key] is None:
                assert shared[key] is None, key
            else:
                assert shared[key] == pytest.approx(alone[key], rel=1e-3, abs=1e-6), key


@pytest.mark.parametrize("case", CASES)
def test_only_the_first_process_writes(case, runs):
    touched = [json.loads((runs / f"two-{case}.rank-{r}.json").read_text()) for r in (0, 1)]
    assert any(name.endswith("metrics.jsonl") for name in touched[0])
    assert touched[1] == []
    files = [
        sorted(p.relative_to(run).as_posix() for p in run.rglob("*"))
        for run in (runs / f"one-{case}", runs / f"two-{case}")
    ]
    assert files[0] == files[1]


ONE_RANK_FAILS = """
import dataclasses, os, sys
import sdpo
from sdpo.config.load import load_config
from sdpo.training import step

original = step.objective_loss

def spoilt(*arguments, **named):
    result = original(*arguments, **named)
    if os.environ["RANK"] == "1":
        return dataclasses.replace(result, loss=result.loss * float("nan"))
    return result

step.objective_loss = spoilt
folder, model = sys.argv[1:]
env = sdpo.env(
    [{"id": f"t{i}", "prompt": f"say {i}"} for i in range(4)],
    lambda task, rollout: sdpo.Verdict(reward=0.0, solved=False, feedback="no"),
)
try:
    sdpo.train(load_config([
        f"run={folder}/run", f"model.name={model}", "model.device=cpu",
        "model.dtype=float32", "steps=1",
        "rollout.tasks_per_step=4", "rollout.group_size=2", "rollout.max_completion_tokens=4",
        "rollout.max_prompt_tokens=200", "eval.samples=1", "objective.type=sdpo",
    ]), env=env)
except sdpo.SdpoError as error:
    open(f"{folder}/said.{os.environ['RANK']}", "w").write(str(error))
"""


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(runs, tmp_path):
    (tmp_path / "fails.py").write_text(ONE_RANK_FAILS)
    two_processes(tmp_path / "fails.py", tmp_path, runs / "model")
    said = [(tmp_path / f"said.{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert "step 1: the loss is nan on tasks" in said[0]


LEAVES = """
import atexit, os, sys
import torch.distributed as dist
from sdpo.parallel import start_parallel

def note():
    open(f"{sys.argv[1]}/left.{os.environ['RANK']}", "w").write(str(not dist.is_initialized()))

# What was registered first runs last.
atexit.register(note)
start_parallel().barrier()
start_parallel().barrier()
"""


def test_processes_leave_their_group_before_they_end(tmp_path):
    # Gloo's threads that outlive the interpreter abort one process in ten or so, after a run that
    # went well.
    (tmp_path / "leaves.py").write_text(LEAVES)
    two_processes(tmp_path / "leaves.py", tmp_path)
    assert [(tmp_path / f"left.{rank}").read_text() for rank in (0, 1)] == ["True", "True"]


SIGNALLED = """
import os, signal, sys
import sdpo
from sdpo.config.load import load_config
from sdpo.training.run import Run

folder, model, case = sys.argv[1:]
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_DFL)
rank = os.environ["RANK"]
TASKS = [{"id": f"t{i}", "prompt": f"say {i}"} for i in range(4)]

def judge(task, rollout):
    if case in ("judging", "resumed") and step == 2 and rank == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return sdpo.Verdict(reward=0.0, solved=False, feedback="no")

step = 0

def on_step(row):
    global step
    step = row["step"]
    if case == "save" and step == 1 and rank == "1":
        os.kill(os.getpid(), signal.SIGUSR1)

measure = Run.measure

def measured(self, *arguments):
    if case == "training" and step == 2 and rank == "0":
        os.kill(os.getpid(), signal.SIGTERM)
    return measure(self, *arguments)

Run.measure = measured

def train(steps):
    return sdpo.train(load_config([
    f"run={folder}/{case}", f"model.name={model}", "model.device=cpu",
    "model.dtype=float32", f"steps={steps}", "checkpoint.every=0", "eval.every=0",
    "rollout.tasks_per_step=4", "rollout.group_size=2", "rollout.max_completion_tokens=4",
    "rollout.max_prompt_tokens=200", "eval.samples=1", "objective.type=sdpo",
]), env=sdpo.env(TASKS, judge), on_step=on_step)

if case == "resumed":
    train(2)
result = train(4)
open(f"{folder}/{case}.{rank}", "w").write(f"{result.step} {result.exit_status}")
"""


@pytest.mark.parametrize(
    ("case", "step", "status"),
    [("judging", 2, 143), ("training", 3, 143), ("save", 4, 0), ("resumed", 2, 143)],
)
def test_a_signal_to_one_process_stops_or_saves_all(runs, tmp_path, case, step, status):
    """A scheduler that signals one rank left the others waiting for it, and nothing was saved; so
    it still was before the first step of a run that was continued."""
    (tmp_path / "signalled.py").write_text(SIGNALLED)
    two_processes(tmp_path / "signalled.py", tmp_path, runs / "model", case)
    said = [(tmp_path / f"{case}.{rank}").read_text() for rank in (0, 1)]
    assert said == [f"{step} {status}"] * 2
    saved = sorted(path.name for path in (tmp_path / case / "checkpoints").iterdir())
    assert saved == {"save": ["step-1", "step-4"]}.get(case, [f"step-{step}"])


UNJUDGED = """
import os, sys
import sdpo
from sdpo.config.load import load_config

folder, model, share = sys.argv[1:]
TASKS = [{"id": f"t{i}", "prompt": f"say {i}"} for i in range(4)]

def judge(task, rollout):
    # Both attempts at t1 and t3: all of the second process, half of the step.
    if task.id in ("t1", "t3"):
        raise sdpo.Unjudged("busy")
    return sdpo.Verdict(reward=0.0, solved=False, feedback="no")

said = "finished"
try:
    result = sdpo.train(load_config([
        f"run={folder}/{share}", f"model.name={model}", "model.device=cpu",
        "model.dtype=float32", "steps=1", "checkpoint.every=0", "eval.every=0", "env.retries=0",
        f"env.max_unjudged={share}", "rollout.tasks_per_step=4", "rollout.group_size=2",
        "rollout.max_completion_tokens=4", "rollout.max_prompt_tokens=200", "eval.samples=1",
        "objective.type=sdpo",
    ]), env=sdpo.env(TASKS, judge))
    said = str(result.metrics["env/unjudged"])
except sdpo.SdpoError as error:
    said = str(error)
open(f"{folder}/{share}.{os.environ['RANK']}", "w").write(said)
"""


@pytest.mark.parametrize(("share", "said"), [("0.6", "0.5"), ("0.4", "could not be judged")])
def test_the_share_without_a_verdict_was_that_of_one_process(runs, tmp_path, share, said):
    (tmp_path / "unjudged.py").write_text(UNJUDGED)
    two_processes(tmp_path / "unjudged.py", tmp_path, runs / "model", share)
    found = [(tmp_path / f"{share}.{rank}").read_text() for rank in (0, 1)]
    assert found[0] == found[1]
    assert said in found[0]
