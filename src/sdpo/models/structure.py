"""A transformers model taken apart: what adapters wrap, what lies below its LM head, and forward
passes of it in eval mode or in float32."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

_HALVES = (torch.float16, torch.bfloat16)
_CHANGING_ROTATIONS = ("dynamic", "longrope")

_originals: WeakKeyDictionary[PreTrainedModel, PreTrainedModel] = WeakKeyDictionary()

_Format = tuple[torch.device, torch.dtype]
_Found = TypeVar("_Found")


def once(find: Callable[[PreTrainedModel], _Found]) -> Callable[[PreTrainedModel], _Found]:
    """`find`, called once for a model and its device and number format."""
    known: WeakKeyDictionary[PreTrainedModel, tuple[_Format, _Found]] = WeakKeyDictionary()

    @functools.wraps(find)
    def look_up(model: PreTrainedModel) -> _Found:
        model = _originals.get(model, model)
        wanted = model.device, model.dtype
        if model not in known or known[model][0] != wanted:
            known[model] = wanted, find(model)
        return known[model][1]

    return look_up


def stands_for(model: PreTrainedModel, original: PreTrainedModel) -> None:
    """What was found out about `original` is also true of `model`, which is not tried itself."""
    _originals[model] = original


def name_of(model: PreTrainedModel) -> str:
    """The model's class and what it was loaded from."""
    return f"{type(model).__name__} ({model.name_or_path or 'no name'})"


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


def backbone_of(model: PreTrainedModel) -> torch.nn.Module:
    """The model without its LM head: token ids to last hidden states."""
    inner: Any = model.base_model
    if inner is not model:
        return inner
    decoder: Any = model.get_decoder()
    if decoder is not model and isinstance(decoder, PreTrainedModel):
        return backbone_of(decoder)  # Llama 4 has a whole text model beside its tower
    # Llama 4 names a prefix that it has not, and transformers then gives the whole back.
    return next(child for child in model.children() if isinstance(child, PreTrainedModel))


def changing_rotation(model: PreTrainedModel) -> str:
    """The kind of rotary scaling whose factors change once a sequence is long; empty if none."""
    return next((kind for kind, _ in _rotations(model) if kind in _CHANGING_ROTATIONS), "")


def max_positions(model: PreTrainedModel) -> int:
    """Tokens that a sequence may have; without a limit of the model's own, more than any has.

    Where rotary factors change with the length, it is the length up to which they do not: past it,
    a token sampled early has other probabilities by the time its sequence is trained on.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 62
    unchanged = [length for kind, length in _rotations(model) if kind in _CHANGING_ROTATIONS]
    return min([limit, *filter(None, unchanged)])


def _rotations(model: PreTrainedModel) -> list[tuple[str, int | None]]:
    """Rotary scalings, one for the model or one a kind of layer, and what they were trained at."""
    settings: Any = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    parts = [part for part in settings.values() if isinstance(part, dict)] or [settings]
    return [
        (part.get("rope_type") or "", part.get("original_max_position_embeddings"))
        for part in parts
    ]


def probe_ids(model: PreTrainedModel, length: int, *, start: int = 1) -> torch.Tensor:
    """[T] token ids to try a model on, `length` different ones if its vocabulary allows; always
    the same."""
    vocab_size = model.config.get_text_config().vocab_size
    return (torch.arange(length, device=model.device) * 7 + start) % vocab_size


@contextmanager
def float32_weights(model: torch.nn.Module) -> Generator[None]:
    """Half-precision weights of `model` are float32 inside the block, each while it is in use, so
    that it takes the memory of one layer (or one embedding) more. For calls without gradients.
    """
    kept: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    # Quantised layers multiply in a format of their own.
    layers: list[Any] = [layer for layer in model.modules() if hasattr(layer, "compute_dtype")]
    formats = [layer.compute_dtype for layer in layers]

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
        for layer in layers:
            layer.compute_dtype = torch.float32
        for unit in _units(model):
            hooks.append(unit.register_forward_pre_hook(widen))
            hooks.append(unit.register_forward_hook(restore, always_call=True))
        yield
    finally:
        restore()
        for hook in hooks:
            hook.remove()
        for layer, compute_dtype in zip(layers, formats, strict=True):
            layer.compute_dtype = compute_dtype


def _units(module: torch.nn.Module) -> Generator[torch.nn.Module]:
    """Layers, and around them what has parameters of its own."""
    is_layer = isinstance(module, GradientCheckpointingLayer)
    if is_layer or next(module.parameters(recurse=False), None) is not None:
        yield module
    else:
        for child in module.children():
            yield from _units(child)
