"""`sdpo demo` shows what it says, on every seed tried, and quickly."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from sdpo.demo import ARMS, demo, sentence
from sdpo.metrics.jsonl import read_rows


def check_that_feedback_teaches(solved):
    assert solved["sdpo"] >= 0.4
    # A lucky guess (1 in 10,000; 1,536 are made) may teach an arm one of four codes.
    assert solved["grpo"] <= 0.3
    assert solved["sdpo-told-nothing"] <= 0.1


def test_the_command_runs_from_an_empty_folder_on_one_core_and_feedback_teaches(tmp_path):
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "sdpo", "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    folder = tmp_path / "runs" / "demo"
    rows = {arm.name: list(read_rows(folder / arm.name / "metrics.jsonl"))[-1] for arm in ARMS}
    check_that_feedback_teaches({name: row["eval/solved"] for name, row in rows.items()})
    assert (folder / "report.html").stat().st_size > 100_000
    assert "it is the feedback that teaches" in done.stdout
    assert "sdpo train quickstart" in done.stdout
    assert "weights, float32" not in done.stdout, "the table was broken by a line for each run"
    assert done.stderr == ""
    print(f"demo took {time.perf_counter() - start:.1f} s")


@pytest.mark.slow
def test_feedback_teaches_with_another_seed_too(tmp_path):
    lines: list[str] = []
    check_that_feedback_teaches(demo(tmp_path / "demo", lines.append, seed=1))
    assert any("it is the feedback that teaches" in line for line in lines)


def test_the_sentence_claims_only_what_happened():
    usual = {"sdpo": 0.9, "grpo": 0.0, "sdpo-told-nothing": 0.0}
    assert "90%" in sentence(usual, 1536)
    for name, rate in (("sdpo", 0.1), ("grpo", 0.9), ("sdpo-told-nothing", 0.8)):
        assert "Not what usually happens" in sentence(usual | {name: rate}, 1536)
