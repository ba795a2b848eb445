"""How a model is sampled and trained here, in sentences for `sdpo check`.

The trials behind them are those of `sdpo.models.qualify` and `sdpo.engines.trial`.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from sdpo.engines.base import Engine
from sdpo.engines.cache_use import cache_use_of
from sdpo.engines.own_cache import Together
from sdpo.engines.trial import check_sampler
from sdpo.models.adapters import has_adapter
from sdpo.models.head import head_form_of
from sdpo.models.qualify import Refusal, check_trainable, fast_path_of, tree_kind_of
from sdpo.models.quantized import said_of_bytes
from sdpo.models.structure import causal_lm, name_of

_HOW: dict[Together, str] = {
    "any": "prompts together with its own cache",
    "equal": "prompts of equal length together with its own cache",
    "one": "one prompt at a time with its own cache",
    "none": "no cache, in time quadratic in the length",
}


def model_findings(model: torch.nn.Module, engine: Engine) -> list[str]:
    """How `model` is sampled and trained. Raises `SdpoError` for one that cannot be."""
    inner = causal_lm(model)
    check_trainable(model)
    gap = check_sampler(engine, inner)
    return [
        f"model: {name_of(inner)}, {inner.dtype} on {inner.device}".replace("torch.", "")
        + said_of_bytes(model),
        f"sampling: {_sampling(inner)}; {gap:.1g} nats from a plain pass",
        f"training: {_training(inner)}; the LM head is {head_form_of(inner)}",
        *_adapters(model),
    ]


def _sampling(model: PreTrainedModel) -> str:
    path = fast_path_of(model)
    if not isinstance(path, Refusal):
        return "prompts are computed once for all their attempts"
    return f"{_HOW[cache_use_of(model)]}, because {path.reason}"


def _adapters(model: torch.nn.Module) -> list[str]:
    """What has no adapters although it is most of a mixture: LoRA takes matrices, and experts are
    stacked in one tensor."""
    if not has_adapter(model):
        return []
    names, count = set(), 0
    for path, module in causal_lm(model).named_modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 2 and not parameter.requires_grad:
                names.add(f"{path.rpartition('.')[2]}.{name}")
                count += parameter.numel()
    if not names:
        return []
    return [
        f"adapters: none on {count / 1e6:.3g} million weights of {', '.join(sorted(names))}: LoRA "
        "takes linear layers, and these are stacked; they stay as they are"
    ]


def _training(model: PreTrainedModel) -> str:
    kind = tree_kind_of(model)
    if isinstance(kind, Refusal):
        return f"one sequence at a time, because {kind.reason}"
    return f"what sequences begin with is computed once ({kind})"
