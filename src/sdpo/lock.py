"""One process at a time writes into a run's folder.

Two would interleave their rows, and no later resume could tell them apart.
"""

from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from sdpo.errors import ConfigError
from sdpo.files import tidy

LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What a file system without locks answers."""


@contextmanager
def sole_writer(run_dir: Path) -> Generator[None]:
    """Holds `run_dir`, which is created, for the block, after clearing what a killed process left
    half-written in it. Raises `ConfigError` naming the process that holds it already.

    The lock is `flock`'s: it ends with the process, however that dies, so a stale one cannot
    remain. On NFS and Lustre it holds between machines where these are mounted with locks (the
    default of NFS; `flock` for Lustre); a file system without locks, and Windows, go without: there
    it is up to the user not to start a run twice.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"run = {str(run_dir)!r}: cannot write there ({error.strerror}); "
            "choose another directory with run=..."
        ) from error
    with file:
        _lock(file, run_dir)
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": platform.node()}) + "\n")
        file.flush()
        for folder in (run_dir, run_dir / "checkpoints", run_dir / "solutions"):
            tidy(folder)
        yield


def _lock(file: TextIO, run_dir: Path) -> None:
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"run {str(run_dir)!r} is in use by {_holder(file)}; "
            "wait for it, stop it, or choose another directory with run=..."
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _holder(file: TextIO) -> str:
    """The process that the lock file names; it may not have written its name yet."""
    file.seek(0)
    try:
        found = json.loads(file.read())
        return f"process {found['pid']} on {found['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
