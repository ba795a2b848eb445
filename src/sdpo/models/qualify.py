"""Which way a model can go, found out by trying it instead of from a list of names.

*Sampled fast*: its attention goes through transformers' registry, every layer keeps keys and values
of every token (full or sliding-window attention, no recurrent state), and both a packed tree and
two decode steps give the logits of plain forward passes. Anything else is sampled by
`engines/fallback.py`, correctly and more slowly. *Trained on trees*: the same without the cache,
and its gradients are those of plain rows; otherwise each sequence has a row of its own.

Equal is asked in float32, whatever the weights are stored in: over thirty layers the rounding of
bfloat16 grows to 5% of SmolLM2's logits, as much as a wrongly masked token may change. Code that
runs in the weights' own format is compared layer by layer (`kernels/definition.py`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from sdpo.config.schema import FullWeightsConfig
from sdpo.errors import ModelError, first_line
from sdpo.kernels.cache import CacheShape
from sdpo.kernels.plan import Scores
from sdpo.kernels.tree import TreeKind
from sdpo.models import trials
from sdpo.models.adapters import has_adapter
from sdpo.models.head import head_form_of
from sdpo.models.quantized import check_quantization
from sdpo.models.structure import (
    backbone_of,
    causal_lm,
    changing_rotation,
    evaluating,
    float32_weights,
    name_of,
    once,
    probe_ids,
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a model cannot go the fast way.

    Example:
        Refusal(reason="it has layers of type linear_attention")
    """

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FastPath:
    """A model that the fast sampler takes.

    Example:
        FastPath(model=model, backbone=model.base_model, cache=shape)
    """

    model: PreTrainedModel
    backbone: torch.nn.Module
    """Token ids to last hidden states."""
    cache: CacheShape


def fast_path_of(model: PreTrainedModel) -> FastPath | Refusal:
    """The fast path of `model`, or why it is sampled the slow way, which the log then says. Raises
    `ModelError` for a model whose logits are not finite."""
    found = _cache_of(model)
    if isinstance(found, Refusal):
        return found
    return FastPath(model=model, backbone=backbone_of(model), cache=found)


@once
def tree_kind_of(model: PreTrainedModel) -> TreeKind | Refusal:
    """How `model` attends to a packed tree, or why every sequence gets a row of its own, which the
    log then says. Raises `ModelError` for a model whose logits are not finite."""
    with evaluating(model):
        with torch.no_grad():
            found = _against_trees(model) or _fastest_kind(model)
        if not isinstance(found, Refusal):
            with torch.enable_grad():
                difference = trials.gradient_difference(model, found)
            if difference:
                found = Refusal(reason=f"{difference} on packed sequences")
    if isinstance(found, Refusal):
        _logger.warning(
            "%s is trained on one sequence at a time, which takes several times as long: %s",
            name_of(model),
            found.reason,
        )
    return found


def check_trainable(model: torch.nn.Module) -> None:
    """Raises `ModelError` or `ConfigError` for a model that cannot be trained: its weights are
    quantised and have no adapter, its head has no known form, or
    logits or gradients are not finite. Finds out on the way how packed sequences run."""
    inner = causal_lm(model)
    if not has_adapter(model):
        check_quantization(inner, FullWeightsConfig())
    head_form_of(inner)
    tree_kind_of(inner)
    with evaluating(inner), torch.enable_grad():
        is_finite = trials.has_finite_gradients(inner)
    if not is_finite:
        raise ModelError(
            f"{name_of(inner)}: its gradients are not finite in {inner.dtype}; the weights are "
            "damaged or have diverged, or need model.dtype = 'float32'"
        )


def shares_prefixes(model: PreTrainedModel) -> bool:
    """Whether a packed tree saves anything for `model`; else `pack` with `share_prefixes=False`."""
    return not isinstance(tree_kind_of(causal_lm(model)), Refusal)


@once
def _cache_of(model: PreTrainedModel) -> CacheShape | Refusal:
    with torch.no_grad(), evaluating(model):
        found = _against_trees(model) or _look_at_cache(model)
    if isinstance(found, Refusal):
        _logger.warning("%s is sampled the slow way: %s", name_of(model), found.reason)
    return found


@once
def _against_trees(model: PreTrainedModel) -> Refusal | None:
    """Why `model` cannot run on a packed tree; None if it can."""
    _require_finite(model)
    if reason := _beyond_trial(model):
        return Refusal(reason=reason)
    windows: set[int] = set()

    def see(layer: int, keys: torch.Tensor, values: torch.Tensor, scores: Scores) -> None:
        if scores.window is not None:
            windows.add(scores.window)

    try:
        with float32_weights(model):
            is_equal = trials.packed_equals_plain(model, see)
    except Exception as error:  # noqa: BLE001  # the code of hundreds of models raises anything
        return Refusal(reason=f"its attention does not take a plan ({first_line(error)})")
    if not is_equal:
        return Refusal(reason="packed sequences give other logits than each alone")
    if not _windows_agree(model, windows):
        return Refusal(reason="its sliding window does not reach its attention")
    return None


def _require_finite(model: PreTrainedModel) -> None:
    logits_TV = trials.plain_logits(model, probe_ids(model, 4))
    if not bool(logits_TV.isfinite().all()):
        raise ModelError(
            f"{name_of(model)}: its logits are not finite in {model.dtype}; the weights are "
            "damaged or have diverged, or need model.dtype = 'float32'"
        )


def _beyond_trial(model: PreTrainedModel) -> str:
    """What no short sequence would show, because it begins to matter after thousands of tokens."""
    layer_types = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if not model._supports_attention_backend:
        return "its attention does not go through transformers' registry"
    if others := layer_types - {"full_attention", "sliding_attention"}:
        return f"it has layers of type {', '.join(sorted(others))}"
    if kind := changing_rotation(model):
        return f"{kind} rotary scaling ties completions of a batch to the longest one"
    return ""


def _windows_agree(model: PreTrainedModel, windows: set[int]) -> bool:
    """A configured window that no layer passed on to its attention would be ignored by a plan."""
    config = model.config.get_text_config()
    configured = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and "sliding_attention" not in layer_types:
        configured = None
    return windows == (set() if configured is None else {configured})


@dataclass(slots=True)
class _LayersSeen:
    """What each layer would cache, noted while it attends."""

    sizes: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    def see(self, layer: int, keys: torch.Tensor, values: torch.Tensor, scores: Scores) -> None:
        self.sizes[layer] = (keys.shape[1], keys.shape[3], values.shape[3])
        self.dtype = keys.dtype


def _look_at_cache(model: PreTrainedModel) -> CacheShape | Refusal:
    """What the layers of a model that takes plans cache, or why decode steps cannot read it."""
    seen = _LayersSeen()
    trials.packed_logits(model, seen.see)
    num_layers = model.config.get_text_config().num_hidden_layers
    if set(seen.sizes) != set(range(num_layers)):
        return Refusal(reason=f"only {len(seen.sizes)} of its {num_layers} layers cache tokens")
    layers = tuple(seen.sizes[i] for i in range(num_layers))
    try:
        with float32_weights(model):
            is_equal = trials.decoding_equals_plain(model, layers)
    except Exception as error:  # noqa: BLE001  # the code of hundreds of models raises anything
        return Refusal(reason=f"a decode step fails ({first_line(error)})")
    if not is_equal:
        # DiffLlama's layers attend twice, for instance, and would cache the second time only.
        return Refusal(reason="decode steps give other logits than a plain pass")
    return CacheShape(layers=layers, dtype=seen.dtype, device=model.device)


def _fastest_kind(model: PreTrainedModel) -> TreeKind | Refusal:
    """The fastest attention that is right in every layer of `model`."""
    kinds: tuple[TreeKind, ...] = (
        ("flex", "branches") if model.device.type == "cuda" else ("blocks",)
    )
    for kind in kinds:
        try:
            if trials.attends_rightly(model, kind):
                return kind
        except RuntimeError as error:
            # Compilers fail in many ways (no C++ or Triton, a head size without a kernel).
            _logger.warning(
                "%s: attention as %r does not run here: %s", name_of(model), kind, error
            )
    return Refusal(reason="none of its ways to attend to a tree is right")
