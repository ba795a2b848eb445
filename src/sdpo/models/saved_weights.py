"""What a checkpoint of a model would hold, in memory: for a sampler with a copy of its own.

Adapters are added in by PEFT's own rules. Buffers that belong to a model (the correction biases of
routers) are part of it, and names are those of files: mixtures keep their experts fused in memory
and apart on disk.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from sdpo.models.adapters import has_adapter
from sdpo.models.structure import causal_lm

_BASE = "base_layer."
"""What PEFT puts into the names of the weights that it wraps."""


def merged_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every weight and persistent buffer under its name in memory, adapters added in; what an
    adapter is added to is copied. Raises `ValueError` where a sum is not finite."""
    with _merged(model):
        return {
            name.replace(_BASE, ""): tensor.detach()
            for name, tensor in causal_lm(model).state_dict().items()
            if ".lora_" not in name
        }


def saved_weights(model: torch.nn.Module, *, keep_head: bool = False) -> dict[str, torch.Tensor]:
    """`merged_weights` under the names of a checkpoint's files, tied ones once; with `keep_head`
    the head's all the same."""
    inner, weights = causal_lm(model), merged_weights(model)
    for name in inner._keys_to_ignore_on_save or ():
        weights.pop(name, None)
    head = {name: weights[name] for name in head_names(inner)} if keep_head else {}
    kept = remove_tied_weights_from_state_dict(weights, inner)
    return revert_weight_conversion(inner, {**kept, **head})


def head_names(model: PreTrainedModel) -> list[str]:
    """Names of the head's own parameters, tied or not."""
    head = model.get_output_embeddings()
    prefix = next(name for name, module in model.named_modules() if module is head)
    return [f"{prefix}.{name.replace(_BASE, '')}" for name, _ in head.named_parameters()]


@contextmanager
def _merged(model: Any) -> Generator[None]:
    """Adapters are part of the weights inside the block, which afterwards are the same tensors as
    before: adding and subtracting would leave rounding behind."""
    if not has_adapter(model):
        yield
        return
    kept = {name: parameter.data for name, parameter in model.named_parameters()}
    # Safe: into new tensors. PEFT then also looks for sums that are not finite.
    model.merge_adapter(safe_merge=True)
    try:
        yield
    finally:
        # PEFT's own way back would subtract in the tensors that the block has handed out.
        for module in model.modules():
            if (merged := getattr(module, "merged_adapters", None)) is not None:
                merged.clear()
        for name, parameter in model.named_parameters():
            parameter.data = kept[name]
