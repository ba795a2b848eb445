"""Two objectives with three seeds each, compared with paired intervals.

    python examples/compare_seeds.py

With the quickstart's size it takes an hour of two cores; finished seeds are not repeated.
"""

from __future__ import annotations

import sdpo
from sdpo.compare import compare


def main() -> None:
    for objective in ("grpo", "srpo"):
        sdpo.train("quickstart", f"objective.type={objective}", "seeds=3", f"run=runs/{objective}")
    found = compare([["runs/grpo"], ["runs/srpo"]])
    for arm in found.arms:
        print(f"{arm.name}: {arm.mean.mean:.3f} [{arm.mean.low:.3f}, {arm.mean.high:.3f}]")
    (gap,) = found.differences
    print(f"srpo - grpo: {gap.gap.mean:+.3f} [{gap.gap.low:+.3f}, {gap.gap.high:+.3f}]")
    if gap.gap.low <= 0 <= gap.gap.high:
        print("The interval contains zero: these runs do not tell them apart.")


if __name__ == "__main__":
    main()
