"""User, process, network, IPC, host-name and mount namespaces of the zygote's own, without root.

Entered once, before anything is preloaded. The zygote becomes process 1 in them: when it ends, the
kernel ends everything inside. Its root is a tmpfs with the readable paths bound into it, so nothing
else can even be named. Runs in `python -I -S` without this package.
"""

from __future__ import annotations

import os

from sdpo.sandbox import scratch
from sdpo.sandbox.jail import LIBC, PR_SET_PDEATHSIG, SIGKILL, JailError, errno_text, own_machine

NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1, 2, 4, 8, 32, 4096, 16384, 1 << 18,
)  # fmt: skip
MNT_DETACH = 2
PIVOT_ROOT = (155, 41)
STAGE = "/tmp"
OLD_ROOT = "/.old"


def enter() -> None:
    """Return as process 1 of new namespaces; the calling process waits for it and exits alike.

    Raises `JailError` if the system does not allow it; the process should then exit.
    """
    uid, gid = os.getuid(), os.getgid()
    if LIBC.unshare(NEWUSER | NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS | NEWCGROUP):
        raise JailError(f"unshare: {errno_text()}")
    try:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    except OSError as error:
        raise JailError(f"identity map of a user namespace: {error}") from error
    pid = os.fork()
    if pid:
        os.closerange(3, 256)
        _, status = os.waitpid(pid, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    LIBC.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    if LIBC.mount(*texts, flags, options.encode()):
        raise JailError(f"mount of {target}: {errno_text()}")


def private_root(paths: list[str], is_native: bool) -> None:
    """Replace the file system with a read-only one that holds `paths`, /dev/null, /dev/urandom,
    /proc and a small folder to write to; `is_native`: and to run what was built there."""
    wanted = {path: os.path.realpath(path) for path in [*paths, "/dev/null", "/dev/urandom"]}
    column, _ = own_machine()
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", STAGE, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    os.mkdir(STAGE + OLD_ROOT)
    if LIBC.syscall(PIVOT_ROOT[column], STAGE.encode(), (STAGE + OLD_ROOT).encode()):
        raise JailError(f"pivot_root: {errno_text()}")
    os.chdir("/")
    # Parents first: a path inside one that is already bound needs no mount.
    for path in sorted(wanted):
        if not os.path.exists(path):
            bind(OLD_ROOT + wanted[path], path)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"/dev/{name}")
    os.mkdir("/proc")
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    if LIBC.umount2(OLD_ROOT.encode(), MNT_DETACH):
        raise JailError(f"umount of the old root: {errno_text()}")
    os.rmdir(OLD_ROOT)
    os.mkdir(scratch.INSIDE)
    flags = MS_NOSUID | MS_NODEV | (0 if is_native else MS_NOEXEC)
    num_bytes = scratch.MAX_BUILD_BYTES if is_native else scratch.MAX_BYTES
    size = f"size={num_bytes},nr_inodes={scratch.MAX_ENTRIES},mode=700"
    mount("tmpfs", scratch.INSIDE, "tmpfs", flags, size)
    mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def bind(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    mount(source, target, None, MS_BIND | MS_REC)
