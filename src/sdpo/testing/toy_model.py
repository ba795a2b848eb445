"""A tiny model that reads feedback: what a real model brings along, taught in a minute.

The lessons are random items in every teacher context that the real templates can make. Names and
codes are drawn anew for each example, so that nothing can be memorised except how to read: with a
code in the context the model answers with it, without one it answers with any code. As the
self-teacher re-reads attempts that were wrong, the lessons also ask for the right character after
wrong ones.

The result is kept in the user's cache; the key covers everything it depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sdpo.chat import Chat
from sdpo.config.schema import Context
from sdpo.records import Group, Rollout, Task, Verdict
from sdpo.seeds import derive
from sdpo.teacher.context import teacher_contexts
from sdpo.testing.models import tiny_model
from sdpo.testing.toy_world import (
    CODE_CLASSES,
    NAME_LENGTH,
    NAME_LETTERS,
    Reveal,
    feedback_text,
    question,
    toy_tokenizer,
)

STEPS = 500
BATCH = 24
KINDS=3
B2=0.98
"""Examples per update, in rows of one lesson kind each."""
LR = 3e-3
WARMUP = 30

# One-byte characters that stand for a name, a code and an attempt while a lesson is rendered.
_NAME = "\x01\x02\x03\x04"
_CODE = "\x05\x06\x07"
_ATTEMPT = "\x10\x11\x12"


def toy_model(seed: int = 0, *, cache: Path | None = None) -> PreTrainedModel:
    """A llama of 3 layers, 96 wide, that reads feedback; use it with `toy_tokenizer()`.

    The first call of a seed takes about a minute; later ones load it from the cache.
    """
    tokenizer = toy_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer), hidden_size=96, num_layers=3, seed=seed)
    return teach_feedback_reading(model, tokenizer, seed=seed, cache=cache)


def save_toy_model(folder: Path, seed: int = 0) -> Path:
    """Write `toy_model(seed)` and its tokenizer as a model folder, as `model.name` takes it."""
    model, tokenizer = toy_model(seed), toy_tokenizer()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def teach_feedback_reading(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    steps: int = STEPS,
    cache: Path | None = None,
) -> PreTrainedModel:
    """`model` itself, taught in place to answer items with codes and to copy revealed codes.

    `tokenizer` must keep names and codes one token a character, as `toy_tokenizer` does. `cache` is
    the folder of taught weights, by default `sdpo/toy` in the user's cache. Runs on one thread, so
    that the same arguments give the same weights.
    """
    lessons = _lessons(Chat(tokenizer))
    folder = cache or _default_cache()
    path = folder / f"{_key(model, lessons, seed, steps)}.safetensors"
    if path.is_file():
        load_model(model, path)
        return model.eval()
    with _one_thread():
        _teach(model, tokenizer, lessons, seed, steps)
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
        Lesson(prompt_ids=(256, 1, ...), num_known=3)
    """

    prompt_ids: tuple[int, ...]
    num_known: int
    """Leading characters of the code that the prompt reveals."""


def _lessons(chat: Chat) -> list[Lesson]:
    """The bare task and every teacher context of it that tells something."""
    task = Task(id="toy", messages=question(_NAME))
    lessons = {Lesson(prompt_ids=chat.prompt_ids(task.messages), num_known=0): None}
    wrong: list[tuple[str | None, Reveal, int, str]] = [
        (attempt, reveal, num_known, _ATTEMPT)
        for attempt in (_ATTEMPT, None)
        for reveal, num_known in (("all", len(_CODE)), ("none", 0))
    ]
    # Attempts that start right learn the next character from partial feedback.
    wrong += [
        (_CODE[:right] + _ATTEMPT[right:], "part", right + 1, _CODE[:right] + _ATTEMPT[right:])
        for right in range(len(_CODE))
    ]
    for (attempt, reveal, num_known, text), layout, has_demonstration, shows_attempt in product(
        wrong, ("single_turn", "turns"), (False, True), (False, True)
    ):
        if has_demonstration and reveal == "part":
            continue
        verdicts = [
            Verdict(reward=0.0, solved=False, feedback=feedback_text(attempt, _CODE, reveal)),
            Verdict(reward=1.0, solved=True),
        ]
        texts = [text, _CODE]
        num_attempts = 2 if has_demonstration else 1
        group = Group(
            task=task,
            rollouts=tuple(_rollout(i, texts[i]) for i in range(num_attempts)),
            verdicts=tuple(verdicts[:num_attempts]),
        )
        for feedback in ("always", "without_demonstration"):
            rules = Context(feedback=feedback, layout=layout, attempt=shows_attempt)
            context = teacher_contexts(group, rules, random.Random(0), lambda messages: 0)[0]
            assert context.messages is not None
            known = len(_CODE) if has_demonstration else num_known
            lesson = Lesson(prompt_ids=chat.prompt_ids(context.messages), num_known=known)
            lessons[lesson] = None
    return list(lessons)


def _rollout(index: int, text: str) -> Rollout:
    return Rollout(
        task_id="toy",
        index=index,
        prompt_ids=(),
        completion_ids=(),
        sampler_logprobs=(),
        text=text,
        truncated=False,
        policy_version=0,
    )


class _Examples:
    """Random examples of lessons as tensors. B examples, T tokens, L characters of a code."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(derive(seed, "toy lessons"))
        self._tokenizer = tokenizer
        self._names = self._ids(NAME_LETTERS)
        self._classes = [self._ids(kind) for kind in CODE_CLASSES]
        self._stand_ins = [self._ids(text) for text in (_NAME, _CODE, _ATTEMPT)]
        self._end = torch.tensor([tokenizer.eos_token_id])

    def draw(self, lesson: Lesson, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens_BT, targets_BL+1): `count` examples and the answer each position should give.

        Half of them continue the right answer, half the wrong attempt, as a teacher does.
        """
        names = self._pick([self._names] * NAME_LENGTH, count)
        code, attempt, guess = (self._pick(self._classes, count) for _ in range(3))
        prompt = torch.tensor(lesson.prompt_ids).repeat(count, 1)
        for stand_ins, values in zip(self._stand_ins, (names, code, attempt), strict=True):
            for place, stand_in in enumerate(stand_ins):
                prompt = torch.where(prompt == stand_in, values[:, place : place + 1], prompt)
        known = torch.arange(len(CODE_CLASSES)) < lesson.num_known
        answer = torch.where(known, code, guess)
        is_wrong = torch.rand(count, 1, generator=self._generator) < 0.5
        read = torch.where(is_wrong & bool(lesson.num_known), attempt, answer)
        end = self._end.repeat(count, 1)
        return torch.cat([prompt, read], dim=1), torch.cat([answer, end], dim=1)

    def _ids(self, text: str) -> torch.Tensor:
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        assert len(ids) == len(text), f"{text!r} is not one token a character"
        return torch.tensor(ids)

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
    steps: int,
) -> None:
    examples = _Examples(tokenizer, seed)
    order = random.Random(derive(seed, "toy lesson order"))
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    opts = [
        torch.optim.Muon(matrices, lr=MLR, weight_decay=0.01, ns_steps=NS),
        torch.optim.AdamW(rest, lr=LR, betas=(0.9, B2), weight_decay=0.0, fused=True),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(
        o,
        lambda step: min((step + 1) / WARMUP, 1.0) * min(1, (1 - step / steps)*2),
    ) for o in opts]
    model.train()
    known = [l for l in lessons if l.num_known == len(_CODE) for _ in range(OV)]+ [l for l in lessons if l.num_known<len(_CODE)]
    for step in range(steps):
        chosen = order.choices(known, k=KINDS)
        losses = []
        for lesson in [lessons[0], *chosen]:
            tokens, targets = examples.draw(lesson, BATCH if lesson.num_known else 8)
            logits = model(tokens, logits_to_keep=targets.shape[1]).logits
            losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()))
        loss = torch.stack(losses).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in opts: o.step(); o.zero_grad()
        for q in schedules: q.step()
        if PRINT and step % 25 == 0: print(step, [round(x.item(),2) for x in losses], [l.num_known for l in chosen])


PRINT=False;OV=2;MLR=0.02;NS=5;CUR0=4
def _key(model: PreTrainedModel, lessons: list[Lesson], seed: int, steps: int) -> str:
    """Everything that decides the taught weights, the untaught ones and our own wording included."""
    text = json.dumps(
        [
            *(seed, steps, BATCH, LR, WARMUP, torch.__version__),
            [[lesson.prompt_ids, lesson.num_known] for lesson in lessons],
            model.config.to_dict(),
        ],
        default=str,
        sort_keys=True,
    )
    digest = hashlib.blake2b(text.encode(), digest_size=12)
    for parameter in model.parameters():
        digest.update(parameter.detach().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "sdpo", "toy")


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
