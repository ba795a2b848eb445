"""The learning proof: a tiny model that can read feedback learns, from failed attempts alone, what
only their feedback reveals.

Margins come from the numbers in docs/results.md, section "Toy world". The second half breaks the
code once per way of being wrong and shows that the proof notices.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from toy_runs import LEARNT, NUM_TASKS, code_nats, learn, teach

from sdpo.models import packing
from sdpo.models.packing import PackItem
from sdpo.testing import toy_env
from sdpo.training import step as training_step

GRANULARITY_LR = 2e-4
"""At 5e-4 the token run of one seed falls apart in its last steps, depending on how the machine
rounds. At this rate, over three seeds, token ended 0.15 to 0.24 nats above sequence and logit 1.08
to 1.25 above token."""
SEEDS = [0, pytest.param(1, marks=pytest.mark.slow)]
STEADY = ("teacher.schedule.rate=0.01", "steps=60")
"""The paper's rate with rich feedback, and steps enough for a plateau. At 0.05 the teacher follows
a student that has begun to fall apart: the run of one reader went from 0.64 at step 30 to 0.33 at
step 36. At 0.01, six runs (five readers, taught from weights that differ by 1e-6 or with other
instruction sets; two seeds) ended with 0.97 to 1, after 0.39 to 0.88 at step 36."""
LIVE = "teacher.schedule.type=live"


@pytest.mark.parametrize("seed", SEEDS)
def test_sdpo_learns_from_groups_that_all_failed(reader, tmp_path, seed):
    learnt = learn(reader, tmp_path / "run", *STEADY, seed=seed)
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


@pytest.mark.slow
def test_without_revealing_feedback_nothing_is_learnt(reader, tmp_path):
    """But what an attempt guessed: that one is a demonstration to the others of its group."""
    learnt = learn(reader, tmp_path / "run", *STEADY, reveal="none")
    assert learnt.peak_of(learnt.never_guessed) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
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


@pytest.mark.slow
@pytest.mark.parametrize("mutate", [wrong_sign, off_by_one])
def test_the_proof_fails_when_the_code_is_wrong(reader, tmp_path, monkeypatch, mutate):
    """By a wide margin: with six readers `off_by_one` reached 0.08 once, `wrong_sign` 0."""
    mutate(monkeypatch)
    assert learn(reader, tmp_path / "run", *STEADY, "eval.every=6").peak <= LEARNT / 2


@pytest.mark.slow
def test_a_reader_that_is_taught_anew_learns_as_well(tmp_path):
    """The readers of the other tests come with the package."""
    learnt = learn(teach(tmp_path), tmp_path / "run", *STEADY)
    assert learnt.rows[0]["eval/solved"] <= 0.05
    assert learnt.solved >= LEARNT


@pytest.mark.slow
def test_live_teacher_learns(reader, tmp_path):
    """For so long as it lasts: where the machine rounds so, a live teacher follows its student into
    collapse before many codes are solved. So likelihoods of an early step are compared. With six
    readers they rose by 3.97 to 5.52 nats."""
    before = code_nats(reader, toy_env(NUM_TASKS))
    learnt = learn(reader, tmp_path / "run", LIVE, "optim.lr=1e-3", "steps=24")
    assert learnt.nats >= before + 2.5
