"""metrics.jsonl and alerts.jsonl of a run, and the services that receive the same numbers when
asked.

metrics.jsonl holds one object a step with sorted keys and flushed at once: equal runs write equal
bytes apart from `time/*`. alerts.jsonl holds one object per fired canary. Services only mirror; no
part of the system reads them back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo.config.schema import LogConfig
from sdpo.metrics import names
from sdpo.metrics.backends import Backend, check_installed, open_backend
from sdpo.metrics.canaries import Alert
from sdpo.metrics.jsonl import JsonLines, read_rows

METRICS = "metrics.jsonl"
ALERTS = "alerts.jsonl"


def run_folders(path: Path) -> list[Path]:
    """`path` itself, or the runs inside it when it is a folder of runs (`seeds = 3` makes one)."""
    if path.is_dir() and not (path / METRICS).exists():
        inside = sorted(each.parent for each in path.glob(f"*/{METRICS}"))
        if inside:
            return inside
    return [path]


class MetricsWriter:
    """Writes the numbers of a run; one process of a run has one.

    Example:
        with MetricsWriter(run_dir, config.log, dump(config)) as writer:
            writer.resume_at(0)
            writer.write(1, {"loss/total": 0.02})
    """

    def __init__(
        self, run_dir: Path, log: LogConfig | None = None, config: Mapping[str, Any] | None = None
    ) -> None:
        """Raises `ConfigError` naming the extra to install when a backend's package is missing."""
        self._log = LogConfig() if log is None else log
        check_installed(self._log.backends)
        self.run_dir = run_dir
        self._metrics = JsonLines(run_dir / METRICS)
        self._alerts = JsonLines(run_dir / ALERTS)
        self._config = dict(config or {})
        self._backends: list[Backend] | None = None
        self._resumed_at: int | None = None

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def resume_at(self, step: int) -> None:
        """Forget every row of a later step than `step`. Call before the first write."""
        self._metrics.resume_at(step)
        self._alerts.resume_at(step)
        self._resumed_at = step

    def begin_anew(self) -> int:
        """Start with empty files, the earlier ones kept as `.bak`; how many rows of metrics.jsonl
        that were. Call before the first write."""
        count = sum(1 for _ in read_rows(self._metrics.path))
        self._metrics.begin_anew()
        self._alerts.begin_anew()
        return count

    def last(self) -> dict[str, float]:
        """The newest row of metrics.jsonl, empty before the first."""
        row: dict[str, float] = {}
        for row in read_rows(self._metrics.path):  # noqa: B007
            pass
        return row

    def write(self, step: int, metrics: Mapping[str, float], alerts: Sequence[Alert] = ()) -> None:
        """Append one step. Raises `SdpoError` when it cannot be written."""
        self._metrics.append([{**metrics, names.STEP: step}])
        if alerts:
            self._alerts.append(alert.row() for alert in alerts)
        for backend in self._open():
            backend.log(step, metrics)
            for alert in alerts:
                backend.alert(step, f"canary {alert.canary}", alert.message)

    def write_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show rollouts in the services that have tables; `rows` are those of
        rollouts/record.py."""
        for backend in self._open():
            backend.table(step, "rollouts", rows)

    def close(self) -> None:
        """Flush and end everything."""
        self._metrics.close()
        self._alerts.close()
        for backend in self._backends or ():
            backend.close()
        self._backends = None

    def _open(self) -> list[Backend]:
        """The services, started at the first write: only then is it known at which step a run
        resumes."""
        if self._backends is None:
            self._backends = [
                open_backend(name, self.run_dir, self._log, self._config, self._resumed_at)
                for name in self._log.backends
            ]
        return self._backends
