"""What the engine's tests ask for, on the CPU and on CUDA."""

from __future__ import annotations

import random
from collections.abc import Sequence

from sdpo.engines.base import Completion, GenerationRequest


def make_requests(
    lengths: Sequence[int], group: int, vocab_size: int = 64
) -> list[GenerationRequest]:
    """`group` completions of a random prompt of each length; always the same ones."""
    draw = random.Random(0)
    return [
        GenerationRequest(
            prompt_ids=tuple(draw.randrange(vocab_size) for _ in range(length)),
            seeds=tuple(draw.getrandbits(63) for _ in range(group)),
        )
        for length in lengths
    ]


def token_ids(groups: Sequence[Sequence[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in group] for group in groups]
