"""The learning proof: a tiny model that can read feedback learns, from failed attempts alone, what
only their feedback reveals.

Margins come from the numbers in docs/results.md, section "Toy world". The second half breaks the
code once per way of being wrong and shows that the proof notices.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from toy_runs import LEARNT, learn

from sdpo.models import packing
from sdpo.models.packing import PackItem
from sdpo.training import step as training_step
from sdpo.training import targets

GRANULARITY_LR = 2e-4
"""At 5e-4 the token run of one seed falls apart in its last steps, depending on how the machine
rounds. At this rate, over three seeds, token ended 0.15 to 0.24 nats above sequence and logit 1.08
to 1.25 above token."""
SEEDS = [0, pytest.param(1, marks=pytest.mark.slow)]
STEADY = "teacher.schedule.rate=0.01"
"""The paper's rate with rich feedback. At 0.05 the teacher follows a student that has begun to fall
apart: with one of eight readers, taught from weights that differ by 1e-6 or with other instruction
sets, the run went from 0.64 at step 30 to 0.33 at step 36. At 0.01 all twelve runs (eight readers
with seed 0, four with seed 1) stayed at their plateau, 0.72 to 1: three codes of four, or four."""
LIVE = "teacher.schedule.type=live"


@pytest.mark.parametrize("seed", SEEDS)
def test_sdpo_learns_from_groups_that_all_failed(reader, tmp_path, seed):
    learnt = learn(reader, tmp_path / "run", STEADY, seed=seed)
    assert learnt.rows[0]["eval/solved"] <= 0.05
    first = learnt.steps[0]
    # One of 150 such steps has an attempt that guesses a code, in one of its four groups.
    assert first["rollouts/flat_failed"] >= 0.75
    assert first["optim/grad_norm"] > 1e-3
    assert learnt.solved >= LEARNT


def test_grpo_has_no_gradient_and_stays_where_it_was(reader, tmp_path):
    """It learns what it guesses, and that alone."""
    learnt = learn(reader, tmp_path / "run", "objective.type=grpo", "eval.every=4")
    flat = [row for row in learnt.steps if row["rollouts/flat_failed"] == 1]
    assert flat
    assert all(row["optim/grad_norm"] == 0 for row in flat)
    assert learnt.peak_of(learnt.never_guessed) <= 0.05


def test_without_revealing_feedback_nothing_is_learnt(reader, tmp_path):
    """But what an attempt guessed: that one is a demonstration to the others of its group."""
    learnt = learn(reader, tmp_path / "run", STEADY, reveal="none")
    assert learnt.peak_of(learnt.never_guessed) <= 0.05


@pytest.mark.parametrize("seed", SEEDS)
def test_finer_credit_learns_more(reader, tmp_path, seed):
    # Credit of sampled tokens meets the right one in 1 of 100: it needs many attempts and a low
    # rate, at which few steps solve nothing yet. So likelihoods are compared.
    logit, token, sequence = (
        learn(
            reader,
            tmp_path / name,
            *(LIVE, f"objective.granularity={name}"),
            *("rollout.group_size=48", "steps=24", f"optim.lr={GRANULARITY_LR}", "eval.samples=2"),
            seed=seed,
        ).nats
        for name in ("logit", "token", "sequence")
    )
    assert logit >= token + 0.6
    assert token >= sequence + 0.05


def wrong_sign(monkeypatch):
    right = training_step.objective_loss

    def mutant(*arguments, **keywords):
        result = right(*arguments, **keywords)
        return replace(result, loss=-result.loss)

    monkeypatch.setattr(training_step, "objective_loss", mutant)


def off_by_one(monkeypatch):
    """Student and teacher agree with each other, one position behind the tokens they are for."""
    right = packing.pack_item

    def mutant(sample, prompt_ids):
        item = right(sample, prompt_ids)
        first, *others = item.completion_ids
        return PackItem(
            prompt_ids=(*item.prompt_ids, first),
            completion_ids=(*others, item.completion_ids[-1]),
            loss_mask=item.loss_mask,
        )

    monkeypatch.setattr(packing, "pack_item", mutant)


def gradient_through_the_teacher(monkeypatch):
    """Jensen-Shannon with equal weights is symmetric: exchanging the sides gives the gradient that
    the teacher's side would get."""
    right = training_step.objective_loss
    score = targets.score_targets.__wrapped__
    monkeypatch.setattr(training_step, "score_targets", score)

    def mutant(student, head, teacher, teacher_head, *arguments, **keywords):
        constant = None if teacher is None else teacher.detach()
        result = right(student, head, constant, teacher_head, *arguments, **keywords)
        if teacher is None or len(teacher) < len(student):
            return result
        keywords["top_n"] = 0
        other = right(teacher, head, student.detach(), teacher_head, *arguments, **keywords)
        return replace(result, loss=result.loss + other.loss)

    monkeypatch.setattr(training_step, "objective_loss", mutant)


@pytest.mark.slow
def test_live_teacher_learns(reader, tmp_path):
    """What the mutants below are compared with. Where the machine rounds so, a live teacher falls
    apart before the end, from 0.6 at step 27 to 0 at step 36; so all are asked for their best. A
    lower rate stays at what it learnt, but there the mutant `off_by_one` learns a little too."""
    assert learn(reader, tmp_path / "run", LIVE, "eval.every=3").peak >= LEARNT


@pytest.mark.slow
@pytest.mark.parametrize("mutate", [wrong_sign, off_by_one, gradient_through_the_teacher])
def test_the_proof_fails_when_the_code_is_wrong(reader, tmp_path, monkeypatch, mutate):
    mutate(monkeypatch)
    assert learn(reader, tmp_path / "run", LIVE, "eval.every=3").peak <= 0.05
