"""Collecting: order, seeds, multi-turn, judge errors, prompt limits."""

from __future__ import annotations

import asyncio
import random
import threading
import time

import pytest

from sdpo import Task, Verdict, env
from sdpo.chat import Chat
from sdpo.engines.base import Sampling
from sdpo.errors import JudgeError, PromptTooLongError, TaskError
from sdpo.rollouts.collect import Collector
from sdpo.rollouts.together import Together
from sdpo.testing import byte_tokenizer
from sdpo.testing.scripted import ScriptedEngine
from sdpo.training.samples import flatten_turns

CHAT = Chat(byte_tokenizer())
TASKS = [Task(id=name, messages=({"role": "user", "content": f"say {name}"},)) for name in "abc"]


def engine(respond):
    return ScriptedEngine(respond, encode=CHAT.text_ids, stop_id=CHAT.end_of_turn_id)


def collector(the_env, respond=lambda ids, seed: f"answer {seed % 1000}", **kwargs):
    options = {"max_prompt_tokens": 500, **kwargs}
    return Collector(env=the_env, engine=engine(respond), chat=CHAT, **options)


def sampling(max_new_tokens=50):
    return Sampling(max_new_tokens=max_new_tokens, stop_ids=CHAT.stop_ids)


def solved_if_a(task, rollout):
    return Verdict(reward=1.0, solved=True, feedback=f"{task.id}:{rollout.text}")


def collect(the_collector, tasks=TASKS, group_size=3, seed=5, **kwargs):
    return (
        Together()
        .collect(
            the_collector, tasks, group_size=group_size, sampling=sampling(**kwargs), seed=seed
        )
        .groups
    )


def test_verdicts_belong_to_their_rollouts():
    def slow_first(task, rollout):
        time.sleep(0.02 * (2 - rollout.index))
        return solved_if_a(task, rollout)

    for group in collect(collector(env(TASKS, slow_first))):
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            assert verdict.feedback == f"{group.task.id}:{rollout.text}"
            assert rollout.task_id == group.task.id


def test_attempts_do_not_depend_on_the_other_tasks():
    the_env = env(TASKS, solved_if_a)
    together = {g.task.id: [r.text for r in g.rollouts] for g in collect(collector(the_env))}
    shuffled = random.Random(0).sample(TASKS, 3)
    for task in shuffled:
        (alone,) = collect(collector(the_env), tasks=[task])
        assert [r.text for r in alone.rollouts] == together[task.id]
    assert len({text for texts in together.values() for text in texts}) == 9


def test_async_judges_run_concurrently():
    running, peak = 0, 0

    async def judge(task, rollout):
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.01)
        running -= 1
        return 1.0

    groups = collect(collector(env(TASKS, judge)))
    assert peak == 9
    assert all(v.solved for g in groups for v in g.verdicts)


@pytest.mark.parametrize(
    ("tasks", "options", "said"),
    [
        ("hello", {}, "a list of tasks"),
        ({"prompt": "x"}, {}, "a list of tasks"),
        ([{"prompt": 5}], {}, "role and content"),
        ([{"messages": [{"content": "x"}]}], {}, "role and content"),
        ([{"prompt": "x", "messages": []}], {}, "not both"),
        ([{"id": 3, "prompt": "x"}], {}, "id='3'"),
        (["x"], {"eval_tasks": []}, "omit it"),
        (["x"], {"eval_tasks": [{"id": "q", "prompt": "x"}] * 2}, "occurs twice"),
        (["x"], {"judge": "no"}, "a function"),
    ],
)
def test_tasks_no_run_survives_are_refused_at_once(tasks, options, said):
    with pytest.raises(TaskError, match=said):
        env(tasks, **{"judge": solved_if_a, **options})


def test_plain_judges_that_wait_run_concurrently():
    """Two attempts meet at the barrier only when they are judged at the same time."""
    barrier = threading.Barrier(2, timeout=10)

    def judge(task, rollout):
        barrier.wait()
        return 1.0

    (group,) = collect(collector(env(TASKS, judge)), tasks=TASKS[:1], group_size=2)
    assert group.rewards == (1.0, 1.0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"reward": float("nan")}, "reward = nan"),
        ({"reward": None}, "reward = None"),
        ({"solved": "no"}, "solved = 'no'"),
        ({"feedback": 3}, "feedback = 3"),
        ({"metrics": {"s": "a"}}, "metrics"),
    ],
)
def test_a_verdict_no_run_survives_names_task_and_field(fields, said):
    values = {"reward": 0.0, "solved": False, **fields}
    the_env = env(TASKS, lambda task, rollout: Verdict(**values))
    with pytest.raises(JudgeError, match="'a'") as error:
        collect(collector(the_env), tasks=TASKS[:1])
    assert said in str(error.value)


def test_a_judge_that_raises_stops_with_task_and_traceback():
    def judge(task, rollout):
        if task.id == "b":
            raise KeyError("my bug")
        return 0.0

    with pytest.raises(JudgeError, match=r"task 'b'.*KeyError") as error:
        collect(collector(env(TASKS, judge)))
    assert "my bug" in str(error.value)
    assert "test_collect.py" in str(error.value)


def test_a_judge_that_returns_nonsense_is_an_error():
    with pytest.raises(JudgeError, match="Verdict"):
        collect(collector(env(TASKS, lambda task, rollout: "good")))


def test_prompt_over_the_limit_names_the_task():
    with pytest.raises(PromptTooLongError, match=r"task 'a'.*max_prompt_tokens"):
        collect(collector(env(TASKS, solved_if_a), max_prompt_tokens=5))


def test_truncated_attempts_are_marked():
    groups = collect(collector(env(TASKS, solved_if_a)), max_new_tokens=3)
    assert all(r.truncated and len(r.completion_ids) == 3 for g in groups for r in g.rollouts)


def test_multi_turn_keeps_sampled_tokens_and_masks_the_replies():
    def reply(task, turns):
        return {"role": "user", "content": f"turn {len(turns)}"} if len(turns) < 3 else None

    the_env = env(TASKS, solved_if_a, reply=reply)
    the_collector = collector(
        the_env, lambda ids, seed: "yes" if len(ids) % 2 else "no", max_turns=5
    )
    for group in collect(the_collector, max_new_tokens=200):
        for rollout in group.rollouts:
            assert len(rollout.turns) == 3
            prompt, completion, mask, logprobs = flatten_turns(rollout)
            assert (
                prompt + completion
                == rollout.turns[-1].prompt_ids + rollout.turns[-1].completion_ids
            )
            trained = [token for token, trains in zip(completion, mask, strict=True) if trains]
            assert trained == [t for turn in rollout.turns for t in turn.completion_ids]
            assert [p for p, m in zip(logprobs, mask, strict=True) if not m] == [0.0] * mask.count(
                False
            )
            shown = CHAT.tokenizer.decode(prompt + completion)
            assert "turn 1" in shown
            assert "turn 2" in shown
            assert "turn 3" not in shown


def test_multi_turn_stops_at_max_turns():
    the_env = env(TASKS, solved_if_a, reply=lambda task, turns: {"role": "user", "content": "more"})
    for group in collect(collector(the_env, max_turns=2)):
        assert all(len(r.turns) == 2 for r in group.rollouts)
