"""Tasks from a CSV file: columns question and answer, a fifth of the rows held out.

python examples/csv_tasks.py questions.csv
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import sdpo
from sdpo.envs.adapters.datasets import tasks_from_rows


def judge(task: sdpo.Task, rollout: sdpo.Rollout) -> tuple[float, str | None]:
    """Right if the last line of the attempt is the answer."""
    lines = rollout.text.strip().splitlines() or [""]
    if lines[-1].strip() == task.reference:
        return 1.0, None
    return 0.0, f"The answer is {task.reference}. Write it alone on the last line."


def main(path: str) -> None:
    with Path(path).open(encoding="utf-8", newline="") as file:
        tasks = tasks_from_rows(csv.DictReader(file), prompt="question", reference="answer")
    env = sdpo.env(
        [task for number, task in enumerate(tasks) if number % 5],
        judge,
        eval_tasks=tasks[::5],
    )
    result = sdpo.train("quickstart", "objective.type=hybrid", "run=runs/csv", env=env)
    print(result.run_dir)


if __name__ == "__main__":
    main(sys.argv[1])
