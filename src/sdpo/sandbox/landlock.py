"""Which files a program may read: the interpreter's library, shared libraries, time zones.

Uses Landlock by system calls, without root. Only the scratch folder may be written to; TCP, and
signals and abstract sockets to the outside, are forbidden. Runs in `python -I -S` without this
package.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

from sdpo.sandbox.jail import LIBC, JailError, errno_text

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG, TRUNCATE = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 14
WRITE = WRITE_FILE | READ_FILE | READ_DIR | REMOVE_FILE | MAKE_REG | TRUNCATE
"""What a program may do in its scratch folder; folders only where their number is bounded."""
FOLDERS = MAKE_DIR | REMOVE_DIR
FS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
FS_LATEST = (1 << 16) - 1
"""Every access to files that ABI 5 knows; later ones add none that an open file lacks."""
NET_TCP, SCOPE_SOCKET_AND_SIGNAL = 3, 3
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
RULE_PATH_BENEATH = 1
NOT_LIBRARY = ("site-packages", "dist-packages", "test", "idlelib")
DEVICES = (("/dev/null", READ_FILE | WRITE_FILE), ("/dev/urandom", READ_FILE))


def abi() -> int:
    """Landlock's ABI version, 0 if the kernel has none."""
    return max(0, LIBC.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1))


def mapped_folders() -> set[str]:
    """Folders of the shared libraries that this process has loaded."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        paths = {line.split(None, 5)[5].strip() for line in file if "/" in line}
    return {os.path.dirname(path) for path in paths if ".so" in path}


def library_folder() -> str:
    return os.path.dirname(os.__file__)


def shared_libraries() -> list[str]:
    """Folders with shared libraries, or single files where site-packages is below the folder."""
    standard = ("/lib64", "/usr/lib64", "/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu")
    inside = os.path.realpath(library_folder())
    found: list[str] = []
    for folder in sorted({*standard, *mapped_folders()}):
        real = os.path.realpath(folder)
        if not os.path.isdir(real) or real.startswith(inside):
            continue
        if inside.startswith(real + "/"):
            found += [os.path.join(real, name) for name in os.listdir(real) if ".so" in name]
        else:
            found.append(folder)
    return found


def readable_paths(packages: list[str]) -> list[str]:
    """What an honest program may read; `packages` are paths named by the judge."""
    library = library_folder()
    entries = [
        os.path.join(library, name) for name in os.listdir(library) if name not in NOT_LIBRARY
    ]
    shared = os.path.join(sys.base_prefix, "lib")
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    system = ["/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo"]
    paths = [*entries, *shared_libraries(), os.path.join(shared, name), *system, *packages]
    return [path for path in paths if os.path.exists(path)]


def running_paths(own: list[str]) -> list[str]:
    """What a compiled program or another interpreter may read: shared libraries and `own`."""
    folders = [folder for folder in ("/lib64", "/usr/lib64") if os.path.isdir(folder)]
    return [*folders, *shared_libraries(), "/etc/ld.so.cache", "/etc/localtime", *own]


def ruleset(paths: list[str], writable: list[tuple[str, int]]) -> int | None:
    """A descriptor of rules to read `paths` and to write as `writable` says, and nothing else; None
    without Landlock."""
    version = abi()
    if not version:
        return None
    handled = FS_BY_ABI.get(version, FS_LATEST)
    attributes = struct.pack(
        "QQQ",
        handled,
        NET_TCP if version >= 4 else 0,
        SCOPE_SOCKET_AND_SIGNAL if version >= 6 else 0,
    )
    size = 8 if version < 4 else 16 if version < 6 else 24
    descriptor = LIBC.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if descriptor < 0:
        return None
    read = EXECUTE | READ_FILE | READ_DIR
    for path, access in [*((path, read) for path in paths), *DEVICES, *writable]:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rights = access if os.path.isdir(path) else access & ~READ_DIR
        rule = struct.pack("=Qi", rights & handled, handle)
        failed = LIBC.syscall(ADD_RULE, descriptor, RULE_PATH_BENEATH, rule, 0)
        os.close(handle)
        if failed:
            raise JailError(f"Landlock rule for {path}: {errno_text()}")
    return descriptor


def restrict(descriptor: int) -> None:
    """Bind the calling process to the ruleset, for good."""
    if LIBC.syscall(RESTRICT_SELF, descriptor, 0):
        raise JailError(f"Landlock: {errno_text()}")
