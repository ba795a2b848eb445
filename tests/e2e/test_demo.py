"""`sdpo demo` shows what it says, on every seed tried, and quickly."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from sdpo.demo import demo, sentence


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_feedback_teaches_and_the_controls_do_not(seed, tmp_path):
    lines: list[str] = []
    solved = demo(tmp_path / "demo", lines.append, seed=seed)
    assert solved["sdpo"] >= 0.4
    # A lucky guess (1 in 10,000; 1,536 are made) may teach an arm one of four codes.
    assert solved["grpo"] <= 0.3
    assert solved["sdpo-told-nothing"] <= 0.1
    assert (tmp_path / "demo" / "report.html").stat().st_size > 100_000
    assert any("it is the feedback that teaches" in line for line in lines)


def test_the_command_runs_from_an_empty_folder_on_one_core(tmp_path):
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "sdpo", "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert "it is the feedback that teaches" in done.stdout
    assert "sdpo train quickstart" in done.stdout
    assert done.stderr == ""
    print(f"demo took {time.perf_counter() - start:.1f} s")


def test_the_sentence_claims_only_what_happened():
    usual = {"sdpo": 0.9, "grpo": 0.0, "sdpo-told-nothing": 0.0}
    assert "90%" in sentence(usual, 1536)
    for name, rate in (("sdpo", 0.1), ("grpo", 0.9), ("sdpo-told-nothing", 0.8)):
        assert "Not what usually happens" in sentence(usual | {name: rate}, 1536)
