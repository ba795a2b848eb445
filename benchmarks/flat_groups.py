"""Attempts of flat groups in the denominator or out of it, in the toy world.

    .venv/bin/python benchmarks/flat_groups.py [--seeds 3] [--steps 24] [--out FOLDER]
    .venv/bin/sdpo compare FOLDER/counted/* -- FOLDER/excluded/*

Eight codes cannot be guessed, so a run of `sdpo` comes first, short enough that some codes are
known, some half known and some not at all. From these weights GRPO goes on twice, and only
`objective.policy_gradient.flat_groups` differs. FOLDER/ROLE/seed-N keeps metrics.jsonl and
config.json of each run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import sdpo
from sdpo.testing import save_toy_model, toy_env

ITEMS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=14, help="steps of sdpo before")
    parser.add_argument("--steps", type=int, default=24, help="steps of GRPO")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, default=Path("runs/flat-groups"))
    given = parser.parse_args()
    model = save_toy_model(given.out / "model")
    for seed in range(given.seeds):
        begun = given.out / "first" / f"seed-{seed}"
        sdpo.train(
            "toy", f"run={begun}", f"model.name={model}", f"seed={seed}", f"steps={given.first}",
            "eval.every=0", env=toy_env(ITEMS, seed=0),
        )  # fmt: skip
        for role in ("counted", "excluded"):
            done = sdpo.train(
                "toy", f"run={given.out / role / f'seed-{seed}'}", f"model.name={begun}",
                f"seed={seed}", f"steps={given.steps}", f"optim.lr={given.lr}",
                "objective={type='grpo'}", f"objective.policy_gradient.flat_groups={role}",
                env=toy_env(ITEMS, seed=0),
            )  # fmt: skip
            print(role, seed, f"{done.metrics['eval/solved']:.3f}", flush=True)


if __name__ == "__main__":
    main()
