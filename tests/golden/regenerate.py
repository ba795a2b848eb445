"""Write the golden trajectories anew: `make golden`, or `python tests/golden/regenerate.py`.

They change where the algorithm, its defaults or the tiny model change; a change of layout leaves
them alone. Read the diff before it is committed: it is what the change does to training.

`--spread` writes nothing. It adds noise to the initial weights (ten times 1e-6, ten times 1e-5) and
prints how far each metric then comes from the goldens and how many runs sampled other tokens; the
tolerances below are chosen by it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from golden_runs import RUNS, carry_out, save_model

FOLDER = Path(__file__).parent
KEPT = (
    "loss/total", "loss/distill", "loss/pg", "optim/grad_norm", "policy/entropy", "train/reward",
    "train/completion_tokens", "teacher/context_fraction", "teacher/demonstration_fraction",
    "rollouts/flat_groups", "tokens_with_teacher", "tokens_total", "rollouts",
)  # fmt: skip
"""What is compared of a step, where the run has it."""
DIGITS = 6
"""Significant digits kept: a tenth of float32's rounding would only make diffs longer."""
REPEATS = 10

RELATIVE = 2e-3
"""Bound of |x - golden| / |golden|, beside `ABSOLUTE`. With noise of 1e-6 in the initial weights,
drawn ten times, no run sampled another token, and the largest deviations were, absolute / relative:

                loss/total        optim/grad_norm    policy/entropy
    sdpo        5e-7 / 4e-4       1e-5 / 6e-4        1e-4 / 2e-5
    srpo        1e-6 / 8e-6       2e-4 / 1e-4        2e-5 / 4e-6
    grpo        2e-6 / -          4e-5 / 2e-5        1e-5 / 2e-6
    discover    2e-6 / 2e-4       8e-5 / 2e-4        3e-5 / 6e-6

Noise of 1e-5 changes sampled tokens in 3 of 10 runs of sdpo and 5 of srpo. Another instruction set
(`ATEN_CPU_CAPABILITY=default` beside AVX512) is less than noise of 1e-6.
"""
ABSOLUTE = {"loss": 5e-6, "optim": 5e-5}
"""Bound of |x - golden| by the metric's stage, for values near 0; others have none."""

Row = dict[str, Any]


def golden(name: str) -> list[Row]:
    """The recorded steps of the run `name`."""
    rows: list[Row] = json.loads((FOLDER / f"{name}.json").read_text())
    return rows


def kept(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """What is recorded of `rows`."""
    return [{key: _rounded(row[key]) for key in KEPT if key in row} for row in rows]


def deviation(key: str, value: float, recorded: float) -> float:
    """How far `value` is from `recorded`, in units of what is tolerated."""
    tolerated = RELATIVE * abs(recorded) + ABSOLUTE.get(key.partition("/")[0], 0.0)
    return abs(value - recorded) / tolerated if value != recorded else 0.0


def write() -> None:
    """Carry out all runs and record them, one step a line."""
    with TemporaryDirectory() as scratch:
        model = save_model(Path(scratch, "model"))
        for name in RUNS:
            lines = map(json.dumps, kept(carry_out(name, model, Path(scratch, name))))
            (FOLDER / f"{name}.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


def spread(noise: float) -> None:
    """Print how far runs from disturbed weights are from the recorded ones."""
    largest: dict[tuple[str, str], tuple[float, float, float]] = defaultdict(lambda: (0, 0, 0))
    parted: dict[str, list[int]] = defaultdict(list)
    for number in range(REPEATS):
        with TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
            model = save_model(Path(scratch, "model"), noise=noise, noise_seed=number)
            runs = {name: kept(carry_out(name, model, Path(scratch, name))) for name in RUNS}
        for name, rows in runs.items():
            for step, (row, recorded) in enumerate(zip(rows, golden(name), strict=True), 1):
                if row["rollouts"] != recorded["rollouts"]:
                    parted[name].append(step)
                    break
                for key, value in row.items():
                    if isinstance(value, float) and value != recorded[key]:
                        absolute = abs(value - recorded[key])
                        relative = absolute / max(abs(recorded[key]), 1e-12)
                        units = deviation(key, value, recorded[key])
                        found = zip(largest[name, key], (absolute, relative, units), strict=True)
                        largest[name, key] = tuple(map(max, found))
    print(f"noise {noise:g}: steps from which on other tokens were sampled: {dict(parted)}")
    for (name, key), (absolute, relative, units) in sorted(largest.items()):
        print(
            f"  {name:9}{key:27}absolute {absolute:.0e}  relative {relative:.0e}  "
            f"of tolerance {units:.2f}"
        )


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def main() -> None:
    """`make golden`."""
    parser = argparse.ArgumentParser(description="Write the golden trajectories anew.")
    parser.add_argument("--spread", action="store_true", help="measure what rounding may do")
    torch.set_num_threads(1)
    if parser.parse_args().spread:
        spread(1e-6)
        spread(1e-5)
    else:
        write()


if __name__ == "__main__":
    sys.exit(main())
