"""discovery@k over attempts as a picture, like Figs. 13 and 20 of the paper."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from sdpo.discovery.curves import LEVEL, summarise_discovery
from sdpo.discovery.result import Discovery
from sdpo.files import record_whole

PLOT = "discovery.png"

_STYLES = {
    "self_distillation": ("#c2452d", "self-distillation"),
    "best_of_k": ("#3f6fb0", "best of k"),
    "multi_turn": ("#5b8c3e", "multi-turn"),
}
"""Colour and name per method."""


def write_plot(results: Sequence[Discovery], run_dir: Path) -> Path | None:
    """Draw `discovery.png` into the run directory: mean and interval per method over attempts.

    None without results or without matplotlib (`pip install 'sdpo[plot]'`).
    """
    if not results or importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure

    summary = summarise_discovery(results)
    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for method, values in summary["curves"].items():
        colour, name = _STYLES[method]
        low, mean, high = ([v[key] for v in values] for key in ("low", "mean", "high"))
        axes.step(summary["ks"], mean, where="post", color=colour, label=name)
        axes.fill_between(
            summary["ks"], low, high, step="post", color=colour, alpha=0.15, linewidth=0
        )
    tasks = len({result.task_id for result in results})
    seeds = len({result.seed for result in results})
    axes.set(
        xscale="log",
        xlabel="attempts k",
        ylabel="discovery@k",
        ylim=(0, 1.02),
        title=f"{tasks} tasks, {seeds} seeds; bands: {LEVEL:.0%} bootstrap",
    )
    axes.legend(loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path = run_dir / PLOT
    with record_whole(path) as partial:
        figure.savefig(partial, format="png")
    return path
