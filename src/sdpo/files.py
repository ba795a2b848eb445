"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path, *, unless: Callable[[], bool] | None = None) -> Generator[Path]:
    """Yields a path beside `path` for a file or a folder, which takes the place of `path` once the
    block has ended and the disk holds it. If the block raises, `path` stays as it was.

    `unless` is for what several processes may write: each writes its own copy, and when `unless`
    returns true at the end, `path` is kept. Raises `OSError`.

    Example:
        with atomic_write(run_dir / "config.json") as partial:
            partial.write_text(text)
    """
    suffix = "" if unless is None else f"-{os.getpid()}"
    partial = path.with_name(f".partial-{path.name}{suffix}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)
    try:
        yield partial
        _sync(partial)
        if unless is None or not unless():
            # A rename replaces a file, but not a folder that has something in it.
            if partial.is_dir():
                _remove(path)
            partial.replace(path)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until the disk holds every file: a rename may reach it before the data."""
    files = [part for part in path.rglob("*") if part.is_file()] if path.is_dir() else [path]
    for part in files:
        with part.open("r+b") as file:  # Windows syncs only what is open for writing
            os.fsync(file.fileno())
