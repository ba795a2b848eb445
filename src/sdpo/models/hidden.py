"""A model without its LM head, run on packed trees or plain rows, and what it keeps for the
backward pass.

Legend: N tokens of a packed row, B rows, T tokens of each, D hidden size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from sdpo.errors import ModelError
from sdpo.kernels.plan import Plan, fast_layers
from sdpo.kernels.tree import FLEX_BLOCK, TreeKind
from sdpo.models.structure import backbone_of, causal_lm
from sdpo.models.weights import is_sharded

SHARDED_PASS = "sharded_pass"
"""What `last_hidden` is called as a method of a sharded model, under whose hooks it must run: they
gather the weights of its root."""


def last_hidden(model: PreTrainedModel, **inputs: Any) -> torch.Tensor:
    """Last hidden states of `model` without its LM head."""
    return backbone_of(model)(**inputs).last_hidden_state


def tree_hidden(
    model: PreTrainedModel,
    token_ids_N: torch.Tensor,
    position_ids_N: torch.Tensor,
    plan: Plan,
    kind: TreeKind,
) -> torch.Tensor:
    """Last hidden states [N, D] of a packed tree; `plan` is one of `kind`."""
    num_tokens = len(token_ids_N)
    missing = -num_tokens % FLEX_BLOCK if kind == "flex" else 0
    ids_1N, positions_1N = (
        torch.nn.functional.pad(x[None].to(model.device), (0, missing))
        for x in (token_ids_N, position_ids_N)
    )
    with fast_layers(model):
        run = getattr(model, SHARDED_PASS) if is_sharded(model) else partial(last_hidden, model)
        hidden_1ND = run(
            input_ids=ids_1N, position_ids=positions_1N, use_cache=False, sdpo_plan=plan
        )
    return hidden_1ND[0, :num_tokens]


def plain_hidden(model: PreTrainedModel, ids_BT: torch.Tensor) -> torch.Tensor:
    """Last hidden states [B, T, D] of rows without padding, by the model's own forward pass."""
    return last_hidden(model, input_ids=ids_BT.to(model.device), use_cache=False)


@contextmanager
def recomputed_layers(
    model: PreTrainedModel,
    context: Callable[[], AbstractContextManager[None]],
    *,
    device: str | None = None,
) -> Generator[None]:
    """Inside the block, layers with gradient checkpointing enabled keep no activations; without
    such layers, a CPU's RMS norms keep none but their input. `device` is the kind of device that a
    model without memory stands for.

    transformers recomputes in train mode only; the block puts the layers themselves into it and not
    what they contain, so that no dropout wakes up. A layer is recomputed during `backward`, when
    the block has long ended: `context` brings back what it ran under.
    """
    layers = _recomputable(model) if torch.is_grad_enabled() else []
    layers = [layer for layer in layers if layer.gradient_checkpointing]
    norms = [] if layers or (device or model.device.type) != "cpu" else _norms(model)
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
    if not torch.is_grad_enabled():
        return []
    return [
        module
        for module in model.modules()
        # One norm inside another (AXK2's gates) would be recomputed without its own recomputation.
        if "RMSNorm" in type(module).__name__ and not any(True for _ in module.children())
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
