"""Which models can take the fast path, found out by trying instead of from a list of names.

A model qualifies when its attention goes through transformers' registry, every layer keeps keys and
values of every token (full or sliding-window attention, no recurrent state), and its logits on two
packed sequences equal those of plain forward passes. Anything else is sampled by `generic.py`,
correctly and more slowly.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from sdpo.engines.attention import MissingPlanError, PackedPlan, Span, engine_attention
from sdpo.engines.cache import CacheShape

_PROBE_LENGTHS = (5, 9)
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Largest difference of logits, relative to their largest magnitude; 5e-2 for half precisions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FastPath:
    """A model that passed, taken apart for the engine.

    Example:
        fast = probe(model); fast.cache.token_bytes
    """

    model: PreTrainedModel
    backbone: torch.nn.Module
    """Token ids to last hidden states."""
    cache: CacheShape


@contextmanager
def evaluating(model: torch.nn.Module) -> Generator[None]:
    """Every module is in eval mode inside the block (no dropout) and as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def causal_lm(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model inside adapters; adapter layers stay in place and in use."""
    outer: Any = model
    inner = outer.get_base_model() if hasattr(model, "get_base_model") else outer
    assert isinstance(inner, PreTrainedModel), f"not a transformers model: {type(model).__name__}"
    return inner


def head_logits(model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """Hidden states [T, D] to logits [T, V] as the model's own forward computes them from its last
    hidden states.
    """
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    softcap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    factor = getattr(config, "logit_scale", None) or 1.0  # Cohere
    divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite

    def logits(hidden_TD: torch.Tensor) -> torch.Tensor:
        logits_TV = head(hidden_TD) * factor / divisor if factor != divisor else head(hidden_TD)
        return logits_TV if softcap is None else (logits_TV / softcap).tanh() * softcap

    return logits


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether `head_logits` on the backbone's hidden states gives the model's own logits."""
    ids = _probe_ids(model, _PROBE_LENGTHS[0])
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    own = model(input_ids=ids, use_cache=False).logits
    return own.shape[1] == hidden.shape[1] and _is_close(head_logits(model)(hidden), own)


def probe(model: PreTrainedModel) -> FastPath | None:
    """The fast path of `model` (in eval mode, without gradients), or None if it must be sampled the
    generic way.
    """
    if not _may_qualify(model) or not has_plain_head(model):
        return None
    ids = _probe_ids(model, max(_PROBE_LENGTHS))
    recorder = _Recorder()
    spans, start = [], 0
    for length in _PROBE_LENGTHS:
        spans.append(Span(start=start, stop=start + length))
        start += length
    plan = PackedPlan(spans=spans, keep=recorder.keep)
    try:
        with engine_attention(model):
            packed = model(
                input_ids=torch.cat([ids[:, :n] for n in _PROBE_LENGTHS], dim=1),
                position_ids=torch.cat([torch.arange(n) for n in _PROBE_LENGTHS])[None].to(
                    ids.device
                ),
                use_cache=False,
                sdpo_plan=plan,
            ).logits
    except (MissingPlanError, TypeError, AttributeError):
        return None
    for span in spans:
        alone = model(input_ids=ids[:, : span.stop - span.start], use_cache=False).logits
        if not _is_close(packed[:, span.start : span.stop], alone):
            return None
    config = model.config.get_text_config()
    if len(recorder.layers) != config.num_hidden_layers or not _windows_agree(config, plan.windows):
        return None
    return FastPath(
        model=model,
        backbone=model.base_model,
        cache=CacheShape(
            layers=tuple(recorder.layers[i] for i in range(config.num_hidden_layers)),
            dtype=recorder.dtype,
            device=model.device,
        ),
    )


@dataclass(slots=True)
class _Recorder:
    """Notes what each layer would cache."""

    layers: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    def keep(self, layer: int, keys_1KTD: torch.Tensor, values_1KTD: torch.Tensor) -> None:
        self.layers[layer] = (keys_1KTD.shape[1], keys_1KTD.shape[3], values_1KTD.shape[3])
        self.dtype = keys_1KTD.dtype


def _may_qualify(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    layer_types = set(getattr(config, "layer_types", None) or ())
    return (
        bool(model._supports_attention_backend)
        and layer_types <= {"full_attention", "sliding_attention"}
        and "logits_to_keep" in inspect.signature(model.forward).parameters
        # Rotary scaling that depends on the longest sequence of the batch would tie completions to
        # each other.
        and (getattr(config, "rope_parameters", None) or {}).get("rope_type")
        not in ("dynamic", "longrope")
    )


def _windows_agree(config: object, windows: set[int]) -> bool:
    """A configured window that no layer passed on to its attention would be ignored by a plan."""
    configured = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and "sliding_attention" not in layer_types:
        configured = None
    return windows == (set() if configured is None else {configured})


def _probe_ids(model: PreTrainedModel, length: int) -> torch.Tensor:
    vocab_size = model.config.get_text_config().vocab_size
    return (torch.arange(length, device=model.device) * 7 + 1)[None] % vocab_size


def _is_close(mine: torch.Tensor, reference: torch.Tensor) -> bool:
    tolerance = _TOLERANCES.get(reference.dtype, 5e-2) * (1.0 + reference.abs().max().item())
    return (mine - reference).abs().max().item() <= tolerance
