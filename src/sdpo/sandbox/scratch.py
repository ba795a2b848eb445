"""The one folder a program may write to: empty when it starts, emptied when it ends.

With namespaces it is a small tmpfs that only the zygote and its children see. Without them it is a
temporary folder, and the judge counts what the program writes. Standard library only: used by the
judge, the zygote and its children.
"""

from __future__ import annotations

import contextlib
import os

INSIDE = "/scratch"
"""Its path in a private root."""
MAX_BYTES = 16 << 20
"""Size of the tmpfs; without one, the judge counts what is written (`child.py`)."""
MAX_ENTRIES = 128
MAX_BUILD_BYTES = 64 << 20
"""Size of the tmpfs where programs are compiled."""


def empty(folder: str) -> None:
    """Remove everything in `folder`. No program may run in it meanwhile."""
    if os.listdir(folder):
        handle = _open_folder(folder)
        try:
            _empty(handle)
        finally:
            os.close(handle)


def _open_folder(name: str, dir_fd: int | None = None) -> int:
    # Flags that Windows lacks: named here, so that this module can be imported there.
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=dir_fd)


def _empty(handle: int) -> None:
    for name in os.listdir(handle):
        try:
            os.unlink(name, dir_fd=handle)
        except (IsADirectoryError, PermissionError):
            _remove_folder(name, handle)


def _remove_folder(name: str, handle: int) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=handle)  # An empty one may be closed even to its owner.
        return
    try:
        inner = _open_folder(name, dir_fd=handle)
    except PermissionError:
        # Only outside the jail, which forbids this call.
        os.chmod(name, 0o700, dir_fd=handle)
        inner = _open_folder(name, dir_fd=handle)
    try:
        _empty(inner)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=handle)


def remove(folder: str) -> None:
    """Remove `folder` and its content, unless it is already gone."""
    try:
        empty(folder)
        os.rmdir(folder)
    except FileNotFoundError:
        pass


def num_written(pid: int) -> int:
    """Bytes a process has written so far, pipes included; 0 when it has ended."""
    try:
        with open(f"/proc/{pid}/io", "rb") as file:
            for line in file:
                if line.startswith(b"wchar:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0


def can_be_watched() -> bool:
    """Whether this kernel counts what a process writes."""
    return os.path.exists("/proc/self/io")


def num_entries(folder: str) -> int:
    try:
        return len(os.listdir(folder))
    except OSError:
        return 0
