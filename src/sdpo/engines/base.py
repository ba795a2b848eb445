"""What every engine offers: sample completions and take new weights.

An engine sees token ids only; it knows no tasks, chat templates, environments or losses. Randomness
comes in as one integer seed per completion, so that an attempt is the same in any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

_SLACK = 8
"""Tokens looked at beyond the longest text: some decoders treat the first ones of a text apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTexts:
    """Texts that end a completion wherever they come, over the ends of tokens.

    Example:
        StopTexts(texts=("</answer>",), decode=tokenizer.decode)
    """

    texts: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]
    """Token ids to text, special tokens included."""

    def ends(self, token_ids: Sequence[int]) -> bool:
        """Whether the last token completes one of the texts."""
        # A token has a byte at least, so these hold the longest text and what began before it.
        window = max(len(text.encode()) for text in self.texts) + _SLACK
        said = self.decode(token_ids[-window:])
        return any(text in said for text in self.texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How completions are drawn.

    Example:
        Sampling(max_new_tokens=128, stop_ids=(2,), temperature=1.0)
    """

    max_new_tokens: int
    """Upper bound of sampled tokens per completion, the stop token included."""
    stop_ids: tuple[int, ...]
    """Tokens that end a completion; the sampled one is kept as its last token."""
    temperature: float = 1.0
    """Divides the logits; 0 means the most likely token (ties: lowest id)."""
    vocabulary: int | None = None
    """Ids below it can be drawn; None: every row of the head. Models have rows beyond their
    tokenizer's last id, to round the vocabulary up, and such a row belongs to no token."""
    top_p: float = 1.0
    """Nucleus mass in (0, 1]; 1 samples the whole distribution. Log-probs are those of the
    truncated distribution.
    """
    ignore_eos: bool = False
    """Sample to `max_new_tokens` whatever comes; for benchmarks only."""
    stop: StopTexts | None = None
    """Texts that end a completion like a stop token; the token that completes one is its last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One prompt and as many completions as there are seeds; the prompt is computed once.

    Example:
        GenerationRequest(prompt_ids=(1, 5, 9), seeds=(11, 12, 13))
    """

    prompt_ids: tuple[int, ...]
    seeds: tuple[int, ...]
    """One 64-bit non-negative integer per completion; fixes its random numbers."""
    max_new_tokens: int | None = None
    """A tighter bound than the sampling's, for what is left of a conversation's budget."""

    def limit(self, sampling: Sampling) -> int:
        """Upper bound of sampled tokens of each of its completions."""
        if self.max_new_tokens is None:
            return sampling.max_new_tokens
        return min(self.max_new_tokens, sampling.max_new_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """Sampled tokens with the log-probabilities they were drawn with.

    Example:
        Completion(token_ids=(7, 2), logprobs=(-0.3, -0.1), truncated=False)
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Nats, of the distribution sampled from (temperature and top_p applied)."""
    truncated: bool
    """True when `max_new_tokens` ended it and not a stop token."""


class Engine(Protocol):
    """Samples with one set of policy weights."""

    policy_version: int
    """Counter of the weights in use; stamped into every rollout."""

    def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling
    ) -> list[list[Completion]]:
        """Completions per request, in the order of its seeds. Equal seeds give equal completions in
        any batch.
        """
        ...

    def load_weights(self, model: torch.nn.Module, version: int) -> None:
        """Take the weights of `model`; in process this keeps a reference instead of a copy."""
        ...


@runtime_checkable
class Sleeping(Protocol):
    """An engine with a copy of the weights that an update can do without."""

    def sleep(self) -> None:
        """Give the device's memory to what follows, until the next `generate` or
        `load_weights`."""
        ...
