"""A toy world: tasks whose hidden answers only the feedback reveals.

A task asks for the code of an item. Codes such as `Ka47` are drawn at random, so they can be
neither derived nor guessed (1 in 10,000): every group fails, and a method that learns from rewards
alone has nothing to learn from. The feedback on a wrong attempt reveals the code. `reading.py`
makes the policy to go with it: one that reads feedback, and knows no code.
"""

from __future__ import annotations

import random
from typing import Literal, assert_never

from transformers import PreTrainedTokenizerFast

from sdpo.config.teacher import TemplatesConfig
from sdpo.envs.base import CheckReport, FunctionEnv
from sdpo.records import Message, Rollout, Task, Verdict
from sdpo.seeds import derive
from sdpo.testing.models import byte_tokenizer

Reveal = Literal["all", "part", "none"]
"""What feedback on a wrong attempt tells: the code; the syllable, and the digits only when
the attempt got that right; or only that the attempt is wrong (the control)."""

NAME_LETTERS = "abcdefgh"
NAME_LENGTH = 4

CODE_PLACES = (
    tuple(first + second for first in "BCDFGHJKLMNPRSTVWXYZ" for second in "aeiou"),
    tuple(f"{number:02}" for number in range(100)),
)
"""What can stand in each place of a code: a syllable, then two digits; one token each. They differ
between places, so that a tiny model can copy by kind, whatever (wrong) came before, and places are
few, because it learns to copy one after the other."""

QUESTION = "What is the code of item {name}?"
WRONG = "The code is not {attempt}."
NO_CODE = "A code is a syllable and two digits."
REVEAL_ALL = "The right code is {code}."
REVEAL_PART = "The right code begins with {syllable}."


class ToyEnv(FunctionEnv):
    """Items and their hidden codes. The evaluation tasks are the training tasks: a code that was
    never revealed cannot be known.

    Example:
        env = ToyEnv(num_tasks=8, seed=0, reveal="all")
        env.load("train")[0].messages[0]["content"]   # "What is the code of item gbah?"
    """

    def __init__(self, *, num_tasks: int, seed: int, reveal: Reveal) -> None:
        self.reveal: Reveal = reveal
        super().__init__(_tasks(num_tasks, seed), self._verdict)

    def check(self) -> CheckReport:
        """Every hidden code is solved, and an empty answer is not."""
        failures = {}
        tasks = self.load("train")
        for task in tasks:
            if not self._verdict(task, Rollout.written(task, task.reference)).solved:
                failures[task.id] = f"the code {task.reference!r} does not pass"
            elif self._verdict(task, Rollout.written(task, "")).solved:
                failures[task.id] = "an empty answer passes"
        return CheckReport(num_tasks=len(tasks), failures=failures, skipped=0)

    def _verdict(self, task: Task, rollout: Rollout) -> Verdict:
        if rollout.text == task.reference:
            return Verdict(reward=1.0, solved=True, info={"category": "accepted"})
        is_code = is_well_formed(rollout.text)
        return Verdict(
            reward=0.0,
            solved=False,
            feedback=feedback_text(rollout.text if is_code else None, task.reference, self.reveal),
            metrics={"well_formed": float(is_code)},
            info={"category": "wrong_answer" if is_code else "incorrect_format"},
        )


def toy_env(num_tasks: int = 8, seed: int = 0, *, reveal: Reveal = "all") -> ToyEnv:
    """`num_tasks` items whose codes only the feedback reveals, wholly, partly or (control) not.

    Example:
        sdpo.train("recipe.toml", env=toy_env(reveal="none"))
    """
    return ToyEnv(num_tasks=num_tasks, seed=seed, reveal=reveal)


def question(name: str) -> tuple[Message, ...]:
    """The conversation that asks for the code of item `name`."""
    return ({"role": "user", "content": QUESTION.format(name=name)},)


def feedback_text(attempt: str | None, code: str, reveal: Reveal) -> str:
    """What is said about a wrong attempt; None stands for an answer that is no code at all."""
    said = NO_CODE if attempt is None else WRONG.format(attempt=attempt)
    match reveal:
        case "none":
            return said
        case "all":
            return f"{said} {REVEAL_ALL.format(code=code)}"
        case "part":
            if attempt is not None and attempt[:2] == code[:2]:
                return f"{said} {REVEAL_ALL.format(code=code)}"
            return f"{said} {REVEAL_PART.format(syllable=code[:2])}"
        case _:
            assert_never(reveal)


def is_well_formed(text: str) -> bool:
    """Whether `text` is a code, right or wrong."""
    syllables, numbers = CODE_PLACES
    return text[:2] in syllables and text[2:] in numbers


def random_name(rng: random.Random) -> str:
    """The name of an item, such as `gbah`."""
    return "".join(rng.choices(NAME_LETTERS, k=NAME_LENGTH))


def random_code(rng: random.Random) -> str:
    """A code, such as `Ka47`."""
    return "".join(rng.choice(place) for place in CODE_PLACES)


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer with every fixed sentence of the toy world and of the teacher contexts as
    one more token each, and every part of a code: conversations take 12 to 50 tokens, and any text
    still round-trips.
    """
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([*_phrases(), *(part for place in CODE_PLACES for part in place)])
    return tokenizer


def _phrases() -> list[str]:
    frames = (
        *(QUESTION, WRONG, NO_CODE, REVEAL_ALL, REVEAL_PART),
        # Without turns: the toy world has none, and weights were taught with so many tokens.
        *TemplatesConfig().model_dump(exclude={"turn_feedback"}).values(),
        *("user\n", "assistant\n", "\n\n"),
    )
    phrases: dict[str, None] = {}
    for frame in frames:
        # "What is the code of item {name}?" -> "What is the code of item "
        phrase = frame.partition("{")[0]
        assert phrase
        phrases[phrase] = None
    return list(phrases)


def _tasks(num_tasks: int, seed: int) -> list[Task]:
    rng = random.Random(derive(seed, "toy world"))
    names: dict[str, str] = {}
    while len(names) < num_tasks:
        name, code = random_name(rng), random_code(rng)
        names.setdefault(name, code)
    return [Task(id=name, messages=question(name), reference=code) for name, code in names.items()]
