"""Several processes sample what one would: whole groups while there are enough, else attempts."""

from __future__ import annotations

import pytest

from sdpo import Task, Verdict, env
from sdpo.chat import Chat
from sdpo.engines.base import Sampling
from sdpo.parallel import Parallel
from sdpo.rollouts.collect import Collector
from sdpo.rollouts.shares import gather_groups, share_groups
from sdpo.testing import byte_tokenizer
from sdpo.testing.scripted import ScriptedEngine

CHAT = Chat(byte_tokenizer())
SAMPLING = Sampling(max_new_tokens=30, stop_ids=CHAT.stop_ids)


class Rank(Parallel):
    """One of several processes that take turns in this one: gathers what all of them have left."""

    left: list

    def gather(self, item):
        return self.left


def tasks_of(names):
    return [Task(id=n, messages=({"role": "user", "content": f"say {n}"},)) for n in names]


def collector_of(tasks):
    engine = ScriptedEngine(
        lambda ids, seed: f"answer {seed % 1000}", encode=CHAT.text_ids, stop_id=CHAT.end_of_turn_id
    )
    the_env = env(tasks[:1], lambda task, rollout: Verdict(reward=rollout.index / 9, solved=False))
    return Collector(env=the_env, engine=engine, chat=CHAT, max_prompt_tokens=500)


def collect(tasks, parallel):
    made = collector_of(tasks)
    found = made.collect(tasks, group_size=5, sampling=SAMPLING, seed=3, parallel=parallel)
    return found, made.engine.requests


# A task may be drawn twice in a step.
@pytest.mark.parametrize("names", ["a", "ab", "aa", "abc", "abcdefg"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranks_without_a_task_sampled_nothing(names, world_size):
    tasks = tasks_of(names)
    alone, _ = collect(tasks, Parallel())
    shares = [collect(tasks, Parallel(rank=r, world_size=world_size)) for r in range(world_size)]
    counts = [sum(len(g.rollouts) for g in share.groups) for share, _ in shares]
    assert [len(share.judged.verdicts) for share, _ in shares] == counts
    assert sum(counts) == 5 * len(tasks)
    if len(tasks) < world_size:
        assert max(counts) - min(counts) <= 1
    else:  # A prompt is computed by one rank alone.
        assert sum(len(requests) for _, requests in shares) == len(tasks)
    rank = Rank(rank=0, world_size=world_size)
    object.__setattr__(rank, "left", [share.groups for share, _ in shares])
    assert gather_groups(shares[0][0].groups, rank, count=len(tasks)) == alone.groups


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("names", ["a", "abc"])
def test_groups_are_shared_out_and_put_together_again(names, world_size):
    groups = collect(tasks_of(names), Parallel())[0].groups
    shares = [
        share_groups(groups, Parallel(rank=r, world_size=world_size)) for r in range(world_size)
    ]
    sizes = [sum(len(g.rollouts) for g in share) for share in shares]
    assert sum(sizes) == 5 * len(groups)
    assert all(sizes) or world_size > sum(sizes)
    rank = Rank(rank=0, world_size=world_size)
    object.__setattr__(rank, "left", shares)
    assert gather_groups(shares[0], rank, count=len(groups)) == groups
