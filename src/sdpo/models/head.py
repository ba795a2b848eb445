"""The LM head of a model: what stands between its last hidden states and its logits.

Most models multiply by one matrix. Some scale the product (Granite, Cohere, MiniCPM), bound it
(Gemma 2: cap x tanh(logit / cap)) or add a bias (Phi). Which of these a model does is measured on a
few tokens; its config only lends exact numbers.

Legend: T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from sdpo.errors import ModelError, first_line
from sdpo.losses.head.logits import LmHead
from sdpo.models.hidden import plain_hidden
from sdpo.models.structure import (
    causal_lm,
    evaluating,
    float32_weights,
    name_of,
    once,
    probe_ids,
)
from sdpo.models.trials import plain_logits
from sdpo.models.weights import Weights, gathered, reshard

_NUM_TOKENS = 8
_LARGEST = 50.0
"""Logits are measured where the largest is this size: small ones would not show a cap of 30."""
_TOLERANCE = 1e-4
"""Largest difference of logits that rounding explains, relative to the largest."""
_UNBENT = 0.9
"""Logits below this share of a cap still say what they were before it."""
_EXACT = 1e-6
"""A measured factor this close (relative) to one that the config's numbers make is that one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadForm:
    """How logits come from hidden states: cap(scale (W h + bias)), the terms of `LmHead`.

    Example:
        HeadForm(scale=0.0625, softcap=None, has_bias=False)
    """

    scale: float
    softcap: float | None
    has_bias: bool

    def __str__(self) -> str:
        parts = ["a bias"] if self.has_bias else []
        if self.scale != 1.0:
            parts.append(f"scale {self.scale:g}")
        if self.softcap is not None:
            parts.append(f"soft-cap {self.softcap:g}")
        return "one matrix" + (f" with {' and '.join(parts)}" if parts else "")

    def apply(self, products_TV: torch.Tensor) -> torch.Tensor:
        """Logits from W h + bias."""
        scaled_TV = products_TV * self.scale
        if self.softcap is None:
            return scaled_TV
        return (scaled_TV / self.softcap).tanh() * self.softcap


def lm_head(model: torch.nn.Module) -> LmHead:
    """The model's own head, whose tensors may require gradients. Raises `ModelError` where logits
    are not hidden states times a matrix, or that bent in a known way.

    Of a sharded model they are gathered, which all processes must ask for alike, and hold numbers
    until the end of the next backward pass or `reshard`, and again during every later pass."""
    inner = causal_lm(model)
    form, module = head_form_of(inner), inner.get_output_embeddings()
    if isinstance(inner, FSDPModule):
        inner.unshard()  # done already after a forward pass
    return LmHead(
        weight_VD=module.weight,
        bias_V=module.bias if form.has_bias else None,
        scale=form.scale,
        softcap=form.softcap,
    )


def head_of(model: torch.nn.Module, weights: Weights | None) -> LmHead:
    """The head that belongs to `weights` (None: the module's own), without gradients. Tensors are
    looked up by identity: a tied head is listed under the embedding's name. Sharded `weights` are
    gathered for it, V x D numbers in the compute type."""
    head = lm_head(model)
    if weights is not None:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        reshard(model)
        sharded = dict(model.named_parameters())

        def other(tensor: torch.Tensor) -> torch.Tensor:
            name = names.get(id(tensor), "")
            shard, part = sharded.get(name), weights.get(name, tensor)
            if part is tensor or not isinstance(shard, DTensor):
                return part
            return gathered(shard, dtype=tensor.dtype, part=part)

        bias_V = None if head.bias_V is None else other(head.bias_V)
        head = head._replace(weight_VD=other(head.weight_VD), bias_V=bias_V)
    return head.detached()


@once
@torch.no_grad()
def head_form_of(model: PreTrainedModel) -> HeadForm:
    """The form of `model`'s head, measured. Raises `ModelError` where it has none of the known
    ones."""
    head = model.get_output_embeddings()
    if head is None or not hasattr(head, "weight") or any(True for _ in head.children()):
        raise ModelError(
            f"{name_of(model)}: it has no linear LM head of its own to train with; take another "
            "model, or leave the head out of model.adapter"
        )
    has_bias = getattr(head, "bias", None) is not None
    try:
        with evaluating(model):
            products_TV, logits_TV = _measure(model, head)
    except Exception as error:
        # The code of hundreds of models raises anything.
        raise ModelError(
            f"{name_of(model)}: it cannot be trained, because its hidden states are out of reach "
            f"({first_line(error)}); take another model"
        ) from error
    for scale, softcap in _candidates(model, products_TV, logits_TV):
        form = HeadForm(scale=scale, softcap=softcap, has_bias=has_bias)
        difference = (form.apply(products_TV) - logits_TV).abs().max()
        if difference <= _TOLERANCE * _LARGEST:
            return form
    raise ModelError(
        f"{name_of(model)}: its logits are not its LM head times its last hidden states, nor that "
        "scaled or soft-capped; the loss would be another model's: take another model"
    )


def _measure(model: PreTrainedModel, head: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """W h + bias and the model's own logits, both [T, V] in float32 and for hidden states of a size
    that makes the largest product `_LARGEST`."""
    ids_T = probe_ids(model, _NUM_TOKENS)
    with float32_weights(model):
        hidden_TD = plain_hidden(model, ids_T[None])[0]
    weight_VD, bias = head.weight.float(), getattr(head, "bias", None)
    hidden_TD = hidden_TD.to(weight_VD.dtype)
    factor = _LARGEST / float((hidden_TD @ weight_VD.T).abs().max().clamp_min(1e-30))
    products_TV = torch.nn.functional.linear(
        factor * hidden_TD, weight_VD, None if bias is None else bias.float()
    )
    enlarge = head.register_forward_pre_hook(lambda _, inputs: (factor * inputs[0], *inputs[1:]))
    try:
        with float32_weights(model):
            return products_TV, plain_logits(model, ids_T).float()
    finally:
        enlarge.remove()


def _candidates(
    model: PreTrainedModel, products_TV: torch.Tensor, logits_TV: torch.Tensor
) -> Iterator[tuple[float, float | None]]:
    """Scales and caps that would explain the logits: those of no cap first."""
    if products_TV.shape != logits_TV.shape:
        return
    yield 1.0, None
    products, logits = products_TV.double().flatten(), logits_TV.double().flatten()
    numbers = dict(_numbers(model))
    yield _exact(_slope(products, logits), numbers.values()), None
    for cap in sorted({value for name, value in numbers.items() if "cap" in name}):
        is_unbent = logits.abs() < _UNBENT * cap
        before = (logits[is_unbent] / cap).atanh() * cap
        yield _exact(_slope(products[is_unbent], before), numbers.values()), cap


def _slope(x: torch.Tensor, y: torch.Tensor) -> float:
    """Least squares through the origin."""
    return float((x @ y) / (x @ x).clamp_min(1e-30))


def _numbers(model: PreTrainedModel) -> Iterator[tuple[str, float]]:
    for name, value in model.config.get_text_config().to_dict().items():
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            yield name, float(value)


def _exact(measured: float, numbers: Iterable[float]) -> float:
    """The quotient of the config's numbers (or 1) that `measured` is up to rounding, else itself:
    Granite has a divisor, Cohere a factor, MiniCPM two sizes."""
    known = (1.0, *numbers)
    best = min((a / b for a in known for b in known), key=lambda value: abs(value - measured))
    return best if abs(best - measured) <= _EXACT * abs(measured) else measured
