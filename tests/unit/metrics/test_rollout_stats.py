import math

import pytest

from sdpo.metrics.rollout_stats import count_hedges, repeated_ngrams, rollout_metrics
from sdpo.metrics.values import Metrics
from sdpo.records import Group, Rollout, Task, TeacherContext, Turn, Verdict


def attempt(index, length, *, text="x", truncated=False, ids=None):
    ids = tuple(range(length)) if ids is None else tuple(ids)
    return Rollout(
        task_id="t",
        index=index,
        prompt_ids=(1,),
        completion_ids=ids,
        sampler_logprobs=(0.0,) * len(ids),
        text=text,
        truncated=truncated,
        policy_version=0,
    )


def group(lengths, solved, contexts, categories=None):
    categories = categories or ["accepted" if s else "wrong_answer" for s in solved]
    return Group(
        task=Task(id="t", messages=({"role": "user", "content": "q"},)),
        rollouts=tuple(attempt(i, n) for i, n in enumerate(lengths)),
        verdicts=tuple(
            Verdict(reward=float(s), solved=s, info={"category": c}, metrics={"tests": 0.5})
            for s, c in zip(solved, categories, strict=True)
        ),
        contexts=tuple(contexts),
    )


NONE = TeacherContext(messages=None, reason="solved_alone")
SHOWN = TeacherContext(messages=({"role": "user", "content": "q"},), demonstration=1)
TOLD = TeacherContext(
    messages=({"role": "user", "content": "q"},), feedback_used=True, reason="cut 9"
)


def test_outcomes_lengths_and_contexts_of_a_step():
    groups = [
        group([10, 20, 30, 40], [False, True, False, False], [SHOWN, NONE, SHOWN, SHOWN]),
        group([5, 5], [False, False], [TOLD, TOLD], ["incorrect_format", "runtime_error"]),
    ]
    row = rollout_metrics(groups).reduce()
    assert row["train/solved"] == pytest.approx(1 / 6)
    assert row["train/completion_tokens"] == pytest.approx(110 / 6)
    assert row["rollouts/length_p50"] == 15.0
    assert row["rollouts/length_p50_solved"] == 20.0
    assert row["rollouts/length_p50_failed"] == 10.0
    assert row["rollouts/length_p50_demonstration"] == 30.0
    assert row["rollouts/flat_groups"] == 0.5
    assert row["rollouts/flat_failed"] == 0.5
    assert row["rollouts/format_errors"] == pytest.approx(1 / 6)
    assert row["teacher/context_fraction"] == pytest.approx(5 / 6)
    assert row["teacher/demonstration_fraction"] == 0.5
    assert row["teacher/feedback_fraction"] == pytest.approx(2 / 6)
    assert row["teacher/cut_fraction"] == pytest.approx(2 / 5)
    assert row["env/tests"] == 0.5


def test_a_step_without_solved_attempts_keeps_its_keys():
    row = rollout_metrics([group([5, 5], [False, False], [NONE, NONE])]).reduce()
    assert math.isnan(row["rollouts/length_p90_solved"])


def test_groups_of_other_processes_merge_to_the_whole_step():
    groups = [group([i, 3 * i], [i % 2 == 0, False], [SHOWN, TOLD]) for i in range(1, 9)]
    whole = rollout_metrics(groups).reduce()
    parts = [rollout_metrics(groups[i::3]).state() for i in range(3)]
    merged = Metrics.merged(parts).reduce()
    assert merged == pytest.approx(whole)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (range(40), 0.0),
        ([1, 2, 3], 0.0),
        ([7] * 25, 1 - 1 / 20),
        ([*range(10), *range(10)], 1 - 10 / 15),
    ],
)
def test_repeated_ngrams(ids, expected):
    assert repeated_ngrams(attempt(0, 0, ids=ids)) == pytest.approx(expected)


def test_all_turns_count():
    turns = tuple(
        Turn(
            prompt_ids=(1,),
            completion_ids=(3,) * 4,
            sampler_logprobs=(0.0,) * 4,
            text="wait, maybe",
            truncated=False,
        )
        for _ in range(2)
    )
    base = attempt(0, 4)
    rollout = Rollout(
        task_id="t",
        index=0,
        prompt_ids=(1,),
        completion_ids=base.completion_ids,
        sampler_logprobs=base.sampler_logprobs,
        text="wait, maybe",
        truncated=False,
        policy_version=0,
        turns=turns,
    )
    one = Group(
        task=Task(id="t", messages=()),
        rollouts=(rollout,),
        verdicts=(Verdict(reward=0.0, solved=False),),
        contexts=(NONE,),
    )
    row = rollout_metrics([one]).reduce()
    assert row["train/completion_tokens"] == 8
    assert row["rollouts/hedging_words"] == 4


def test_hedging_words_are_whole_words():
    assert count_hedges("Wait, I think it may wait. Awaiting waiters, actually.") == 4
