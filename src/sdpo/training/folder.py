"""A run's folder while one process trains in it."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sdpo.errors import ConfigError
from sdpo.lock import LOCK, sole_writer
from sdpo.run_folder import SEARCH

_BEFORE_THE_FIRST_ROW = {"config.json", LOCK}


@contextmanager
def own_folder(run_dir: Path) -> Generator[None]:
    """Holds `run_dir` for the block, as `sole_writer` does, and removes it if it was made for the
    block and an error has left it without a single row. Raises `ConfigError`, also for the folder
    of a search."""
    if (run_dir / SEARCH).is_file():
        raise ConfigError(
            f"run = {str(run_dir)!r} holds a search; `sdpo discover {run_dir}` continues it, and "
            "training needs another folder: run=..."
        )
    was_there = run_dir.exists()
    try:
        with sole_writer(run_dir):
            yield
    except Exception:
        left = {path.name for path in run_dir.iterdir()} if run_dir.is_dir() else set()
        if not was_there and left <= _BEFORE_THE_FIRST_ROW:
            shutil.rmtree(run_dir, ignore_errors=True)
        raise
