"""A model without its LM head, run on packed trees or plain rows, and what it must be like.

Which way a model can go is found out by trying, once per model, instead of from a list of names.

Legend: N tokens of a packed row, B rows, T tokens of each, D hidden size.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from sdpo.engines.architecture import causal_lm, evaluating, probe
from sdpo.engines.attention import engine_attention
from sdpo.engines.block_attention import BlockAttention
from sdpo.errors import ModelError
from sdpo.training.attention import FLEX_BLOCK, BranchAttention, FlexAttention
from sdpo.training.prefix_tree import Segment, paths

_logger = logging.getLogger(__name__)

Kind = Literal["flex", "branches", "blocks", "separate"]
"""How a model attends: three ways over a packed tree, or items in rows of their own."""

_TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-4}
"""Largest difference of hidden states that rounding explains, relative to their largest magnitude;
5e-2 for half precisions. Float64 models still normalise and rotate in float32."""

_PROBE_SEGMENTS = (
    Segment(start=0, stop=6, parent=None, position=0),
    Segment(start=6, stop=11, parent=0, position=6),
    Segment(start=11, stop=14, parent=1, position=11),
    Segment(start=14, stop=17, parent=0, position=6),
    Segment(start=17, stop=20, parent=None, position=0),
)
_PROBE_PATHS = ((0, 1, 2), (0, 3), (4,))

_kinds: WeakKeyDictionary[PreTrainedModel, Kind] = WeakKeyDictionary()


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


def shares_prefixes(model: PreTrainedModel) -> bool:
    """Whether a packed tree saves anything for `model`; else `pack` with `share_prefixes=False`."""
    return attention_kind(causal_lm(model)) != "separate"


def attention_kind(model: PreTrainedModel) -> Kind:
    """How `model` attends in `hidden_rows`, found out on the first call and remembered."""
    if model not in _kinds:
        _kinds[model] = _find_kind(model)
    return _kinds[model]


def tree_hidden(
    model: PreTrainedModel,
    token_ids_N: torch.Tensor,
    position_ids_N: torch.Tensor,
    segments: Sequence[Segment],
    kind: Kind | None = None,
) -> torch.Tensor:
    """Last hidden states [N, D] of a packed tree."""
    num_tokens = len(token_ids_N)
    ids_1N, positions_1N = token_ids_N[None].to(model.device), position_ids_N[None].to(model.device)
    kind = kind or attention_kind(model)
    if kind == "flex":
        missing = -num_tokens % FLEX_BLOCK
        ids_1N, positions_1N = (
            torch.nn.functional.pad(x, (0, missing)) for x in (ids_1N, positions_1N)
        )
        plan: Any = FlexAttention(segments, num_tokens + missing, model.device)
    elif kind == "blocks":
        plan = BlockAttention(paths(segments))
    else:
        plan = BranchAttention(segments, model.device)
    with engine_attention(model):
        hidden_1ND = model.base_model(
            input_ids=ids_1N, position_ids=positions_1N, use_cache=False, sdpo_plan=plan
        ).last_hidden_state
    return hidden_1ND[0, :num_tokens]


def plain_hidden(model: PreTrainedModel, ids_BT: torch.Tensor) -> torch.Tensor:
    """Last hidden states [B, T, D] of rows without padding, by the model's own forward pass."""
    return model.base_model(input_ids=ids_BT.to(model.device), use_cache=False).last_hidden_state


@contextmanager
def recomputed_layers(
    model: PreTrainedModel,
    context: Callable[[], AbstractContextManager[None]],
    *,
    wanted: bool,
) -> Generator[None]:
    """Layers forget their activations inside the block, when `wanted` or enabled on the model.

    transformers recomputes in train mode only; the block puts the layers themselves into it and not
    what they contain, so that no dropout wakes up. A layer is recomputed during `backward`, when
    the block has long ended: `context` brings back what it ran under.
    """
    layers = _recomputable(model) if torch.is_grad_enabled() else []
    layers = [layer for layer in layers if wanted or layer.gradient_checkpointing]
    recompute = functools.partial(
        checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), context())
    )
    names = ("training", "gradient_checkpointing", "_gradient_checkpointing_func")
    before = [{name: getattr(layer, name, None) for name in names} for layer in layers]
    try:
        for layer in layers:
            layer.training = layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = recompute
        yield
    finally:
        for layer, values in zip(layers, before, strict=True):
            for name, value in values.items():
                setattr(layer, name, value)


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Recompute the layers of `model` in every backward pass of `hidden_rows`.

    Raises `ModelError` where that cannot be done.
    """
    layers = _recomputable(causal_lm(model))
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no layers that can be recomputed; set "
            "optim.gradient_checkpointing = false and lower optim.micro_batch_tokens"
        )
    for layer in layers:
        layer.gradient_checkpointing = True


def _recomputable(model: PreTrainedModel) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _find_kind(model: PreTrainedModel) -> Kind:
    # Attention sinks are weights that the plans do not read: they would silently stop training.
    has_sinks = any(name.endswith("sinks") for name, _ in model.named_parameters())
    with torch.no_grad(), evaluating(model):
        if has_sinks or probe(model) is None:
            return "separate"
        kinds: tuple[Kind, ...] = (
            ("flex", "branches") if model.device.type == "cuda" else ("blocks",)
        )
        for kind in kinds:
            try:
                if _agrees(model, kind):
                    return kind
            except RuntimeError as error:
                # Compilers fail in many ways (no C++ or Triton, a head size without a kernel).
                _logger.warning(
                    "%s: attention as %r does not run here: %s", model.name_or_path, kind, error
                )
    return "separate"


def _agrees(model: PreTrainedModel, kind: Kind) -> bool:
    """Whether a small packed tree gives the hidden states of plain rows."""
    vocab_size = model.config.get_text_config().vocab_size
    num_tokens = _PROBE_SEGMENTS[-1].stop
    token_ids = (torch.arange(num_tokens) * 7 + 1) % vocab_size
    positions = torch.cat([torch.arange(len(s)) + s.position for s in _PROBE_SEGMENTS])
    packed = tree_hidden(model, token_ids, positions, _PROBE_SEGMENTS, kind)
    tolerance = _TOLERANCES.get(packed.dtype, 5e-2) * (1.0 + packed.abs().max().item())
    for path in _PROBE_PATHS:
        places = torch.cat(
            [torch.arange(s.start, s.stop) for s in (_PROBE_SEGMENTS[i] for i in path)]
        )
        plain = plain_hidden(model, token_ids[places][None])[0]
        if (packed[places.to(packed.device)] - plain).abs().max().item() > tolerance:
            return False
    return True
