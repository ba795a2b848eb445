"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from sdpo.errors import SdpoError

_PARTIAL = ".partial-"
_ASIDE = ".old-"
_DELETED = ".deleted-"


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
    partial = path.with_name(f"{_PARTIAL}{path.name}{suffix}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)
    try:
        yield partial
        _sync(partial)
        if unless is None or not unless():
            _put(partial, path, aside=path.with_name(f"{_ASIDE}{path.name}{suffix}"))
    finally:
        _remove(partial)


@contextmanager
def record_whole(path: Path) -> Generator[Path]:
    """As `atomic_write`, for a file of a run: raises `SdpoError` saying what to do instead of
    `OSError`."""
    try:
        with atomic_write(path) as partial:
            yield partial
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> SdpoError:
    """What to tell the user when a file of a run cannot be written."""
    return SdpoError(
        f"cannot write {path}: {error.strerror}; free space or choose another `run` directory"
    )


def delete_folder(path: Path) -> None:
    """Remove `path` so that it is never seen half-removed; `tidy` finishes what a kill cuts
    short."""
    doomed = path.with_name(f"{_DELETED}{path.name}")
    _remove(doomed)
    path.replace(doomed)
    _remove(doomed)


def marker(folder: Path, name: str) -> Path:
    """Where a file lies that is to be there for a moment only; `tidy` removes it too."""
    return folder / f"{_PARTIAL}{name}"


def tidy(folder: Path) -> None:
    """Clear what killed processes left in `folder`: half-written and half-removed files go, and a
    folder that was put aside for a new one which never came is back. Only for a folder that no
    other process writes into."""
    for aside in folder.glob(f"{_ASIDE}*"):
        path = folder / aside.name.removeprefix(_ASIDE)
        if path.exists():
            _remove(aside)
        else:
            aside.replace(path)
    for prefix in (_PARTIAL, _DELETED):
        for rest in folder.glob(f"{prefix}*"):
            _remove(rest)


def _put(partial: Path, path: Path, *, aside: Path) -> None:
    """Rename `partial` to `path`. A rename replaces a file, but not a folder that has something in
    it: the old one stands aside until the new one stands."""
    if not (partial.is_dir() and path.is_dir()):
        partial.replace(path)
        return
    _remove(aside)
    try:
        path.replace(aside)
        partial.replace(path)
    finally:
        if path.exists():
            _remove(aside)
        else:
            aside.replace(path)


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
