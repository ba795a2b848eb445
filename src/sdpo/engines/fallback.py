"""Sampling for any causal language model, with transformers' own cache or without any.

For architectures that the fast path refuses (recurrent layers, positional biases, unusual
attention). The model makes its own cache; `cache_use.py` says which prompts can be decoded together
with it. Where none can, every step computes whole sequences again.

Shapes: R completions, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import groupby
from typing import assert_never

import torch
from transformers import PreTrainedModel

from sdpo.engines.base import Sampling
from sdpo.engines.cache_use import cache_use_of
from sdpo.engines.completions import OpenCompletion
from sdpo.engines.own_cache import CachedRows
from sdpo.engines.sampling import sample_tokens, uniforms
from sdpo.errors import EngineError
from sdpo.models.structure import changing_rotation, max_positions, name_of
from sdpo.progress import tell


class SlowSampler:
    """One call of `generate` on the slow path.

    Memory: what the model's own cache takes, and logits [max_sequences, V]; without a cache logits
    [max_sequences, T, V].

    Example:
        sampler = SlowSampler(
            model, prompts, completions, sampling, max_sequences=64, max_prefill_tokens=4096
        )
        sampler.run()
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[tuple[int, ...]],
        completions: Sequence[OpenCompletion],
        sampling: Sampling,
        *,
        max_sequences: int,
        max_prefill_tokens: int,
    ) -> None:
        """Raises `EngineError` for a model that cannot be sampled, or not that far."""
        self._model = model
        self._prompts = prompts
        self._sampling = sampling
        self._max_sequences = max_sequences
        self._max_prefill_tokens = max_prefill_tokens
        self._together = cache_use_of(model)
        self._waiting = deque(sorted(completions, key=lambda c: (self._length(c), c.prompt)))
        self._row = {completion: row for row, completion in enumerate(completions)}
        self._numbers_NT = uniforms([c.seed for c in completions], sampling.max_new_tokens)
        self._done = self._tokens = 0
        longest = max(self._length(c) + c.limit for c in completions)
        if (kind := changing_rotation(model)) and longest > max_positions(model):
            raise EngineError(
                f"{name_of(model)}: its {kind} rotary scaling changes after {max_positions(model)} "
                f"tokens, and a prompt with its completion may have {longest}; lower "
                "rollout.max_completion_tokens, or take another model"
            )

    def run(self) -> None:
        """Fills every completion."""
        self._tell()
        if self._together == "none":
            self._run_without_cache()
        else:
            self._run_with_cache()

    def _run_with_cache(self) -> None:
        """Samples a token of every row at a time. Where any prompts go together, others enter when
        a quarter of the rows is free and not one by one: while they are computed, no row
        advances."""
        most = self._max_sequences * 3 // 4 if self._together == "any" else 0
        live: list[OpenCompletion] = []
        rows: CachedRows | None = None
        while self._waiting or live:
            if self._waiting and len(live) <= most:
                entered = self._take(self._max_sequences - len(live))
                new = self._begin(entered)
                if rows is None or not live:
                    rows = new
                else:
                    rows.join([new])
                live += entered
            assert rows is not None
            tokens_R = self._sample(live, rows.logits_RV)
            kept = [row for row, completion in enumerate(live) if not completion.is_finished]
            if kept and (len(kept) == len(live) or not rows.moves):
                rows.step(tokens_R)
                continue
            live = [live[row] for row in kept]
            if kept:
                rows.select(kept)
                rows.step(tokens_R[kept])

    def _take(self, free: int) -> list[OpenCompletion]:
        """The next completions that can be decoded together, `free` at most."""
        taken = [self._waiting.popleft()]
        while self._waiting and len(taken) < free and self._goes_with(taken[0], self._waiting[0]):
            taken.append(self._waiting.popleft())
        return taken

    def _goes_with(self, one: OpenCompletion, other: OpenCompletion) -> bool:
        match self._together:
            case "any":
                return True
            case "equal":
                return self._length(one) == self._length(other)
            case "one":
                return one.prompt == other.prompt
            case "none":
                return False
            case unknown:
                assert_never(unknown)

    def _begin(self, completions: Sequence[OpenCompletion]) -> CachedRows:
        """Rows of `completions`, in their order, after their prompts: prompts of one length at a
        time and, where rows can be joined, of about `max_prefill_tokens` tokens."""
        parts = []
        for length, group in groupby(completions, key=self._length):
            members = list(group)
            used = sorted({completion.prompt for completion in members})
            size = len(used)
            if self._together == "any":
                size = max(1, self._max_prefill_tokens // length)
            for start in range(0, len(used), size):
                chunk = used[start : start + size]
                parts.append(
                    CachedRows(
                        self._model,
                        [self._prompts[prompt] for prompt in chunk],
                        [chunk.index(c.prompt) for c in members if c.prompt in chunk],
                        self._together,
                    )
                )
        if len(parts) > 1:
            parts[0].join(parts[1:])
        return parts[0]

    def _run_without_cache(self) -> None:
        """Computes every token's whole past again: quadratic in time, right for any model. Shorter
        rows are padded on the right, which what stands on the left does not see."""
        live: list[OpenCompletion] = []
        while self._waiting or live:
            while self._waiting and len(live) < self._max_sequences:
                live.append(self._waiting.popleft())
            texts = [[*self._prompts[c.prompt], *c.token_ids] for c in live]
            ends_R = torch.tensor([len(text) - 1 for text in texts])
            columns = max(map(len, texts))
            ids_RT = torch.tensor([text + [0] * (columns - len(text)) for text in texts])
            logits_RTV = self._model(
                input_ids=ids_RT.to(self._model.device), use_cache=False
            ).logits
            self._sample(live, logits_RTV[torch.arange(len(live)), ends_R])
            live = [completion for completion in live if not completion.is_finished]

    def _sample(self, live: Sequence[OpenCompletion], logits_RV: torch.Tensor) -> torch.Tensor:
        """Appends a token to every completion that is not finished; the tokens [R]."""
        # Rows that only wait for others have no number left and take their last one.
        last = self._numbers_NT.shape[1] - 1
        numbers_R = self._numbers_NT[
            [self._row[completion] for completion in live],
            [min(len(completion.token_ids), last) for completion in live],
        ]
        tokens_R, logprobs_R = sample_tokens(
            logits_RV, numbers_R.to(logits_RV.device), self._sampling
        )
        for completion, token, logprob in zip(
            live, tokens_R.tolist(), logprobs_R.tolist(), strict=True
        ):
            if not completion.is_finished:
                completion.append(token, logprob, self._sampling)
                self._tokens += 1
                self._done += completion.is_finished
        self._tell()
        return tokens_R

    def _length(self, completion: OpenCompletion) -> int:
        return len(self._prompts[completion.prompt])

    def _tell(self) -> None:
        tell("sample", self._done, len(self._row), tokens=self._tokens)
