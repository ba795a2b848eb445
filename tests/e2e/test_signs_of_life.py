"""What a person sees of a run that is started in a shell: something at once, where it stands, and
at the end what came of it and what to do next."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest

from sdpo.models.quiet import quiet
from sdpo.testing import byte_tokenizer, tiny_model

ENV_FILE = """
import time
import sdpo


def judge(task, rollout):
    time.sleep({seconds})
    return float("a" in rollout.text), "write an a"


env = sdpo.env([f"say {{i}}" for i in range(9)], judge)
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signs")
    with quiet():
        tiny_model().save_pretrained(folder / "tiny")
        byte_tokenizer().save_pretrained(folder / "tiny")
    for name, seconds in (("quick", 0), ("slow", 12)):
        (folder / f"{name}.py").write_text(ENV_FILE.format(seconds=seconds))
    return folder


def arguments(name, *more):
    return [
        sys.executable, "-m", "sdpo", "train", "quickstart", f"run=runs/{name}",
        "model.name=tiny", "env.type=custom", f"env.path={name}.py:env", "steps=2",
        "rollout.tasks_per_step=2", "rollout.group_size=2", "rollout.max_completion_tokens=6",
        "rollout.max_prompt_tokens=200", "eval.samples=2", "eval.every=0", *more,
    ]  # fmt: skip


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}


def test_the_first_and_the_last_lines_of_a_run(work):
    done = subprocess.run(
        arguments("quick"), cwd=work, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "runs/quick: 2 steps; loading tiny"
    assert re.fullmatch(
        r"tiny: 91k weights, (float32|bfloat16), cpu \(\d+ cores?\); 9 tasks, 2 steps of 4 "
        r"attempts; first an evaluation: 9 held-out tasks x 2",
        lines[1],
    )
    end = lines[lines.index("finished at step 2: runs/quick") :]
    assert "held-out" in end[1].lower()
    assert re.match(
        r"\d+s; [\d.]+ GB of memory at most; weights in runs/quick/checkpoints/step-2", end[2]
    )
    assert end[3].startswith("next: sdpo report runs/quick ")
    assert end[4].startswith("      sdpo sample runs/quick ")
    for line in end[3:5]:
        command = line.removeprefix("next:").strip().split("   ")[0].split()[1:]
        subprocess.run(
            [sys.executable, "-m", "sdpo", *command], cwd=work, env=ENVIRONMENT, check=True,
            capture_output=True,
        )  # fmt: skip


@pytest.mark.slow
def test_something_is_said_before_torch_is_loaded_and_inside_a_long_evaluation(work):
    """The judge takes 12 s: a line tells of it, although no step is done."""
    process = subprocess.Popen(
        arguments("slow"), cwd=work, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    try:
        start = time.monotonic()
        assert process.stdout.readline().startswith("runs/slow: 2 steps")
        first = time.monotonic() - start
        line = process.stdout.readline()
        second = time.monotonic() - start
        assert "weights" in line
        assert first < second
        line = process.stdout.readline()
        assert re.match(r"step 0: evaluate: judge \d+/18", line)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
