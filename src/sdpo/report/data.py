"""Run directories to the plain data a report embeds: columns of metrics, a spread of rollouts,
settings, groups of seeds.

Reads files only; knows no HTML. A long run holds far more rollouts than a page should, so they are
thinned evenly over its steps until a byte budget is met, and the page says so.
"""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sdpo.errors import ConfigError
from sdpo.metrics.jsonl import dumps, read_rows
from sdpo.metrics.writer import ALERTS, METRICS
from sdpo.rollouts.credit import CREDIT
from sdpo.rollouts.record import ROLLOUTS

DISCOVERY = "discovery.json"
"""What a discovery run leaves instead of metrics; discovery/curves.py writes it."""

Row = dict[str, Any]
Item = TypeVar("Item")

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


def load_report(run_dirs: Sequence[Path]) -> Row:
    """Everything the page shows. Raises `ConfigError` when a directory is no run or has no metrics
    yet."""
    names = run_names(run_dirs)
    runs, discoveries = [], []
    for path, name in zip(run_dirs, names, strict=True):
        summary = _read_json(path / DISCOVERY)
        if summary:
            discoveries.append({"name": name, "summary": summary})
        if not summary or (path / METRICS).exists():
            runs.append(_load_run(path, name, share=len(run_dirs)))
    return {"runs": runs, "groups": seed_groups(runs), "discoveries": discoveries}


def run_names(run_dirs: Sequence[Path]) -> list[str]:
    """The directories' last parts, with as many parents as it takes to tell them apart."""
    paths = [path.resolve() for path in run_dirs]
    depth = 1
    while True:
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(set(paths)) or depth >= max(len(path.parts) for path in paths):
            return names
        depth += 1


def _load_run(run_dir: Path, name: str, *, share: int) -> Row:
    rows = list(read_rows(run_dir / METRICS))
    if not rows:
        raise ConfigError(
            f"{run_dir} has no {METRICS} with a step in it; give the directory of a run "
            "(`run` in its config)"
        )
    recorded = _read_json(run_dir / "config.json")
    credit = _spread(list(read_rows(run_dir / CREDIT)), CREDIT_BYTES // share, CREDIT_ROLLOUTS)
    keys = {(row["step"], row["split"], row["task"]) for row in credit}
    groups, num_rollouts = select_rollouts(run_dir, ROLLOUT_BYTES // share, keys)
    return {
        "name": name,
        "config": flatten(recorded.get("config", {})),
        "facts": _facts(recorded),
        "host": _host(recorded),
        "metrics": metric_columns(rows),
        "alerts": list(read_rows(run_dir / ALERTS)),
        "groups": groups,
        "num_rollouts": num_rollouts,
        "credit": credit,
    }


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
    """Runs that differ in nothing but seed and directory, as `{"name", "runs": indices}` in order
    of appearance."""
    groups: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        settings = {k: v for k, v in run["config"].items() if k not in ("seed", "run")}
        key = dumps(settings) if settings else f"run {index}"
        groups.setdefault(key, []).append(index)
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


def select_rollouts(
    run_dir: Path, budget: int, first: set[tuple[int, str, str]]
) -> tuple[list[Row], int]:
    """Groups of rollouts worth about `budget` compressed bytes, in file order, and the number of
    rollouts on disk.

    Groups whose (step, split, task) is in `first` come before others; then one group of every step,
    evenly spread, then a second one, and so on.
    """
    units: dict[tuple[int, str], list[tuple[int, int]]] = {}
    wanted: list[tuple[int, int]] = []
    num_rollouts = 0
    for number, group in enumerate(_groups(run_dir)):
        size = len(zlib.compress(dumps(group).encode(), 1))
        num_rollouts += len(group["rollouts"])
        if (group["step"], group["split"], group["task"]) in first:
            wanted.append((number, size))
        else:
            units.setdefault((group["step"], group["split"]), []).append((number, size))
    ordered = [units[key] for key in _spread_order(sorted(units))]
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*ordered))
    chosen: set[int] = set()
    for number, size in itertools.chain(wanted, (entry for entry in rounds if entry)):
        if size <= budget:
            budget -= size
            chosen.add(number)
    return [g for number, g in enumerate(_groups(run_dir)) if number in chosen], num_rollouts


def _groups(run_dir: Path) -> Iterator[Row]:
    """Lines of rollouts.jsonl by group, the prompt once; `teacher` keeps its references."""
    rows = read_rows(run_dir / ROLLOUTS)
    for (step, split, task), members in itertools.groupby(
        rows, key=lambda row: (row["step"], row["split"], row["task"])
    ):
        rollouts = list(members)
        prompt = next((r["prompt"] for r in rollouts if not isinstance(r["prompt"], int)), None)
        repeated = ("step", "split", "task", "prompt")
        yield {
            "step": step,
            "split": split,
            "task": task,
            "prompt": prompt,
            "rollouts": [
                {key: value for key, value in row.items() if key not in repeated}
                for row in rollouts
            ],
        }


def _spread(rows: Sequence[Row], budget: int, count: int) -> list[Row]:
    """At most `count` rows worth about `budget` compressed bytes, evenly spread, in order."""
    chosen = []
    for place in itertools.islice(_spread_order(range(len(rows))), count):
        budget -= len(zlib.compress(dumps(rows[place]).encode(), 1))
        if budget < 0:
            break
        chosen.append(place)
    return [rows[place] for place in sorted(chosen)]


def _spread_order(items: Iterable[Item]) -> list[Item]:
    """First, last, then ever finer halves: every prefix of the result is spread over the whole."""
    rest = list(items)
    if len(rest) <= 2:
        return rest
    order = [0, len(rest) - 1]
    seen = set(order)
    spans = [(0, len(rest) - 1)]
    while spans:
        halves = []
        for low, high in spans:
            middle = (low + high) // 2
            if middle not in seen:
                seen.add(middle)
                order.append(middle)
                halves += [(low, middle), (middle, high)]
        spans = halves
    return [rest[place] for place in order]
