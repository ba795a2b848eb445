"""env x engine -> groups with verdicts: sample every attempt of a step, then judge all of them
concurrently.

Batch-first and turn-synchronous. This is the only file that would change for asynchronous rollouts.
It computes no advantages and builds no teacher contexts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sdpo.chat import Chat
from sdpo.config.environments import JudgingConfig
from sdpo.engines.base import Completion, Engine, GenerationRequest, Sampling
from sdpo.envs.base import Env, Replying
from sdpo.parallel import Parallel
from sdpo.records import Group, Message, Rollout, Task, Turn, Verdict
from sdpo.rollouts.judging import DEFAULTS, Judged, check_unjudged, judge_all, judge_share
from sdpo.rollouts.shares import share_attempts
from sdpo.seeds import derive

_ALONE = Parallel()


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The groups of one step, one per task, and how long each part took.

    Example:
        Collected(groups=[group], judged=judged, generate_s=3.1, judge_s=0.2)
    """

    groups: list[Group]
    judged: Judged
    """The verdicts of all attempts made, in order, where there are some."""
    generate_s: float
    judge_s: float
    left_out: list[Group] = field(default_factory=list)
    """Judged groups that others have replaced (`rollout.redraws`)."""

    def metrics(self) -> dict[str, float]:
        """The times, the share of attempts that could not be judged, and that of groups replaced
        by others."""
        drawn = [*self.groups, *self.left_out]
        verdicts = self.judged.verdicts
        return {
            "rollouts/redrawn": len(self.left_out) / len(drawn) if drawn else 0.0,
            "time/generate_s": self.generate_s,
            "time/judge_s": self.judge_s,
            "env/unjudged": verdicts.count(None) / len(verdicts),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """Samples and judges; holds what stays the same over a run."""

    env: Env
    engine: Engine
    chat: Chat
    max_prompt_tokens: int
    max_turns: int = 1
    judging: JudgingConfig = DEFAULTS

    def collect(
        self,
        tasks: Sequence[Task],
        *,
        group_size: int,
        sampling: Sampling,
        seed: int,
        parallel: Parallel = _ALONE,
    ) -> Collected:
        """A group of `group_size` attempts at each task, in order, without those that could not be
        judged: a group may be smaller, with gaps in its rollouts' `index`, or empty. Of several
        ranks each makes its share, which `gather_groups` puts together; `check_unjudged` is then
        for the caller, who knows what the others have judged.

        Attempt i at task t draws its random numbers from (seed, t.id, i, turn) alone, so other
        tasks, their order and the batch split do not matter. Raises `PromptTooLongError` and
        `JudgeError` (`judge_all` says when).
        """
        start = time.perf_counter()
        wanted = share_attempts(tasks, group_size, parallel)
        rollouts = self._sample(wanted, sampling, seed)
        sampled = time.perf_counter()
        attempts = [
            (task, rollout)
            for (task, _), group in zip(wanted, rollouts, strict=True)
            for rollout in group
        ]
        judged = judge_share(self.env, attempts, self.judging)
        if parallel.world_size == 1:
            check_unjudged([judged], self.judging.max_unjudged)
        verdicts = iter(judged.verdicts)
        groups = [
            _judged(task, group, [next(verdicts) for _ in group])
            for (task, _), group in zip(wanted, rollouts, strict=True)
        ]
        return Collected(
            groups=groups,
            judged=judged,
            generate_s=sampled - start,
            judge_s=time.perf_counter() - sampled,
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
        by_task: dict[str, list[tuple[Rollout, Verdict | None]]] = {
            group.task.id: [] for group in groups
        }
        for answer in self.answer(questions, sampling=sampling, seed=seed):
            by_task[answer[0].task_id].append(answer)
        return [
            _judged(
                group.task,
                [rollout for rollout, _ in by_task[group.task.id]],
                [verdict for _, verdict in by_task[group.task.id]],
            )
            for group in groups
        ]

    def answer(
        self,
        questions: Sequence[tuple[Task, Rollout, tuple[int, ...]]],
        *,
        sampling: Sampling,
        seed: int,
    ) -> list[tuple[Rollout, Verdict | None]]:
        """One judged attempt, of a single turn, after the prompt of each question, sampled with the
        engine's current weights; None for a verdict that could not be had. A question is (task,
        rollout to answer anew, prompt ids).

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
        verdicts = judge_all(self.env, attempts, self.judging)
        return [(rollout, v) for (_, rollout), v in zip(attempts, verdicts, strict=True)]

    def _sample(
        self, wanted: Sequence[tuple[Task, range]], sampling: Sampling, seed: int
    ) -> list[list[Rollout]]:
        """The attempts `wanted` at each task; at a task with none the engine is not asked."""
        made = iter(self._sample_some([each for each in wanted if each[1]], sampling, seed))
        return [next(made) if indices else [] for _, indices in wanted]

    def _sample_some(
        self, wanted: Sequence[tuple[Task, range]], sampling: Sampling, seed: int
    ) -> list[list[Rollout]]:
        tasks = [task for task, _ in wanted]
        prompts = [
            self.chat.prompt_ids(
                task.messages, max_tokens=self.max_prompt_tokens, what=f"task {task.id!r}: prompt"
            )
            for task in tasks
        ]
        requests = [
            GenerationRequest(
                prompt_ids=prompt,
                seeds=tuple(derive(seed, task.id, index, 0) for index in indices),
            )
            for (task, indices), prompt in zip(wanted, prompts, strict=True)
        ]
        completions = self.engine.generate(requests, sampling)
        rollouts = [
            [
                self._rollout(task, index, prompt, completion)
                for index, completion in zip(indices, group, strict=True)
            ]
            for (task, indices), prompt, group in zip(wanted, prompts, completions, strict=True)
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


def _judged(task: Task, rollouts: Sequence[Rollout], verdicts: Sequence[Verdict | None]) -> Group:
    """The group of the rollouts that have a verdict."""
    pairs = [(r, v) for r, v in zip(rollouts, verdicts, strict=True) if v is not None]
    return Group(
        task=task, rollouts=tuple(r for r, _ in pairs), verdicts=tuple(v for _, v in pairs)
    )


def drop_empty(groups: Sequence[Group]) -> list[Group]:
    """`groups` without those of which no attempt could be judged."""
    return [group for group in groups if group.rollouts]


def _turn_of(rollout: Rollout) -> Turn:
    return Turn(
        prompt_ids=rollout.prompt_ids,
        completion_ids=rollout.completion_ids,
        sampler_logprobs=rollout.sampler_logprobs,
        text=rollout.text,
        truncated=rollout.truncated,
    )
