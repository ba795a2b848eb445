"""The taught toy model as a policy: weights that come with the package, and how they are made.

python -c "from sdpo.testing.toy_reader import ship; ship()"     after a change of the lessons
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import safe_open
from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sdpo.testing.models import tiny_model
from sdpo.testing.toy_policy import lessons_of, teach_feedback_reading
from sdpo.testing.toy_world import CODE_PLACES, NAME_LENGTH, NAME_LETTERS, toy_tokenizer

SHIPPED = Path(__file__).with_name("toy_reader.safetensors")
"""Taught weights of seed 0."""


def toy_model(seed: int = 0, *, cache: Path | None = None) -> PreTrainedModel:
    """A llama of 3 layers, 64 wide, that reads feedback; use it with `toy_tokenizer()`.

    Seed 0 is loaded from the package unless `cache` is given. The first call of another seed takes
    half a minute of one core; later ones load it from the cache.
    """
    tokenizer = toy_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer), num_layers=3, seed=seed)
    if seed == 0 and cache is None and shipped_lessons() == lessons_digest(tokenizer):
        load_model(model, SHIPPED)
        return model.eval()
    return teach_feedback_reading(model, tokenizer, seed=seed, cache=cache)


def shipped_lessons() -> str:
    """Digest of the lessons that the weights in the package were taught."""
    with safe_open(SHIPPED, framework="pt") as file:
        return file.metadata()["lessons"]


def save_toy_model(folder: Path, seed: int = 0) -> Path:
    """Write `toy_model(seed)` and its tokenizer as a model folder, as `model.name` takes it."""
    model, tokenizer = toy_model(seed), toy_tokenizer()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ship() -> None:
    """Teach seed 0 and write its weights into the package, in half precision: reading needs no
    more, and the file is half as large."""
    tokenizer = toy_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer), num_layers=3, seed=0)
    with TemporaryDirectory() as cache:
        teach_feedback_reading(model, tokenizer, cache=Path(cache))
    save_model(model.half(), str(SHIPPED), metadata={"lessons": lessons_digest(tokenizer)})


def lessons_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """What seed 0 is taught, whatever machine and torch teach it: tokens and weights of lessons."""
    lessons = lessons_of(tokenizer)
    text = json.dumps(
        [[lesson.prompt_ids, lesson.num_known, lesson.weight] for lesson in lessons]
        + [CODE_PLACES, NAME_LETTERS, NAME_LENGTH, len(tokenizer)]
    )
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
