"""Run directories to the plain data a page shows: columns of metrics, what happened in a sentence,
a spread of rollouts, settings, groups of seeds.

Reads files only; knows no HTML. A long run holds far more rollouts than a page should, so they are
thinned evenly over its steps until a byte budget is met, and the page says so.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo.compare import compare
from sdpo.errors import ConfigError
from sdpo.metrics.jsonl import dumps, read_rows
from sdpo.metrics.writer import ALERTS, METRICS
from sdpo.report.comparison_table import shown
from sdpo.report.outcome import Outcome, describe_outcome
from sdpo.report.panels import PANELS, STEP_SECONDS, TIME_PARTS, UNDRAWN
from sdpo.report.rollouts import CreditIndex, RolloutIndex
from sdpo.rollouts.credit import CREDIT
from sdpo.rollouts.record import ROLLOUTS

CONFIG = "config.json"
DISCOVERY = "discovery.json"
"""What a discovery run leaves instead of metrics; discovery/curves.py writes it."""
FILES = (CONFIG, METRICS, ALERTS, ROLLOUTS, f"{ROLLOUTS}.gz", CREDIT, DISCOVERY)
"""All a report reads."""

Row = dict[str, Any]

ROLLOUT_BYTES = 3_600_000
"""Compressed rollouts of all runs; with base64's third and Plotly's 2 MB the page stays below 10
MB."""
CREDIT_BYTES = 700_000
"""Compressed token credit of all runs."""
CREDIT_ROLLOUTS = 60
"""Attempts with token credit per run: a choice, not an archive."""
MAX_ROWS = 2_000
"""Metric rows per run; longer runs are averaged into so many bins, more than a screen has pixels
for a chart."""
DIGITS = 5
"""Significant digits of metrics."""


class ReportReader:
    """Everything a page of these directories shows, as often as asked. What was read before is not
    read again, so a run can be followed.

    Example:
        reader = ReportReader([Path("runs/quickstart")])
        data = reader.load()
    """

    def __init__(self, run_dirs: Sequence[Path]) -> None:
        self._runs = [
            _RunReader(path, name, len(run_dirs))
            for path, name in zip(run_dirs, run_names(run_dirs), strict=True)
        ]

    def load(self, *, may_wait: bool = False) -> Row:
        """The data of the page. Raises `ConfigError` when a directory holds no run, or no step yet
        unless `may_wait`."""
        runs, discoveries = [], []
        for run in self._runs:
            summary = _read_json(run.path / DISCOVERY)
            if summary:
                discoveries.append({"name": run.name, "summary": summary})
            if run.has_steps():
                runs.append(run.load())
            elif not summary and not (may_wait and (run.path / CONFIG).exists()):
                raise ConfigError(
                    f"{run.path} has no {METRICS} with a step in it; give the directory of a run "
                    "(`run` in its config)"
                )
        return {
            "runs": runs,
            "groups": seed_groups(runs),
            "discoveries": discoveries,
            "waiting": not runs and not discoveries,
            "panels": [panel.row() for panel in PANELS],
            "undrawn": list(UNDRAWN),
            "time": {"whole": STEP_SECONDS, "parts": [part.row() for part in TIME_PARTS]},
        }

    def differences(self, groups: Sequence[Row]) -> list[str]:
        """What `sdpo compare` says of each of `groups` but the first, beside the first; nothing
        where there is nothing to compare. Reads all rollouts anew."""
        paths = [run.path for run in self._runs if run.has_steps()]
        try:
            found = compare([[paths[i] for i in group["runs"]] for group in groups]).differences
        except ConfigError:
            return []
        return [
            f"{shown(each.gap, sign=True)}, better on {each.wins} tasks, worse on {each.losses}"
            for each in found
        ]


def load_report(run_dirs: Sequence[Path]) -> Row:
    """Everything the page of these directories shows, once."""
    reader = ReportReader(run_dirs)
    data = reader.load()
    groups = data["groups"]
    if len(groups) > 1:
        for group, text in zip(groups[1:], reader.differences(groups), strict=False):
            group["difference"] = text
    return data


def run_outcome(run_dir: Path, *, through: int | None = None) -> Outcome | None:
    """What happened in a run up to the step `through` (None: so far), as its report says first;
    None for a directory without rows."""
    rows = [
        row for row in read_rows(run_dir / METRICS) if through is None or row["step"] <= through
    ]
    if not rows:
        return None
    rollouts = RolloutIndex(run_dir / ROLLOUTS)
    rollouts.update()
    alerts = [row for row in read_rows(run_dir / ALERTS) if row["step"] <= rows[-1]["step"]]
    config = flatten(_read_json(run_dir / CONFIG).get("config", {}))
    return describe_outcome(rows, config, alerts, rollouts.held_out)


class _RunReader:
    """One directory."""

    def __init__(self, path: Path, name: str, share: int) -> None:
        self.path = path
        self.name = name
        self._share = share
        self._rollouts = RolloutIndex(path / ROLLOUTS)
        self._credit = CreditIndex(path / CREDIT)

    def has_steps(self) -> bool:
        return next(read_rows(self.path / METRICS), None) is not None

    def load(self) -> Row:
        rows = list(read_rows(self.path / METRICS))
        recorded = _read_json(self.path / CONFIG)
        config = flatten(recorded.get("config", {}))
        alerts = list(read_rows(self.path / ALERTS))
        self._credit.update()
        self._rollouts.update()
        credit, credited = self._credit.choose(CREDIT_BYTES // self._share, CREDIT_ROLLOUTS)
        return {
            "name": self.name,
            "config": config,
            "facts": _facts(recorded),
            "host": _host(recorded),
            "outcome": describe_outcome(rows, config, alerts, self._rollouts.held_out).row(),
            "metrics": metric_columns(rows),
            "alerts": alerts,
            "verdicts": self._rollouts.verdicts(),
            "groups": self._rollouts.choose(ROLLOUT_BYTES // self._share, credited),
            "num_rollouts": self._rollouts.num_rollouts,
            "credit": credit,
        }


def run_names(run_dirs: Sequence[Path]) -> list[str]:
    """The directories' last parts, with as many parents as it takes to tell them apart."""
    paths = [path.resolve() for path in run_dirs]
    depth = 1
    while True:
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(set(paths)) or depth >= max(len(path.parts) for path in paths):
            return names
        depth += 1


def _read_json(path: Path) -> Row:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); the run directory is damaged") from error


def flatten(values: Mapping[str, Any], prefix: str = "") -> Row:
    """Nested settings as dotted keys."""
    flat: Row = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def _facts(recorded: Mapping[str, Any]) -> list[str]:
    facts = [f"{name} {version}" for name, version in (recorded.get("versions") or {}).items()]
    git = recorded.get("git") or {}
    if git.get("commit"):
        facts.append(f"commit {git['commit'][:12]}" + (" with changes" if git.get("diff") else ""))
    return facts


def _host(recorded: Mapping[str, Any]) -> str:
    host = recorded.get("host") or {}
    device = host.get("device")
    cores = f"{host['cores']} cores" if "cores" in host else ""
    return ", ".join(part for part in (device, host.get("machine"), cores) if part)


def metric_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """One list per metric over the rows, null where a row lacks it; more than `MAX_ROWS` rows are
    averaged into bins."""
    names = sorted({name for row in rows for name in row})
    edges = _bin_edges(len(rows))
    columns: dict[str, list[float | None]] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        if any(isinstance(value, (str, list, dict)) for value in values):
            continue
        columns[name] = [
            _mean(values[low:high], keep_last=name == "step" or name.endswith("_total"))
            for low, high in itertools.pairwise(edges)
        ]
    return columns


def _bin_edges(count: int) -> list[int]:
    bins = min(count, MAX_ROWS)
    return [round(i * count / bins) for i in range(bins + 1)]


def _mean(values: Sequence[float | None], *, keep_last: bool) -> float | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    value = known[-1] if keep_last else sum(known) / len(known)
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")


def seed_groups(runs: Sequence[Row]) -> list[Row]:
    """Runs that differ in nothing but seed, directory and what is logged, as `{"name", "runs":
    indices}` in order of appearance. Where two have the same seed, something differs that settings
    do not show, such as an environment from Python, and each is alone."""
    alike: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        settings = {k: v for k, v in run["config"].items() if k not in ("seed", "run", "log")}
        key = dumps(settings) if settings else f"run {index}"
        alike.setdefault(key, []).append(index)
    groups: dict[str, list[int]] = {}
    for key, indices in alike.items():
        seeds = {runs[index]["config"].get("seed") for index in indices}
        if len(seeds) == len(indices):
            groups[key] = indices
        else:
            groups |= {f"run {index}": [index] for index in indices}
    groups = dict(sorted(groups.items(), key=lambda group: group[1]))
    names: list[str] = []
    for indices in groups.values():
        name = _group_name([runs[i]["name"] for i in indices])
        names.append(name if name not in names else runs[indices[0]]["name"])
    return [
        {"name": name, "runs": indices}
        for name, indices in zip(names, groups.values(), strict=True)
    ]


def _group_name(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    prefix = "".join(
        chars[0]
        for chars in itertools.takewhile(lambda c: len(set(c)) == 1, zip(*names, strict=False))
    )
    stem = prefix.rstrip("-_./ 0123456789").removesuffix("seed").rstrip("-_./ ")
    return stem or names[0]
