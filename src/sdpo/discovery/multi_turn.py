"""One prompt that accumulates what the environment said about earlier attempts, one attempt at a
time.

The oldest feedback leaves first when the prompt outgrows its window. As in the paper it is no
conversation: the task is asked once, its feedback follows.

Repetitions advance side by side, an attempt of each at a time: one sequence alone leaves a device
idle. What a repetition samples does not depend on the others.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from sdpo.chat import Chat
from sdpo.config.schema import RunConfig
from sdpo.discovery.records import Tally
from sdpo.envs.base import Env
from sdpo.records import Message, Rollout, Task, Verdict
from sdpo.seeds import derive
from sdpo.teacher import templates
from sdpo.teacher.context import cut_middle
from sdpo.training.assemble import Sampler


@dataclass(slots=True, kw_only=True)
class Conversation:
    """One repetition: what it has tried and what it reads next.

    Example:
        Conversation(repetition=0, tally=Tally(256))
    """

    repetition: int
    tally: Tally
    sections: list[str] = field(default_factory=list)
    """Feedback so far, with the attempts if they are shown; oldest first."""
    seconds: float = 0.0
    """Its equal share of the time of every round it took part in."""

    @property
    def is_finished(self) -> bool:
        """Solved, or out of budget."""
        return not self.tally.left or self.tally.solution is not None


def multi_turn(
    sampler: Sampler,
    config: RunConfig,
    task: Task,
    *,
    repetitions: Sequence[int],
    watch: Callable[[int, Tally], None] = lambda repetition, tally: None,
) -> Iterator[Conversation]:
    """Attempt `task` once per round in every one of `repetitions`, each with its own feedback so
    far, and yield each when it is solved or out of budget.

    `watch` sees the first one still at work after every round. Raises `PromptTooLongError` when the
    task alone exceeds `discover.window_tokens`.
    """
    sampling = sampler.sampling(config, temperature=config.rollout.temperature)
    collector = replace(
        sampler.collector,
        env=JudgedAs(sampler.env, task),
        max_prompt_tokens=config.discover.window_tokens,
    )
    working = [
        Conversation(repetition=number, tally=Tally(config.discover.budget))
        for number in repetitions
    ]
    turn = 0
    while working:
        start = time.perf_counter()
        groups = collector.collect(
            [_asked(sampler.chat, config, task, conversation) for conversation in working],
            group_size=1,
            sampling=sampling,
            seed=derive(config.seed, "discover", "multi_turn", turn),
        ).groups
        for conversation, group in zip(working, groups, strict=True):
            rollout, verdict = group.rollouts[0], group.verdicts[0]
            conversation.tally.add(rollout.text, solved=verdict.solved)
            if config.discover.show_attempts:
                text = sampler.chat.as_content(rollout.text)
                conversation.sections.append(templates.ATTEMPT.format(attempt=text))
            if verdict.feedback is not None:
                feedback = sampler.chat.inert(verdict.feedback)
                said = templates.FEEDBACK.format(feedback=feedback)
                conversation.sections.append(said)
        watch(working[0].repetition, working[0].tally)
        share = (time.perf_counter() - start) / len(working)
        for conversation in working:
            conversation.seconds += share
        yield from [conversation for conversation in working if conversation.is_finished]
        working = [conversation for conversation in working if not conversation.is_finished]
        turn += 1


def _asked(chat: Chat, config: RunConfig, task: Task, conversation: Conversation) -> Task:
    """`task` with what the repetition has been told; its id, from which random numbers come, is
    that of the repetition."""
    window = config.discover.window_tokens
    conversation.sections, messages = fit(chat, task.messages, conversation.sections, window)
    return replace(task, id=f"{task.id}/{conversation.repetition}", messages=messages)


class JudgedAs:
    """An environment that judges every rollout as an attempt at the original task, whose messages
    a judge may read."""

    def __init__(self, env: Env, task: Task) -> None:
        self._env = env
        self._task = task
        reply = getattr(env, "reply", None)
        if reply is not None:
            self.reply = lambda shown, turns: reply(task, turns)

    def load(self, split: str) -> Sequence[Task]:
        """Tasks of the environment."""
        return self._env.load(split)

    async def judge(self, task: Task, rollout: Rollout) -> Verdict:
        """The environment's verdict on `rollout`; the task as shown is not used."""
        verdict = self._env.judge(self._task, replace(rollout, task_id=self._task.id))
        if inspect.isawaitable(verdict):
            verdict = await verdict
        return verdict


def fit(
    chat: Chat, task: Sequence[Message], sections: Sequence[str], window: int
) -> tuple[list[str], tuple[Message, ...]]:
    """The newest sections that fit into `window` tokens, and the prompt they make.

    The newest one is cut in its middle rather than left out.
    """
    kept = list(sections)
    while kept:
        messages = prompt(task, kept)
        if len(chat.prompt_ids(messages)) <= window:
            return kept, messages
        if len(kept) > 1:
            kept.pop(0)
            continue
        shorter = cut_middle(kept[0], len(kept[0]) // 2)
        if len(shorter) >= len(kept[0]):
            break
        kept = [shorter]
    return [], tuple(task)


def prompt(task: Sequence[Message], sections: Sequence[str]) -> tuple[Message, ...]:
    """The task with `sections` at the end of its last user turn."""
    content = "\n\n".join([task[-1]["content"], *sections, templates.SOLVE])
    return (*task[:-1], {**task[-1], "content": content})
