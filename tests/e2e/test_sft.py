"""SFT on the self-teacher's solved attempts (Table 5): who samples, what is kept, on which prompt
it trains."""

from __future__ import annotations

import json

import pytest
import torch

import sdpo
from sdpo.config.load import load_config
from sdpo.engines.local import LocalEngine
from sdpo.errors import ConfigError
from sdpo.testing import byte_tokenizer, tiny_model
from sdpo.training.loop import train
from sdpo.training.step import Updater

TASKS = [{"id": f"t{i}", "prompt": f"say {i}"} for i in range(4)]
MARK = "MARK"


class Judge:
    """Solves attempts with an `a` in them, and remembers what it was shown."""

    def __init__(self):
        self.seen = []

    def __call__(self, task, rollout):
        self.seen.append(rollout)
        solved = "a" in rollout.text
        return sdpo.Verdict(reward=float(solved), solved=solved, feedback=MARK)


def run(tmp_path, monkeypatch, *overrides, steps=1):
    """Train, and return (judge, samples of every step, prompts the engine read, metrics)."""
    tiny_model().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    config = load_config(
        [
            f"run={tmp_path / 'run'}", f"model.name={tmp_path / 'model'}", f"steps={steps}",
            "objective.type=sft", "rollout.tasks_per_step=4", "rollout.group_size=8",
            "rollout.max_completion_tokens=12", "rollout.max_prompt_tokens=200", "optim.lr=1e-2",
            "eval.samples=1", "eval.max_tasks=1", "model.dtype=float32", *overrides,
        ]
    )  # fmt: skip
    steps_seen, prompts = [], []
    step = Updater.step

    def watched(self, updates, *arguments, **keywords):
        steps_seen.append([sample for part in updates for sample in part])
        return step(self, updates, *arguments, **keywords)

    monkeypatch.setattr(Updater, "step", watched)
    generate = LocalEngine.generate

    def sampled(self, requests, sampling):
        weight = next(self._model.parameters()).detach().clone()
        prompts.append(([r.prompt_ids for r in requests for _ in r.seeds], weight))
        return generate(self, requests, sampling)

    monkeypatch.setattr(LocalEngine, "generate", sampled)
    judge = Judge()
    train(config, env=sdpo.env(TASKS, judge))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    return judge, steps_seen, prompts, [json.loads(line) for line in lines]


def text(ids):
    return byte_tokenizer().decode(ids)


def test_only_solved_attempts_of_the_teacher_train_and_without_its_context(tmp_path, monkeypatch):
    judge, (samples,), prompts, rows = run(tmp_path, monkeypatch)
    # Evaluation, the policy, the self-teacher, evaluation.
    assert [len(batch) for batch, _ in prompts[:2]] == [1, 32]
    assert not any(MARK in text(ids) for ids in prompts[1][0])
    contexts = prompts[2][0]
    assert all(MARK in text(ids) or "correct solution" in text(ids) for ids in contexts)
    own, teachers = judge.seen[1:33], judge.seen[33 : 33 + len(contexts)]
    assert {r.prompt_ids for r in teachers} == set(prompts[1][0])
    solved = {(r.task_id, r.index): r for r in teachers if "a" in r.text}
    assert 0 < len(solved) < len(teachers)
    assert {(s.task_id, s.index) for s in samples} == set(solved)
    for sample in samples:
        attempt = solved[sample.task_id, sample.index]
        assert sample.completion_ids == attempt.completion_ids
        assert all(sample.loss_mask)
        assert sample.prompt_ids == attempt.prompt_ids
        assert MARK not in text(sample.prompt_ids)
        assert sample.teacher_prompt_ids is None
        assert sample.component_weights == {"pg": 1.0}
    assert {s.completion_ids for s in samples}.isdisjoint(r.completion_ids for r in own)
    assert rows[-1]["teacher/solved"] == pytest.approx(len(solved) / len(teachers))
    # The loss is the mean of -log p over the kept tokens, by the weights before the update.
    model, losses = tiny_model(), []
    for sample in samples:
        ids = torch.tensor([sample.prompt_ids + sample.completion_ids])
        with torch.no_grad():
            logp = model(ids).logits[0, len(sample.prompt_ids) - 1 : -1].log_softmax(-1)
        losses.append(-logp.gather(1, torch.tensor(sample.completion_ids)[:, None]))
    assert rows[-1]["loss/pg"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)


def test_the_teachers_own_weights_sample(tmp_path, monkeypatch):
    _, _, prompts, _ = run(tmp_path, monkeypatch, "teacher.schedule.type=frozen", steps=3)
    initial = next(tiny_model().parameters()).detach()
    policy = [weight for batch, weight in prompts if MARK not in text(batch[0])]
    teacher = [weight for batch, weight in prompts if MARK in text(batch[0])]
    assert teacher
    assert all(torch.equal(weight, initial) for weight in teacher)
    assert not torch.equal(policy[-1], initial)


def test_what_cannot_be_sampled_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="trust_region"):
        run(tmp_path, monkeypatch, "teacher.schedule.type=trust_region")
    assert not (tmp_path / "run").exists()
