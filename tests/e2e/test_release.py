"""The archives that are published hold the package, and the wheel alone runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_built_archives_hold_the_package_and_the_wheel_runs(tmp_path):
    pytest.importorskip("build")
    # Without isolation nothing is fetched: setuptools is here, since torch needs it.
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, cwd=tmp_path)
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "check_release.py"), str(tmp_path)],
        capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "git tag -a v" in done.stdout
