"""Python scripts and modules under `torchrun`, two processes without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def torchrun(
    *arguments: object,
    options: Sequence[str] = ("--standalone", "--nproc-per-node=2"),
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    within: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """`torchrun OPTIONS ARGUMENTS`, under way in the folder `cwd`; `within` is a command that runs
    another."""
    return subprocess.Popen(
        [*within, sys.executable, "-m", "torch.distributed.run", *options, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            **(environment or {}),
        },
    )


def two_processes(*arguments: object) -> str:
    """Run `ARGUMENTS` under torchrun; both processes must end well. What they print."""
    process = torchrun(*arguments)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err[-6000:]
    return out
