"""env x engine -> groups with verdicts: every attempt of a step, played by `episodes.py`.

Batch-first and turn-synchronous. These two files compute no advantages and build no teacher
contexts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from sdpo.chat import Chat
from sdpo.config.environments import JudgingConfig
from sdpo.engines.base import Engine, Sampling
from sdpo.envs.base import Env
from sdpo.envs.episodes import turns_of
from sdpo.metrics import names
from sdpo.parallel import Parallel
from sdpo.records import Group, Rollout, Task, Verdict
from sdpo.rollouts.episodes import Attempt, Played, Player
from sdpo.rollouts.judging import DEFAULTS, Judged
from sdpo.rollouts.recorded import recorded_ids
from sdpo.rollouts.shares import share_attempts
from sdpo.seeds import derive

Result = tuple[Rollout, Verdict]
"""An attempt with its verdict."""

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
    """Seconds the engine took."""
    judge_s: float
    """Seconds the environment took, replies included."""
    left_out: list[Group] = field(default_factory=list)
    """Judged groups that others have replaced (`rollout.redraws`)."""
    staleness: float | None = None
    """Mean updates between the weights that sampled and those that train on it; None where they
    are the same always."""

    def metrics(self) -> dict[str, float]:
        """The times, the share of attempts that could not be judged, and that of groups replaced
        by others."""
        drawn = [*self.groups, *self.left_out]
        verdicts = self.judged.verdicts
        stale = {} if self.staleness is None else {names.ROLLOUTS_STALENESS: self.staleness}
        return stale | {
            names.ROLLOUTS_REDRAWN: len(self.left_out) / len(drawn) if drawn else 0.0,
            names.TIME_GENERATE_S: self.generate_s,
            names.TIME_JUDGE_S: self.judge_s,
            names.ENV_UNJUDGED: verdicts.count(None) / len(verdicts),
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
        ranks each makes its share; whether too many have no verdict is for the caller, who knows
        what the others have judged (`Together.collect`).

        Attempt i at task t draws its random numbers from (seed, t.id, i, turn) alone, so other
        tasks, their order and the batch split do not matter. An attempt that the environment has
        `Recorded` is taken as it is. Raises `PromptTooLongError`, `JudgeError` (`judge_share` says
        when), and for recorded attempts what `recorded_ids` says.
        """
        start = time.perf_counter()
        wanted = share_attempts(tasks, group_size, parallel)
        prompts = self._prompts([task for task, _ in wanted])
        recorded = recorded_ids(self.env, self.chat, tasks, group_size, sampling)
        attempts = [
            Attempt(
                task=task,
                index=index,
                prompt_ids=prompt,
                read_ids=prompt,
                recorded_ids=recorded.get(task.id),
            )
            for (task, indices), prompt in zip(wanted, prompts, strict=True)
            for index in indices
        ]
        played = self._player.play(
            attempts, sampling, lambda a, number: derive(seed, a.task.id, a.index, number)
        )
        results = iter(played.results)
        groups = [_group(task, [next(results) for _ in indices]) for task, indices in wanted]
        return Collected(
            groups=groups,
            judged=played.judged,
            generate_s=played.generate_s,
            judge_s=time.perf_counter() - start - played.generate_s,
        )

    def collect_in_contexts(
        self,
        groups: Sequence[Group],
        *,
        sampling: Sampling,
        seed: int,
    ) -> Collected:
        """One judged attempt in every teacher context of `groups` that exists; see `answer`."""
        start = time.perf_counter()
        questions = [
            (group.task, rollout, self.chat.prompt_ids(context.messages))
            for group in groups
            for rollout, context in zip(group.rollouts, group.contexts, strict=True)
            if context.messages is not None
        ]
        by_task: dict[str, list[Result | None]] = {group.task.id: [] for group in groups}
        played = self.answer(questions, sampling=sampling, seed=seed)
        for (task, _, _), answer in zip(questions, played.results, strict=True):
            by_task[task.id].append(answer)
        return Collected(
            groups=[_group(group.task, by_task[group.task.id]) for group in groups],
            judged=played.judged,
            generate_s=played.generate_s,
            judge_s=time.perf_counter() - start - played.generate_s,
        )

    def answer(
        self,
        questions: Sequence[tuple[Task, Rollout, tuple[int, ...]]],
        *,
        sampling: Sampling,
        seed: int,
    ) -> Played:
        """One judged attempt after the prompt of each question, with as many turns as any, sampled
        with the engine's current weights. A question is (task, rollout to answer anew, prompt ids).

        An attempt takes `index` and first prompt of that rollout, so that it is judged and can be
        trained on as if it had been made without the other prompt; its `sampler_logprobs` are
        those after the other prompt. Its random numbers come from (seed, task.id, index, turn)
        alone.
        """
        attempts = [
            Attempt(
                task=task,
                index=rollout.index,
                prompt_ids=turns_of(rollout)[0].prompt_ids,
                read_ids=prompt,
            )
            for task, rollout, prompt in questions
        ]

        def seed_of(attempt: Attempt, number: int) -> int:
            later = (number,) if number else ()
            return derive(seed, attempt.task.id, attempt.index, *later)

        return self._player.play(attempts, sampling, seed_of)

    @property
    def _player(self) -> Player:
        return Player(
            env=self.env,
            engine=self.engine,
            chat=self.chat,
            max_turns=self.max_turns,
            judging=self.judging,
        )

    def _prompts(self, tasks: Sequence[Task]) -> list[tuple[int, ...]]:
        return [
            self.chat.prompt_ids(
                task.messages, max_tokens=self.max_prompt_tokens, what=f"task {task.id!r}: prompt"
            )
            for task in tasks
        ]


def _group(task: Task, results: Sequence[Result | None]) -> Group:
    """The group of the rollouts that have a verdict."""
    judged = [result for result in results if result is not None]
    return Group(
        task=task,
        rollouts=tuple(rollout for rollout, _ in judged),
        verdicts=tuple(verdict for _, verdict in judged),
    )


def drop_empty(groups: Sequence[Group]) -> list[Group]:
    """`groups` without those of which no attempt could be judged."""
    return [group for group in groups if group.rollouts]
