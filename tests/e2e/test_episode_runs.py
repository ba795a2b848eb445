"""Whole runs on conversations: training, resuming, credit, probe and discovery."""

from __future__ import annotations

import json

import pytest
import torch

import sdpo
from sdpo.config.load import load_config
from sdpo.rollouts.credit import read_credit
from sdpo.rollouts.record import read_rollouts
from sdpo.testing import byte_tokenizer, tiny_model
from sdpo.training.loop import train
from sdpo.training.run import Run
from sdpo.training.step import Updater

TASKS = [{"id": f"t{i}", "prompt": f"say {i}"} for i in range(4)]


class Letters:
    """Counts the letters from a to m of a conversation of up to three turns; says of every turn
    what was missing. State, and waits, as in a real world."""

    open_ones = 0

    def __init__(self, task, attempt):
        Letters.open_ones += 1
        self.found = 0
        self.turns = 0

    async def step(self, turn):
        found = sum(letter in "abcdefghijklm" for letter in turn.text)
        self.found, self.turns = self.found + found, self.turns + 1
        return sdpo.Reply(
            messages=({"role": "tool", "content": f"{found} so far"},) if self.turns < 3 else (),
            reward=float(found),
            feedback=None if found else f"no letter in turn {self.turns}",
        )

    async def verdict(self):
        solved = self.found > 4
        return sdpo.Verdict(
            reward=min(1.0, self.found / 3), solved=solved,
            feedback=None if solved else f"only {self.found} letters",
        )  # fmt: skip

    async def close(self):
        Letters.open_ones -= 1


ENV = sdpo.env(TASKS, episode=Letters, max_turns=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model that ends its turns after about ten tokens: every state points along the first
    coordinate, and the end of turn lies furthest that way."""
    folder, tokenizer = tmp_path_factory.mktemp("model"), byte_tokenizer()
    tiny = tiny_model(num_layers=1, hidden_size=16)
    with torch.no_grad():
        for parameter in tiny.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8.0)
        embeddings = tiny.get_input_embeddings()
        embeddings.weight[:, 0] = 1.0
        embeddings.weight[tokenizer.eos_token_id, 0] = 2.0
    tiny.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config(model, run, *overrides):
    return load_config(
        [
            f"run={run}", f"model.name={model}", "steps=3", "model.dtype=float32",
            "model.device=cpu", "rollout.tasks_per_step=2", "rollout.group_size=3",
            "rollout.max_completion_tokens=150", "rollout.max_prompt_tokens=100", "optim.lr=1e-2",
            "eval.samples=2", "eval.max_tasks=1", "eval.every=0", "checkpoint.every=1",
            "teacher.context.feedback=always", "credit.rollouts=2", *overrides,
        ]
    )  # fmt: skip


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def metrics(run):
    return [
        {key: value for key, value in row.items() if not key.startswith("time/")}
        for row in lines(run / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(config(model, run), env=ENV)
    return run


def test_a_killed_run_of_conversations_continues_as_if_nothing_had_been(
    model, whole, tmp_path, monkeypatch
):
    measure = Run.measure

    class KilledError(Exception):
        pass

    def die(self, *arguments):
        if self.step == 1:
            raise KilledError
        return measure(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "measure", die)
        with pytest.raises(KilledError):
            train(config(model, tmp_path / "killed"), env=ENV)
    train(config(model, tmp_path / "killed"), env=ENV)
    assert metrics(tmp_path / "killed") == metrics(whole)
    for name in ("rollouts.jsonl.gz", "credit.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (whole / name).read_bytes()
    assert Letters.open_ones == 0


def test_turns_are_on_record(whole):
    rows = list(read_rollouts(whole))
    row = next(r for r in rows if r["split"] == "train" and len(r["turns"]) > 1)
    assert row["turns"][0]["reply"][0]["role"] == "tool"
    assert {"text", "reply", "reward", "feedback"} == row["turns"][0].keys()
    assert metrics(whole)[-1]["rollouts/turns"] > 1
    told = [r for r in rows if r.get("before_turns")]
    assert told
    assert all("turn_feedback" in r["sources"] for r in told)


def test_credit_shows_the_environments_tokens_and_gives_them_none(whole):
    rows = [row for row in read_rollouts(whole) if row["split"] == "train"]
    attempts = {(row["step"], row["task"], row["index"]): row for row in rows}
    found = [c for c in read_credit(whole) if c.trained is not None]
    assert found
    for credit in found:
        turns = attempts[credit.step, credit.task_id, credit.index]["turns"]
        shown = byte_tokenizer().decode(list(credit.token_ids))
        assert turns[0]["reply"][0]["content"] in shown
        for gap, own in zip(credit.gaps, credit.trained, strict=True):
            assert own or gap == 0


def test_a_teacher_plays_episodes_of_its_own(model, tmp_path, monkeypatch):
    """`sft` and the probe ask the teacher for whole attempts."""
    seen = []
    step = Updater.step

    def watched(self, updates, *arguments, **keywords):
        seen.extend(sample for part in updates for sample in part)
        return step(self, updates, *arguments, **keywords)

    monkeypatch.setattr(Updater, "step", watched)
    overrides = ("objective.type=sft", "eval.probe_tasks=1", "steps=1")
    train(config(model, tmp_path / "sft", *overrides), env=ENV)
    assert any("probe/failed" in row for row in metrics(tmp_path / "sft"))
    assert seen
    for sample in seen:
        # Learnt after the task's own prompt, without what the teacher read.
        asked = byte_tokenizer().decode(list(sample.prompt_ids))
        assert asked.startswith("<|im_start|>user\nsay")
        assert "letter" not in asked
    assert any(not all(sample.loss_mask) for sample in seen)
    assert Letters.open_ones == 0


@pytest.mark.parametrize("method", ["self_distillation", "multi_turn"])
def test_a_search_plays_episodes(model, tmp_path, method):
    settings = config(
        model, tmp_path / "run", f'discover.methods=["{method}"]', "discover.budget=4",
        "discover.batch=2", "discover.seeds=1", "discover.window_tokens=400",
    )  # fmt: skip
    from sdpo.discovery.run import discover_tasks

    discover_tasks(settings, env=ENV)
    attempts = lines(tmp_path / "run" / "attempts.jsonl")
    assert attempts
    assert any("The environment replied:" in row["text"] for row in attempts)
    assert Letters.open_ones == 0


def test_the_recipe_may_ask_for_fewer_turns(model, tmp_path):
    train(config(model, tmp_path / "run", "rollout.max_turns=1", "steps=1"), env=ENV)
    assert all(len(row["turns"]) == 1 for row in read_rollouts(tmp_path / "run"))


def test_an_environment_of_episodes_says_how_long_they_are(model, tmp_path):
    class Endless:
        def load(self, split):
            return ENV.load(split)

        def judge(self, task, rollout):
            return 0.0

        def open(self, task, attempt):
            return Letters(task, attempt)

    with pytest.raises(sdpo.SdpoError, match="has no attribute max_turns"):
        train(config(model, tmp_path / "run"), env=Endless())
