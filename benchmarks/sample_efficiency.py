"""The runs behind "Where rewards are not flat" in docs/results.md: questions on a database of which
the prompt lists all tables, or one of three, so that some can be answered from the start. One run a
call; what git keeps of it is as benchmarks/learn_schema.py says.

    python benchmarks/sample_efficiency.py grpo --tables all --seed 2 --lr 2e-4 --model PATH
    cd benchmarks/records/sample-efficiency/all
    sdpo compare grpo-2e-4 -- hybrid-2e-4 --reach 0.7
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import closing
from pathlib import Path

from learn_schema import options, record, told

import sdpo
from sdpo.config.load import load_config
from sdpo.envs.sql import SqlEnv

RECORDS = Path(__file__).parent / "records" / "sample-efficiency"
ARMS = ("grpo", "hybrid", "sdpo", "srpo")
"""`objective.type`; everything else is `learn-schema`'s, the rate aside."""


class OneTableShown(SqlEnv):
    """Prompts list the database's first table and say nothing of the others."""

    def table_heads(self, task: sdpo.Task) -> str:
        """The first table with its columns."""
        return super().table_heads(task).splitlines()[0]


def main() -> None:
    """The command."""
    parser = options(__doc__, ARMS)
    parser.add_argument("--tables", choices=("all", "one"), default="all")
    parser.add_argument("--lr", default="2e-4")
    given = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "run")
        config = load_config(
            [
                "learn-schema",
                *told(given, folder),
                "env.tables=shown",
                "eval.every=2",
                f"objective.type={given.arm}",
                f"optim.lr={given.lr}",
                *given.overrides,
            ]
        )
        kind = OneTableShown if given.tables == "one" else SqlEnv
        with closing(kind(config.env)) as env:
            sdpo.train(config, env=env)
        to = RECORDS / given.tables / f"{given.arm}-{given.lr}" / f"seed-{given.seed}"
        record(folder, to)


if __name__ == "__main__":
    sys.exit(main())
