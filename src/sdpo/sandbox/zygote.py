"""A small warm interpreter that forks one jailed child per request.

Started as `python -I -S zygote.py FD SETTINGS`. It never sees code, input or output: the four
descriptors of a request go straight to the child. Single-threaded, one child at a time; when its
socket closes, it kills the child and exits.
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import types
from typing import Any, NoReturn

HERE = os.path.dirname(os.path.abspath(__file__))
PRELOAD = (
    "__future__", "abc", "array", "atexit", "bisect", "cmath", "collections", "collections.abc",
    "concurrent.futures.thread", "contextlib", "copy", "dataclasses", "datetime", "decimal",
    "enum", "fractions", "functools", "hashlib", "heapq", "io", "itertools", "json", "math",
    "numbers", "operator", "os", "queue", "random", "re", "statistics", "string", "struct", "sys",
    "textwrap", "threading", "time", "traceback", "types", "typing", "unicodedata", "zlib",
)  # fmt: skip
"""What most programs import, and no more: each fork pays for every page of the zygote."""
PRELOAD_STRICT = (
    "_compat_pickle", "_pydecimal", "_pylong", "_strptime", "_threading_local", "argparse", "ast",
    "asyncio", "base64", "binascii", "bz2", "cProfile", "calendar", "cmd", "code", "codecs",
    "colorsys", "concurrent.futures", "concurrent.futures.process", "configparser", "contextvars",
    "copyreg", "csv", "ctypes", "difflib", "dis", "email.message", "fileinput", "fnmatch",
    "getopt", "getpass", "gettext", "glob", "graphlib", "gzip", "hmac", "html.parser",
    "importlib.metadata", "importlib.resources", "inspect", "ipaddress", "keyword", "linecache",
    "locale", "logging", "lzma", "mmap", "multiprocessing.dummy", "multiprocessing.managers",
    "multiprocessing.pool", "multiprocessing.queues", "multiprocessing.shared_memory",
    "multiprocessing.synchronize", "optparse", "pathlib", "pickle", "pickletools", "platform",
    "pprint", "pstats", "quopri", "reprlib", "resource", "sched", "secrets", "select", "selectors",
    "shlex", "shutil", "signal", "socket", "sqlite3", "stat", "stringprep", "subprocess",
    "symtable", "tarfile", "tempfile", "timeit", "tokenize", "tomllib", "tracemalloc", "unittest",
    "unittest.mock", "urllib.parse", "uuid", "warnings", "weakref", "xml.dom.minidom",
    "xml.etree.ElementTree", "zipfile", "zoneinfo",
)  # fmt: skip
"""Where programs cannot open files, this is all they can import besides. Some are imported by calls
of other modules (`strptime`), some exist in other versions of Python only."""
ENCODINGS_STRICT = (
    "ascii", "base64_codec", "big5", "bz2_codec", "cp1250", "cp1251", "cp1252", "cp437", "cp850",
    "euc_jp", "euc_kr", "gb18030", "gb2312", "gbk", "hex_codec", "idna", "iso8859_1", "iso8859_15",
    "iso8859_2", "koi8_r", "latin_1", "mac_roman", "punycode", "quopri_codec",
    "raw_unicode_escape", "rot_13", "shift_jis", "unicode_escape", "utf_16", "utf_16_be",
    "utf_16_le", "utf_32", "utf_32_be", "utf_32_le", "utf_7", "utf_8", "utf_8_sig", "uu_codec",
    "zlib_codec",
)  # fmt: skip
"""Likewise, encodings: each is a module that its first use imports."""
NUM_FDS = 4
"""Commands, results, standard output, standard input; in this order."""
FIRST_FD = 40
"""The child's descriptors start at this number, a Landlock ruleset comes after them, and all others
are closed."""
STACK_BYTES = 256 << 20
"""Honest programs recurse deeply in C (`lru_cache`, `sorted` keys); with the default 8 MiB they
crash."""
THREAD_STACK_BYTES = 8 << 20
NOT_LOCKED_DOWN = 70


def child(job: dict[str, Any], fds: list[int], prepared: dict[str, Any]) -> NoReturn:
    """Lock down, then serve the judge. Nothing is read from the judge before the lock-down."""
    status = NOT_LOCKED_DOWN
    try:
        prepared["jail"].LIBC.prctl(prepared["jail"].PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != prepared["pid"]:
            os._exit(status)
        prepared = {**prepared, **prepared["phases"].get(job.get("phase"), {})}
        arrange_descriptors(fds, prepared)
        lock_down(job, prepared)
        prepared["runner"].serve(range(FIRST_FD, FIRST_FD + NUM_FDS), prepared["folder"])
        status = 0
    finally:
        os._exit(status)


def arrange_descriptors(fds: list[int], prepared: dict[str, Any]) -> None:
    """Standard input and output, the judge's pipes at fixed numbers, and no others."""
    kept = fds if prepared["ruleset"] is None else [*fds, prepared["ruleset"]]
    for number, fd in enumerate(kept, start=FIRST_FD):
        os.dup2(fd, number)
    os.dup2(FIRST_FD + 3, 0)
    os.dup2(FIRST_FD + 2, 1)
    prepared["jail"].close_except(FIRST_FD, FIRST_FD + len(kept) - 1)


def lock_down(job: dict[str, int], prepared: dict[str, Any]) -> None:
    """Put every restriction in place, in an order in which each is still possible."""
    jail = prepared["jail"]
    jail.set_limits(job, prepared["base_bytes"])
    if not prepared["is_jailed"]:
        return
    if prepared["ruleset"] is not None:
        prepared["landlock"].restrict(FIRST_FD + NUM_FDS)
        os.close(FIRST_FD + NUM_FDS)
    jail.install_filter(prepared["filter"])


def receive(connection: socket.socket) -> tuple[dict[str, int] | None, list[int]]:
    """One request and its descriptors, or None at the end."""
    fds = array.array("i")
    size = socket.CMSG_SPACE(NUM_FDS * fds.itemsize)
    data, ancillary, _, _ = connection.recvmsg(1 << 16, size)
    if not data:
        return None, []
    for level, kind, body in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(body[: len(body) - len(body) % fds.itemsize])
    return json.loads(data), list(fds)


def wait(connection: socket.socket, pid: int, pidfd: int) -> dict[str, float] | None:
    """Status, CPU seconds and largest memory of the child; kills it when the judge goes away, and
    then there is nothing to say."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.register(connection, select.POLLHUP | select.POLLRDHUP)
    while True:
        events = dict(poller.poll())
        if pidfd in events:
            break
        if events.get(connection.fileno()):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
    _, status, usage = os.wait4(pid, 0)
    kill_orphans()
    return {
        "status": status,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "resident_kb": usage.ru_maxrss,
    }


def kill_orphans() -> None:
    """Kill what an unprotected program left behind; a jailed one cannot fork."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
                orphans = [int(orphan) for orphan in file.read().split()]
            for orphan in orphans:
                os.kill(orphan, signal.SIGKILL)
            os.waitpid(-1, 0)


def with_large_stack() -> None:
    """Execute this script again with a large stack limit, because exec lays out the memory map."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    bound = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    if soft == resource.RLIM_INFINITY or soft < bound:
        resource.setrlimit(resource.RLIMIT_STACK, (bound, hard))
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-B", *sys.argv])


def preload(settings: dict[str, Any]) -> None:
    """Import what programs use, so that none of them pays for it."""
    encodings = [f"encodings.{name}" for name in ENCODINGS_STRICT]
    names = [] if settings["landlock"] else [*PRELOAD_STRICT, *encodings]
    for name in (*PRELOAD, *names):
        with contextlib.suppress(ImportError):
            __import__(name)
    sys.path += settings["folders"]
    for name in settings["preload"]:
        __import__(name)
    for folder in settings["folders"]:
        sys.path.remove(folder)
    import threading

    threading.stack_size(THREAD_STACK_BYTES)
    sys.setrecursionlimit(10_000)
    # The judge kills a child to interrupt it; Ctrl-C at the terminal is for the trainer alone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def as_bare_package() -> None:
    """Make `sdpo.sandbox` a plain folder of modules; its `__init__` imports the judge's side."""
    for name, folders in (("sdpo", []), ("sdpo.sandbox", [HERE])):
        module = types.ModuleType(name)
        module.__path__ = folders
        sys.modules[name] = module


def prepare(settings: dict[str, Any]) -> dict[str, Any]:
    """Enter namespaces, preload, and build what all children share."""
    # All of ours, `native` too, before namespaces hide where it is.
    from sdpo.sandbox import jail, landlock, namespaces, native, runner, scratch  # noqa: F401

    jail.own_machine()
    paths = landlock.readable_paths(settings["packages"])
    if settings["namespaces"]:
        namespaces.enter()
        namespaces.private_root(paths, settings["native"])
    jail.LIBC.prctl(jail.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    is_jailed = settings["jailed"]
    settings["landlock"] = settings["landlock"] and landlock.abi() > 0
    preload(settings)
    folder, writable = settings["scratch"], []
    if settings["namespaces"]:
        folder, writable = scratch.INSIDE, [(scratch.INSIDE, landlock.WRITE | landlock.FOLDERS)]
    elif is_jailed and settings["landlock"] and scratch.can_be_watched():
        writable = [(folder, landlock.WRITE)]
    ruleset = landlock.ruleset(paths, writable) if is_jailed and settings["landlock"] else None
    if is_jailed and (ruleset is None or not writable):
        folder = None
    is_watched = is_jailed and folder is not None and not settings["namespaces"]
    os.chdir(folder or "/")
    phases = native_phases(settings, paths, writable, is_watched) if settings["native"] else {}
    if is_jailed:
        jail.drop_privileges()
    runner.before_programs()
    os.environ.clear()
    sys.argv[:] = ["Solution.py"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "sdpo"]:
        del sys.modules[name]
    return {
        "jail": jail,
        "runner": runner,
        "phases": phases,
        "landlock": landlock,
        "is_jailed": is_jailed,
        "ruleset": ruleset,
        "scratch": scratch,
        "folder": folder,
        "is_watched": is_watched,
        "filter": b"".join(jail.filter_head(is_strict=ruleset is None, is_watched=is_watched)),
        "pid": os.getpid(),
        "base_bytes": jail.address_space(),
    }


def native_phases(
    settings: dict[str, Any], paths: list[str], writable: list[tuple[str, int]], is_watched: bool
) -> dict[str, dict[str, Any]]:
    """Rules and filters of a child that builds, and of one that runs what was built."""
    from sdpo.sandbox import jail, landlock, native

    if not writable or not settings["landlock"]:
        raise jail.JailError("other languages need Landlock and a folder to build in")
    (folder, access), *_ = writable
    run_access = landlock.READ_FILE | landlock.READ_DIR | landlock.EXECUTE
    running = [path for path in landlock.running_paths(settings["runs"]) if os.path.exists(path)]
    built = [(folder, access | landlock.READ_FILE | landlock.READ_DIR)]
    return {
        "build": {
            "runner": native,
            "ruleset": landlock.ruleset(paths, built),
            "filter": b"".join(jail.filter_head(is_strict=False, more=jail.BUILDING)),
        },
        "run": {
            "runner": native,
            "ruleset": landlock.ruleset(running, [(folder, run_access)]),
            "filter": b"".join(
                jail.filter_head(is_strict=False, is_watched=is_watched, more=jail.NATIVE)
            ),
        },
    }


def main() -> None:
    with_large_stack()
    connection = socket.socket(fileno=int(sys.argv[1]))
    settings = json.loads(sys.argv[2])
    as_bare_package()
    from sdpo.sandbox.jail import JailError

    try:
        prepared = prepare(settings)
    except (JailError, OSError, ImportError) as error:
        reason = f"{type(error).__name__}: {error}"
        connection.send(json.dumps({"error": reason}).encode())
        return
    gc.collect()
    gc.freeze()
    ready = {"landlock": prepared["ruleset"] is not None, "is_watched": prepared["is_watched"]}
    connection.send(json.dumps(ready).encode())
    try:
        answer(connection, prepared)
    finally:
        if settings["scratch"]:
            prepared["scratch"].remove(settings["scratch"])


def answer(connection: socket.socket, prepared: dict[str, Any]) -> None:
    """Fork for each request until the judge goes away."""
    while True:
        job, fds = receive(connection)
        if job is None:
            return
        phase = job.get("phase")
        if phase == "build":
            # What the program before left behind: only a new one may remove it.
            prepared["scratch"].empty(prepared["folder"])
        pid = os.fork()
        if pid == 0:
            child(job, fds, prepared)
        pidfd = os.pidfd_open(pid)
        for fd in fds:
            os.close(fd)
        socket.send_fds(connection, [b"{}"], [pidfd])
        ended = wait(connection, pid, pidfd)
        os.close(pidfd)
        if ended is None:
            return
        if prepared["folder"] is not None and phase is None:
            prepared["scratch"].empty(prepared["folder"])
        connection.send(json.dumps(ended).encode())


if __name__ == "__main__":
    main()
