"""Sixty random faults, and every run ends as if nothing had happened."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("chaos_run.py")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, /proc and sandboxed programs")
@pytest.mark.timeout(900)
def test_no_fault_ends_a_run_or_ruins_its_records(tmp_path):
    """`SDPO_CHAOS_SEED=N` makes other faults; what happened is printed (`pytest -rP`)."""
    seed = os.environ.get("SDPO_CHAOS_SEED", "0")
    command = [sys.executable, str(RUN), str(tmp_path), "--seed", seed, "--faults", "60"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    (count,) = re.findall(r"^(\d+) faults, all runs as undisturbed", done.stdout, re.MULTILINE)
    assert int(count) >= 60
