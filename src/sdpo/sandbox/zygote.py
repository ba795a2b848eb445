"""A small warm interpreter that forks one jailed child per request. Started as `python -I -S zygote.py FD MODE`.

It never sees code, input or output: the four descriptors of a request go straight into the child. Single-threaded, one child
at a time; when its socket closes it kills the child and ends.
"""

import array
import gc
import json
import os
import select
import signal
import socket
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
PRELOAD = (
    "abc", "array", "asyncio", "base64", "bisect", "calendar", "cmath", "collections", "collections.abc",
    "concurrent.futures", "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "enum", "fileinput",
    "fractions", "functools", "hashlib", "heapq", "html", "io", "itertools", "json", "math", "numbers", "operator",
    "os", "pprint", "queue", "random", "re", "statistics", "string", "struct", "textwrap", "threading", "time",
    "traceback", "types", "typing", "unicodedata", "uuid", "zoneinfo", "__future__",
)  # fmt: skip
NAMES = ("commands", "results", "stdout", "stdin")
FIRST_FD = 40
"""Descriptors of the child move here, then everything below and above is closed."""
STACK_BYTES = 16 << 20


def child(job, fds, prepared, jail, runner):
    """Never returns: locks down and serves the judge."""
    status = 70
    try:
        if jail is not None:
            jail.LIBC.prctl(jail.PR_SET_PDEATHSIG, jail.SIGKILL, 0, 0, 0)
        moved = {}
        for offset, (name, fd) in enumerate(zip(NAMES, fds, strict=True)):
            moved[name] = FIRST_FD + offset
            os.dup2(fd, moved[name])
        keep = {*moved.values()}
        ruleset = prepared["ruleset"] if prepared else None
        os.dup2(moved["stdin"], 0)
        os.dup2(moved["stdout"], 1)
        null = os.open("/dev/null", os.O_WRONLY)
        os.dup2(null, 2)
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2 and fd not in keep and fd != ruleset:
                try:
                    os.close(fd)
                except OSError:
                    pass
        os.environ.clear()
        os.chdir("/")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        import threading

        threading.stack_size(STACK_BYTES)
        sys.setrecursionlimit(10_000)
        sys.path[:] = [entry for entry in sys.path if entry != HERE]
        sys.argv[:] = ["Solution.py"]
        for name in ("jail", "runner", "zygote"):
            sys.modules.pop(name, None)
        if jail is not None:
            jail.lock_down(job, prepared)
        elif job["cpu_s"]:
            import resource

            resource.setrlimit(resource.RLIMIT_CPU, (job["cpu_s"], job["cpu_s"]))
        runner.serve(moved)
        status = 0
    finally:
        os._exit(status)


def receive(connection):
    """One request and its descriptors, or None at the end."""
    fds = array.array("i")
    size = len(NAMES) * fds.itemsize
    data, ancillary, _, _ = connection.recvmsg(1 << 16, socket.CMSG_SPACE(size))
    if not data:
        return None, []
    for level, kind, body in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(body[: len(body) - len(body) % fds.itemsize])
    return json.loads(data), list(fds)


def wait(connection, pid, pidfd):
    """Status of the child when it ended; kills it when the judge goes away."""
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
            os._exit(0)
    _, status, usage = os.wait4(pid, 0)
    return status, usage


def main():
    connection = socket.socket(fileno=int(sys.argv[1]))
    sys.path.insert(0, HERE)
    import runner

    jail = prepared = None
    if sys.argv[2] == "jailed":
        import jail
    for name in PRELOAD:
        try:
            __import__(name)
        except ImportError:
            pass
    if jail is not None:
        try:
            prepared = jail.prepare()
        except jail.JailError as error:
            connection.send(json.dumps({"error": str(error)}).encode())
            return
    gc.collect()
    gc.freeze()
    landlock = prepared is not None and prepared["ruleset"] is not None
    connection.send(json.dumps({"ready": True, "landlock": landlock}).encode())
    while True:
        job, fds = receive(connection)
        if job is None:
            return
        pid = os.fork()
        if pid == 0:
            child(job, fds, prepared, jail, runner)
        pidfd = os.pidfd_open(pid)
        for fd in fds:
            os.close(fd)
        socket.send_fds(connection, [b"{}"], [pidfd])
        status, usage = wait(connection, pid, pidfd)
        os.close(pidfd)
        report = {"status": status, "cpu_s": usage.ru_utime + usage.ru_stime}
        connection.send(json.dumps(report).encode())


main()
