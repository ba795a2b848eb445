"""Groups to teacher contexts: what the self-teacher reads before it re-scores each attempt (Table
2).

Pure: the random generator and the token counter are arguments. The task's own messages stay whole,
system and earlier turns included; only demonstration and feedback are ever cut, in the middle, and
the context's `reason` says so.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sdpo.config.schema import ContextConfig
from sdpo.errors import PromptTooLongError
from sdpo.records import Group, Message, TeacherContext
from sdpo.teacher import templates

CountTokens = Callable[[Sequence[Message]], int]
"""Tokens of a rendered conversation, generation prompt included."""

StripThinking = Callable[[str], str]
"""An attempt's text without hidden reasoning and live special tokens."""

Inert = Callable[[str], str]
"""An environment's text without live special tokens; feedback may quote the attempt."""


class _Said(NamedTuple):
    """What a context may show besides the task, safe to show."""

    demonstration: str | None
    feedback: str | None
    attempt: str | None


def teacher_contexts(
    group: Group,
    rules: ContextConfig,
    rng: random.Random,
    count_tokens: CountTokens,
    *,
    strip_thinking: StripThinking = str.strip,
    inert: Inert = str,
    others: Sequence[Group] = (),
) -> list[TeacherContext]:
    """One context per rollout of `group`, in order.

    Solved siblings are drawn in one random order per group and every rollout takes the first that
    is not itself, so that a group has at most two different demonstrations and their tokens are
    computed once. `others` are the step's groups that the control `other_task` draws from. Raises
    `PromptTooLongError` when the task alone exceeds `rules.max_tokens`.
    """
    order = [index for index, verdict in enumerate(group.verdicts) if verdict.solved]
    rng.shuffle(order)
    foreign = (
        _foreign_demonstration(group, others, rng) if rules.demonstration == "other_task" else None
    )
    contexts = []
    for index in range(len(group.rollouts)):
        demonstration = _choose_demonstration(index, order, rules)
        text = foreign
        if demonstration is not None:
            text = group.rollouts[demonstration].text
        if text is not None:
            text = strip_thinking(text)
        feedback = group.verdicts[index].feedback
        said = _Said(
            demonstration=text,
            feedback=None if feedback is None else inert(feedback),
            attempt=strip_thinking(group.rollouts[index].text) if rules.attempt else None,
        )
        contexts.append(_context(group, index, demonstration, said, rules, count_tokens))
    return contexts


def _choose_demonstration(index: int, order: Sequence[int], rules: ContextConfig) -> int | None:
    if rules.demonstration != "random":
        return None
    for candidate in order:
        if candidate != index:
            return candidate
    return index if rules.own_demonstration and index in order else None


def _foreign_demonstration(group: Group, others: Sequence[Group], rng: random.Random) -> str | None:
    solved = [
        rollout.text
        for other in others
        if other.task.id != group.task.id
        for rollout, verdict in zip(other.rollouts, other.verdicts, strict=True)
        if verdict.solved
    ]
    return rng.choice(solved) if solved else None


def _context(
    group: Group,
    index: int,
    demonstration: int | None,
    said: _Said,
    rules: ContextConfig,
    count_tokens: CountTokens,
) -> TeacherContext:
    verdict = group.verdicts[index]
    if rules.plain:
        return TeacherContext(messages=group.task.messages, reason="plain")
    feedback = None if verdict.solved else said.feedback
    if rules.feedback == "never" or (
        rules.feedback == "without_demonstration" and said.demonstration is not None
    ):
        feedback = None
    if said.demonstration is None and feedback is None:
        solved_alone = verdict.solved and rules.demonstration == "random"
        return TeacherContext(
            messages=None, reason="solved_alone" if solved_alone else "nothing_to_say"
        )
    said = said._replace(feedback=feedback, attempt=None if feedback is None else said.attempt)
    messages, cut = _fit(group, said, rules, count_tokens)
    return TeacherContext(
        messages=messages,
        demonstration=demonstration,
        feedback_used=feedback is not None,
        reason=f"cut {cut} characters" if cut else None,
    )


def _fit(
    group: Group, said: _Said, rules: ContextConfig, count_tokens: CountTokens
) -> tuple[tuple[Message, ...], int]:
    """Messages within the budget and the number of characters cut: feedback and attempt go first,
    then demonstration."""
    build = _single_turn if rules.layout == "single_turn" else _turns
    parts = [part or "" for part in said]
    total = sum(map(len, parts))

    def messages(keep: int) -> tuple[Message, ...]:
        kept = []
        for part in parts:
            kept.append(cut_middle(part, keep))
            keep = max(0, keep - len(part))
        return build(
            group.task.messages,
            *(None if part is None else text for part, text in zip(said, kept, strict=True)),
        )

    whole = messages(total)
    if count_tokens(whole) <= rules.max_tokens:
        return whole, 0
    frame = count_tokens(messages(0))
    if frame > rules.max_tokens:
        raise PromptTooLongError(
            f"task {group.task.id!r}: the teacher's frame alone has {frame} tokens, above "
            f"teacher.context.max_tokens = {rules.max_tokens}; raise it"
        )
    low, high = 0, total
    while low + 1 < high:
        middle = (low + high) // 2
        if count_tokens(messages(middle)) <= rules.max_tokens:
            low = middle
        else:
            high = middle
    return messages(low), total - low


def cut_middle(text: str, keep: int) -> str:
    """`text` with its middle replaced by a note so that `keep` of its characters remain."""
    if len(text) <= keep:
        return text
    head = (keep + 1) // 2
    note = templates.CUT.format(count=len(text) - keep)
    return text[:head] + note + text[len(text) - (keep - head) :]


def _single_turn(
    task: Sequence[Message], demonstration: str | None, feedback: str | None, attempt: str | None
) -> tuple[Message, ...]:
    """The paper's layout: every section inside the task's last user turn, in the order of Table
    2."""
    sections = [task[-1]["content"]]
    if demonstration is not None:
        sections.append(templates.DEMONSTRATION.format(demonstration=demonstration))
    if attempt is not None:
        sections.append(templates.ATTEMPT.format(attempt=attempt))
    if feedback is not None:
        sections.append(templates.FEEDBACK.format(feedback=feedback))
    sections.append(templates.SOLVE)
    return (*task[:-1], {**task[-1], "content": "\n\n".join(sections)})


def _turns(
    task: Sequence[Message], demonstration: str | None, feedback: str | None, attempt: str | None
) -> tuple[Message, ...]:
    """Demonstration (and attempt) as earlier answers of the assistant; then the task again."""
    question = task[-1]["content"]
    messages = list(task)
    last: list[str] = []
    if demonstration is not None:
        messages.append({"role": "assistant", "content": demonstration})
        last.append(templates.CORRECT)
    if attempt is not None:
        if last:
            messages.append(
                {
                    "role": "user",
                    "content": "\n\n".join([*last, templates.AGAIN.format(task=question)]),
                }
            )
            last = []
        messages.append({"role": "assistant", "content": attempt})
        last.append(templates.WRONG)
    if feedback is not None:
        last.append(templates.FEEDBACK.format(feedback=feedback))
    last.append(templates.AGAIN.format(task=question))
    content = "\n\n".join(last)
    if messages[-1]["role"] == "assistant":
        return (*messages, {"role": "user", "content": content})
    # Feedback alone has no assistant turn to answer, and two user turns in a row are not a
    # conversation.
    return (*messages[:-1], {**task[-1], "content": content})
