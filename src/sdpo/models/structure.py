"""Which models can take the fast path, found out by trying instead of from a list of names.

A model qualifies when its attention goes through transformers' registry, every layer keeps keys and
values of every token (full or sliding-window attention, no recurrent state), and its logits on two
packed sequences equal those of plain forward passes. Anything else is sampled by `generic.py`,
correctly and more slowly.

Equal is asked in float32, whatever the weights are stored in: over thirty layers the rounding of
bfloat16 grows to 5% of SmolLM2's logits, as much as a wrongly masked token may change.
"""

from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from sdpo.errors import ModelError
from sdpo.kernels.cache import CacheShape
from sdpo.kernels.plan import MissingPlanError, Observed, Scores, Segment, fast_layers
from sdpo.kernels.tree import tree_plan

_logger = logging.getLogger(__name__)

_PROBE_LENGTHS = (5, 9)
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Largest difference of logits, relative to their largest magnitude."""
_HALVES = (torch.float16, torch.bfloat16)

_Format = tuple[torch.device, torch.dtype]
_found: WeakKeyDictionary[PreTrainedModel, tuple[_Format, CacheShape | None]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class FastPath:
    """A model that passed, taken apart for the engine.

    Example:
        fast = probe(model); fast.cache.layers
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
    generic way; the log says why. Found out once for a model and its device and number format.
    """
    wanted = model.device, model.dtype
    if model not in _found or _found[model][0] != wanted:
        _found[model] = wanted, _cache_shape(model)
    shape = _found[model][1]
    if shape is None:
        return None
    return FastPath(model=model, backbone=model.base_model, cache=shape)


def _cache_shape(model: PreTrainedModel) -> CacheShape | None:
    recorder = _Recorder()
    if problem := _problem(model, recorder):
        _logger.warning(
            "%s (%s) is sampled and trained without shared prompts, which takes several times as "
            "long: %s",
            type(model).__name__,
            model.name_or_path or "no name",
            problem,
        )
        return None
    num_layers = model.config.get_text_config().num_hidden_layers
    return CacheShape(
        layers=tuple(recorder.layers[i] for i in range(num_layers)),
        dtype=recorder.dtype,
        device=model.device,
    )


@dataclass(slots=True)
class _Recorder:
    """Notes what each layer would cache, and the sliding windows that layers asked for."""

    layers: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    windows: set[int] = field(default_factory=set)

    def see(
        self, layer: int, keys_1KTD: torch.Tensor, values_1KTD: torch.Tensor, scores: Scores
    ) -> None:
        self.layers[layer] = (keys_1KTD.shape[1], keys_1KTD.shape[3], values_1KTD.shape[3])
        self.dtype = keys_1KTD.dtype
        if scores.window is not None:
            self.windows.add(scores.window)


def _problem(model: PreTrainedModel, recorder: _Recorder) -> str:
    """Why `model` does not qualify, empty if it does; `recorder` learns what its layers cache."""
    config = model.config.get_text_config()
    layer_types = set(getattr(config, "layer_types", None) or ())
    rope_type = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if not model._supports_attention_backend:
        return "its attention does not go through transformers' registry"
    if others := layer_types - {"full_attention", "sliding_attention"}:
        return f"it has layers of type {', '.join(sorted(others))}"
    if rope_type in ("dynamic", "longrope"):
        return f"{rope_type} rotary scaling ties completions of a batch to the longest one"
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return "its forward pass takes no logits_to_keep"
    if not has_plain_head(model):
        return "its logits are not those of its LM head on the last hidden states"
    try:
        _packed_logits(model, recorder)
        with float32_weights(model):
            packed = _packed_logits(model, _Recorder())
            ids = _probe_ids(model, max(_PROBE_LENGTHS))
            alone = model(input_ids=ids, use_cache=False).logits
    except (MissingPlanError, TypeError, AttributeError) as error:
        return f"its attention does not take a plan ({error})"
    for part, length in zip(packed.split(_PROBE_LENGTHS, dim=1), _PROBE_LENGTHS, strict=True):
        if not _is_close(part, alone[:, :length]):
            return "packed sequences give other logits than each alone"
    if len(recorder.layers) != config.num_hidden_layers:
        return f"only {len(recorder.layers)} of its {config.num_hidden_layers} layers cache tokens"
    if not _windows_agree(config, recorder.windows):
        return "its sliding window does not reach its attention"
    return ""


def _packed_logits(model: PreTrainedModel, recorder: _Recorder) -> torch.Tensor:
    """Logits of two sequences side by side in one row, the shorter one the start of the longer."""
    ids = _probe_ids(model, max(_PROBE_LENGTHS))
    stops = list(itertools.accumulate(_PROBE_LENGTHS))
    segments = [
        Segment(start=stop - length, stop=stop, parent=None, position=0)
        for length, stop in zip(_PROBE_LENGTHS, stops, strict=True)
    ]
    plan = Observed(plan=tree_plan(segments, model.device), see=recorder.see)
    positions = torch.cat([torch.arange(length) for length in _PROBE_LENGTHS])
    with fast_layers(model):
        return model(
            input_ids=torch.cat([ids[:, :length] for length in _PROBE_LENGTHS], dim=1),
            position_ids=positions[None].to(ids.device),
            use_cache=False,
            sdpo_plan=plan,
        ).logits


@contextmanager
def float32_weights(model: torch.nn.Module) -> Generator[None]:
    """Half-precision weights of `model` are float32 inside the block, each while it is in use, so
    that it takes the memory of one layer (or one embedding) more. For calls without gradients.
    """
    kept: list[tuple[torch.nn.Parameter, torch.Tensor]] = []

    def widen(unit: torch.nn.Module, _: object) -> None:
        for parameter in unit.parameters():
            if parameter.dtype in _HALVES:
                kept.append((parameter, parameter.data))
                parameter.data = parameter.data.float()

    def restore(*_: object) -> None:
        while kept:
            parameter, data = kept.pop()
            parameter.data = data

    hooks: list[Any] = []
    try:
        for unit in _units(model):
            hooks.append(unit.register_forward_pre_hook(widen))
            hooks.append(unit.register_forward_hook(restore, always_call=True))
        yield
    finally:
        restore()
        for hook in hooks:
            hook.remove()


def _units(module: torch.nn.Module) -> Generator[torch.nn.Module]:
    """Layers, and around them what has parameters of its own."""
    is_layer = isinstance(module, GradientCheckpointingLayer)
    if is_layer or next(module.parameters(recurse=False), None) is not None:
        yield module
    else:
        for child in module.children():
            yield from _units(child)


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
    tolerance = _TOLERANCES.get(reference.dtype, 1e-2) * (1.0 + reference.abs().max().item())
    return (mine - reference).abs().max().item() <= tolerance


def check_head(model: PreTrainedModel) -> None:
    """Raises `ModelError` unless logits are hidden states times one matrix, as the loss assumes."""
    inner = causal_lm(model)
    config = inner.config.get_text_config()
    for name, neutral in (
        ("final_logit_softcapping", None),
        ("logit_scale", 1.0),
        ("logits_scaling", 1.0),
    ):
        value = getattr(config, name, None)
        if value not in (None, neutral):
            raise ModelError(
                f"{type(inner).__name__} has {name} = {value}: training with a transformed LM head "
                "is not supported; take another model"
            )
    head = inner.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise ModelError(
            f"{type(inner).__name__} has no plain linear LM head to train with; take another model"
        )
