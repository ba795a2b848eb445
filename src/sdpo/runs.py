"""A run's folder from Python: its settings, numbers, attempts, weights and report.

Reads what is on disk at the moment of asking, so a run that goes on can be looked at.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo.config.load import resolve
from sdpo.config.schema import RunConfig
from sdpo.errors import ConfigError
from sdpo.metrics import names
from sdpo.metrics.jsonl import read_rows
from sdpo.metrics.writer import METRICS
from sdpo.report import write_report
from sdpo.report.data import run_outcome
from sdpo.rollouts.record import read_rollouts
from sdpo.run_folder import RunFolder, as_run
from sdpo.training.loop import TrainResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Run:
    """A run on disk.

    Example:
        run = sdpo.Run.open("runs/quickstart")
        pandas.DataFrame(run.metrics())
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The run in the folder `path`; `runs/x@4` means its checkpoint of step 4. Raises
        `ConfigError` where there is none."""
        folder = as_run(str(path))
        if folder is None:
            raise ConfigError(
                f"{str(path)!r} is not a run's folder; it holds no config.json of one"
            )
        return cls(folder)

    @property
    def path(self) -> Path:
        return self._folder.folder

    @property
    def config(self) -> RunConfig:
        """The settings it was made with."""
        return resolve(self._folder.record()["config"])

    @property
    def checkpoint(self) -> Path:
        """Folder of the newest weights (of the step that was named). Raises `ConfigError`."""
        return self._folder.checkpoint()

    def metrics(self) -> dict[str, list[float | None]]:
        """One list per metric over the rows of metrics.jsonl, `step` among them, None where a row
        has no such number."""
        rows = list(read_rows(self.path / METRICS))
        keys = sorted({name for row in rows for name in row}, key=lambda n: (n != names.STEP, n))
        return {name: [row.get(name) for row in rows] for name in keys}

    def rollouts(self, split: str | None = None) -> Iterator[dict[str, Any]]:
        """Every recorded attempt in order: `step`, `split`, `task`, `text`, `reward`, `solved`,
        `feedback`, ... ; those of `train` or `eval` alone with `split`."""
        for row in read_rollouts(self.path):
            if split is None or row["split"] == split:
                yield row

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The trained model and its tokenizer, in eval mode; adapters are merged."""
        from sdpo.models.policy import load_policy

        config = self.config.model
        policy = load_policy(str(self.checkpoint), dtype=config.dtype)
        return policy.model, policy.tokenizer

    def report(self, out: str | Path | None = None) -> Path:
        """Write its report (default: report.html in its folder) and return the file."""
        return write_report([self.path], None if out is None else Path(out))

    def outcome(self) -> str:
        """What happened, in a sentence: the gain on held-out tasks with its interval."""
        found = run_outcome(self.path)
        return "No step is done yet." if found is None else found.headline

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _repr_html_(self) -> str:
        return _page(str(self.path), self.outcome(), self.metrics())


@dataclass(frozen=True, kw_only=True, repr=False)
class Result(TrainResult):
    """How a run ended, and the run itself.

    Example:
        sdpo.train("quickstart").checkpoint
    """

    @classmethod
    def of(cls, found: TrainResult) -> Result:
        return cls(**{field.name: getattr(found, field.name) for field in fields(found)})

    @property
    def run(self) -> Run:
        """The run on disk. With several seeds there is one in each of `runs`."""
        return Run(RunFolder(folder=self.run_dir, step=None))

    @property
    def checkpoint(self) -> Path:
        """Folder of the trained model."""
        return self.run.checkpoint

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The trained model and its tokenizer, as transformers knows them; adapters are merged."""
        return self.run.load()

    def report(self, out: str | Path | None = None) -> Path:
        """Write the report of the run, or of all seeds compared, and return the file."""
        runs = [run.run_dir for run in self.runs] or [self.run_dir]
        return write_report(runs, None if out is None else Path(out))

    def __fspath__(self) -> str:
        return str(self.run_dir)

    def __repr__(self) -> str:
        solved = self.metrics.get(names.EVAL_SOLVED)
        held_out = "" if solved is None else f", held out {solved:.3f}"
        state = "finished" if self.finished else "stopped"
        return f"Result({str(self.run_dir)!r}: {state} at step {self.step}{held_out})"

    def _repr_html_(self) -> str:
        if not self.runs:
            return self.run._repr_html_()
        return "".join(Result.of(run)._repr_html_() for run in self.runs)


_SHOWN = (
    (names.EVAL_SOLVED, "held out"),
    (names.TRAIN_SOLVED, "training"),
    (names.LOSS_TOTAL, "loss"),
)
_ROWS = 12
"""Rows of a notebook's table; a longer run shows evenly spread ones."""


def _page(title: str, outcome: str, metrics: dict[str, list[float | None]]) -> str:
    """What a notebook shows: the sentence and a small table."""
    steps = metrics.get("step", [])
    last = len(steps) - 1
    count = min(_ROWS, len(steps))
    rows = sorted({round(i * last / max(1, count - 1)) for i in range(count)})
    columns = [(name, label) for name, label in _SHOWN if name in metrics]
    head = "".join(f"<th>{label}</th>" for _, label in columns)
    body = "".join(
        f"<tr><td>{steps[row]:.0f}</td>"
        + "".join(f"<td>{_number(metrics[name][row])}</td>" for name, _ in columns)
        + "</tr>"
        for row in rows
    )
    return (
        f"<div><b>{html.escape(title)}</b><p>{html.escape(outcome)}</p>"
        f"<table><tr><th>step</th>{head}</tr>{body}</table></div>"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
