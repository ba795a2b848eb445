"""A comparison of runs as text, as JSON and as Markdown."""

from __future__ import annotations

import statistics
from typing import Any

from sdpo.compare import ArmResult, Comparison, Difference
from sdpo.evaluation import Interval


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Plain data of `comparison`, for files."""

    def plain(interval: Interval | None) -> dict[str, float] | None:
        return (
            None
            if interval is None
            else {"mean": interval.mean, "low": interval.low, "high": interval.high}
        )

    return {
        "level": comparison.level,
        "confidence": comparison.arms[0].mean.level,
        "arms": [
            {
                "name": arm.name,
                "runs": arm.num_runs,
                "tasks": arm.num_tasks,
                "mean": plain(arm.mean),
                "gain": plain(arm.gain),
                "attempts": list(arm.attempts),
                "reached": list(arm.reached),
                "holdout": {
                    kept.name: {
                        "tasks": kept.num_tasks,
                        "mean": plain(kept.mean),
                        "change": plain(kept.change),
                    }
                    for kept in arm.holdout
                },
            }
            for arm in comparison.arms
        ],
        "differences": [
            {
                "name": each.name,
                "baseline": each.baseline,
                "gap": plain(each.gap),
                "wins": each.wins,
                "losses": each.losses,
                "ties": each.ties,
                "paired_by_seed": each.is_paired_by_seed,
            }
            for each in comparison.differences
        ],
    }


def as_text(comparison: Comparison) -> str:
    """Three lines for each arm, one for each of its sets from elsewhere and for each difference;
    fits a narrow terminal."""
    lines = []
    for arm in comparison.arms:
        seeds = f"{arm.num_runs} seed{'s' * (arm.num_runs > 1)}"
        attempts = round(statistics.fmean(arm.attempts))
        lines += [
            arm.name,
            f"  held out {shown(arm.mean)} on {arm.num_tasks} tasks "
            f"after {attempts} attempts, {seeds}",
        ]
        if arm.gain is not None:
            lines.append(f"  gain {shown(arm.gain, sign=True)} over its first evaluation")
        lines.append(f"  reached {comparison.level:.2f} after {_reached(arm)} attempts")
        lines += [
            f"  {kept.name} {shown(kept.mean)} on {kept.num_tasks} tasks elsewhere, "
            f"change {shown(kept.change, sign=True)}"
            for kept in arm.holdout
        ]
    for each in comparison.differences:
        pairs = "tasks and seeds" if each.is_paired_by_seed else "tasks"
        lines += [
            f"{each.name} minus {each.baseline}",
            f"  {shown(each.gap, sign=True)}, paired by {pairs}; better on {each.wins} tasks, "
            f"worse on {each.losses}, equal on {each.ties}",
        ]
    lines.append(f"[low, high]: {comparison.arms[0].mean.level:.0%} bootstrap over tasks and seeds")
    return "\n".join(lines) + "\n"


def _as_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the Markdown table."""
    header = ["runs", "seeds", "tasks", "attempts", "held out", "gain", "difference", "tasks +/-"]
    header.append(f"attempts to {comparison.level:.2f}")
    has_holdout = any(arm.holdout for arm in comparison.arms)
    if has_holdout:
        header.append("change elsewhere")
    gaps: dict[int, Difference] = dict(enumerate(comparison.differences, start=1))
    rows = []
    for number, arm in enumerate(comparison.arms):
        gap = gaps.get(number)
        rows.append(
            [
                arm.name,
                str(arm.num_runs),
                str(arm.num_tasks),
                f"{round(statistics.fmean(arm.attempts))}",
                shown(arm.mean),
                "-" if arm.gain is None else shown(arm.gain, sign=True),
                "(baseline)" if gap is None else shown(gap.gap, sign=True),
                "" if gap is None else f"{gap.wins} / {gap.losses}",
                _reached(arm),
            ]
        )
        if has_holdout:
            changes = (f"{kept.name} {shown(kept.change, sign=True)}" for kept in arm.holdout)
            rows[-1].append("; ".join(changes) or "-")
    return header, rows


def as_markdown(comparison: Comparison) -> str:
    """A Markdown table, for documents and pull requests."""
    header, rows = _as_rows(comparison)
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def shown(interval: Interval, *, sign: bool = False) -> str:
    """`0.31 [0.24, 0.39]`, with a sign where it is a difference."""
    form = "+.3f" if sign else ".3f"
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def _reached(arm: ArmResult) -> str:
    return ", ".join("never" if each is None else str(each) for each in arm.reached)
