"""How `step.py` talks to the two sides it measures; standard library and torch only, since TRL's
interpreter reads it too.

A side is a process that gets one JSON file (`Gate.spec`), takes one training step per line it
reads and answers each with one line of JSON. So the sides can take turns step by step, and the peak
memory of each is its own.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from memory import peak_bytes


class Gate:
    """A side's end: opened first thing, before libraries can write to the standard output."""

    def __init__(self) -> None:
        self.spec: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # whatever is printed from now on goes to the log

    def wait(self) -> bool:
        """Waits for the next step; false when there is none."""
        return bool(sys.stdin.readline().strip())

    def answer(self, numbers: dict[str, float]) -> None:
        """Sends the measurements of a step, the process's peak memory so far with them."""
        self._answers.write(
            json.dumps({**numbers, "peak_bytes": peak_bytes(self.spec["device"])}) + "\n"
        )
        self._answers.flush()


def finish_kernels() -> None:
    """Waits for what was started on the CUDA device, so that clocks are read when it is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
