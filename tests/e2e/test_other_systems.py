"""Own environments train where there is no Linux, and code tasks say what to do instead."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("elsewhere.py")


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_macos_and_windows_ended_at_the_first_call(platform, tmp_path):
    # A locale whose encoding is not UTF-8, as on Windows: prompts and feedback are not ASCII.
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", str(SCRIPT), platform, str(tmp_path)],
        capture_output=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    assert done.stdout.splitlines()[-1] == b"ok"
