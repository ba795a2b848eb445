"""The runs behind "A tool agent" in docs/results.md: `examples/sql_agent.py` with what is said of
turns in three places, and what git keeps of each run (as benchmarks/learn_schema.py does).

    python benchmarks/sql_agent.py before_turns --seed 1 --steps 8 --model PATH
    sdpo compare benchmarks/records/sql-agent/before_turns -- benchmarks/records/sql-agent/never
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import closing
from pathlib import Path

from learn_schema import options, record, told

import sdpo

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from sql_agent import SETTINGS, make_env  # noqa: E402

RECORDS = Path(__file__).parent / "records" / "sql-agent"
ARMS = {"before_turns": "before_turn", "at_start": "at_start", "never": "never"}
"""`teacher.context.turn_feedback` of each arm."""

SMALL = (
    "rollout.tasks_per_step=4",
    "eval.every=4",
    "eval.samples=1",
)
"""What makes a step of three minutes on one core of the recipe's."""


def main() -> None:
    """The command."""
    given = options(__doc__, ARMS, steps=8).parse_intermixed_args()
    with tempfile.TemporaryDirectory() as scratch, closing(make_env()) as env:
        folder = Path(scratch, "run")
        sdpo.train(
            *SETTINGS,
            *SMALL,
            *told(given, folder),
            f"teacher.context.turn_feedback={ARMS[given.arm]}",
            *given.overrides,
            env=env,
        )
        record(folder, RECORDS / given.arm / f"seed-{given.seed}")


if __name__ == "__main__":
    sys.exit(main())
