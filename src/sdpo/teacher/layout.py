"""Where demonstration, feedback and attempt stand in a teacher's conversation, and their wording.

Feedback never stands before the question it is about unless an answer of the assistant stands
between: a small teacher that reads remarks first and the bare question last answers as if nothing
had been said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self, assert_never

from sdpo.config.teacher import AnyContextConfig, TemplatesConfig
from sdpo.records import Message, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """An attempt as it is shown: its answers and, between them, what the environment replied.

    Example:
        Episode(turns=(("SELECT name FROM t", {"role": "user", "content": "no such column"}),
        ("SELECT full_nm FROM t", None)))
    """

    turns: tuple[tuple[str, Message | None], ...]

    @classmethod
    def of(
        cls, rollout: Rollout, strip_thinking: Callable[[str], str], inert: Callable[[str], str]
    ) -> Self:
        """`rollout` with every turn, safe to show in another prompt."""
        if not rollout.turns:
            return cls.single(strip_thinking(rollout.text))
        return cls(
            turns=tuple(
                (
                    strip_thinking(turn.text),
                    turn.reply
                    and {
                        "role": turn.reply["role"],
                        "content": inert(str(turn.reply["content"])),
                    },
                )
                for turn in rollout.turns
            )
        )

    @classmethod
    def single(cls, text: str) -> Self:
        """An episode of one answer."""
        return cls(turns=((text, None),))

    @property
    def is_blank(self) -> bool:
        """Whether nothing is left to show, for instance of reasoning that never ended."""
        return not any(text.strip() for text, _ in self.turns)

    @property
    def num_chars(self) -> int:
        return sum(
            len(text) + (0 if reply is None else len(reply["content"]))
            for text, reply in self.turns
        )

    def cut(self, limit: int, cut_middle: Callable[[str, int], str]) -> Episode:
        """The episode within `limit` characters; its last answers are kept longest."""
        turns = []
        for text, reply in reversed(self.turns):
            kept_text = cut_middle(text, limit)
            limit -= len(kept_text)
            kept_reply = reply
            if reply is not None:
                kept_reply = {**reply, "content": cut_middle(reply["content"], limit)}
                limit -= len(kept_reply["content"])
            turns.append((kept_text, kept_reply))
        return Episode(turns=tuple(reversed(turns)))

    def as_text(self) -> str:
        """The episode in one piece, for a section of a user turn."""
        if len(self.turns) == 1:
            return self.turns[0][0]
        parts = []
        for number, (text, reply) in enumerate(self.turns, start=1):
            parts.append(f"Answer {number}:\n{text}")
            if reply is not None:
                parts.append(f"The environment replied:\n{reply['content']}")
        return "\n\n".join(parts)

    def as_messages(self) -> list[Message]:
        """The episode as turns of a conversation; it ends with the assistant's."""
        messages: list[Message] = []
        for text, reply in self.turns:
            messages.append({"role": "assistant", "content": text})
            if reply is not None:
                messages.append(reply)
        while messages and messages[-1]["role"] != "assistant":
            messages.pop()
        return messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Sections:
    """What a context shows besides the task, safe to show.

    Example:
        Sections(demonstration=None, feedback="no such column: name", attempt=None)
    """

    demonstration: Episode | None
    feedback: str | None
    attempt: Episode | None

    @property
    def num_chars(self) -> int:
        episodes = (self.demonstration, self.attempt)
        return len(self.feedback or "") + sum(each.num_chars for each in episodes if each)

    def cut(self, limit: int, cut_middle: Callable[[str, int], str]) -> Sections:
        """The sections within `limit` characters; the demonstration is kept longest, then
        feedback."""
        demonstration, feedback, attempt = self.demonstration, self.feedback, self.attempt
        if demonstration is not None:
            demonstration = demonstration.cut(limit, cut_middle)
            limit = max(0, limit - demonstration.num_chars)
        if feedback is not None:
            feedback = cut_middle(feedback, limit)
            limit = max(0, limit - len(feedback))
        if attempt is not None:
            attempt = attempt.cut(limit, cut_middle)
        return replace(self, demonstration=demonstration, feedback=feedback, attempt=attempt)


def lay_out(
    task: Sequence[Message], sections: Sections, rules: AnyContextConfig
) -> tuple[Message, ...]:
    """The teacher's conversation, which ends with a user turn."""
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
    return (*messages, {"role": "user", "content": "\n\n".join([*parts, again])})
