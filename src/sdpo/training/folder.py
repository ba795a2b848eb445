"""A run's folder while one process trains in it."""

from __future__ import annotations

import platform
import secrets
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sdpo.errors import ConfigError
from sdpo.files import marker
from sdpo.lock import LOCK, sole_writer
from sdpo.parallel import Parallel
from sdpo.run_folder import SEARCH

_BEFORE_THE_FIRST_ROW = {"config.json", LOCK}
SEEN_S = 10.0
"""How soon every process must see a file that one has written; NFS takes up to a few seconds."""
_LOOK_S = 0.05


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


def check_shared(run_dir: Path, parallel: Parallel) -> None:
    """Raises `ConfigError` on every rank unless all of them see `run_dir`, which the main one has
    made: of machines with a folder each, one alone would continue from a checkpoint."""
    if parallel.world_size == 1:
        return
    token, writer = parallel.gather((secrets.token_hex(8), platform.node()))[0]
    path = marker(run_dir, token)
    parallel.from_main(path.touch)
    try:
        parallel.agreed(lambda: _look(path, parallel.rank, writer))
    finally:
        if parallel.is_main:
            path.unlink(missing_ok=True)


def _look(path: Path, rank: int, writer: str) -> None:
    end = time.monotonic() + SEEN_S
    while not path.exists():
        if time.monotonic() > end:
            raise ConfigError(
                f"run = {str(path.parent)!r}: process {rank} on {platform.node()} (in "
                f"{Path.cwd()}) does not see what process 0 on {writer} writes there; give a "
                "folder that all machines share: run=/shared/NAME"
            )
        time.sleep(_LOOK_S)
