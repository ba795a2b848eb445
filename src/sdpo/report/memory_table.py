"""A memory plan for a reader: parts, phases, and whether it fits."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sdpo.config.schema import VllmEngineConfig
from sdpo.memory import MemoryPlan
from sdpo.memory.cards import RESERVED


def memory_lines(plan: MemoryPlan) -> list[tuple[str, str]]:
    """Name and gigabytes of every part, then of every phase, then what is not on the card."""
    parts = [(name, _gigabytes(size)) for name, size in plan.parts.items()]
    parts = [(name, size) for name, size in parts if float(size)]
    phases = [(f"peak while {_PHASES[name]}", _gigabytes(s)) for name, s in plan.phases.items()]
    in_cpu = [("CPU memory beside it", _gigabytes(plan.in_cpu))] if plan.in_cpu else []
    return [*parts, *phases, *in_cpu, ("one checkpoint on disk", _gigabytes(plan.checkpoint))]


_PHASES = {
    "sampling": "sampling",
    "teacher": "the teacher reads",
    "update": "the policy trains",
}


def memory_text(plan: MemoryPlan, advice: str | None) -> RenderableType:
    """The table, and the conclusion; `advice` says what to change where it does not fit."""
    table = Table(title=_title(plan), title_justify="left", box=None, pad_edge=False)
    table.add_column("on every card")
    table.add_column("GB", justify="right")
    for name, size in memory_lines(plan):
        table.add_row(name, size)
    return Group(table, *map(Text, conclusion(plan, advice)))


def conclusion(plan: MemoryPlan, advice: str | None) -> list[str]:
    """Sentences under the table."""
    phase = max(plan.phases, key=lambda name: plan.phases[name])
    room = f"{_gigabytes(plan.cards.usable)} GB, {1 - RESERVED:.0%} of a card"
    verdict = "fits" if plan.fits else "does not fit"
    most = f"at most {_gigabytes(plan.peak)} GB, while {_PHASES[phase]}, of {room}"
    lines = [f"{verdict}: {most}"]
    if advice is not None:
        lines.append(advice)
    if isinstance(plan.config.rollout.engine, VllmEngineConfig):
        lines.append("vLLM's share is counted while sampling: it gives it back for updates")
    return lines


def _title(plan: MemoryPlan) -> str:
    config, weights = plan.config, plan.weights
    trained = "all" if weights.num_trained == weights.num_all else _count(weights.num_trained)
    how = {"replicate": "each card holds the model", "shard": "weights are sharded"}[plan.mode]
    kind = str(plan.dtype).removeprefix("torch.")
    recomputed = ", recomputed" if config.optim.gradient_checkpointing else ""
    return (
        f"{config.model.name}: {_count(weights.num_all)} weights, {trained} trained, {kind}; "
        f"{plan.cards}; {how}; micro-batches of {plan.micro_batch:,} tokens{recomputed}"
    )


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f}" if size < 1e9 else f"{size / 1e9:.1f}"
