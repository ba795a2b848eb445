"""The default engine: samples in process with the very module that is trained.

Nothing is copied: `generate` and `score` read the weights the module has at that moment. The module
is in eval mode and without gradients while the engine works and is left as it was found. Not
re-entrant and not thread-safe, because it switches the module's attention for the time of a call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from sdpo.engines.base import Completion, GenerationRequest, Sampling, ScoreRequest
from sdpo.engines.completions import Attempt, distinct_prompts
from sdpo.engines.decode import Decoder
from sdpo.engines.decode_state import DecodeState
from sdpo.engines.fallback import sample_prompt, score_alone
from sdpo.engines.graphs import StepGraphs
from sdpo.engines.sampling import check_sampling
from sdpo.engines.scoring import score_packed
from sdpo.errors import EngineError
from sdpo.kernels.linears import packed_linears
from sdpo.kernels.plan import fast_layers
from sdpo.models.structure import FastPath, causal_lm, evaluating, probe

_COLUMN_STEP = 64
"""Prompt columns on CUDA are rounded up to this, so that captured steps outlive small changes of
prompt length.
"""


class LocalEngine:
    """Samples from and scores with `model`, on the device it is on.

    Memory while sampling: keys and values (see `cache.py`), logits [max_sequences, V] (on CUDA a
    second time, in float32), activations of `max_prefill_tokens` tokens, and on a CPU a second copy
    of the linear layers' weights. On CUDA the cache stays allocated between calls for its captured
    graphs; `release()` frees it.

    Example:
        engine = LocalEngine(model, max_sequences=64)
        engine.generate([GenerationRequest(prompt_ids=(1, 5), seeds=(7, 8))], sampling)
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        max_sequences: int = 64,
        max_cache_bytes: int | None = None,
        max_prefill_tokens: int = 4096,
    ) -> None:
        """`max_sequences` completions at once, fewer if their cache would exceed `max_cache_bytes`;
        the others wait.
        """
        self.policy_version = 0
        self._max_sequences = max_sequences
        self._max_cache_bytes = max_cache_bytes
        self._max_prefill_tokens = max_prefill_tokens
        self._model: torch.nn.Module = model
        self._inner: PreTrainedModel = causal_lm(model)
        self._fast: FastPath | None = None
        self._is_probed = False
        self._state: tuple[tuple[int, ...], DecodeState, StepGraphs] | None = None

    def load_weights(self, model: torch.nn.Module, version: int) -> None:
        """Notes that `model` (usually the module it already holds) carries weights of `version`."""
        if model is not self._model:
            self._model, self._inner = model, causal_lm(model)
            self._fast, self._is_probed = None, False
            self.release()
        self.policy_version = version

    def release(self) -> None:
        """Frees the cache and captured graphs kept for the next call."""
        self._state = None

    @torch.no_grad()
    def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling
    ) -> list[list[Completion]]:
        """Completions per request, in the order of its seeds. Equal seeds give equal completions in
        any batch.
        """
        check_sampling(sampling)
        prompts, groups = distinct_prompts(requests)
        attempts = sorted((a for group in groups for a in group), key=lambda a: a.prompt)
        if attempts:
            with evaluating(self._inner):
                fast = self._fast_path()
                if fast is None:
                    self._sample_generic(prompts, attempts, sampling)
                else:
                    self._sample_fast(fast, prompts, attempts, sampling)
        return [[attempt.completion() for attempt in group] for group in groups]

    @torch.no_grad()
    def score(self, requests: Sequence[ScoreRequest], temperature: float) -> list[list[float]]:
        """Log-probability of each completion token given prompt and earlier tokens, nats; top_p
        plays no part.
        """
        if not temperature > 0.0:
            raise EngineError(f"temperature is {temperature}; scoring needs a positive number")
        if any(not request.prompt_ids for request in requests):
            raise EngineError(
                "a prompt has no tokens; its first completion token has no probability"
            )
        with evaluating(self._inner):
            fast = self._fast_path()
            if fast is None:
                return score_alone(self._inner, requests, temperature)
            return score_packed(fast, requests, temperature, self._max_prefill_tokens)

    def _fast_path(self) -> FastPath | None:
        if not self._is_probed:
            self._fast, self._is_probed = probe(self._inner), True
        return self._fast

    def _sample_fast(
        self,
        fast: FastPath,
        prompts: Sequence[tuple[int, ...]],
        attempts: Sequence[Attempt],
        sampling: Sampling,
    ) -> None:
        state, graphs = self._open_state(fast, prompts, attempts, sampling)
        with (
            fast_layers(self._inner),
            packed_linears(self._inner, rows=state.num_rows, steps=sampling.max_new_tokens),
        ):
            Decoder(
                fast, state, prompts, attempts, sampling, self._max_prefill_tokens, graphs
            ).run()

    def _open_state(
        self,
        fast: FastPath,
        prompts: Sequence[tuple[int, ...]],
        attempts: Sequence[Attempt],
        sampling: Sampling,
    ) -> tuple[DecodeState, StepGraphs | None]:
        """The cache for this call and its captured steps: the last ones where they fit, else
        new."""
        columns = max(1, max(map(len, prompts)) - 1)
        is_cuda = fast.cache.device.type == "cuda"
        if is_cuda:
            columns = -(-columns // _COLUMN_STEP) * _COLUMN_STEP
        sizes = Counter(attempt.prompt for attempt in attempts)
        rows = self._rows_within_budget(fast, len(prompts), columns, len(attempts), sampling)
        # Two more than full groups need: room for stragglers of earlier groups while the next ones
        # enter.
        num_slots = min(len(prompts), rows, -(-rows * len(prompts) // len(attempts)) + 2)
        max_group = min(max(sizes.values()), rows)
        key = (num_slots, columns, rows, sampling.max_new_tokens, max_group)
        if is_cuda:
            key += tuple(parameter.data_ptr() for parameter in self._inner.parameters())
            if self._state is not None and self._state[0] == key:
                return self._state[1:]
        self.release()
        state = DecodeState(
            fast,
            num_prompts=num_slots,
            prompt_columns=columns,
            num_rows=rows,
            suffix_columns=sampling.max_new_tokens,
            max_group=max_group,
        )
        if not is_cuda:
            return state, None
        graphs = StepGraphs.on_cuda()
        self._state = (key, state, graphs)
        return state, graphs

    def _rows_within_budget(
        self,
        fast: FastPath,
        num_prompts: int,
        prompt_columns: int,
        num_attempts: int,
        sampling: Sampling,
    ) -> int:
        rows = min(self._max_sequences, num_attempts)
        if self._max_cache_bytes is None:
            return rows

        def needed(rows: int) -> int:
            slots = min(num_prompts, rows, -(-rows * num_prompts // num_attempts) + 2)
            tokens = slots * prompt_columns + rows * sampling.max_new_tokens
            return tokens * fast.cache.token_bytes

        while rows > 1 and needed(rows) > self._max_cache_bytes:
            rows -= 1
        if needed(rows) > self._max_cache_bytes:
            raise EngineError(
                f"one completion of {sampling.max_new_tokens} tokens after a prompt of "
                f"{prompt_columns + 1} needs {needed(1)} bytes of cache; the limit is "
                f"{self._max_cache_bytes}: lower max_completion_tokens or raise the limit"
            )
        return rows

    def _sample_generic(
        self,
        prompts: Sequence[tuple[int, ...]],
        attempts: Sequence[Attempt],
        sampling: Sampling,
    ) -> None:
        for index, prompt_ids in enumerate(prompts):
            own = [attempt for attempt in attempts if attempt.prompt == index]
            for start in range(0, len(own), self._max_sequences):
                part = own[start : start + self._max_sequences]
                sample_prompt(self._inner, prompt_ids, part, sampling)
