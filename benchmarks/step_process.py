"""Starting a side of `step.py` in a process of its own and asking it for steps."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LOG_TAIL = 3000
"""Characters of a failed side's log that are shown."""


class Side:
    """One contender: a process that takes a step whenever it is asked.

    Example:
        with Side("ours", sys.executable, "step_ours.py", spec, scratch) as side: side.step()
    """

    def __init__(
        self,
        name: str,
        python: str,
        script: str,
        spec: dict[str, Any],
        scratch: Path,
        threads: int | None = None,
    ) -> None:
        self.name = name
        self.steps: list[dict[str, float]] = []
        folder = scratch / name
        folder.mkdir(parents=True)
        path = folder / "spec.json"
        path.write_text(json.dumps({**spec, "run": str(folder / "run")}), encoding="utf-8")
        self._log = folder / "log.txt"
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [python, str(HERE / script), str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=environment,
            )

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        if error[0] is not None:
            self._process.terminate()
        self._process.wait()

    def step(self) -> dict[str, float]:
        """Measurements of one more step."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("step\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            hint = " (out of memory? try --trl-batch 8 or --trl-checkpointing)" * (code == -9)
            end = self._log.read_text(encoding="utf-8")[-LOG_TAIL:]
            raise SystemExit(f"{self.name} ended with {code}{hint}:\n{end}")
        self.steps.append(json.loads(line))
        return self.steps[-1]
