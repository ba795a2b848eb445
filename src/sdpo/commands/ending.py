"""What `sdpo train` says last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from sdpo.errors import ConfigError
from sdpo.machine import peak_memory_bytes
from sdpo.metrics.dashboard import duration
from sdpo.report.data import run_outcome
from sdpo.run_folder import RunFolder
from sdpo.runs import Result


def closing_lines(result: Result) -> Iterator[str]:
    """How a run ended, what came of it, what it took, where the weights are, and what to do
    next."""
    state = "finished" if result.finished else "stopped"
    yield f"{state} at step {result.step}: {result.run_dir}"
    if result.runs:
        yield from _took(result, [])
        if result.finished:
            yield f"next: sdpo compare {result.run_dir}     means with intervals"
        return
    outcome = run_outcome(result.run_dir)
    if outcome is not None:
        yield " ".join((outcome.headline, *outcome.details))
    folder = RunFolder(folder=result.run_dir, step=None)
    where = []
    with contextlib.suppress(ConfigError):  # It may have ended before its first checkpoint.
        where = [f"weights in {folder.checkpoint()}"]
    yield from _took(result, where)
    if not result.finished:
        yield f"next: sdpo train {result.run_dir}     goes on"
        return
    run = result.run_dir
    is_python = folder.record().get("environment") is not None
    talk = f"sdpo sample {run}{' --chat' if is_python else ''}"
    width = len(max(talk, f"sdpo report {run}", key=len))
    yield f"next: {f'sdpo report {run}':<{width}}   curves, attempts and token credit as one page"
    yield f"      {talk:<{width}}   the model before and after, side by side"


def _took(result: Result, more: Sequence[str]) -> Iterator[str]:
    peak = peak_memory_bytes()
    memory = [] if peak is None else [f"{peak / 1e9:.1f} GB of memory at most"]
    yield "; ".join((duration(result.seconds), *_device_memory(), *memory, *more))


def _device_memory() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    return [f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB on the GPU at most"]
