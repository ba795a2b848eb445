"""Whole training runs on a tiny model: repeatable, resumable, independent of micro-batches."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import sdpo
from sdpo.compare import compare
from sdpo.config.load import load_config
from sdpo.discovery.run import discover_tasks
from sdpo.errors import CheckpointError, ConfigError, TaskError
from sdpo.testing import byte_tokenizer, tiny_model
from sdpo.training.checkpoint import Checkpoints
from sdpo.training.loop import train
from sdpo.training.opening import open_run
from sdpo.training.run import Run
from sdpo.training.step import Updater

TASKS = [{"id": f"t{i}", "prompt": f"say {i}"} for i in range(6)]


def judge(task, rollout):
    hits = sum(character in "abcdefgh" for character in rollout.text)
    said = None if hits else f"none of the {len(rollout.text)} characters is a letter from a to h"
    return sdpo.Verdict(reward=float(hits > 0), solved=hits > 0, feedback=said)


ENV = sdpo.env(TASKS, judge)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def config(model, run, *overrides):
    return load_config(
        [
            f"run={run}", f"model.name={model}", "model.dtype=float32", "steps=4",
            "rollout.tasks_per_step=3",
            "rollout.group_size=4", "rollout.max_completion_tokens=8", "optim.lr=1e-3",
            "rollout.max_prompt_tokens=200", "eval.samples=2", "eval.every=2",
            "checkpoint.every=2", "objective.type=srpo", *overrides,
        ]
    )  # fmt: skip


def rows(run):
    """metrics.jsonl without times."""
    found = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in found]


def test_same_seed_same_metrics_and_another_seed_differs(model, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(config(model, tmp_path / name, f"seed={seed}"), env=ENV)
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert rows(tmp_path / "a") != rows(tmp_path / "c")
    lines = [(tmp_path / n / "rollouts.jsonl.gz").read_bytes() for n in "ab"]
    assert lines[0] == lines[1]
    assert [row["step"] for row in rows(tmp_path / "a")] == [0, 1, 2, 3, 4]


def test_seeds_are_the_runs_one_would_have_started_by_hand(model, tmp_path, monkeypatch):
    found = train(config(model, tmp_path / "both", "seeds=2", "seed=3"), env=ENV)
    train(config(model, tmp_path / "one", "seed=4"), env=ENV)
    assert rows(tmp_path / "both" / "seed-4") == rows(tmp_path / "one")
    assert [run.run_dir.name for run in found.runs] == ["seed-3", "seed-4"]
    assert found.finished
    solved = [run.metrics["eval/solved"] for run in found.runs]
    assert found.metrics["eval/solved"] == pytest.approx(sum(solved) / 2)
    assert compare([[tmp_path / "both"]]).arms[0].num_runs == 2
    collected = []
    monkeypatch.setattr(Run, "collect", lambda *_: collected.append(1))
    train(config(model, tmp_path / "both", "seeds=2", "seed=3"), env=ENV)
    assert not collected, "finished runs are not repeated"


def test_on_step_sees_every_row_of_the_metrics(model, tmp_path):
    seen = []
    train(config(model, tmp_path / "run"), env=ENV, on_step=seen.append)
    assert [row["step"] for row in seen] == [0, 1, 2, 3, 4]
    assert seen[-1]["eval/solved"] == rows(tmp_path / "run")[-1]["eval/solved"]


@pytest.mark.parametrize("die_at", [1, 2, 3])
def test_killed_and_resumed_equals_uninterrupted(model, tmp_path, monkeypatch, die_at):
    train(config(model, tmp_path / "whole"), env=ENV)

    class KilledError(Exception):
        pass

    measure = Run.measure

    def die(self, *arguments):
        if self.step == die_at:
            raise KilledError
        return measure(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "measure", die)
        with pytest.raises(KilledError):
            train(config(model, tmp_path / "killed"), env=ENV)
    train(config(model, tmp_path / "killed"), env=ENV)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    for name in ("rollouts.jsonl.gz", "credit.jsonl"):
        killed, whole = (tmp_path / run / name for run in ("killed", "whole"))
        assert killed.read_bytes() == whole.read_bytes()


def test_interrupt_saves_and_the_same_call_continues(model, tmp_path, monkeypatch):
    train(config(model, tmp_path / "whole"), env=ENV)
    collect = Run.collect

    def interrupted(self, tasks):
        if self.step == 3:
            raise KeyboardInterrupt
        return collect(self, tasks)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "collect", interrupted)
        result = train(config(model, tmp_path / "cut"), env=ENV)
    assert (result.finished, result.step) == (False, 3)
    assert train(config(model, tmp_path / "cut"), env=ENV).finished
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_interrupt_inside_an_update_saves_nothing(model, tmp_path, monkeypatch):
    """Half an update must not replace the checkpoint before it."""
    overrides = ("objective.type=hybrid", "optim.updates_per_step=3", "checkpoint.every=1")
    train(config(model, tmp_path / "whole", *overrides), env=ENV)
    update, calls = Updater._update, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGINT)
            monkeypatch.setattr("sdpo.signals.ECHO_S", -1.0)  # as if much later
            signal.raise_signal(signal.SIGINT)
        return update(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Updater, "_update", interrupted)
        result = train(config(model, tmp_path / "cut", *overrides), env=ENV)
    assert (result.finished, result.step) == (False, 1)
    assert train(config(model, tmp_path / "cut", *overrides), env=ENV).finished
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupt_does_not_swallow_a_rollback(model, tmp_path, monkeypatch):
    overrides = ("canaries.action=rollback", "canaries.patience=1", "checkpoint.every=1")
    measure, record = Run.measure, Run.record

    def truncated(self, *arguments):
        row = measure(self, *arguments)
        return row | {"train/truncated": float(self.step >= 1)}

    def interrupted(self, metrics, alerts=()):
        record(self, metrics, alerts)
        if any(alert.action == "rollback" for alert in alerts):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Run, "measure", truncated)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "record", interrupted)
        result = train(config(model, tmp_path / "run", *overrides), env=ENV)
    assert (result.finished, result.step) == (False, 2)
    state = torch.load(tmp_path / "run" / "checkpoints" / "step-2" / "state.pt")
    assert state["optimizer"]["lr_scale"] == 0.5


def test_updates_without_tasks_change_nothing(model, tmp_path):
    """More updates than tasks: the empty ones must not move momentum, average or warm-up."""
    for count in (3, 5):
        overrides = ("objective.type=hybrid", f"optim.updates_per_step={count}", "steps=2")
        train(config(model, tmp_path / str(count), *overrides), env=ENV)
    assert rows(tmp_path / "3") == rows(tmp_path / "5")


def test_equation_13_works_on_policy(model, tmp_path):
    overrides = (
        "objective.type=sdpo", "objective.importance=logit", "steps=2",
        "objective.divergence.type=reverse_kl", "objective.divergence.top_k=9",
    )  # fmt: skip
    assert (
        train(config(model, tmp_path / "run", *overrides), env=ENV).metrics["optim/grad_norm"] > 0
    )


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_start_from_the_seed(model, tmp_path):
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        overrides = ("model.adapter.type=lora", f"seed={seed}", "steps=1", "optim.lr=1e-12")
        train(config(model, tmp_path / name, *overrides), env=ENV)
        folder = tmp_path / name / "checkpoints" / "step-1"
        found.append(load_file(folder / "adapter_model.safetensors"))
    name = next(key for key in found[0] if "lora_A" in key)
    first, same, other = (weights[name] for weights in found)
    assert torch.allclose(first, same, atol=1e-6)
    assert not torch.allclose(first, other, atol=1e-3)


def test_a_mixture_of_experts_resumes(model, tmp_path):
    """transformers fuses experts in memory and saves them apart, under other names."""
    shape = AutoConfig.for_model(
        "qwen3_moe", vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=32, max_position_embeddings=256,
    )  # fmt: skip
    mixture = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, mixture, byte_tokenizer(), {"step": 1})
    before = {name: p.detach().clone() for name, p in mixture.named_parameters()}
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.zero_()
    assert checkpoints.load(1, mixture) == {"step": 1}
    assert all(torch.equal(p, before[name]) for name, p in mixture.named_parameters())


def test_micro_batches_change_rounding_only(model, tmp_path):
    for budget in (40, 100_000):
        overrides = (f"optim.micro_batch_tokens={budget}", "steps=2")
        train(config(model, tmp_path / str(budget), *overrides), env=ENV)
    small, large = rows(tmp_path / "40"), rows(tmp_path / "100000")
    for one, other in zip(small, large, strict=True):
        for key in one.keys() & other.keys():
            if one[key] is None or other[key] is None:
                assert one[key] is other[key], key
            else:
                assert one[key] == pytest.approx(other[key], rel=2e-3, abs=1e-5), key


@pytest.mark.parametrize(
    "objective", ["sdpo", "grpo", "hybrid", "sc_sdpo", "rlsd", "rlcsd", "sdpg"]
)
def test_every_objective_trains(model, tmp_path, objective):
    overrides = (f"objective.type={objective}", "steps=2", "optim.updates_per_step=3")
    result = train(config(model, tmp_path / "run", *overrides), env=ENV)
    assert result.finished
    assert result.metrics["optim/grad_norm"] > 0


@pytest.mark.parametrize("schedule", ["live", "frozen", "snapshot", "gated", "trust_region"])
def test_every_schedule_trains_and_resumes(model, tmp_path, schedule):
    overrides = (f"teacher.schedule.type={schedule}", "objective.type=sdpo")
    train(config(model, tmp_path / "whole", *overrides), env=ENV)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "step-4")
    shutil.rmtree(tmp_path / "again", ignore_errors=True)
    recorded = json.loads((tmp_path / "part" / "config.json").read_text())
    recorded["config"]["run"] = str(tmp_path / "part")
    (tmp_path / "part" / "config.json").write_text(json.dumps(recorded))
    train(config(model, tmp_path / "part", *overrides), env=ENV)
    assert rows(tmp_path / "part") == rows(tmp_path / "whole")


def test_another_config_in_the_same_directory_is_refused(model, tmp_path):
    train(config(model, tmp_path / "run", "steps=1"), env=ENV)
    with pytest.raises(ConfigError, match=r"other settings.*optim\.lr"):
        train(config(model, tmp_path / "run", "steps=1", "optim.lr=1"), env=ENV)


def test_another_environment_in_the_same_directory_is_refused(model, tmp_path):
    train(config(model, tmp_path / "run", "steps=1"), env=ENV)
    other = sdpo.env([{"id": "x", "prompt": "say x"}], judge)
    for env in (other, None):
        with pytest.raises(ConfigError, match="another environment"):
            train(config(model, tmp_path / "run", "steps=2"), env=env)
    again = sdpo.env(TASKS, judge)
    assert train(config(model, tmp_path / "run", "steps=2"), env=again).step == 2


def test_a_start_that_failed_does_not_claim_the_directory(model, tmp_path):
    with pytest.raises(sdpo.SdpoError):
        train(config(tmp_path / "missing", tmp_path / "run", "steps=1"), env=ENV)
    assert train(config(model, tmp_path / "run", "steps=1"), env=ENV).finished


def test_more_steps_continue_a_finished_run(model, tmp_path):
    train(config(model, tmp_path / "whole"), env=ENV)
    facts = json.loads((tmp_path / "whole" / "config.json").read_text())
    train(config(model, tmp_path / "grown", "steps=2"), env=ENV)
    train(config(model, tmp_path / "grown"), env=ENV)
    assert rows(tmp_path / "grown") == rows(tmp_path / "whole")
    grown = json.loads((tmp_path / "grown" / "config.json").read_text())
    assert grown.keys() == facts.keys()
    assert grown["config"]["steps"] == 4
    with pytest.raises(ConfigError, match=r"other settings.*steps"):
        train(config(model, tmp_path / "grown", "steps=3"), env=ENV)


def test_full_disk_keeps_the_older_checkpoint(model, tmp_path, monkeypatch):
    run = tmp_path / "run"
    train(config(model, run, "steps=2"), env=ENV)
    before = sorted(p.name for p in (run / "checkpoints").iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sdpo.files._sync", full)
    shutil.copytree(run, tmp_path / "next")
    recorded = json.loads((tmp_path / "next" / "config.json").read_text())
    recorded["config"] |= {"run": str(tmp_path / "next"), "steps": 4}
    (tmp_path / "next" / "config.json").write_text(json.dumps(recorded))
    with pytest.raises(CheckpointError, match="No space left"):
        train(config(model, tmp_path / "next"), env=ENV)
    assert sorted(p.name for p in (tmp_path / "next" / "checkpoints").iterdir()) == before


def test_bad_input_is_refused_in_one_sentence(model, tmp_path):
    with pytest.raises(TaskError, match="at least one task"):
        sdpo.env([], judge)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ConfigError, match="cannot write there"):
        train(config(model, blocked / "run"), env=ENV)


def test_a_second_run_in_the_same_directory_was_not_noticed(model, tmp_path):
    pytest.importorskip("fcntl")
    with open_run(config(model, tmp_path / "run"), ENV, is_quiet=True):
        for call in (train, discover_tasks):
            with pytest.raises(ConfigError, match="in use by process"):
                call(config(model, tmp_path / "run"), env=ENV)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(("name", "share"), [("state.pt", 0.0), ("model.safetensors", 0.5)])
def test_the_only_checkpoint_is_damaged(model, tmp_path, name, share):
    run = tmp_path / "run"
    settings = config(model, run, "checkpoint.keep=1")
    train(settings, env=ENV)
    whole = rows(run)
    (damaged,) = (run / "checkpoints").iterdir()
    content = (damaged / name).read_bytes()
    (damaged / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError) as raised:
        train(settings, env=ENV)
    said = str(raised.value)
    assert said.startswith(f"checkpoint {damaged} is damaged: ")
    assert "\n" not in said
    assert said.endswith(
        "no older one is left; delete it to start from the beginning (the records so far are kept "
        "as *.jsonl.bak)"
    )
    assert rows(run) == whole, "records stay until the checkpoint is deleted"
    shutil.rmtree(damaged)
    assert train(settings, env=ENV).finished
    assert rows(run) == whole
    assert (run / "metrics.jsonl.bak").is_file()


def test_a_lost_checkpoint_took_all_records_with_it(model, tmp_path, capsys):
    train(config(model, tmp_path / "run"), env=ENV)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.jsonl*")}
    whole = rows(tmp_path / "run")
    for state in (tmp_path / "run" / "checkpoints").glob("*/state.pt"):
        state.write_bytes(b"")
    with pytest.raises(CheckpointError, match="delete it to resume from step 2"):
        train(config(model, tmp_path / "run"), env=ENV)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-4")
    with pytest.raises(CheckpointError, match="delete it to start from the beginning"):
        train(config(model, tmp_path / "run"), env=ENV)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    capsys.readouterr()
    train(config(model, tmp_path / "run"), env=ENV)
    assert "5 rows recorded before are kept" in " ".join(capsys.readouterr().out.split())
    for name, content in before.items():
        assert (tmp_path / "run" / f"{name}.bak").read_bytes() == content
    assert rows(tmp_path / "run") == whole


def test_an_interrupt_after_a_checkpoint_wrote_it_again(model, tmp_path, monkeypatch):
    saves, save = [], Checkpoints.save
    monkeypatch.setattr(
        Checkpoints,
        "save",
        lambda self, step, *a, **k: (saves.append(step), save(self, step, *a, **k)),
    )

    def interrupted(row):
        if row["step"] == 2:
            raise KeyboardInterrupt

    result = train(config(model, tmp_path / "run"), env=ENV, on_step=interrupted)
    assert (result.finished, saves) == (False, [2])


def test_an_empty_config_is_said_with_the_way_out(model, tmp_path):
    train(config(model, tmp_path / "run", "steps=1"), env=ENV)
    (tmp_path / "run" / "config.json").write_bytes(b"")
    with pytest.raises(ConfigError, match="delete that file and repeat"):
        train(config(model, tmp_path / "run", "steps=1"), env=ENV)
