"""Which settings make a recipe fit: each is tried, by counting again.

First what leaves the result as it is (up to rounding), one setting or two together; then what
trains something else.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, assert_never

from sdpo.config.load import with_settings
from sdpo.config.schema import (
    FullWeightsConfig,
    LocalEngineConfig,
    RunConfig,
    ServerEngineConfig,
    VllmEngineConfig,
)
from sdpo.memory.plan import MemoryPlan, Outlines, plan_memory

_FEWEST_SEQUENCES = 4
"""Sampling fewer at once wastes a GPU."""
_SMALLEST_FRACTION = 0.15

Change = tuple[str, dict[str, Any]]
"""As it is written on the command line, and as settings."""


def advice(plan: MemoryPlan, outlines: Outlines) -> str:
    """One sentence: what to change so that `plan` fits."""
    harmless = list(_harmless(plan))
    pairs = itertools.combinations(harmless, 2)
    tried = [*((change,) for change in harmless), *pairs]
    for changes in (*tried, *((change,) for change in _others(plan.config))):
        if (found := _fits(plan, changes, outlines)) is not None:
            return f"fits with {' '.join(text for text, _ in changes)} ({found.peak / 1e9:.1f} GB)"
    both = (*_all_of(harmless), *_others(plan.config))
    if (found := _fits(plan, both, outlines)) is not None:
        return f"fits with {' '.join(text for text, _ in both)} ({found.peak / 1e9:.1f} GB)"
    return "no setting makes it fit: take more or larger cards, or a smaller model"


def _fits(plan: MemoryPlan, changes: tuple[Change, ...], outlines: Outlines) -> MemoryPlan | None:
    """The plan with `changes` made, if it fits."""
    config = plan.config
    for _, settings in changes:
        config = with_settings(config, settings)
    changed = plan_memory(config, plan.cards, outlines)
    return changed if changed.fits else None


def _harmless(plan: MemoryPlan) -> Iterator[Change]:
    config = plan.config
    yield from _sharing(plan)
    update = plan.phases["update"] > plan.cards.usable
    if update and not config.optim.gradient_checkpointing:
        yield (
            "optim.gradient_checkpointing=true",
            {"optim": {"gradient_checkpointing": True}},
        )
    if update or plan.phases.get("teacher", 0) > plan.cards.usable:
        longest = config.rollout.max_prompt_tokens + config.rollout.max_completion_tokens
        tokens = config.optim.micro_batch_tokens
        while tokens > longest:
            tokens = max(tokens // 2, longest)
            yield f"optim.micro_batch_tokens={tokens}", {"optim": {"micro_batch_tokens": tokens}}
    # After what costs less time.
    if not config.optim.offload and plan.device == "cuda":
        yield "optim.offload=true", {"optim": {"offload": True}}
    if plan.phases["sampling"] <= plan.cards.usable:
        return
    match config.rollout.engine:
        case LocalEngineConfig(max_sequences=rows):
            while rows > _FEWEST_SEQUENCES:
                rows = max(rows // 2, _FEWEST_SEQUENCES)
                yield (
                    f"rollout.engine.max_sequences={rows}",
                    {"rollout": {"engine": {"max_sequences": rows}}},
                )
        case VllmEngineConfig(memory_fraction=fraction, tensor_parallel=count):
            while fraction > _SMALLEST_FRACTION:
                fraction = max(round(fraction - 0.05, 2), _SMALLEST_FRACTION)
                # Its own copy of the weights is in its share.
                if fraction * plan.cards.gigabytes * 1e9 > 1.2 * plan.weights.all / count:
                    yield (
                        f"rollout.engine.memory_fraction={fraction:g}",
                        {"rollout": {"engine": {"memory_fraction": fraction}}},
                    )
        case ServerEngineConfig():
            pass  # They sample on other cards.
        case other:
            assert_never(other)


def _sharing(plan: MemoryPlan) -> Iterator[Change]:
    """More cards to share the weights."""
    if plan.mode == "replicate" and plan.cards.ranks > 1:
        yield "model.parallel=shard", {"model": {"parallel": "shard"}}
    if plan.cards.nodes > 1 and plan.config.model.parallel != "shard_all":
        yield "model.parallel=shard_all", {"model": {"parallel": "shard_all"}}


def _all_of(changes: list[Change]) -> tuple[Change, ...]:
    """The strongest change of every setting."""
    last = {text.partition("=")[0]: (text, settings) for text, settings in changes}
    return tuple(last.values())


def _others(config: RunConfig) -> Iterator[Change]:
    if isinstance(config.model.adapter, FullWeightsConfig):
        yield "model.adapter.type=lora", {"model": {"adapter": {"type": "lora"}}}
