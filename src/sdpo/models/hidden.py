"""A model without its LM head, run on packed trees or plain rows, and what it must be like.

Which way a model can go is found out by trying, once per model, instead of from a list of names.

Legend: N tokens of a packed row, B rows, T tokens of each, D hidden size, H query heads, K
key-value heads, E head size.
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

from sdpo.errors import ModelError
from sdpo.kernels.plan import Plan, Scores, Segment, fast_layers, paths
from sdpo.kernels.tree import FLEX_BLOCK, TreeKind, tree_plan
from sdpo.models.structure import causal_lm, evaluating, probe

_logger = logging.getLogger(__name__)

Kind = TreeKind | Literal["separate"]
"""How a model attends: over a packed tree, or items in rows of their own."""

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference of one layer's attention that rounding explains, relative to the largest
value; 1e-2 for half precisions."""

_PROBE_SEGMENTS = (
    Segment(start=0, stop=6, parent=None, position=0),
    Segment(start=6, stop=11, parent=0, position=6),
    Segment(start=11, stop=14, parent=1, position=11),
    Segment(start=14, stop=17, parent=0, position=6),
    Segment(start=17, stop=20, parent=None, position=0),
)

_kinds: WeakKeyDictionary[PreTrainedModel, Kind] = WeakKeyDictionary()


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
) -> torch.Tensor:
    """Last hidden states [N, D] of a packed tree."""
    kind = attention_kind(model)
    assert kind != "separate"
    plan = tree_plan(segments, model.device, kind=kind)
    return _tree_pass(model, token_ids_N, position_ids_N, plan, kind)


def _tree_pass(
    model: PreTrainedModel,
    token_ids_N: torch.Tensor,
    position_ids_N: torch.Tensor,
    plan: Plan,
    kind: TreeKind,
) -> torch.Tensor:
    num_tokens = len(token_ids_N)
    missing = -num_tokens % FLEX_BLOCK if kind == "flex" else 0
    ids_1N, positions_1N = (
        torch.nn.functional.pad(x[None].to(model.device), (0, missing))
        for x in (token_ids_N, position_ids_N)
    )
    with fast_layers(model):
        hidden_1ND = model.base_model(
            input_ids=ids_1N, position_ids=positions_1N, use_cache=False, sdpo_plan=plan
        ).last_hidden_state
    return hidden_1ND[0, :num_tokens]


def plain_hidden(model: PreTrainedModel, ids_BT: torch.Tensor) -> torch.Tensor:
    """Last hidden states [B, T, D] of rows without padding, by the model's own forward pass."""
    return model.base_model(input_ids=ids_BT.to(model.device), use_cache=False).last_hidden_state


@contextmanager
def recomputed_layers(
    model: PreTrainedModel, context: Callable[[], AbstractContextManager[None]]
) -> Generator[None]:
    """Inside the block, layers with gradient checkpointing enabled keep no activations; without
    such layers, a CPU's RMS norms keep none but their input.

    transformers recomputes in train mode only; the block puts the layers themselves into it and not
    what they contain, so that no dropout wakes up. A layer is recomputed during `backward`, when
    the block has long ended: `context` brings back what it ran under.
    """
    layers = _recomputable(model) if torch.is_grad_enabled() else []
    layers = [layer for layer in layers if layer.gradient_checkpointing]
    norms = [] if layers else _norms(model)
    recompute = functools.partial(
        checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), context())
    )
    names = ("training", "gradient_checkpointing", "_gradient_checkpointing_func")
    before = [{name: getattr(layer, name, None) for name in names} for layer in layers]
    try:
        for layer in layers:
            layer.training = layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = recompute
        for norm in norms:
            norm.forward = functools.partial(_recomputed_norm, norm.forward)
        yield
    finally:
        for layer, values in zip(layers, before, strict=True):
            for name, value in values.items():
                setattr(layer, name, value)
        for norm in norms:
            del norm.forward  # the instance attribute; the class's method is back


def _norms(model: PreTrainedModel) -> list[Any]:
    """Norms worth recomputing: transformers computes them in float32 in eight operations, of which
    autograd keeps ten bytes a number for an input of two. SmolLM2 in bfloat16 on a CPU: a pass of
    4,096 tokens peaks at 3.1 GB instead of 4.4 and takes 1.00 of the time, one of 1,024 0.98: what
    is not kept need not be fetched again. On CUDA not measured, and left alone."""
    if model.device.type != "cpu" or not torch.is_grad_enabled():
        return []
    return [
        module
        for module in model.modules()
        if "RMSNorm" in type(module).__name__ and "forward" not in vars(module)
    ]


def _recomputed_norm(forward: Callable[..., torch.Tensor], *args: Any, **options: Any) -> Any:
    return checkpoint(
        forward,
        *args,
        use_reentrant=False,
        # A norm draws nothing, and its code takes the same way each time.
        preserve_rng_state=False,
        determinism_check="none",
        **options,
    )


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
        kinds: tuple[TreeKind, ...] = (
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


def _agrees(model: PreTrainedModel, kind: TreeKind) -> bool:
    """Whether every layer attends to a small packed tree as it should."""
    num_tokens = _PROBE_SEGMENTS[-1].stop
    ids_N = torch.zeros(num_tokens, dtype=torch.long)
    positions_N = torch.cat([torch.arange(len(s)) + s.position for s in _PROBE_SEGMENTS])
    checked = _Checked(tree_plan(_PROBE_SEGMENTS, model.device, kind=kind), positions_N)
    _tree_pass(model, ids_N, positions_N, checked, kind)
    return checked.agrees


class _Checked:
    """A plan for the small tree whose every layer is compared with attention by its definition.

    On drawn queries, keys and values: a trained model's own say little where its first token draws
    all attention, and what they are rounded to would differ more and more from layer to layer.
    """

    def __init__(self, plan: Plan, positions_N: torch.Tensor) -> None:
        self.agrees = True
        self._plan = plan
        self._distance_NN = positions_N[:, None] - positions_N
        self._visible_NN = torch.zeros_like(self._distance_NN, dtype=torch.bool)
        for path in paths(_PROBE_SEGMENTS):
            for place in range(path[-1].start, path[-1].stop):
                for part in path:
                    self._visible_NN[place, part.start : min(part.stop, place + 1)] = True

    def attend(
        self,
        layer: int,
        query_1HNE: torch.Tensor,
        key_1KNE: torch.Tensor,
        value_1KNE: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:
        draw = torch.Generator().manual_seed(layer)
        # In the strides of the model's own, or compiled attention would be compiled once more.
        drawn = [
            torch.empty_like(x).copy_(torch.randn(x.shape, generator=draw))
            for x in (query_1HNE, key_1KNE, value_1KNE)
        ]
        output_1NHE = self._plan.attend(layer, *drawn, scores)
        num_tokens = len(self._visible_NN)
        query_HNE, key_KNE, value_KNE = (x[0, :, :num_tokens].double().cpu() for x in drawn)
        expected_NHE = self._defined(query_HNE, key_KNE, value_KNE, scores)
        difference = (output_1NHE[0, :num_tokens].double().cpu() - expected_NHE).abs().max()
        tolerance = _TOLERANCES.get(value_1KNE.dtype, 1e-2) * value_KNE.abs().max()
        self.agrees &= bool(difference <= tolerance)
        return output_1NHE

    def _defined(
        self,
        query_HNE: torch.Tensor,
        key_KNE: torch.Tensor,
        value_KNE: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:
        """Attention [N, H, E] of every token to the visible ones."""
        repeats = len(query_HNE) // len(key_KNE)
        key_HNE, value_HNE = (x.repeat_interleave(repeats, dim=0) for x in (key_KNE, value_KNE))
        scores_HNN = scores.capped(query_HNE @ key_HNE.transpose(1, 2) * scores.scaling)
        visible_NN = self._visible_NN
        if scores.window is not None:
            visible_NN = visible_NN & (self._distance_NN < scores.window)
        weights_HNN = scores_HNN.masked_fill(~visible_NN, float("-inf")).softmax(-1)
        return (weights_HNN @ value_HNE).transpose(0, 1)
