"""env x engine -> groups with verdicts: sample every attempt of a step, then judge all of them
concurrently.

Batch-first and turn-synchronous. This is the only file that would change for asynchronous rollouts.
It computes no advantages and builds no teacher contexts.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from numbers import Real

from sdpo.chat import Chat
from sdpo.engines.base import Completion, Engine, GenerationRequest, Sampling
from sdpo.envs.base import Env, Replying
from sdpo.errors import JudgeError
from sdpo.machine import usable_cores
from sdpo.records import Group, Message, Rollout, Task, Turn, Verdict
from sdpo.seeds import derive


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The groups of one step and how long each part took.

    Example:
        Collected(groups=[group], generate_s=3.1, judge_s=0.2)
    """

    groups: list[Group]
    generate_s: float
    judge_s: float

    def seconds(self) -> dict[str, float]:
        """The times under their metric names."""
        return {"time/generate_s": self.generate_s, "time/judge_s": self.judge_s}


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """Samples and judges; holds what stays the same over a run."""

    env: Env
    engine: Engine
    chat: Chat
    max_prompt_tokens: int
    max_turns: int = 1

    def collect(
        self, tasks: Sequence[Task], *, group_size: int, sampling: Sampling, seed: int
    ) -> Collected:
        """`group_size` judged attempts at each task.

        Attempt i at task t draws its random numbers from (seed, t.id, i, turn) alone, so other
        tasks, their order and the batch split do not matter. Raises `PromptTooLongError` and, when
        a judge raises, `JudgeError`.
        """
        start = time.perf_counter()
        rollouts = self._sample(tasks, group_size, sampling, seed)
        sampled = time.perf_counter()
        attempts = [
            (task, rollout)
            for task, group in zip(tasks, rollouts, strict=True)
            for rollout in group
        ]
        verdicts = judge_all(self.env, attempts)
        groups = [
            Group(
                task=task,
                rollouts=tuple(group),
                verdicts=tuple(verdicts[i * group_size : (i + 1) * group_size]),
            )
            for i, (task, group) in enumerate(zip(tasks, rollouts, strict=True))
        ]
        return Collected(
            groups=groups, generate_s=sampled - start, judge_s=time.perf_counter() - sampled
        )

    def collect_in_contexts(
        self,
        groups: Sequence[Group],
        *,
        sampling: Sampling,
        seed: int,
    ) -> list[Group]:
        """One judged attempt in every teacher context of `groups` that exists; see `answer`."""
        questions = [
            (group.task, rollout, self.chat.prompt_ids(context.messages))
            for group in groups
            for rollout, context in zip(group.rollouts, group.contexts, strict=True)
            if context.messages is not None
        ]
        by_task = {group.task.id: [] for group in groups}
        for answer in self.answer(questions, sampling=sampling, seed=seed):
            by_task[answer[0].task_id].append(answer)
        return [
            Group(
                task=group.task,
                rollouts=tuple(rollout for rollout, _ in by_task[group.task.id]),
                verdicts=tuple(verdict for _, verdict in by_task[group.task.id]),
            )
            for group in groups
        ]

    def answer(
        self,
        questions: Sequence[tuple[Task, Rollout, tuple[int, ...]]],
        *,
        sampling: Sampling,
        seed: int,
    ) -> list[tuple[Rollout, Verdict]]:
        """One judged attempt, of a single turn, after the prompt of each question, sampled with the
        engine's current weights. A question is (task, rollout to answer anew, prompt ids).

        An attempt takes `index` and `prompt_ids` of that rollout, so that it is judged and can be
        trained on as if it had been made without the other prompt; its `sampler_logprobs` are
        those after the other prompt. Its random numbers come from (seed, task.id, index) alone.
        """
        requests = [
            GenerationRequest(prompt_ids=prompt, seeds=(derive(seed, task.id, rollout.index),))
            for task, rollout, prompt in questions
        ]
        attempts = [
            (task, self._rollout(task, rollout.index, rollout.prompt_ids, completion))
            for (task, rollout, _), (completion,) in zip(
                questions, self.engine.generate(requests, sampling), strict=True
            )
        ]
        verdicts = judge_all(self.env, attempts)
        return [(rollout, v) for (_, rollout), v in zip(attempts, verdicts, strict=True)]

    def _sample(
        self, tasks: Sequence[Task], group_size: int, sampling: Sampling, seed: int
    ) -> list[list[Rollout]]:
        prompts = [
            self.chat.prompt_ids(
                task.messages, max_tokens=self.max_prompt_tokens, what=f"task {task.id!r}: prompt"
            )
            for task in tasks
        ]
        requests = [
            GenerationRequest(
                prompt_ids=prompt,
                seeds=tuple(derive(seed, task.id, index, 0) for index in range(group_size)),
            )
            for task, prompt in zip(tasks, prompts, strict=True)
        ]
        completions = self.engine.generate(requests, sampling)
        rollouts = [
            [
                self._rollout(task, index, prompt, completion)
                for index, completion in enumerate(group)
            ]
            for task, prompt, group in zip(tasks, prompts, completions, strict=True)
        ]
        if self.max_turns > 1 and isinstance(self.env, Replying):
            rollouts = self._continue(self.env, tasks, rollouts, sampling, seed)
        return rollouts

    def _rollout(
        self, task: Task, index: int, prompt_ids: tuple[int, ...], completion: Completion
    ) -> Rollout:
        return Rollout(
            task_id=task.id,
            index=index,
            prompt_ids=prompt_ids,
            completion_ids=completion.token_ids,
            sampler_logprobs=completion.logprobs,
            text=self.chat.decode(completion.token_ids),
            truncated=completion.truncated,
            policy_version=self.engine.policy_version,
        )

    def _continue(
        self,
        env: Replying,
        tasks: Sequence[Task],
        rollouts: list[list[Rollout]],
        sampling: Sampling,
        seed: int,
    ) -> list[list[Rollout]]:
        """Play further turns of every attempt whose environment replies, all attempts one turn at a
        time."""
        attempts: dict[tuple[int, int], tuple[Rollout, tuple[Turn, ...]]] = {
            (row, rollout.index): (rollout, (_turn_of(rollout),))
            for row, group in enumerate(rollouts)
            for rollout in group
        }
        active = list(attempts)
        for number in range(1, self.max_turns):
            requests, playing = [], []
            for key in active:
                rollout, turns = attempts[key]
                task = tasks[key[0]]
                reply = None if turns[-1].truncated else env.reply(task, turns)
                if reply is None:
                    continue
                turns = (*turns[:-1], replace(turns[-1], reply=reply))
                attempts[key] = (rollout, turns)
                prompt = (
                    turns[-1].prompt_ids
                    + turns[-1].completion_ids
                    + self._reply_ids(turns[-1], reply)
                )
                requests.append(
                    GenerationRequest(
                        prompt_ids=prompt, seeds=(derive(seed, task.id, key[1], number),)
                    )
                )
                playing.append(key)
            for key, request, group in zip(
                playing, requests, self.engine.generate(requests, sampling), strict=True
            ):
                rollout, turns = attempts[key]
                rollout = self._rollout(tasks[key[0]], key[1], request.prompt_ids, group[0])
                attempts[key] = (rollout, (*turns, _turn_of(rollout)))
            active = playing
        return [
            [
                replace(attempts[row, rollout.index][0], turns=attempts[row, rollout.index][1])
                for rollout in group
            ]
            for row, group in enumerate(rollouts)
        ]

    def _reply_ids(self, turn: Turn, reply: Message) -> tuple[int, ...]:
        """Tokens between a completion and the next one: end of turn if missing, the reply, the
        generation prompt."""
        return self.chat.reply_ids(reply, ended=turn.completion_ids[-1] in self.chat.stop_ids)


def _turn_of(rollout: Rollout) -> Turn:
    return Turn(
        prompt_ids=rollout.prompt_ids,
        completion_ids=rollout.completion_ids,
        sampler_logprobs=rollout.sampler_logprobs,
        text=rollout.text,
        truncated=rollout.truncated,
    )


def judge_all(env: Env, attempts: Sequence[tuple[Task, Rollout]]) -> list[Verdict]:
    """Verdicts in the order of `attempts`, judged concurrently: threads for plain judges, one event
    loop for async ones.

    An exception in a judge is a bug of the environment: it becomes a `JudgeError` with the task's
    id and the traceback.
    """
    return asyncio.run(_judge_all(env, attempts))


async def _judge_all(env: Env, attempts: Sequence[tuple[Task, Rollout]]) -> list[Verdict]:
    loop = asyncio.get_running_loop()
    is_async = inspect.iscoroutinefunction(env.judge)

    async def judge(task: Task, rollout: Rollout) -> Verdict:
        try:
            if is_async:
                verdict = await env.judge(task, rollout)  # ty: ignore[invalid-await]
            else:
                verdict = await loop.run_in_executor(pool, env.judge, task, rollout)
        except Exception as error:
            raise JudgeError(
                f"judging task {task.id!r}, attempt {rollout.index} raised "
                f"{type(error).__name__}: {error}\n" + "".join(traceback.format_exception(error))
            ) from error
        return _checked(verdict, task)

    with ThreadPoolExecutor(max_workers=usable_cores(), thread_name_prefix="judge") as pool:
        return list(await asyncio.gather(*(judge(task, rollout) for task, rollout in attempts)))


def _checked(verdict: object, task: Task) -> Verdict:
    """`verdict` itself. Raises `JudgeError` naming a field that would break the run."""
    if not isinstance(verdict, Verdict):
        raise JudgeError(
            f"judging task {task.id!r} returned {type(verdict).__name__}; "
            "an Env's judge returns a Verdict"
        )
    reward, feedback = verdict.reward, verdict.feedback
    wrong = None
    if not isinstance(reward, Real) or not math.isfinite(reward):
        wrong = f"reward = {reward!r}, which must be a finite number"
    elif verdict.solved not in (True, False):
        wrong = f"solved = {verdict.solved!r}, which must be true or false"
    elif feedback is not None and not isinstance(feedback, str):
        wrong = f"feedback = {feedback!r}, which must be a string or None"
    elif bad := [name for name, value in verdict.metrics.items() if not isinstance(value, Real)]:
        wrong = f"metrics[{bad[0]!r}] = {verdict.metrics[bad[0]]!r}, which must be a number"
    if wrong:
        raise JudgeError(f"judging task {task.id!r} returned a Verdict with {wrong}")
    return verdict
