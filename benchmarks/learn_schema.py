"""The runs behind "A schema no attempt can guess" in docs/results.md: `learn-schema` under several
settings ("arms"), one run a call, and what git keeps of it.

    python benchmarks/learn_schema.py main --seed 2 --steps 20 --model PATH
    sdpo compare benchmarks/records/learn-schema/main -- benchmarks/records/learn-schema/grpo
    python benchmarks/learn_schema.py plot

A record has the files of a run that `sdpo compare` reads (the evaluations' rollouts without their
text) and `categories.jsonl`: verdicts of every step's attempts by category.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import sdpo
from sdpo.config.load import load_config
from sdpo.envs.sql.env import SqlEnv
from sdpo.rollouts.record import read_rollouts

RECORDS = Path(__file__).parent / "records" / "learn-schema"
FIGURE = Path(__file__).parents[1] / "docs" / "learn-schema.png"
MODEL = "Qwen/Qwen2.5-Coder-0.5B-Instruct"

ARMS: dict[str, tuple[str, ...]] = {
    "main": (),
    "distils_all": ("objective.distilled=all",),
    "grpo": ("objective.type=grpo",),
    "plain": ("teacher.context.control=plain",),
    "other_database": (),
    "no_names": ("env.hints=none",),
    "jsd_top_20": ("objective.divergence={type='jsd', top_k=20}",),
}
"""What each arm changes in the recipe; `other_database` changes the judge."""

KEPT = ("split", "step", "task", "index", "solved", "reward", "category")

OTHER_NAMES = {
    "hr_employees": "lib_readers",
    "emp_name": "rd_surname",
    "emp_team": "rd_branch",
    "emp_year": "rd_since",
    "emp_salary": "rd_fines",
    "wh_products": "bk_volumes",
    "item_id": "vol_id",
    "item_name": "vol_title",
    "item_category": "vol_genre",
    "item_price": "vol_pages",
    "item_stock": "vol_copies",
    "op_orders": "ln_loans",
    "item_ref": "vol_ref",
    "ord_quantity": "loan_days",
    "ord_year": "loan_year",
    "ord_city": "loan_desk",
}
"""The names of `company` and those of a library's database of the same shape."""


class OtherDatabase(SqlEnv):
    """Judges as ever, and speaks of another database's tables and columns."""

    def judge_text(self, task: sdpo.Task, text: str, *, is_truncated: bool) -> sdpo.Verdict:
        """The verdict on one answer, every name of the database in its feedback replaced."""
        verdict = super().judge_text(task, text, is_truncated=is_truncated)
        if verdict.feedback is None:
            return verdict
        swapped = re.sub(r"\w+", lambda word: OTHER_NAMES.get(word[0], word[0]), verdict.feedback)
        return replace(verdict, feedback=swapped)


def options(about: str | None, arms: Iterable[str], *, steps: int = 12) -> argparse.ArgumentParser:
    """What every script of runs is told: arm, seed, steps, model and overrides."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("arm", choices=arms)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--model", default=MODEL, help="a base model, or the folder of a run")
    parser.add_argument("overrides", nargs="*", help="key=value on top of the arm's")
    return parser


def told(given: argparse.Namespace, folder: Path) -> tuple[str, ...]:
    """The settings that `options` stands for, with the run's folder; overrides come after the
    arm's own."""
    return (
        f"run={folder}",
        f"seed={given.seed}",
        f"steps={given.steps}",
        f"model.name={given.model}",
    )


def run(given: argparse.Namespace) -> None:
    """Train one arm and keep its record."""
    arm = given.arm
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "run")
        config = load_config(["learn-schema", *told(given, folder), *ARMS[arm], *given.overrides])
        env = OtherDatabase(config.env) if arm == "other_database" else None
        sdpo.train(config, env=env)
        record(folder, RECORDS / arm / f"seed-{given.seed}")


def record(run_dir: Path, to: Path) -> None:
    """Keep of the run in `run_dir` what the comparison and the plot read."""
    to.mkdir(parents=True, exist_ok=True)
    shutil.copy(run_dir / "metrics.jsonl", to)
    shutil.copy(run_dir / "config.json", to)
    rows = list(read_rollouts(run_dir))
    with (to / "rollouts.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            if row["split"] == "eval":
                kept = {key: row.get(key) for key in KEPT}
                file.write(json.dumps(kept) + "\n")
    by_step: dict[int, Counter[str]] = {}
    for row in rows:
        if row["split"] == "train":
            by_step.setdefault(row["step"], Counter())[row["category"]] += 1
    with (to / "categories.jsonl").open("w", encoding="utf-8") as file:
        for step, counts in sorted(by_step.items()):
            file.write(json.dumps({"step": step, **dict(sorted(counts.items()))}) + "\n")


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


SHOWN = {
    "accepted": "right",
    "wrong_rows": "wrong rows",
    "no_such_column": "no such column",
    "no_such_table": "no such table",
}


LABELS = {
    "main": "learn-schema",
    "distils_all": "distilling all attempts",
    "grpo": "GRPO",
    "plain": "teacher reads the bare task",
    "other_database": "feedback of another database",
    "no_names": "feedback without names",
    "jsd_top_20": "JSD over the student's top 20",
}


def plot() -> None:
    """Draw held-out means of every arm, and the categories of the main arm's attempts."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for arm in ARMS:
        for number, folder in enumerate(sorted((RECORDS / arm).glob("seed-*"))):
            metrics = [r for r in _rows(folder / "metrics.jsonl") if "eval/solved" in r]
            left.plot(
                [r.get("rollouts_total", 0) for r in metrics],
                [r["eval/solved"] for r in metrics],
                color=f"C{list(ARMS).index(arm)}",
                label=LABELS[arm] if number == 0 else None,
            )
    left.set(xlabel="training attempts", ylabel="held out, mean@2", ylim=(0, 1))
    left.legend(loc="center right", fontsize="small")
    folders = sorted((RECORDS / "main").glob("seed-*"))
    counts = [list(_rows(folder / "categories.jsonl")) for folder in folders]
    right.stackplot(*_shares(counts), labels=[*SHOWN.values(), "other"], alpha=0.85)
    right.set(xlabel="training step (32 attempts)", ylabel="share of attempts", ylim=(0, 1))
    right.legend(loc="lower right", fontsize="small")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.tight_layout()
    figure.savefig(FIGURE, dpi=110)


def _shares(runs: list[list[Mapping[str, int]]]) -> tuple[list[int], list[list[float]]]:
    """Steps that all runs have, and for each category its share of their attempts there."""
    steps = [row["step"] for row in min(runs, key=len)]
    total = [Counter[str]() for _ in steps]
    for rows in runs:
        for counter, row in zip(total, rows, strict=False):
            counter.update({key: n for key, n in row.items() if key != "step"})
    shares = [[c[name] / c.total() for c in total] for name in SHOWN]
    other = [1 - sum(parts) for parts in zip(*shares, strict=True)]
    return steps, [*shares, other]


def main() -> None:
    """The command."""
    given = options(__doc__, [*ARMS, "plot"]).parse_intermixed_args()
    if given.arm == "plot":
        plot()
    else:
        run(given)


if __name__ == "__main__":
    sys.exit(main())
