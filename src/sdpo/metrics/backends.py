"""TensorBoard, W&B and trackio behind one small interface; each imported only when a run asks for
it.

W&B works offline with `WANDB_MODE=offline`, as its own documentation says; nothing here reads
credentials.
"""

from __future__ import annotations

import importlib.util
import math
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sdpo.config.schema import LogConfig
from sdpo.errors import ConfigError

TABLE_ROWS = 16
"""Rollouts a step that are sent to a service: enough to read along; rollouts.jsonl has all of
them."""
TABLE_COLUMNS = ("step", "task", "index", "solved", "reward", "category", "text", "feedback")
_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
"""Backend name, which is also the name of the pip extra, to the package that must be importable."""


class Backend(Protocol):
    """A service that mirrors a run."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers of one step; NaN are left out."""
        ...

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Some rows of text and numbers."""
        ...

    def alert(self, step: int, title: str, text: str) -> None:
        """Something the user should see."""
        ...

    def close(self) -> None:
        """Flush and end."""
        ...


def check_installed(names: Sequence[str]) -> None:
    """Raises `ConfigError` for an unknown backend or a missing package, naming the extra that
    brings it."""
    for name in names:
        if name not in _PACKAGES:
            raise ConfigError(f"log.backends: unknown {name!r}; choose from {', '.join(_PACKAGES)}")
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ConfigError(
                f"log.backends: {name!r} needs the package {_PACKAGES[name]}; "
                f"pip install 'sdpo[{name}]'"
            )


def open_backend(
    name: str, run_dir: Path, log: LogConfig, config: Mapping[str, Any], resumed_at: int | None
) -> Backend:
    """The started service, told what `log` calls the run. `resumed_at` is the last step that still
    counts, None for a fresh run."""
    match name:
        case "tensorboard":
            return _TensorBoard(run_dir, log, resumed_at)
        case "wandb":
            return _Wandb(run_dir, log, config, resumed_at)
        case "trackio":
            return _Trackio(run_dir, log, config, resumed_at)
    raise AssertionError(f"unchecked backend {name!r}")


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _cells(row: Mapping[str, Any]) -> list[Any]:
    return [row.get(column) for column in TABLE_COLUMNS]


class _TensorBoard:
    def __init__(self, run_dir: Path, log: LogConfig, resumed_at: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard hides what an interrupted run had written at and after purge_step.
        purge = None if resumed_at is None else resumed_at + 1
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge)
        about = f"project {log.project}, run {log.name or run_dir.name}"
        if log.tags:
            about += f", tags {', '.join(log.tags)}"
        # It has no fields for these; a later text of the same step takes an earlier one's place.
        self._writer.add_text("about", about, purge or 0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in _finite(metrics).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        blocks = []
        for row in rows[:TABLE_ROWS]:
            title = f"{row.get('task')} #{row.get('index')}: {row.get('category')}"
            body = f"{row.get('text')}\n\n{row.get('feedback') or ''}"
            # An indented block is shown verbatim; model output must not become markup.
            blocks.append(f"{title}\n\n" + "\n".join("    " + line for line in body.splitlines()))
        self._writer.add_text(name, "\n\n".join(blocks), step)

    def alert(self, step: int, title: str, text: str) -> None:
        self._writer.add_text("alerts", f"{title}: {text}", step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(
        self, run_dir: Path, log: LogConfig, config: Mapping[str, Any], resumed_at: int | None
    ) -> None:
        import wandb  # ty: ignore[import-not-found]  # an extra

        self._wandb = wandb
        id_file = run_dir / "wandb_id"
        if resumed_at is None or not id_file.exists():
            id_file.parent.mkdir(parents=True, exist_ok=True)
            id_file.write_text(secrets.token_hex(8), encoding="utf-8")
        self._run = wandb.init(
            project=log.project,
            name=log.name or run_dir.name,
            tags=list(log.tags),
            id=id_file.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(run_dir),
            config=dict(config),
        )
        # Own step axis: W&B's internal step only grows and would refuse the steps a resumed run
        # repeats.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({**_finite(metrics), "step": step})

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        table = self._wandb.Table(
            columns=list(TABLE_COLUMNS), data=[_cells(row) for row in rows[:TABLE_ROWS]]
        )
        self._run.log({name: table, "step": step})

    def alert(self, step: int, title: str, text: str) -> None:
        self._run.alert(title=title, text=f"step {step}: {text}")

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    def __init__(
        self, run_dir: Path, log: LogConfig, config: Mapping[str, Any], resumed_at: int | None
    ) -> None:
        import trackio  # ty: ignore[import-not-found]  # an extra

        self._trackio = trackio
        self._run = trackio.init(
            project=log.project,
            name=log.name or run_dir.name,
            config=dict(config),
            resume="never" if resumed_at is None else "allow",
            embed=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(_finite(metrics), step=step)

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        table = self._trackio.Table(
            columns=list(TABLE_COLUMNS), data=[_cells(row) for row in rows[:TABLE_ROWS]]
        )
        self._run.log({name: table}, step=step)

    def alert(self, step: int, title: str, text: str) -> None:
        self._run.alert(title, text, step=step)

    def close(self) -> None:
        self._run.finish()
