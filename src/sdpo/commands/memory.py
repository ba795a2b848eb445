"""`sdpo check --gpus`: what a recipe takes, before a model is loaded or a card is rented."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console


def check_memory(arguments: Sequence[str], gpus: str, shape: Path | None) -> None:
    """Print the memory table of the recipe; exit status 1 where it does not fit."""
    from sdpo.config.load import load_config
    from sdpo.memory import Cards, advice, plan_memory
    from sdpo.memory.plan import Outlines
    from sdpo.report.memory_table import memory_text

    cards, outlines = Cards.parse(gpus), Outlines(shape)
    plan = plan_memory(load_config(arguments), cards, outlines)
    advised = None if plan.fits else advice(plan, outlines)
    Console().print(memory_text(plan, advised), highlight=False, soft_wrap=True)
    if not plan.fits:
        sys.exit(1)
