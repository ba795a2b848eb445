"""One prompt that accumulates what the environment said about earlier attempts, one attempt at a
time.

The oldest feedback leaves first when the prompt outgrows its window. As in the paper it is no
conversation: the task is asked once, its feedback follows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace

from sdpo.chat import Chat
from sdpo.config.schema import RunConfig
from sdpo.discovery.records import Tally
from sdpo.envs.base import Env
from sdpo.records import Message, Rollout, Task, Verdict
from sdpo.seeds import derive
from sdpo.teacher import templates
from sdpo.teacher.context import cut_middle
from sdpo.training.assemble import Sampler


def multi_turn(
    sampler: Sampler,
    config: RunConfig,
    task: Task,
    *,
    seed: int,
    tally: Tally,
    watch: Callable[[Tally], None] = lambda tally: None,
) -> None:
    """Attempt `task` until solved or out of budget, each time with the feedback so far.

    Raises `PromptTooLongError` when the task alone exceeds `discover.window_tokens`.
    """
    window = config.discover.window_tokens
    sampling = sampler.sampling(config, temperature=config.rollout.temperature)
    collector = replace(
        sampler.collector, env=JudgedAs(sampler.env, task), max_prompt_tokens=window
    )
    sections: list[str] = []
    while tally.left and tally.solution is None:
        sections, messages = fit(sampler.chat, task.messages, sections, window)
        collected = collector.collect(
            [replace(task, messages=messages)],
            group_size=1,
            sampling=sampling,
            seed=derive(seed, "turn", tally.attempts),
        )
        group = collected.groups[0]
        rollout, verdict = group.rollouts[0], group.verdicts[0]
        tally.add(rollout.text, solved=verdict.solved)
        if config.discover.show_attempts:
            text = sampler.chat.as_content(rollout.text)
            sections.append(templates.ATTEMPT.format(attempt=text))
        if verdict.feedback is not None:
            sections.append(templates.FEEDBACK.format(feedback=verdict.feedback))
        watch(tally)


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
        verdict = self._env.judge(self._task, rollout)
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
