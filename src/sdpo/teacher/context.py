"""Groups to teacher contexts: what the self-teacher reads before it re-scores each attempt (Table
2).

Pure: the random generator and the token counter are arguments. The task's own messages stay whole,
system and earlier turns included; only demonstration, feedback and attempt are ever cut, in the
middle, and the context's `reason` says so. How they are laid out is `layout.py`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, assert_never

from sdpo.chat import Chat
from sdpo.config.teacher import AnyContextConfig, ContextConfig, CustomContextConfig
from sdpo.custom import load_function
from sdpo.envs.text import cut_middle
from sdpo.errors import ConfigError, PromptTooLongError
from sdpo.records import Group, Message, Rollout, TeacherContext
from sdpo.teacher.layout import Episode, Sections, lay_out

CountTokens = Callable[[Sequence[Message]], int]
"""Tokens of a rendered conversation, generation prompt included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What `teacher_contexts` needs besides groups and rules.

    Example:
        Reading(count_tokens=count, strip_thinking=chat.as_content, inert=chat.inert)
    """

    count_tokens: CountTokens
    strip_thinking: Callable[[str], str] = str.strip
    """An attempt's text without hidden reasoning and live special tokens."""
    inert: Callable[[str], str] = str
    """An environment's text without live special tokens; feedback may quote the attempt."""

    @classmethod
    def of(cls, chat: Chat) -> Self:
        """How `chat` counts and shows."""
        return cls(
            count_tokens=lambda messages: len(chat.prompt_ids(messages)),
            strip_thinking=chat.as_content,
            inert=chat.inert,
        )


def teacher_contexts(
    group: Group,
    rules: AnyContextConfig,
    rng: random.Random,
    reading: Reading,
    *,
    others: Sequence[Group] = (),
    reference: str | None = None,
) -> list[TeacherContext]:
    """One context per rollout of `group`, in order.

    Demonstrations are drawn in one random order per group and every rollout takes the first that
    is neither itself nor its own text again, so that a group has few different ones and their
    tokens are computed once. `others` are the step's groups, from which the control `other_task`
    and `experience` draw. `reference` is the task's own solution. A function of the user's own says
    for each rollout what is shown instead. Raises `PromptTooLongError` when the task alone exceeds
    `rules.max_tokens`.
    """
    if isinstance(rules, CustomContextConfig):
        show = context_function(rules)
        return [
            _custom_context(group, index, show(group, index, others, rng), rules, reading)
            for index in range(len(group.rollouts))
        ]
    if rules.control == "plain":
        plain = TeacherContext(messages=group.task.messages, sources=("plain",), reason="plain")
        return [plain] * len(group.rollouts)
    shown = _Group(group, rules, rng, reading, others, reference)
    return [shown.context(index) for index in range(len(group.rollouts))]


class _Group:
    """One group's demonstrations and notes, read once and shown to its rollouts."""

    def __init__(
        self,
        group: Group,
        rules: ContextConfig,
        rng: random.Random,
        reading: Reading,
        others: Sequence[Group],
        reference: str | None,
    ) -> None:
        self._group = group
        self._rules = rules
        self._reading = reading
        self._episodes = [
            Episode.of(rollout, reading.strip_thinking, reading.inert) for rollout in group.rollouts
        ]
        self._order = _candidates(group, rules, rng)
        self._foreign = None
        if rules.control == "other_task":
            foreign = _foreign_demonstrations(group, others)
            if foreign:
                self._foreign = Episode.of(
                    rng.choice(foreign), reading.strip_thinking, reading.inert
                )
        self._reference = None
        if rules.demonstration == "reference" and reference is not None and reference.strip():
            self._reference = Episode.single(reading.inert(reference))
        self._note = _experience(group, others) if rules.experience else None

    def context(self, index: int) -> TeacherContext:
        """What the teacher reads about rollout `index`."""
        rules, verdict = self._rules, self._group.verdicts[index]
        demonstration, source, episode = self._demonstration(index)
        feedback = None
        if not verdict.solved and _shows_feedback(rules, has_demonstration=episode is not None):
            feedback = self._note if rules.experience else verdict.feedback
        if feedback is not None and not feedback.strip():
            feedback = None
        if episode is None and feedback is None:
            solved_alone = verdict.solved and rules.demonstration == "random"
            return TeacherContext(
                messages=None, reason="solved_alone" if solved_alone else "nothing_to_say"
            )
        sections = Sections(
            demonstration=episode,
            feedback=None if feedback is None else self._reading.inert(feedback),
            attempt=self._episodes[index] if rules.attempt and feedback is not None else None,
        )
        messages, cut = _fit(self._group, sections, rules, self._reading.count_tokens)
        told = "experience" if rules.experience else "feedback"
        return TeacherContext(
            messages=messages,
            demonstration=demonstration,
            feedback_used=feedback is not None,
            sources=tuple(
                name
                for name, is_shown in (
                    (source, episode is not None),
                    (told, feedback is not None),
                    ("attempt", sections.attempt is not None),
                )
                if is_shown
            ),
            reason=f"cut {cut} characters" if cut else None,
        )

    def _demonstration(self, index: int) -> tuple[int | None, str, Episode | None]:
        """Index in the group where it has one, what it is, and the demonstration itself."""
        if self._rules.control == "other_task":
            return None, "other_task", self._foreign
        if self._rules.demonstration == "reference":
            return None, "reference", self._reference
        own = self._episodes[index]
        for candidate in self._order:
            episode = self._episodes[candidate]
            # A sibling with the same text would let the teacher read the attempt word for word.
            if candidate != index and not episode.is_blank and episode != own:
                return candidate, "sibling", episode
        if self._rules.own_demonstration and index in self._order and not own.is_blank:
            return index, "own", own
        return None, "sibling", None


SHOWN = ("demonstration", "feedback", "attempt")
"""What a function of the user's own may show."""


def context_function(rules: CustomContextConfig) -> Callable[..., object]:
    """The function that `rules` name. Raises `ConfigError`."""
    arguments = ("group", "index", "others", "rng")
    return load_function("teacher.context", rules.path, rules.options, *arguments)


def _custom_context(
    group: Group, index: int, shown: object, rules: CustomContextConfig, reading: Reading
) -> TeacherContext:
    """The context that shows what a function returned for rollout `index`."""
    shown = {} if shown is None else shown
    is_known = isinstance(shown, Mapping) and all(
        name in SHOWN and isinstance(value, str | Rollout | None) for name, value in shown.items()
    )
    if not is_known or isinstance(shown.get("feedback"), Rollout):
        raise ConfigError(
            f"teacher.context.path = {rules.path!r} gave {shown!r:.200} for attempt {index} "
            f"of task {group.task.id!r}; return None, or a dict of {', '.join(SHOWN)}, each a "
            "string or (not feedback) a Rollout"
        )

    def episode(name: str) -> Episode | None:
        value = shown.get(name)
        if isinstance(value, str):
            found = Episode.single(reading.strip_thinking(value))
        elif value is None:
            return None
        else:
            found = Episode.of(value, reading.strip_thinking, reading.inert)
        return None if found.is_blank else found

    feedback = (shown.get("feedback") or "").strip() and reading.inert(shown["feedback"])
    sections = Sections(
        demonstration=episode("demonstration"),
        feedback=feedback or None,
        attempt=episode("attempt"),
    )
    if not sections.num_chars:
        return TeacherContext(messages=None, reason="nothing_to_say")
    messages, cut = _fit(group, sections, rules, reading.count_tokens)
    example = shown.get("demonstration")
    place = group.rollouts.index(example) if example in group.rollouts else None
    is_own_feedback = feedback == reading.inert(group.verdicts[index].feedback or "")
    sources = {
        "custom" if place is None else "own" if place == index else "sibling": (
            sections.demonstration is not None
        ),
        "feedback" if is_own_feedback else "custom feedback": bool(feedback),
        "attempt": sections.attempt is not None,
    }
    return TeacherContext(
        messages=messages,
        demonstration=place,
        feedback_used=bool(feedback),
        sources=tuple(name for name, is_shown in sources.items() if is_shown),
        reason=f"cut {cut} characters" if cut else None,
    )


def _shows_feedback(rules: ContextConfig, *, has_demonstration: bool) -> bool:
    match rules.feedback:
        case "always":
            return True
        case "without_demonstration":
            return not has_demonstration
        case "never":
            return False
        case _:
            assert_never(rules.feedback)


def _candidates(group: Group, rules: ContextConfig, rng: random.Random) -> list[int]:
    """Indices of the rollouts that may be demonstrations, in the order to try them."""
    match rules.demonstration:
        case "random":
            order = [index for index, verdict in enumerate(group.verdicts) if verdict.solved]
        case "majority":
            order = _majority(group, rng)
        case "reference" | "none":
            order = []
        case _:
            assert_never(rules.demonstration)
    rng.shuffle(order)
    return order


def _majority(group: Group, rng: random.Random) -> list[int]:
    """Rollouts with the answer most of them give, whether or not it is right; a tie is broken by
    `rng`. The environment names an attempt's answer in `verdict.info["answer"]`."""
    answers = [verdict.info.get("answer") for verdict in group.verdicts]
    counts = Counter(answer for answer in answers if answer is not None)
    if not counts:
        return []
    most = max(counts.values())
    chosen = rng.choice(sorted((a for a, n in counts.items() if n == most), key=str))
    return [index for index, answer in enumerate(answers) if answer == chosen]


def _foreign_demonstrations(group: Group, others: Sequence[Group]) -> list[Rollout]:
    return [
        rollout
        for other in others
        if other.task.id != group.task.id
        for rollout, verdict in zip(other.rollouts, other.verdicts, strict=True)
        if verdict.solved and rollout.text.strip()
    ]


def _experience(group: Group, others: Sequence[Group]) -> str | None:
    """Distinct lines of feedback to the step's failed attempts at tasks of this family, newest
    first; None without any. A task without a family is one of its own."""
    family = group.task.metadata.get("family")
    related = [group]
    if family is not None:
        # The step's groups include this one.
        related = [other for other in others if other.task.metadata.get("family") == family] or [
            group
        ]
    lines = [
        line.strip()
        for other in related
        for verdict in other.verdicts
        if not verdict.solved and verdict.feedback
        for line in verdict.feedback.splitlines()
        if line.strip()
    ]
    return "\n".join(dict.fromkeys(reversed(lines))) or None


def _fit(
    group: Group, sections: Sections, rules: AnyContextConfig, count_tokens: CountTokens
) -> tuple[tuple[Message, ...], int]:
    """Messages within the budget and by how many characters their parts were shortened: attempt
    first, then feedback, then demonstration."""
    total = sections.num_chars

    def messages(limit: int) -> tuple[Message, ...]:
        return lay_out(group.task.messages, sections.cut(limit, cut_middle), rules)

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


def frames(messages: Sequence[Message], rules: AnyContextConfig) -> list[tuple[Message, ...]]:
    """The frames `rules` can put around a task, with nothing in their sections: each must fit into
    `rules.max_tokens` whatever is said about an attempt. A function may show everything."""
    empty = Episode.single("")
    if isinstance(rules, CustomContextConfig):
        return [lay_out(messages, Sections(demonstration=empty, feedback="", attempt=empty), rules)]
    if rules.control == "plain":
        return [tuple(messages)]
    kinds = []
    if rules.demonstration != "none":
        kinds.append((empty, rules.feedback == "always"))
    if rules.feedback != "never":
        kinds.append((None, True))
    return [
        lay_out(
            messages,
            Sections(
                demonstration=demonstration,
                feedback="" if has_feedback else None,
                attempt=empty if rules.attempt and has_feedback else None,
            ),
            rules,
        )
        for demonstration, has_feedback in kinds
    ]
