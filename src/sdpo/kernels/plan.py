"""The seam between a transformers model and our attention: who sees whom in one forward pass.

A model runs on one flat row of tokens, [1, T], and every attention layer hands its fresh queries,
keys and values to the *plan* that was passed as the keyword `sdpo_plan`. Each file of this package
computes a plan or what a plan needs; none knows rollouts, losses or settings.

Shapes: T tokens of a flat row, H query heads, K key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A run of tokens in a packed row, continuing an earlier run or starting a tree.

    Example:
        Segment(start=7, stop=12, parent=0, position=7)
    """

    start: int
    stop: int
    parent: int | None
    """Index of the segment it continues; always a smaller one."""
    position: int
    """Position of its first token within its sequences: the number of tokens before it."""

    def __len__(self) -> int:
        return self.stop - self.start


def paths(segments: Sequence[Segment]) -> list[tuple[slice, ...]]:
    """Per segment the places of what its tokens see: its ancestors' runs, root first, and its
    own."""
    runs: list[tuple[slice, ...]] = []
    for segment in segments:
        above = () if segment.parent is None else runs[segment.parent]
        runs.append((*above, slice(segment.start, segment.stop)))
    return runs


ATTENTION_NAME = "sdpo_plan"
"""What `fast_layers` calls our attention in transformers' registry."""

MASKED = -1e30
"""A score that hides its key. Finite, because infinity times the False of a boolean mask is NaN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How a layer turns q.k into scores.

    Example:
        Scores(scaling=0.125, window=None, softcap=None)
    """

    scaling: float
    window: int | None
    """A query sees the last `window` positions, its own included; None: all."""
    softcap: float | None
    """cap * tanh(score / cap) before the mask; None: none."""

    def capped(self, scores: torch.Tensor) -> torch.Tensor:
        if self.softcap is None:
            return scores
        return scores.div_(self.softcap).tanh_().mul_(self.softcap)


class PlanError(RuntimeError):
    """An attention layer was reached without a plan, or with something that no plan computes."""


class Plan(Protocol):
    """What one forward pass attends to."""

    def attend(
        self,
        layer: int,
        query_1HTD: torch.Tensor,
        key_1KTD: torch.Tensor,
        value_1KTD: torch.Tensor,
        scores: Scores,
        /,
    ) -> torch.Tensor:
        """Attention output [1, T, H, D]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A plan that shows each layer's keys and values [1, K, T, D] to `see` before it attends.

    Prefill fills the cache this way.

    Example:
        Observed(plan=BlockAttention(segments), see=lambda layer, keys, values, scores: None)
    """

    plan: Plan
    see: Callable[[int, torch.Tensor, torch.Tensor, Scores], None]

    def attend(
        self,
        layer: int,
        query_1HTD: torch.Tensor,
        key_1KTD: torch.Tensor,
        value_1KTD: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:
        self.see(layer, key_1KTD, value_1KTD, scores)
        return self.plan.attend(layer, query_1HTD, key_1KTD, value_1KTD, scores)


def _registered(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    sdpo_plan: Plan | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    if sdpo_plan is None:
        raise PlanError("this architecture does not hand keyword arguments to its attention")
    if s_aux is not None:
        raise PlanError("it has attention sinks, which no plan reads")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = Scores(scaling=scaling, window=sliding_window, softcap=softcap)
    return sdpo_plan.attend(module.layer_idx, query, key, value, scores), None


# Without an entry in the mask registry transformers builds no mask: the plan is the mask.
ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, _registered)


@contextmanager
def fast_layers(model: PreTrainedModel) -> Generator[None]:
    """`model` attends through plans inside the block; afterwards its own choice is back."""
    owners: list[Any] = [module for module in model.modules() if hasattr(module, "config")]
    configs = {id(owner.config): owner.config for owner in owners}.values()
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = ATTENTION_NAME
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name
