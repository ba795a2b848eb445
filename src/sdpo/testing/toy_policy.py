"""A tiny model that reads feedback: what a real model brings along, taught in half a minute.

The lessons are random items in every teacher context that the real templates can make. Names and
codes are drawn anew for each example, so that nothing can be memorised except how to read: with a
code in the context the model answers with it, without one it answers with any code. As the
self-teacher re-reads attempts that were wrong, the lessons also ask for the right digits after a
wrong syllable.

What is taught is kept in the user's cache; the key covers everything it depends on. The weights of
one seed come with the package (`toy_reader.py`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sdpo.chat import Chat
from sdpo.config.teacher import ContextConfig
from sdpo.errors import ModelError
from sdpo.records import Group, Rollout, Task, Verdict
from sdpo.seeds import derive
from sdpo.teacher.context import Reading, teacher_contexts
from sdpo.testing.toy_world import (
    CODE_PLACES,
    NAME_LENGTH,
    NAME_LETTERS,
    REVEAL_PART,
    WRONG,
    feedback_text,
    question,
)

MAX_STEPS = 1000
WARMUP = 30
DECAY = 150
"""Last updates, in which the rate falls to 0. They begin when reading is learnt."""
LEARNT_LOSS = 0.7
"""Mean loss (nats) of lessons that reveal the whole code, averaged over about 10 updates, at which
reading counts as learnt. It sets in suddenly, and at another update for each seed, so a fixed
number of updates would waste time or fail."""
LESSONS = 6
"""Kinds of context in an update, besides the bare task: the more, the sooner reading sets in."""
EXAMPLES = 8
"""Random examples of each."""
MATRIX_LR = 0.03
"""Muon's rate for matrices. With it reading sets in after about 130 updates, with AdamW after twice
as many."""
VECTOR_LR = 1e-2
"""AdamW's rate for the embedding and the norms."""
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of Muon's iteration, as its authors published them."""

# One character and token for each part of a name, a code and an attempt in a rendered lesson.
_NAME = "\x01\x02\x03\x04"
_CODE = "\x05\x06"
_ATTEMPT = "\x10\x11"


def teach_feedback_reading(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    cache: Path | None = None,
) -> PreTrainedModel:
    """`model` itself, taught in place to answer items with codes and to copy revealed codes.

    `tokenizer` must keep names and codes one token a character, as `toy_tokenizer` does. `cache` is
    the folder of taught weights, by default `sdpo/toy` in the user's cache. Runs on one thread, so
    that the same arguments give the same weights.
    """
    lessons = lessons_of(tokenizer)
    folder = cache or _default_cache()
    path = folder / f"{_key(model, lessons, seed)}.safetensors"
    if path.is_file():
        load_model(model, path)
        return model.eval()
    with _one_thread():
        _teach(model, tokenizer, lessons, seed)
    folder.mkdir(parents=True, exist_ok=True)
    # Test processes teach at the same time; each writes its own file and the last rename wins.
    with TemporaryDirectory(dir=folder) as scratch:
        save_model(model, str(Path(scratch, "weights")))
        os.replace(Path(scratch, "weights"), path)
    return model.eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """One kind of conversation: its prompt with stand-ins for name, code and attempt.

    Example:
        Lesson(prompt_ids=(256, 1, ...), num_known=3, weight=2)
    """

    prompt_ids: tuple[int, ...]
    num_known: int
    """Leading parts of the code that the prompt reveals."""
    weight: int
    """How often it is taught compared with others."""


_READING = Reading(count_tokens=lambda messages: 0)
"""Toy conversations are short; nothing needs to be counted."""

_Failed = tuple[str, str]
"""A wrong attempt and its feedback."""


def lessons_of(tokenizer: PreTrainedTokenizerBase) -> list[Lesson]:
    """The bare task first, then the teacher contexts that runs can meet."""
    chat, task = Chat(tokenizer), Task(id="toy", messages=question(_NAME))
    lessons = [Lesson(prompt_ids=chat.prompt_ids(task.messages), num_known=0, weight=1)]

    def add(
        failed: _Failed, num_known: int, weight: int, has_sibling: bool, rules: ContextConfig
    ) -> None:
        text, feedback = failed
        rollouts, verdicts = (Rollout.written(task, text),), (_verdict(feedback),)
        if has_sibling:
            rollouts, verdicts = (
                (*rollouts, Rollout.written(task, _CODE, index=1)),
                (*verdicts, _verdict(None)),
            )
        group = Group(task=task, rollouts=rollouts, verdicts=verdicts)
        context = teacher_contexts(group, rules, random.Random(0), _READING)[0]
        assert context.messages is not None
        ids = chat.prompt_ids(context.messages)
        lessons.append(Lesson(prompt_ids=ids, num_known=num_known, weight=weight))

    length = len(_CODE)
    wrong = (_ATTEMPT, feedback_text(_ATTEMPT, _CODE, "all"))
    no_code = ("", feedback_text(None, _CODE, "all"))
    half_right = (half := _CODE[0] + _ATTEMPT[1], feedback_text(half, _CODE, "all"))
    begins = f"{WRONG.format(attempt=_ATTEMPT)} {REVEAL_PART.format(syllable=_CODE[0])}"
    for layout in ("single_turn", "turns"):
        add(wrong, length, 6, True, ContextConfig(layout=layout))
        add(wrong, length, 2, True, ContextConfig(layout=layout, feedback="always"))
        for shows_attempt in (False, True):
            rules = ContextConfig(layout=layout, attempt=shows_attempt)
            add(wrong, length, 4, False, rules)
            add(no_code, length, 2, False, rules)
            add(half_right, length, 1, False, rules)
            add((_ATTEMPT, begins), 1, 1, False, rules)
            add((_ATTEMPT, feedback_text(_ATTEMPT, _CODE, "none")), 0, 1, False, rules)
            add(("", feedback_text(None, _CODE, "none")), 0, 1, False, rules)
    return lessons


def _verdict(feedback: str | None) -> Verdict:
    is_solved = feedback is None
    return Verdict(reward=float(is_solved), solved=is_solved, feedback=feedback)


class _Examples:
    """Random examples of lessons as tensors. B examples, T tokens, L parts of a code."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(derive(seed, "toy lessons"))
        self._tokenizer = tokenizer
        self._names = self._ids(NAME_LETTERS)
        self._places = [self._ids(place) for place in CODE_PLACES]
        self._stand_ins = [self._ids(text) for text in (_NAME, _CODE, _ATTEMPT)]
        self._end = torch.tensor([tokenizer.eos_token_id])

    def draw(self, lesson: Lesson, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens_BT, targets_BL+1): `count` examples and the answer each position should give.

        Half of them continue the right answer, half the wrong attempt, as a teacher does.
        """
        names = self._pick([self._names] * NAME_LENGTH, count)
        code, attempt, guess = (self._pick(self._places, count) for _ in range(3))
        prompt = torch.tensor(lesson.prompt_ids).repeat(count, 1)
        for stand_ins, values in zip(self._stand_ins, (names, code, attempt), strict=True):
            for place, stand_in in enumerate(stand_ins):
                prompt = torch.where(prompt == stand_in, values[:, place : place + 1], prompt)
        known = torch.arange(len(CODE_PLACES)) < lesson.num_known
        answer = torch.where(known, code, guess)
        is_wrong = torch.rand(count, 1, generator=self._generator) < 0.5
        read = torch.where(is_wrong & bool(lesson.num_known), attempt, answer)
        end = self._end.repeat(count, 1)
        return torch.cat([prompt, read], dim=1), torch.cat([answer, end], dim=1)

    def _ids(self, texts: Iterable[str]) -> torch.Tensor:
        ids = [self._tokenizer.encode(text, add_special_tokens=False) for text in texts]
        assert all(len(tokens) == 1 for tokens in ids), f"{texts!r} are not one token each"
        return torch.tensor(ids).flatten()

    def _pick(self, choices: list[torch.Tensor], count: int) -> torch.Tensor:
        columns = [
            ids[torch.randint(len(ids), (count,), generator=self._generator)] for ids in choices
        ]
        return torch.stack(columns, dim=1)


def _teach(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lessons: list[Lesson],
    seed: int,
) -> None:
    examples = _Examples(tokenizer, seed)
    order = random.Random(derive(seed, "toy lesson order"))
    weights = [lesson.weight for lesson in lessons[1:]]
    optimizers = _optimizers(model)
    average, last = math.inf, MAX_STEPS
    model.train()
    for step in range(MAX_STEPS):
        chosen = [lessons[0], *order.choices(lessons[1:], weights, k=LESSONS)]
        losses = _losses(model, [examples.draw(lesson, EXAMPLES) for lesson in chosen])
        losses.mean().backward()
        _update(optimizers, factor=min(1.0, (step + 1) / WARMUP, (last - step) / DECAY))
        read = [
            loss
            for lesson, loss in zip(chosen, losses.tolist(), strict=True)
            if lesson.num_known == len(_CODE)
        ]
        if read:
            mean = sum(read) / len(read)
            average = mean if math.isinf(average) else 0.9 * average + 0.1 * mean
        if average < LEARNT_LOSS:
            last = min(last, step + DECAY)
        if step == last:
            return
    raise ModelError(
        f"the model did not learn to read feedback in {MAX_STEPS} updates (loss {average:.2f}); "
        "take another seed, or a model of 3 layers"
    )


def _losses(model: PreTrainedModel, drawn: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Mean cross-entropy of each lesson's examples, from one forward pass padded on the left."""
    longest = max(tokens.shape[1] for tokens, _ in drawn)
    padded = torch.cat(
        [functional.pad(tokens, (longest - tokens.shape[1], 0), value=-1) for tokens, _ in drawn]
    )
    targets = torch.cat([targets for _, targets in drawn])
    logits = model(
        padded.clamp(min=0),
        attention_mask=(padded >= 0).long(),
        logits_to_keep=targets.shape[1],
        use_cache=False,
    ).logits
    losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(len(drawn), -1).mean(dim=1)


def _update(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """One update at `factor` of the peak rates."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        optimizer.step()
        optimizer.zero_grad()


class _Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (Newton-Schulz), in float32.

    `torch.optim.Muon` does it in bfloat16, which most CPUs do not multiply.
    """

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 0.0, "peak_lr": MATRIX_LR})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # ty: ignore[incompatible-method-override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 0.05)
                update = _orthogonal(parameter.grad.lerp(momentum, 0.95))
                scale = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
                parameter.sub_(update, alpha=group["lr"] * scale)


def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Roughly the nearest matrix with singular values 1."""
    a, b, c = NEWTON_SCHULZ
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


def _optimizers(model: PreTrainedModel) -> tuple[torch.optim.Optimizer, ...]:
    tied = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    matrices = [p for p in model.parameters() if p.ndim == 2 and id(p) not in tied]
    others = [
        {
            "params": [p for p in model.parameters() if p.ndim != 2 or id(p) in tied],
            "peak_lr": VECTOR_LR,
        }
    ]
    adam = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return _Muon(matrices), adam


def _key(model: PreTrainedModel, lessons: list[Lesson], seed: int) -> str:
    """Everything that decides the taught weights: the untaught ones and this module included."""
    text = json.dumps(
        [
            *(torch.__version__, seed, CODE_PLACES, NAME_LETTERS, NAME_LENGTH),
            [[lesson.prompt_ids, lesson.num_known, lesson.weight] for lesson in lessons],
            model.config.to_dict(),
            Path(__file__).read_text(encoding="utf-8"),
        ],
        default=str,
    )
    digest = hashlib.blake2b(text.encode(), digest_size=12)
    for parameter in model.parameters():
        digest.update(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "sdpo", "toy")


@contextmanager
def _one_thread() -> Generator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
