"""A run driven into collapse on purpose, by a rate far above the one the toy world learns at: a
canary ends it, or takes it back to good weights from which it recovers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_runs import teach_codes

from sdpo.config.load import load_config
from sdpo.errors import CanaryStop
from sdpo.metrics.canaries import Alert, Canaries
from sdpo.testing import toy_env
from sdpo.training.loop import train
from sdpo.training.run import Run

LR = 2e-3
"""The rate the toy world learns at."""
RUIN = 100 * LR
"""One update at this rate leaves weights that solve nothing and answer with no code, whatever the
machine's rounding; after one at thirty times `LR` some still answer with wrong codes."""
ENV = toy_env(8)
ALERT = Alert(
    canary="truncation", step=3, since=3, good=1, value=1, baseline=0, action="rollback",
    message="for a test",
)  # fmt: skip


def config(model, run, *overrides):
    return load_config(
        [
            f"run={run}", f"model.name={model}", "model.dtype=float32",
            "rollout.tasks_per_step=8", "rollout.group_size=8",
            "rollout.max_completion_tokens=6", "rollout.max_prompt_tokens=200", "eval.every=5",
            f"optim.lr={RUIN}", *overrides,
        ]
    )  # fmt: skip


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics(run: Path) -> list[dict]:
    """metrics.jsonl without times."""
    return [
        {k: v for k, v in row.items() if not k.startswith("time/")}
        for row in lines(run / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def skilled(reader, tmp_path_factory) -> Path:
    """The toy model when it knows all codes."""
    return teach_codes(reader, tmp_path_factory.mktemp("skilled"), ENV)


def test_warn_only_says_it(skilled, tmp_path):
    assert train(config(skilled, tmp_path / "run", "steps=5"), env=ENV).finished
    alerts = lines(tmp_path / "run" / "alerts.jsonl")
    assert all(alert["action"] == "warn" for alert in alerts)
    # Steps 2 to 4 are bad; a step later some other canary may have had enough too.
    assert min(alert["step"] for alert in alerts) == 4
    first = {alert["canary"] for alert in alerts if alert["step"] == 4}
    assert {"format_errors", "flat_groups"} <= first


def test_stop_ends_the_run_and_it_stays_ended(skilled, tmp_path):
    run = tmp_path / "run"
    chosen = config(skilled, run, "steps=30", "canaries.action=stop")
    with pytest.raises(CanaryStop, match=r"stopped at step 4.*lower optim\.lr"):
        train(chosen, env=ENV)
    assert [row["step"] for row in metrics(run)] == [0, 1, 2, 3, 4]
    assert all(alert["action"] == "stop" for alert in lines(run / "alerts.jsonl"))
    assert (run / "checkpoints" / "step-4").is_dir()
    with pytest.raises(CanaryStop, match=r"was stopped at step 4 by .*flat_groups"):
        train(chosen, env=ENV)
    assert len(metrics(run)) == 5


def test_rollback_recovers_to_within_noise_of_the_best(skilled, tmp_path):
    """A rate that harms without alarming costs codes, which it takes many steps to learn anew. So
    the rate is halved at the first bad step: in 16 runs of 8 taught models it was low enough by
    step 14, and all ended with 0.86 to 1."""
    run = tmp_path / "run"
    overrides = (f"optim.lr={30 * LR}", "steps=35", "canaries.action=rollback", "eval.samples=8")
    assert train(config(skilled, run, *overrides, "canaries.patience=1"), env=ENV).finished
    rows = metrics(run)
    alerts = lines(run / "alerts.jsonl")
    solved = {row["step"]: row["train/solved"] for row in rows if row["step"]}
    # The attempts of step 2 are those of ruined weights, those after the rollback of good ones.
    first = alerts[0]["step"]
    assert first <= 3
    assert solved[first] <= 0.1
    assert solved[first + 1] >= 0.8
    evaluated = [row for row in rows if "eval/solved" in row]
    best = max(evaluated, key=lambda row: row["eval/solved"])
    assert rows[-1]["eval/solved_high"] >= best["eval/solved_low"]
    assert rows[-1]["eval/solved"] > 0.7 * best["eval/solved"]
    # A step without a gradient is said, and never takes a run back.
    alerts = [alert for alert in alerts if alert["action"] == "rollback"]
    rollbacks = {alert["step"] for alert in alerts if alert["step"] < 35}
    assert rows[-1]["optim/lr"] == pytest.approx(30 * LR / 2 ** len(rollbacks))
    assert all(alert["restored"] <= alert["good"] < alert["since"] for alert in alerts)


@pytest.mark.parametrize("schedule", ["ema", "live", "trust_region"])
def test_rollback_restores_everything(skilled, tmp_path, monkeypatch, schedule):
    overrides = ("canaries.action=rollback", "checkpoint.every=1", "steps=3", f"optim.lr={LR}")
    chosen = config(skilled, tmp_path, *overrides, f"teacher.schedule.type={schedule}")
    roll_back = Run._roll_back
    targets = []

    def alarm(self, step, metrics):
        return [ALERT] if step == 3 else []

    def checked(self, target):
        folder = self._checkpoints.folder / f"step-{target}"
        state = torch.load(folder / "state.pt", weights_only=True)
        stored = load_file(folder / "model.safetensors")
        roll_back(self, target)
        optimizer, schedule = self.learner.optimizer, self.learner.schedule
        own = dict(self.learner.model.named_parameters())
        assert all(torch.equal(own[name], stored[name]) for name in own if name in stored)
        moments = optimizer.state()["adamw"]["state"]
        assert moments
        for key, kept in state["optimizer"]["adamw"]["state"].items():
            assert all(torch.equal(moments[key][name], kept[name]) for name in kept)
        assert optimizer.lr_scale == 0.5
        assert schedule.is_frozen
        taught = state["schedule"]["weights"] or stored
        assert all(torch.equal(w, taught[n]) for n, w in schedule.weights.items() if n in taught)
        assert self._sampler.collector.engine.policy_version == 4
        targets.append(target)

    monkeypatch.setattr(Canaries, "observe", alarm)
    monkeypatch.setattr(Run, "_roll_back", checked)
    assert train(chosen, env=ENV).finished
    assert targets == [1]


RESUMED = ("steps=8", "canaries.action=rollback", "checkpoint.every=1", "eval.every=0")


@pytest.fixture(scope="module")
def whole(skilled, tmp_path_factory) -> Path:
    """A run that was rolled back after step 4 and never interrupted."""
    run = tmp_path_factory.mktemp("whole")
    train(config(skilled, run, *RESUMED), env=ENV)
    alerts = lines(run / "alerts.jsonl")
    assert alerts[0]["step"] == 4
    # The attempts of a step are by the weights after the step before.
    assert all(alert["restored"] < alert["since"] - 1 for alert in alerts)
    return run


@pytest.mark.parametrize(("verb", "step"), [("act", 4), ("collect", 4), ("collect", 5)])
def test_resumed_after_a_rollback_equals_never_having_stopped(
    skilled, whole, tmp_path, monkeypatch, verb, step
):
    """Killed between the record of step 4 and its rollback, right after it, or a step later."""
    original = getattr(Run, verb)

    class KilledError(Exception):
        pass

    def die(self, *arguments):
        if self.step == step:
            raise KilledError
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Run, verb, die)
        with pytest.raises(KilledError):
            train(config(skilled, tmp_path, *RESUMED), env=ENV)
    train(config(skilled, tmp_path, *RESUMED), env=ENV)
    assert metrics(tmp_path) == metrics(whole)
    assert lines(tmp_path / "alerts.jsonl") == lines(whole / "alerts.jsonl")
