"""Who may write into a run's folder."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sdpo.errors import ConfigError
from sdpo.lock import LOCK, sole_writer

HOLDER = """
import sys, time
from pathlib import Path
from sdpo.lock import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_processes_in_one_run_folder_mixed_their_rows(tmp_path):
    pytest.importorskip("fcntl")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(ConfigError, match=rf"in use by process {other.pid} on \S+"),
            sole_writer(tmp_path),
        ):
            pass
        other.kill()
        other.wait()
    with sole_writer(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text(), "a dead process holds no lock"
    with sole_writer(tmp_path):
        pass


def test_what_a_killed_save_left_stayed_for_ever(tmp_path):
    for name in (".partial-step-3", ".deleted-step-1"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / ".old-step-4").mkdir()
    with sole_writer(tmp_path):
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-4"]
