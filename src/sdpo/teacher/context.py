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
from dataclasses import dataclass, replace
from typing import Any, Self, assert_never

from sdpo.chat import Chat
from sdpo.config.teacher import AnyContextConfig, ContextConfig, CustomContextConfig
from sdpo.custom import load_function
from sdpo.envs.text import cut_middle
from sdpo.errors import ConfigError, PromptTooLongError
from sdpo.records import Group, Message, Rollout, TeacherContext
from sdpo.teacher.layout import Sections, ShownAttempt, lay_out, tokens_between

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


def for_own_answers(rules: AnyContextConfig) -> AnyContextConfig:
    """`rules` where the teacher answers itself instead of re-reading an attempt: there are no turns
    yet, so what was said about single ones stands in front."""
    if isinstance(rules, CustomContextConfig) or rules.turn_feedback == "never":
        return rules
    return rules.model_copy(update={"turn_feedback": "at_start"})


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
            ShownAttempt.of(rollout, reading.strip_thinking, reading.inert)
            for rollout in group.rollouts
        ]
        self._order = _candidates(group, rules, rng)
        self._foreign = None
        if rules.control == "other_task":
            foreign = _foreign_demonstrations(group, others)
            if foreign:
                self._foreign = ShownAttempt.of(
                    rng.choice(foreign), reading.strip_thinking, reading.inert
                )
        self._reference = None
        if rules.demonstration == "reference" and reference is not None and reference.strip():
            self._reference = ShownAttempt.single(reading.inert(reference))
        self._note = _experience(group, others) if rules.experience else None

    def context(self, index: int) -> TeacherContext:
        """What the teacher reads about rollout `index`."""
        rules, verdict = self._rules, self._group.verdicts[index]
        demonstration, source, episode = self._demonstration(index)
        feedback, before_turns = None, ()
        if not verdict.solved and _shows_feedback(rules, has_demonstration=episode is not None):
            feedback, before_turns = self._feedback(index)
        if episode is None and feedback is None and not before_turns:
            solved_alone = verdict.solved and rules.demonstration == "random"
            return TeacherContext(
                messages=None, reason="solved_alone" if solved_alone else "nothing_to_say"
            )
        sections = Sections(
            demonstration=episode,
            feedback=feedback,
            attempt=self._episodes[index] if rules.attempt and feedback is not None else None,
            before_turns=before_turns,
        )
        messages, between, cut = _fit(self._group, sections, rules, self._reading.count_tokens)
        told = "experience" if rules.experience else "feedback"
        return TeacherContext(
            messages=messages,
            demonstration=demonstration,
            feedback_used=feedback is not None or bool(before_turns),
            sources=tuple(
                name
                for name, is_shown in (
                    (source, episode is not None),
                    (told, feedback is not None),
                    ("turn_feedback", bool(before_turns)),
                    ("attempt", sections.attempt is not None),
                )
                if is_shown
            ),
            before_turns=between,
            reason=f"cut {cut} characters" if cut else None,
        )

    def _feedback(self, index: int) -> tuple[str | None, tuple[str | None, ...]]:
        """What is said about the attempt, and about each of its turns; no blanks."""
        inert = self._reading.inert
        whole = self._note if self._rules.experience else self._group.verdicts[index].feedback
        whole = inert(whole) if whole and whole.strip() else None
        turns = [
            inert(turn.feedback) if turn.feedback and turn.feedback.strip() else None
            for turn in self._group.rollouts[index].turns
        ]
        if self._rules.experience or not any(turns):
            return whole, ()
        match self._rules.turn_feedback:
            case "before_turn":
                return whole, tuple(turns)
            case "at_start":
                said = [f"Answer {n}: {said}" for n, said in enumerate(turns, start=1) if said]
                return "\n\n".join([*said, *([whole] if whole else [])]), ()
            case "never":
                return whole, ()
            case _:
                assert_never(self._rules.turn_feedback)

    def _demonstration(self, index: int) -> tuple[int | None, str, ShownAttempt | None]:
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
    shown = _checked_shown(group, index, shown, rules)

    def episode(name: str) -> ShownAttempt | None:
        value = shown.get(name)
        if isinstance(value, str):
            found = ShownAttempt.single(reading.strip_thinking(value))
        elif value is None:
            return None
        else:
            found = ShownAttempt.of(value, reading.strip_thinking, reading.inert)
        return None if found.is_blank else found

    feedback = (shown.get("feedback") or "").strip() and reading.inert(shown["feedback"])
    sections = Sections(
        demonstration=episode("demonstration"),
        feedback=feedback or None,
        attempt=episode("attempt"),
        before_turns=tuple(
            reading.inert(said) if said and said.strip() else None
            for said in shown.get("turn_feedback") or ()
        ),
    )
    if not sections.num_chars:
        return TeacherContext(messages=None, reason="nothing_to_say")
    messages, between, cut = _fit(group, sections, rules, reading.count_tokens)
    example = shown.get("demonstration")
    place = group.rollouts.index(example) if example in group.rollouts else None
    is_own_feedback = feedback == reading.inert(group.verdicts[index].feedback or "")
    sources = {
        "custom" if place is None else "own" if place == index else "sibling": (
            sections.demonstration is not None
        ),
        "feedback" if is_own_feedback else "custom feedback": bool(feedback),
        "turn_feedback": any(sections.before_turns),
        "attempt": sections.attempt is not None,
    }
    return TeacherContext(
        messages=messages,
        demonstration=place,
        feedback_used=bool(feedback) or any(sections.before_turns),
        before_turns=between,
        sources=tuple(name for name, is_shown in sources.items() if is_shown),
        reason=f"cut {cut} characters" if cut else None,
    )


def _checked_shown(
    group: Group, index: int, shown: object, rules: CustomContextConfig
) -> Mapping[str, Any]:
    shown = {} if shown is None else shown
    turns = group.rollouts[index].turns
    is_known = isinstance(shown, Mapping) and all(
        _is_about_turns(value, len(turns))
        if name == "turn_feedback"
        else name in SHOWN and isinstance(value, str | Rollout | None)
        for name, value in shown.items()
    )
    if not is_known or isinstance(shown.get("feedback"), Rollout):
        raise ConfigError(
            f"teacher.context.path = {rules.path!r} gave {shown!r:.200} for attempt {index} "
            f"of task {group.task.id!r}; return None, or a dict of {', '.join(SHOWN)}, each a "
            "string or (not feedback) a Rollout, and turn_feedback, a string or None for each of "
            f"the attempt's {len(turns)} turns"
        )
    return shown


def _is_about_turns(value: object, count: int) -> bool:
    """Whether `value` says something, or None, of each of `count` turns."""
    if value is None:
        return True
    is_long_enough = isinstance(value, list | tuple) and len(value) == count
    return is_long_enough and all(isinstance(each, str | None) for each in value)


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
) -> tuple[tuple[Message, ...], tuple[str | None, ...], int]:
    """Messages and what stands between turns, together within the budget, and by how many
    characters their parts were shortened: attempt first, then feedback, then demonstration."""
    total = sections.num_chars

    def laid(limit: int) -> tuple[tuple[Message, ...], tuple[str | None, ...]]:
        kept = sections.cut(limit, cut_middle)
        return lay_out(group.task.messages, kept, rules), kept.between(rules.templates)

    def count(limit: int) -> int:
        messages, between = laid(limit)
        return count_tokens(messages) + tokens_between(between, count_tokens)

    if count(total) <= rules.max_tokens:
        return *laid(total), 0
    frame = count(0)
    if frame > rules.max_tokens:
        if sections.before_turns:
            # Every turn brings its own frame, and how many there are no setting knows.
            without = replace(sections, before_turns=())
            messages, between, cut = _fit(group, without, rules, count_tokens)
            return messages, between, cut + total - without.num_chars
        raise PromptTooLongError(
            f"task {group.task.id!r}: the teacher's frame alone has {frame} tokens, above "
            f"teacher.context.max_tokens = {rules.max_tokens}; raise it"
        )
    low, high = 0, total
    while low + 1 < high:
        middle = (low + high) // 2
        if count(middle) <= rules.max_tokens:
            low = middle
        else:
            high = middle
    return *laid(low), total - low
