"""Tasksets of verifiers 0.4, the real library: judged offline, feedback and rewards by name.

Importing the library takes tens of seconds.
"""

from __future__ import annotations

import pytest

from sdpo.envs.adapters.verifiers import from_verifiers
from sdpo.errors import ConfigError, JudgeError
from sdpo.records import Rollout
from sdpo.rollouts.judging import judge_all

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

vf = pytest.importorskip("verifiers.v1")


class SumData(vf.TaskData):
    answer: str


class SumTask(vf.Task[SumData]):
    @vf.reward(weight=0.5)
    async def correct(self, trace):
        right = trace.last_reply.strip() == self.data.answer
        if not right:
            trace.info["feedback"] = f"{trace.last_reply} is too small"
        return float(right)

    @vf.reward(weight=0.5)
    async def form(self, trace):
        return float(trace.last_reply.strip().isdigit())

    @vf.metric
    async def length(self, trace):
        return float(len(trace.last_reply))


class Sums(vf.Taskset[SumTask]):
    def load(self):
        for i in range(3):
            yield SumTask(SumData(prompt=f"{i}+5?", answer=str(i + 5), system_prompt="Digits."))


class Forever(Sums):
    INFINITE = True


class MessageTaskset(vf.Taskset[SumTask]):
    def load(self):
        turns = [vf.UserMessage(content="1+1?"), vf.AssistantMessage(content="Really?"),
                 vf.UserMessage(content="Yes.")]  # fmt: skip
        yield SumTask(SumData(prompt=turns, answer="2", id="two"))


class BoxTask(SumTask):
    @vf.reward
    async def passes(self, trace, runtime):
        return 1.0


class Boxes(vf.Taskset[BoxTask]):
    def load(self):
        yield BoxTask(SumData(prompt="?", answer="2"))


def judged(env, text, split="train"):
    rollout = Rollout(
        task_id="0", index=0, prompt_ids=(1,), completion_ids=(5,), sampler_logprobs=(-0.1,),
        text=text, truncated=False, policy_version=0,
    )  # fmt: skip
    return judge_all(env, [(env.load(split)[0], rollout)])[0]


def test_tasksets_had_no_rubric():
    sums = Sums(vf.TasksetConfig())
    env = from_verifiers(sums, eval_taskset=sums.skip(1))
    assert [len(env.load(split)) for split in ("train", "eval")] == [3, 2]
    assert env.load("train")[0].messages == (
        {"role": "system", "content": "Digits."},
        {"role": "user", "content": "0+5?"},
    )
    wrong = judged(env, "4")
    assert (wrong.reward, wrong.solved, wrong.feedback) == (0.5, False, "4 is too small")
    assert wrong.metrics == {"correct": 0.0, "form": 1.0, "length": 1.0}
    right = judged(env, "5")
    assert (right.reward, right.solved, right.feedback) == (1.0, True, None)
    assert judged(env, "6", split="eval").solved
    assert judged(from_verifiers(sums, solved_by="form"), "4").solved


def test_conversations_keep_their_turns():
    env = from_verifiers(MessageTaskset(vf.TasksetConfig()))
    (task,) = env.load("train")
    assert [m["role"] for m in task.messages] == ["user", "assistant", "user"]
    assert (task.id, judged(env, "2").solved) == ("two", True)


def test_tasks_that_need_more_than_an_answer_are_refused():
    with pytest.raises(ConfigError, match="the reward passes"):
        from_verifiers(Boxes(vf.TasksetConfig()))
    with pytest.raises(ConfigError, match="never ends"):
        from_verifiers(Forever(vf.TasksetConfig()))
    assert from_verifiers(Forever(vf.TasksetConfig()).take(2)).load("train")


def test_a_reward_that_raises_stops_the_run():
    class Broken(SumTask):
        @vf.reward
        async def boom(self, trace):
            raise KeyError("boom")

    class Taskset(vf.Taskset[Broken]):
        def load(self):
            yield Broken(SumData(prompt="?", answer="2"))

    with pytest.raises(JudgeError, match="boom"):
        judged(from_verifiers(Taskset(vf.TasksetConfig())), "2")


class Bare(vf.Task[SumData]):
    """As TextArena's: the environment scores the game it plays."""


class Bares(vf.Taskset[Bare]):
    def load(self):
        yield Bare(SumData(prompt="?", answer="2"))


def test_a_task_that_its_environment_scores_had_reward_0_for_ever():
    with pytest.raises(ConfigError, match="the task Bare of Bares has no rewards"):
        from_verifiers(Bares(vf.TasksetConfig()))


def test_text_games_of_the_package_are_refused():
    pytest.importorskip("textarena")
    from verifiers.v1.tasksets.textarena import TextArenaConfig, TextArenaTaskset

    games = TextArenaTaskset(TextArenaConfig())
    with pytest.raises(ConfigError, match="never ends; give TextArenaTaskset"):
        from_verifiers(games)
