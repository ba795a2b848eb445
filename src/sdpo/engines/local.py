"""The default engine: samples in process with the very module that is trained.

Nothing is copied: `generate` reads the weights the module has at that moment. The module is in eval
mode and without gradients during the call and is left as it was found. Neither re-entrant nor
thread-safe: a call switches the module's attention.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from sdpo.engines.base import Completion, GenerationRequest, Sampling
from sdpo.engines.completions import OpenCompletion, open_completions
from sdpo.engines.decode import Decoder
from sdpo.engines.decode_state import DecodeState
from sdpo.engines.fallback import SlowSampler
from sdpo.engines.graphs import StepGraphs
from sdpo.engines.sampling import check_sampling
from sdpo.errors import EngineError, SdpoError, first_line
from sdpo.kernels.linears import packed_linears
from sdpo.kernels.plan import fast_layers
from sdpo.models.device import free_bytes
from sdpo.models.qualify import FastPath, Refusal, fast_path_of
from sdpo.models.structure import causal_lm, evaluating, name_of

MAX_PREFILL_TOKENS = 4096
"""Prompt tokens of a prefill pass."""
CACHE_SHARE = 0.5
"""Most of the free memory that the key-value cache takes; the rest is for logits, prefill and, on
CUDA, captured steps. Where `max_sequences` would take more, fewer completions are decoded at once:
which ones are is nothing that they depend on."""
_KEPT_CACHE_BYTES = 1 << 30
"""A larger cache is given back before an update; a smaller one stays, with its captured steps."""
_COLUMN_STEP = 64
"""Prompt columns on CUDA are rounded up to this, so that captured steps outlive small changes of
prompt length.
"""


class LocalEngine:
    """Samples from `model`, on the device it is on.

    Memory while sampling: keys and values (see `cache.py`), logits [max_sequences, V] (on CUDA a
    second time, in float32), activations of `max_prefill_tokens` tokens, and on a CPU a second copy
    of the linear layers' weights. The cache takes at most `CACHE_SHARE` of what is free when a call
    begins. On CUDA it stays allocated between calls for its captured graphs; `release()` frees it,
    and `sleep()`, which precedes an update, a large one.

    Example:
        engine = LocalEngine(model, max_sequences=64)
        engine.generate([GenerationRequest(prompt_ids=(1, 5), seeds=(7, 8))], sampling)
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        max_sequences: int = 64,
        max_prefill_tokens: int = MAX_PREFILL_TOKENS,
    ) -> None:
        """`max_sequences` completions are sampled at once; the others wait."""
        self.policy_version = 0
        self._max_sequences = max_sequences
        self._max_prefill_tokens = max_prefill_tokens
        self._model: torch.nn.Module = model
        self._inner: PreTrainedModel = causal_lm(model)
        self._has_sampled = False
        self._state: tuple[tuple[int, ...], DecodeState, StepGraphs] | None = None

    def load_weights(self, model: torch.nn.Module, version: int) -> None:
        """Notes that `model` (usually the module it already holds) carries weights of `version`."""
        if model is not self._model:
            self._model, self._inner = model, causal_lm(model)
            self._has_sampled = False
            self.release()
        self.policy_version = version

    def release(self) -> None:
        """Frees the cache and captured graphs kept for the next call."""
        self._state = None

    def sleep(self) -> None:
        """Frees them where they are large enough for an update to want their memory."""
        if self._state is not None and self._state[1].cache.num_bytes > _KEPT_CACHE_BYTES:
            self.release()

    @torch.no_grad()
    def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling
    ) -> list[list[Completion]]:
        """Completions per request, in the order of its seeds. Equal seeds give equal completions in
        any batch. Raises `EngineError` for a model that cannot be sampled here.
        """
        check_sampling(sampling)
        prompts, groups = open_completions(requests, sampling)
        completions = sorted((c for group in groups for c in group), key=lambda c: c.prompt)
        if completions:
            with self._explained(), evaluating(self._inner):
                path = fast_path_of(self._inner)
                if isinstance(path, Refusal):
                    SlowSampler(
                        self._inner,
                        prompts,
                        completions,
                        sampling,
                        max_sequences=self._max_sequences,
                        max_prefill_tokens=self._max_prefill_tokens,
                    ).run()
                else:
                    self._sample_fast(path, prompts, completions, sampling)
        return [[completion.close() for completion in group] for group in groups]

    @contextmanager
    def _explained(self) -> Generator[None]:
        """What a model's own code raises before it has given a completion, as one sentence. Later
        errors are ours."""
        try:
            yield
        except SdpoError:
            raise
        except Exception as error:
            if self._has_sampled:
                raise
            raise EngineError(
                f"{name_of(self._inner)} cannot be sampled here: {first_line(error)}; take another "
                "model"
            ) from error
        self._has_sampled = True

    def _sample_fast(
        self,
        fast: FastPath,
        prompts: Sequence[tuple[int, ...]],
        completions: Sequence[OpenCompletion],
        sampling: Sampling,
    ) -> None:
        state, graphs = self._open_state(fast, prompts, completions, sampling)
        with (
            fast_layers(self._inner),
            packed_linears(self._inner, rows=state.num_rows, steps=sampling.max_new_tokens),
        ):
            Decoder(
                fast, state, prompts, completions, sampling, self._max_prefill_tokens, graphs
            ).run()

    def _open_state(
        self,
        fast: FastPath,
        prompts: Sequence[tuple[int, ...]],
        completions: Sequence[OpenCompletion],
        sampling: Sampling,
    ) -> tuple[DecodeState, StepGraphs | None]:
        """The cache for this call and its captured steps: the last ones where they fit, else
        new."""
        columns = max(1, max(map(len, prompts)) - 1)
        is_cuda = fast.cache.device.type == "cuda"
        if is_cuda:
            columns = -(-columns // _COLUMN_STEP) * _COLUMN_STEP
        sizes = Counter(completion.prompt for completion in completions)
        rows = min(self._max_sequences, len(completions))
        # Two more than full groups need: a straggler keeps its prompt's slot while the next groups
        # enter.
        num_slots = min(len(prompts), rows, -(-rows * len(prompts) // len(completions)) + 2)
        max_group = min(max(sizes.values()), rows)
        key = (num_slots, columns, rows, sampling.max_new_tokens, max_group)
        if is_cuda:
            # A captured step reads weights at their addresses.
            key += tuple(parameter.data_ptr() for parameter in self._inner.parameters())
            if self._state is not None and self._state[0] == key:
                return self._state[1:]
        self.release()
        rows = _rows_that_fit(fast, rows, num_slots * columns, sampling.max_new_tokens)
        num_slots, max_group = min(num_slots, rows), min(max_group, rows)
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


def _rows_that_fit(fast: FastPath, rows: int, prompt_tokens: int, max_new_tokens: int) -> int:
    """`rows`, halved until the cache, with `prompt_tokens` for all of them, is within its budget.
    Raises `EngineError` where one completion alone is not."""
    free = free_bytes(fast.cache.device)
    if free is None:
        return rows
    token_bytes, most = fast.cache.token_bytes, rows

    def size(rows: int) -> int:
        return token_bytes * (prompt_tokens * rows // most + rows * max_new_tokens)

    while rows > 1 and size(rows) > CACHE_SHARE * free:
        rows = -(-rows // 2)
    if size(rows) > free:
        raise EngineError(
            f"the keys and values of one completion take {size(rows) / 1e9:.1f} GB and "
            f"{free / 1e9:.1f} GB are free on {fast.cache.device}; lower "
            "rollout.max_completion_tokens, or free memory there"
        )
    return rows
