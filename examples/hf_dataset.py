"""Tasks from a Hugging Face data set: here GSM8K's columns, judged by a function of yours.

    python examples/hf_dataset.py                          # 200 problems of openai/gsm8k
    python examples/hf_dataset.py problems.parquet         # a file with the same columns

Needs `pip install 'sdpo[data]'`. `env.type = "math"` reads GSM8K by itself and judges more forms of
an answer; this is for data sets that no built-in environment knows.
"""

from __future__ import annotations

import re
import sys

import datasets

import sdpo
from sdpo.envs.adapters.datasets import tasks_from_rows

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def judge(task: sdpo.Task, rollout: sdpo.Rollout) -> tuple[float, str | None]:
    """Right if the last number of the attempt is the one after `####` in the data set's answer."""
    wanted = task.reference.rpartition("####")[2].strip().replace(",", "")
    found = NUMBER.findall(rollout.text.replace(",", ""))
    if found and float(found[-1]) == float(wanted):
        return 1.0, None
    return 0.0, f"The answer is {wanted}. End with the number alone."


def main(*files: str) -> None:
    if files:
        rows = datasets.load_dataset("parquet", data_files=list(files), split="train")
    else:
        rows = datasets.load_dataset("openai/gsm8k", "main", split="train[:200]")
    parts = rows.train_test_split(test_size=0.2, seed=0)
    train, held_out = (
        tasks_from_rows(parts[name], prompt="question", reference="answer")
        for name in ("train", "test")
    )
    env = sdpo.env(train, judge, eval_tasks=held_out)
    result = sdpo.train("quickstart", "objective.type=hybrid", "run=runs/hf-dataset", env=env)
    print(result.run_dir)


if __name__ == "__main__":
    main(*sys.argv[1:])
