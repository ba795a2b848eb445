"""A transformers model taken apart: what adapters wrap, what lies below its LM head, and forward
passes of it in eval mode or in float32."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

_HALVES = (torch.float16, torch.bfloat16)


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
    # Some models name their prefix wrongly (Llama 4), and transformers then gives the whole back.
    inner: Any = model.base_model
    return model.get_decoder() if inner is model else inner


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
