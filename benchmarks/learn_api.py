"""The runs behind "A library no attempt can guess" in docs/results.md: `learn-api` under several
settings ("arms"), one run a call, and what git keeps of it (as benchmarks/learn_schema.py does).

    python benchmarks/learn_api.py main --seed 2 --model PATH --keep runs/api-2
    python benchmarks/learn_api.py next_version --seed 2 --model runs/api-2
    sdpo compare benchmarks/records/learn-api/main -- benchmarks/records/learn-api/grpo

Every run is evaluated on the quickstart's tasks before and after: what the library costs of Python.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from learn_schema import options, record, told

import sdpo

RECORDS = Path(__file__).parent / "records" / "learn-api"

BEGINS = "Answer in a ```python block that begins with `def answer`."

ARMS: dict[str, tuple[str, ...]] = {
    "main": (),
    "grpo": ("objective.type=grpo",),
    "next_version": ("env.tasks=private-api-v2",),
    "next_version_at_last_rate": (
        "env.tasks=private-api-v2",
        "optim.lr=8e-5",
        "optim.decay_steps=0",
    ),
    "next_version_asked_to_begin": (
        "env.tasks=private-api-v2",
        f"teacher.context.templates.solve={BEGINS!r}",
    ),
    "next_version_alone": ("env.tasks=private-api-v2",),
    "frozen_teacher": ("teacher.schedule={type='frozen'}",),
    "full_weights": ("model.adapter={type='full'}", "optim.lr=1e-5"),
}
"""What each arm changes in the recipe. `next_version` goes on from the run that `--model` names,
`next_version_at_last_rate` with the rate that it ended with; `next_version_alone` begins with the
base model."""


def main() -> None:
    """The command."""
    parser = options(__doc__, ARMS)
    parser.add_argument("--keep", help="folder for the run itself, weights included")
    given = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(given.keep or Path(scratch, "run"))
        sdpo.train(
            "learn-api",
            *told(given, folder),
            "eval.holdout=['quickstart']",
            *ARMS[given.arm],
            *given.overrides,
        )
        record(folder, RECORDS / given.arm / f"seed-{given.seed}")


if __name__ == "__main__":
    sys.exit(main())
