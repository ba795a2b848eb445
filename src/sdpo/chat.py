"""Messages to token ids and back: one place that knows chat templates.

A `Chat` renders conversations up to where the assistant's turn begins and knows which tokens end
that turn. Student prompts and teacher contexts go through the same function, so their completions
start at the same boundary. Nothing is ever cut here: a conversation that is too long raises.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from sdpo.errors import ModelError, PromptTooLongError, first_line
from sdpo.printable import mend
from sdpo.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THINKING_MARKERS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
)
"""Opening and closing texts of hidden reasoning in templates of the supported families."""

_MARK = "\u241eanswer\u241e"
"""Stands for an assistant's message when the template is asked what it puts around one."""

_ANSWERED: tuple[Message, ...] = (
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": _MARK},
)
_PROBES: tuple[tuple[Message, ...], ...] = (
    _ANSWERED[:1],
    ({"role": "system", "content": "s"}, *_ANSWERED[:1]),
    (*_ANSWERED, {"role": "user", "content": "again"}),
)
"""Every kind of conversation that prompts and teacher contexts are made of."""


class Chat:
    """A tokenizer's chat template with its generation boundary."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template_kwargs: Mapping[str, Any] | None = None,
        model_stop_ids: Sequence[int] = (),
        tools: Sequence[Any] = (),
    ) -> None:
        """`model_stop_ids` are the generation config's end tokens, joined with the tokenizer's and
        the template's own. `tools` are shown in every prompt: JSON schemas or documented
        functions."""
        if not tokenizer.chat_template:
            raise ModelError(
                f"tokenizer {tokenizer.name_or_path!r} has no chat template; "
                "take an instruct model or set tokenizer.chat_template and save it to a folder"
            )
        self.tokenizer = tokenizer
        self._kwargs = dict(template_kwargs or {})
        self._special = special_tokens(tokenizer)
        self._shown_roles = {"user"}
        """Roles of messages that the template is known to show."""
        if tools:
            self._take_tools(list(tools))
        self.stop_ids = self._find_stop_ids(model_stop_ids)
        self.end_of_turn_id = self.stop_ids[0]
        self._check_boundary()

    def render(self, messages: Sequence[Message], *, what: str = "prompt") -> str:
        """The conversation as text, ending where the assistant's next turn begins. Raises
        `ModelError` for one that the template refuses; `what` names it there."""
        return self._rendered(messages, what=what, add_generation_prompt=True)

    def probe(self, before: str = "") -> str:
        """What the template makes of one short conversation of each kind, to compare with another
        day or machine. `before` is put in front of the template's text."""
        template = before + self.tokenizer.get_chat_template()
        texts = []
        for messages in _PROBES:
            try:
                texts.append(
                    self._rendered(messages, chat_template=template, add_generation_prompt=True)
                )
            except ModelError:
                texts.append("refused")
        return "\n\n".join(texts)

    def prompt_ids(
        self, messages: Sequence[Message], *, max_tokens: int | None = None, what: str = "prompt"
    ) -> tuple[int, ...]:
        """Token ids of `render(messages)`. Raises `PromptTooLongError` above `max_tokens`; `what`
        names it there, and in what `render` raises."""
        ids = self.text_ids(self.render(messages, what=what))
        if max_tokens is not None and len(ids) > max_tokens:
            raise PromptTooLongError(
                f"{what} has {len(ids)} tokens, the limit is {max_tokens}; "
                "raise rollout.max_prompt_tokens or shorten the task"
            )
        return ids

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of already rendered text; special tokens in it are read as such, none are
        added."""
        return tuple(self.tokenizer.encode(mend(text), add_special_tokens=False))

    def reply_ids(self, reply: Sequence[Message], *, ended: bool) -> tuple[int, ...]:
        """Tokens between a completion and the next one: end of turn (unless `ended` with it), the
        messages of `reply` with their special tokens broken up, generation prompt.

        Sampled tokens are kept as they were; only what the template puts around the reply is added.
        Raises `ModelError` for a template that has no place for such a message.
        """
        for message in reply:
            if message["role"] not in self._shown_roles:
                self._check_role(message["role"])
        turns = [
            {
                key: value if key == "role" else self.inert(str(value))
                for key, value in message.items()
            }
            for message in reply
        ]
        ids = self.text_ids(self.render([*_ANSWERED, *turns], what="reply").rpartition(_MARK)[2])
        return ids[1:] if ended and ids[0] in self.stop_ids else ids

    def _check_role(self, role: str) -> None:
        message = {"role": role, "content": "\u241ereply\u241e"}
        is_shown = message["content"] in self.render([*_ANSWERED, message], what="reply")
        if not is_shown:
            raise ModelError(
                f"{self._template_name} leaves out messages of role {role!r}; let the "
                "environment reply as 'user', or take a model with such a role"
            )
        self._shown_roles.add(role)

    def _take_tools(self, tools: list[Any]) -> None:
        question = [{"role": "user", "content": "q"}]
        before = self.render(question)
        self._kwargs["tools"] = tools
        if self.render(question) == before:
            raise ModelError(
                f"{self._template_name} does not show tools; take a model that was trained with "
                "tools, or describe them in the task's messages and leave `tools` out of the "
                "environment"
            )

    @property
    def _template_name(self) -> str:
        return f"the chat template of {self.tokenizer.name_or_path!r}"

    def decode(self, completion_ids: Sequence[int]) -> str:
        """Text of a completion without its end-of-turn token; other special tokens stay visible."""
        ids = list(completion_ids)
        if ids and ids[-1] in self.stop_ids:
            ids.pop()
        return self.decode_all(ids)

    def decode_all(self, token_ids: Sequence[int]) -> str:
        """Text of any tokens; special ones stay visible."""
        text = self.tokenizer.decode(
            list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def as_content(self, text: str) -> str:
        """An attempt's text made safe to show in another prompt: no hidden reasoning, no live
        special tokens.

        Reasoning is removed by the markers the template itself knows. A special token inside is
        broken up, so that what the model wrote cannot end a turn.
        """
        template = str(self.tokenizer.chat_template)
        known = [pair for pair in THINKING_MARKERS if pair[1] in template]
        return self.inert(strip_thinking(text, known or THINKING_MARKERS[:1]))

    def inert(self, text: str) -> str:
        """`text` with its special tokens broken up: what an environment quotes cannot end a turn
        either."""
        # The longest first: one token may contain another.
        for token in sorted(self._special, key=len, reverse=True):
            text = text.replace(token, f"{token[0]} {token[1:]}" if len(token) > 1 else "")
        return text

    def _find_stop_ids(self, model_stop_ids: Sequence[int]) -> tuple[int, ...]:
        """End-of-turn ids, the template's own first. Raises `ModelError` when there is none."""
        found: list[int] = []
        # What the template puts right after an assistant's message, found by rendering one.
        said = self._rendered(_ANSWERED, what="a question and its answer").rpartition(_MARK)[2]
        after = self.text_ids(said) if said else ()
        if after and after[0] in self._special.values():
            found.append(after[0])
        if self.tokenizer.eos_token_id is not None:
            found.append(int(self.tokenizer.eos_token_id))
        found.extend(int(token) for token in model_stop_ids)
        if not found:
            raise ModelError(
                f"tokenizer {self.tokenizer.name_or_path!r} names no end-of-turn token; "
                "set eos_token in its config"
            )
        return tuple(dict.fromkeys(found))

    def _check_boundary(self) -> None:
        """Raises `ModelError` where a prompt ends before the text with which the template opens an
        answer: the policy would have to write that text itself."""
        prompt = self.render(_ANSWERED[:1])
        if prompt != self._rendered(_ANSWERED[:1]):
            return
        answered = self._rendered(_ANSWERED).partition(_MARK)[0]
        if prompt.rstrip() == answered.rstrip():
            return  # The question's own end opens the answer, as [/INST] does.
        header = answered.removeprefix(prompt)
        raise ModelError(
            f"the chat template of {self.tokenizer.name_or_path!r} ignores add_generation_prompt: "
            f"prompts end before {header!r}, with which it opens an answer; end "
            "chat_template.jinja with "
            f"{{% if add_generation_prompt %}}{{{{ {header!r} }}}}{{% endif %}}"
        )

    def _rendered(
        self, messages: Sequence[Message], *, what: str = "prompt", **options: Any
    ) -> str:
        try:
            rendered = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                **self._kwargs,
                **options,
            )
        except TemplateError as error:
            roles = [str(message["role"]) for message in messages]
            raise ModelError(
                f"{what}: the chat template of {self.tokenizer.name_or_path!r} refuses a "
                f"conversation of {', '.join(roles)}: {first_line(error)}; {_cure(roles)}"
            ) from None
        assert isinstance(rendered, str)
        return rendered


def _cure(roles: Sequence[str]) -> str:
    if "system" in roles:
        return (
            "put the text of the system message at the beginning of the first user message, or "
            "take a model whose template has a system role"
        )
    return "write the task as the template takes it, or repair chat_template.jinja"


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Texts that a tokenizer reads as one special token, with its id.

    Those it names, such as `eos_token`, and those that are only marked: the headers of Llama 3, the
    turns of Gemma and `[INST]` of Mistral have no name.
    """
    named = dict(
        zip(tokenizer.all_special_tokens, map(int, tokenizer.all_special_ids), strict=True)
    )
    marked = {
        token.content: index
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special
    }
    return named | marked


def strip_thinking(text: str, markers: Sequence[tuple[str, str]] = THINKING_MARKERS) -> str:
    """`text` without hidden reasoning and without blank space at its ends.

    Tags count only where a reasoning model writes them: an opening one at the start of a line, a
    closing one after it or, when the chat template opened the reasoning, at the start or end of a
    line. So an answer that quotes a tag, or a program with one in a string, survives. A section
    that is never closed reaches to the end.
    """
    opening, closing, lone_closing = _thinking_patterns(tuple(markers))
    kept = []
    start = 0
    # One pass: a pattern of both tags would try every opening one of a text that closes none.
    while opened := opening.search(text, start):
        kept.append(text[start : opened.start()])
        closed = closing.search(text, opened.end())
        start = len(text) if closed is None else closed.end()
    text = "".join([*kept, text[start:]])
    ending = lone_closing.search(text)
    return (text[ending.end() :] if ending else text).strip()


@lru_cache(maxsize=8)
def _thinking_patterns(
    markers: tuple[tuple[str, str], ...],
) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Patterns of an opening tag, a closing tag, and a closing tag without an opening one."""
    openings, closings = ("|".join(map(re.escape, tags)) for tags in zip(*markers, strict=True))
    return (
        re.compile(rf"^[ \t]*(?:{openings})", re.MULTILINE),
        re.compile(closings),
        re.compile(rf"^[ \t]*(?:{closings})|(?:{closings})[ \t\r]*$", re.MULTILINE),
    )
