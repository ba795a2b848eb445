"""One prompt that accumulates what the environment said about earlier attempts, one attempt at a
time.

The oldest feedback is dropped first when the prompt outgrows its window. As in the paper this is
not a conversation: the task is asked once, and the feedback follows it.

Searches of all tasks and repetitions advance side by side, an attempt of each at a time: one
sequence alone leaves a device idle. What a search samples does not depend on the others.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sdpo.chat import Chat
from sdpo.config.schema import RunConfig
from sdpo.config.teacher import TemplatesConfig
from sdpo.discovery.log import Attempt, Tally
from sdpo.envs.base import Computing, Env
from sdpo.envs.episodes import Opening, Replying
from sdpo.envs.text import cut_middle
from sdpo.records import Message, Rollout, Task, Verdict
from sdpo.rollouts.sampler import Sampler
from sdpo.rollouts.together import Together
from sdpo.seeds import derive

SHORTEST_SECTION = 80
"""Characters; feedback cut below this says more about the cut than about the attempt."""


@dataclass(slots=True, kw_only=True)
class Conversation:
    """One search: its task, what it has tried and what it reads next.

    Example:
        Conversation(task=task, tally=Tally(task.id, "multi_turn", 0, budget=256))
    """

    task: Task
    tally: Tally
    sections: list[str] = field(default_factory=list)
    """Feedback so far, with the attempts if they are shown; oldest first."""

    @property
    def id(self) -> str:
        """Task and repetition, from which the search draws its random numbers."""
        return f"{self.task.id}/{self.tally.key[2]}"

    @property
    def is_finished(self) -> bool:
        """Solved, or out of budget."""
        return not self.tally.left or bool(self.tally.solved)

    def ask(self, chat: Chat, templates: TemplatesConfig, window: int) -> Task:
        """The task with as many of the newest sections as `window` tokens hold; older ones are
        forgotten."""
        self.sections, messages = fit(
            chat, self.task.messages, self.sections, templates.solve, window
        )
        return replace(self.task, id=self.id, messages=messages)

    def tell(
        self, chat: Chat, attempt: Attempt, templates: TemplatesConfig, *, show_attempts: bool
    ) -> None:
        """Remember what was said about `attempt`."""
        if show_attempts:
            text = chat.as_content(attempt.text)
            self.sections.append(templates.attempt.format(attempt=text))
        if attempt.feedback is not None:
            feedback = chat.inert(attempt.feedback)
            self.sections.append(templates.feedback.format(feedback=feedback))


def multi_turn(
    sampler: Sampler,
    config: RunConfig,
    wanted: Sequence[tuple[Task, Tally]],
    *,
    watch: Callable[[Tally], None] = lambda tally: None,
    together: Together,
) -> Iterator[Tally]:
    """Make one attempt per round in every search `wanted`, each with its own feedback so far, and
    yield each when it is solved or out of budget. A tally that has attempts continues after them.

    `watch` sees every tally after each of its attempts. Raises `PromptTooLongError` when a task
    alone exceeds `discover.window_tokens`.
    """
    rules, templates = config.discover, config.teacher.context.templates
    working = [Conversation(task=task, tally=tally) for task, tally in wanted]
    collector = replace(
        sampler.collector,
        env=JudgedAs(sampler.env, {conversation.id: conversation.task for conversation in working}),
        max_prompt_tokens=rules.window_tokens,
    )
    for conversation in working:
        for attempt in conversation.tally.made:
            conversation.ask(sampler.chat, templates, rules.window_tokens)
            conversation.tell(sampler.chat, attempt, templates, show_attempts=rules.show_attempts)
    while True:
        yield from [c.tally for c in working if c.is_finished]
        working = [c for c in working if not c.is_finished]
        if not working:
            return
        # Searches that continue from different places wait for the one that is furthest behind.
        turn = min(len(c.tally.made) for c in working)
        playing = [c for c in working if len(c.tally.made) == turn]
        start = time.perf_counter()
        groups = together.collect(
            collector,
            [
                conversation.ask(sampler.chat, templates, rules.window_tokens)
                for conversation in playing
            ],
            group_size=1,
            sampling=sampler.sampling(config, temperature=config.rollout.temperature),
            seed=derive(config.seed, "discover", "multi_turn", turn),
        ).groups
        share = (time.perf_counter() - start) / len(playing)
        for conversation, group in zip(playing, groups, strict=True):
            if not group.rollouts:
                continue  # Not judged: the next round makes the same attempt and asks again.
            rollout, verdict = group.rollouts[0], group.verdicts[0]
            tally = conversation.tally
            attempt = tally.add(rollout, verdict, seconds=tally.seconds + share)
            conversation.tell(sampler.chat, attempt, templates, show_attempts=rules.show_attempts)
            watch(tally)


class JudgedAs:
    """An environment that judges every rollout as an attempt at the original task, whose messages
    a judge may read; `originals` are by the id under which a task is shown."""

    def __init__(self, env: Env, originals: Mapping[str, Task]) -> None:
        self._env = env
        self._originals = originals
        if isinstance(env, Computing):
            self.judges_at_once = env.judges_at_once
        if isinstance(env, Replying):
            self.reply = lambda shown, turns: env.reply(originals[shown.id], turns)
        if isinstance(env, Opening):
            self.open = lambda shown, attempt: env.open(originals[shown.id], attempt)

    def load(self, split: str) -> Sequence[Task]:
        """Tasks of the environment."""
        return self._env.load(split)

    def judge(self, task: Task, rollout: Rollout) -> Verdict | Awaitable[Verdict]:
        """The environment's verdict on `rollout`; the task as shown is not used."""
        original = self._originals[task.id]
        return self._env.judge(original, replace(rollout, task_id=original.id))


def fit(
    chat: Chat, task: Sequence[Message], sections: Sequence[str], solve: str, window: int
) -> tuple[list[str], tuple[Message, ...]]:
    """The newest sections that fit into `window` tokens, and the prompt they make.

    The newest one is cut in its middle rather than left out.
    """
    kept = list(sections)
    limit = len(sections[-1]) if sections else 0
    while kept:
        messages = prompt(task, kept, solve)
        if len(chat.prompt_ids(messages)) <= window:
            return kept, messages
        if len(kept) > 1:
            kept.pop(0)
            continue
        limit //= 2
        kept = [cut_middle(sections[-1], limit)] if limit >= SHORTEST_SECTION else []
    return [], tuple(task)


def prompt(task: Sequence[Message], sections: Sequence[str], solve: str) -> tuple[Message, ...]:
    """The task with `sections`, and `solve` after them, at the end of its last user turn."""
    content = "\n\n".join([task[-1]["content"], *sections, solve])
    return (*task[:-1], {**task[-1], "content": content})
