"""Where demonstration, feedback and attempt stand in a teacher's conversation, and their wording.

Feedback never stands before the question it is about unless an answer of the assistant stands
between: a small teacher that reads remarks first and the bare question last answers as if nothing
had been said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, assert_never

from sdpo.config.teacher import AnyContextConfig, CustomContextConfig, TemplatesConfig
from sdpo.envs.episodes import turns_of
from sdpo.records import Message, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownAttempt:
    """An attempt as it is shown: its answers and, between them, what the environment replied.

    Example:
        ShownAttempt(turns=(
            ("SELECT name FROM t", ({"role": "user", "content": "no such column"},)),
            ("SELECT full_nm FROM t", ()),
        ))
    """

    turns: tuple[tuple[str, tuple[Message, ...]], ...]
    """Text of each answer and the messages that replied to it."""

    @classmethod
    def of(
        cls, rollout: Rollout, strip_thinking: Callable[[str], str], inert: Callable[[str], str]
    ) -> Self:
        """`rollout` with every turn, safe to show in another prompt."""
        return cls(
            turns=tuple(
                (
                    strip_thinking(turn.text),
                    tuple({**each, "content": inert(each["content"])} for each in turn.reply),
                )
                for turn in turns_of(rollout)
            )
        )

    @classmethod
    def single(cls, text: str) -> Self:
        """An episode of one answer."""
        return cls(turns=((text, ()),))

    @property
    def is_blank(self) -> bool:
        """Whether nothing is left to show, for instance of reasoning that never ended."""
        return not any(text.strip() for text, _ in self.turns)

    @property
    def num_chars(self) -> int:
        return sum(
            len(text) + sum(len(message["content"]) for message in reply)
            for text, reply in self.turns
        )

    def cut(self, limit: int, cut_middle: Callable[[str, int], str]) -> ShownAttempt:
        """The episode within `limit` characters; its last answers are kept longest."""
        turns = []
        for text, reply in reversed(self.turns):
            kept_text = cut_middle(text, limit)
            limit -= len(kept_text)
            kept_reply: list[Message] = []
            for message in reversed(reply):
                kept = {**message, "content": cut_middle(message["content"], limit)}
                limit -= len(kept["content"])
                kept_reply.insert(0, kept)
            turns.append((kept_text, tuple(kept_reply)))
        return ShownAttempt(turns=tuple(reversed(turns)))

    def as_text(self) -> str:
        """The episode in one piece, for a section of a user turn."""
        if len(self.turns) == 1:
            return self.turns[0][0]
        parts = []
        for number, (text, reply) in enumerate(self.turns, start=1):
            parts.append(f"Answer {number}:\n{text}")
            for message in reply:
                parts.append(f"The environment replied:\n{message['content']}")
        return "\n\n".join(parts)

    def as_messages(self) -> list[Message]:
        """The episode as turns of a conversation; it ends with the assistant's."""
        messages: list[Message] = []
        for text, reply in self.turns:
            messages += [{"role": "assistant", "content": text}, *reply]
        while messages and messages[-1]["role"] != "assistant":
            messages.pop()
        return messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Sections:
    """What a context shows besides the task, safe to show.

    Example:
        Sections(demonstration=None, feedback="no such column: name", attempt=None)
    """

    demonstration: ShownAttempt | None
    feedback: str | None
    attempt: ShownAttempt | None
    before_turns: tuple[str | None, ...] = ()
    """Feedback about each of the attempt's turns; all but the first stand outside the prompt."""

    @property
    def num_chars(self) -> int:
        attempts = (self.demonstration, self.attempt)
        said = (self.feedback, *self.before_turns)
        return sum(len(each or "") for each in said) + sum(a.num_chars for a in attempts if a)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is shown in the prompt itself."""
        shown = (self.demonstration, self.feedback, self.attempt, *self.before_turns[:1])
        return all(each is None for each in shown)

    def between(self, templates: TemplatesConfig) -> tuple[str | None, ...]:
        """What stands before each turn, in words; the first turn's is in the prompt."""
        if not any(said is not None for said in self.before_turns[1:]):
            return ()
        return (
            None,
            *(
                None if said is None else templates.turn_feedback.format(feedback=said)
                for said in self.before_turns[1:]
            ),
        )

    def cut(self, limit: int, cut_middle: Callable[[str, int], str]) -> Sections:
        """The sections within `limit` characters; the demonstration is kept longest, then
        feedback, of the attempt before that of its last turns."""
        demonstration, feedback, attempt = self.demonstration, self.feedback, self.attempt
        if demonstration is not None:
            demonstration = demonstration.cut(limit, cut_middle)
            limit = max(0, limit - demonstration.num_chars)
        if feedback is not None:
            feedback = cut_middle(feedback, limit)
            limit = max(0, limit - len(feedback))
        before: list[str | None] = []
        for said in self.before_turns:
            kept = None if said is None else cut_middle(said, limit) or None
            limit = max(0, limit - len(kept or ""))
            before.append(kept)
        if attempt is not None:
            attempt = attempt.cut(limit, cut_middle)
        return Sections(
            demonstration=demonstration,
            feedback=feedback,
            attempt=attempt,
            before_turns=tuple(before),
        )


def lay_out(
    task: Sequence[Message], sections: Sections, rules: AnyContextConfig
) -> tuple[Message, ...]:
    """The teacher's conversation, which ends with a user turn."""
    if sections.is_empty:
        return tuple(task)
    match rules.layout:
        case "single_turn":
            return _single_turn(task, sections, rules.templates)
        case "turns":
            return _turns(task, sections, rules.templates)
        case _:
            assert_never(rules.layout)


def _single_turn(
    task: Sequence[Message], sections: Sections, templates: TemplatesConfig
) -> tuple[Message, ...]:
    """The paper's layout: every section inside the task's last user turn, in the order of Table
    2."""
    parts = [task[-1]["content"]]
    if sections.demonstration is not None:
        shown = sections.demonstration.as_text()
        parts.append(templates.demonstration.format(demonstration=shown))
    if sections.attempt is not None:
        parts.append(templates.attempt.format(attempt=sections.attempt.as_text()))
    if sections.feedback is not None:
        parts.append(templates.feedback.format(feedback=sections.feedback))
    parts += _before_first(sections, templates)
    parts.append(templates.solve)
    return (*task[:-1], {**task[-1], "content": "\n\n".join(parts)})


def _turns(
    task: Sequence[Message], sections: Sections, templates: TemplatesConfig
) -> tuple[Message, ...]:
    """Demonstration (and attempt) as earlier answers of the assistant, then the task again."""
    if sections.demonstration is None and sections.attempt is None:
        return _single_turn(task, sections, templates)
    again = templates.again.format(task=task[-1]["content"])
    messages = list(task)
    said = templates.correct
    if sections.demonstration is not None:
        messages += sections.demonstration.as_messages()
    if sections.attempt is not None:
        if sections.demonstration is not None:
            messages.append({"role": "user", "content": f"{said}\n\n{again}"})
        messages += sections.attempt.as_messages()
        said = templates.wrong
    parts = [said]
    if sections.feedback is not None:
        parts.append(templates.feedback.format(feedback=sections.feedback))
    parts += _before_first(sections, templates)
    return (*messages, {"role": "user", "content": "\n\n".join([*parts, again])})


def _before_first(sections: Sections, templates: TemplatesConfig) -> list[str]:
    """What stands before the attempt's first turn."""
    said = next(iter(sections.before_turns), None)
    return [] if said is None else [templates.turn_feedback.format(feedback=said)]


def frames(messages: Sequence[Message], rules: AnyContextConfig) -> list[tuple[Message, ...]]:
    """The frames `rules` can put around a task, with nothing in their sections: each must fit into
    `rules.max_tokens` whatever is said about an attempt. A function may show everything."""
    empty = ShownAttempt.single("")
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


def tokens_between(
    between: Sequence[str | None], count_tokens: Callable[[Sequence[Message]], int]
) -> int:
    """Tokens of what stands between turns, which is read inside replies."""

    def alone(text: str) -> int:
        return count_tokens([{"role": "user", "content": text}])

    said = [text for text in between if text is not None]
    return sum(alone(f"\n\n{text}") for text in said) - (alone("") * len(said) if said else 0)
