"""Tasks whose self-teacher does not solve enough are not distilled, and exactly those."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

import sdpo
from sdpo.config.load import load_config
from sdpo.config.teacher import ProbeGateConfig
from sdpo.errors import ConfigError
from sdpo.objectives import check_objective
from sdpo.records import GATED, Group, Rollout, Task, TeacherContext, Verdict
from sdpo.teacher.gate import is_open, keep_reliable, probe_rounds
from sdpo.testing import byte_tokenizer, tiny_model
from sdpo.training.opening import open_run

SHOWN = TeacherContext(messages=({"role": "user", "content": "q"},), feedback_used=True)
NONE = TeacherContext(messages=None, reason="solved_alone")


def group(name, contexts, solved=()):
    task = Task(id=name, messages=({"role": "user", "content": name},))
    verdicts = [Verdict(reward=float(s), solved=bool(s)) for s in solved or [0] * len(contexts)]
    return Group(
        task=task,
        rollouts=tuple(Rollout.written(task, "x", index=i) for i in range(len(contexts))),
        verdicts=tuple(verdicts),
        contexts=tuple(contexts),
    )


@pytest.mark.parametrize("answers", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("min_gain", [-1.0, 0.0, 0.25])
def test_the_gate_compares_rates(answers, min_gain):
    for hits in range(answers + 1):
        for student in range(5):
            q, p = Fraction(hits, answers), Fraction(student, 4)
            expected = q >= Fraction(2, 3) and q - p >= Fraction(min_gain)
            solved = [True] * hits + [False] * (answers - hits)
            assert is_open(solved, float(p), ProbeGateConfig(min_gain=min_gain)) == expected


def test_without_a_judged_answer_it_is_closed():
    assert not is_open([], 0.0, ProbeGateConfig(min_solved=0.0, min_gain=-1.0))


@pytest.mark.parametrize("attempts", [1, 2, 3, 7])
def test_a_task_is_answered_so_often_and_in_all_its_contexts_alike(attempts):
    groups = [
        group("one", [NONE, SHOWN, NONE]),
        group("three", [SHOWN, SHOWN, SHOWN]),
        group("none", [NONE, NONE]),
    ]
    asked: Counter[tuple[str, int]] = Counter()
    for answered in probe_rounds(groups, attempts, seed=3):
        assert len({g.task.id for g in answered}) == len(answered)
        for g in answered:
            places = [p for p, c in enumerate(g.contexts) if c.messages is not None]
            assert places
            asked.update((g.task.id, p) for p in places)
    assert asked["one", 1] == attempts
    times = [asked["three", place] for place in range(3)]
    assert sum(times) == attempts
    assert max(times) - min(times) <= 1
    assert {name for name, _ in asked} == {"one", "three"}


def test_which_contexts_are_asked_is_drawn_for_each_task_alone():
    groups = [group(f"t{i}", [SHOWN] * 6) for i in range(20)]

    def drawn(of, seed):
        (chosen,) = probe_rounds(of, 2, seed=seed)
        return {
            g.task.id: tuple(p for p, c in enumerate(g.contexts) if c.messages is not None)
            for g in chosen
        }

    assert len(set(drawn(groups, 0).values())) > 5
    assert drawn(groups, 0) != drawn(groups, 1)
    assert drawn(groups[7:9], 0) == {k: drawn(groups, 0)[k] for k in ("t7", "t8")}


def test_contexts_of_closed_tasks_are_gone_and_no_others():
    groups = [
        group("right", [SHOWN, NONE], [0, 1]),
        group("wrong", [SHOWN, NONE, SHOWN], [0, 1, 0]),
        group("no better", [SHOWN, NONE, SHOWN], [1, 1, 1]),
        group("unheard", [SHOWN]),
        group("nothing to read", [NONE]),
    ]
    solved = {
        "right": [True, True, False],
        "wrong": [True, False, False],
        "no better": [True, True, False],
    }
    kept = keep_reliable(groups, solved, ProbeGateConfig())
    assert kept[0] is groups[0]
    for found, had in zip(kept[1:], groups[1:], strict=True):
        assert all(c.messages is None for c in found.contexts)
        reasons = [c.reason for c in found.contexts]
        assert reasons == [GATED if c.messages else c.reason for c in had.contexts]
        assert (found.rollouts, found.verdicts) == (had.rollouts, had.verdicts)


class Judge:
    """Attempts fail; the teacher, which is judged after them, solves as many of its three answers
    as the task's number says."""

    def __init__(self):
        self.seen: Counter[str] = Counter()

    def __call__(self, task, rollout):
        self.seen[task.id] += 1
        by_teacher = self.seen[task.id] - 4
        solved = 0 < by_teacher <= int(task.id[1:])
        return sdpo.Verdict(reward=float(solved), solved=solved, feedback=f"no, {task.id}")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model(num_layers=1, hidden_size=16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def learn(model, folder, *overrides, by_hand=()):
    """The row of one step and the weights after it; the tasks `by_hand` lose their contexts without
    a gate."""
    settings = (
        f"run={folder}", f"model.name={model}", "model.dtype=float32", "steps=1",
        "rollout.tasks_per_step=4", "rollout.group_size=4", "optim.lr=1e-2",
        "rollout.max_completion_tokens=4", "rollout.max_prompt_tokens=200", "eval.samples=1",
        "eval.max_tasks=1", "checkpoint.every=0", "objective.type=hybrid",
    )  # fmt: skip
    judge = Judge()
    tasks = [{"id": f"t{i}", "prompt": f"say {i}"} for i in range(4)]
    with open_run(load_config([*settings, *overrides]), sdpo.env(tasks, judge)) as run:
        groups = run.learner.with_contexts(run.collect(run.env.load("train")).groups)
        groups = [replace(g, contexts=(NONE,) * 4) if g.task.id in by_hand else g for g in groups]
        samples = run.learner.samples(groups)
        losses = run.learner.update(samples)
        row = run.measure(groups, losses)
        distilled = {s.task_id for part in samples.updates for s in part if s.is_distilled}
        weights = {n: p.detach().clone() for n, p in run.learner.model.named_parameters()}
    return row, weights, distilled, judge.seen


def test_a_step_distils_what_it_would_without_the_tasks_that_the_teacher_cannot_solve(
    model, tmp_path
):
    row, weights, distilled, seen = learn(
        model, tmp_path / "gated", "teacher.gate.type=probe", "teacher.gate.min_solved=0.6"
    )
    assert set(seen.values()) == {4 + 3}
    assert distilled == {"t2", "t3"}
    assert row["teacher/gated"] == 0.5
    assert row["teacher/context_fraction"] == 0.5
    assert row["train/solved"] == 0, "the teacher's answers are no attempts"
    free, others, all_distilled, _ = learn(model, tmp_path / "free")
    assert all_distilled == {"t0", "t1", "t2", "t3"}
    assert free["teacher/gated"] == 0
    assert any(not torch.equal(weights[name], others[name]) for name in weights)
    naive, by_hand, _, _ = learn(model, tmp_path / "hand", by_hand=("t0", "t1"))
    for name in weights:
        torch.testing.assert_close(weights[name], by_hand[name], rtol=1e-6, atol=1e-8)
    assert row["loss/total"] == pytest.approx(naive["loss/total"], rel=1e-6)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("objective.type=grpo", "distils nothing"),
        ("objective.type=sft", "distils nothing"),
        ("teacher.schedule.type=trust_region", "cannot be sampled"),
    ],
)
def test_a_gate_that_could_decide_nothing_is_refused(setting, said):
    with pytest.raises(ConfigError, match=said):
        check_objective(load_config(["teacher.gate.type=probe", setting]))
