"""Lock-down of a process: limits, no privileges, a system-call filter. Linux on x86_64 and aarch64.

Runs in `python -I -S` without this package and without root. What all children share is built once,
in the zygote; each child adds its own part before it reads a byte of the program. Landlock
(`landlock.py`) decides which files may be read; without it, the filter forbids `open`.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct

LIBC = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
SECCOMP_MODE_FILTER = 2
NUM_CAPABILITIES = 64
SIGKILL = 9

# Name -> (x86_64, aarch64); None where the call does not exist.
PLAIN: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "open": (2, None), "close": (3, 57), "stat": (4, None),
    "fstat": (5, 80), "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67),
    "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66), "access": (21, None),
    "pipe": (22, None), "select": (23, None), "sched_yield": (24, 124), "mremap": (25, 216),
    "madvise": (28, 233), "dup": (32, 23), "dup2": (33, None), "pause": (34, None),
    "nanosleep": (35, 101), "getitimer": (36, 102), "alarm": (37, None), "setitimer": (38, 103),
    "getpid": (39, 172), "shutdown": (48, 210), "getsockname": (51, 204), "getsockopt": (55, 209),
    "exit": (60, 93), "uname": (63, 160), "getcwd": (79, 17), "readlink": (89, None),
    "gettimeofday": (96, 169), "getrlimit": (97, 163), "getrusage": (98, 165),
    "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176),
    "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173), "getpgrp": (111, None),
    "getgroups": (115, 158), "getresuid": (118, 148), "getresgid": (120, 150),
    "sigaltstack": (131, 132), "statfs": (137, 43), "fstatfs": (138, 44),
    "sched_getparam": (143, 121), "sched_getscheduler": (145, 120), "gettid": (186, 178),
    "futex": (202, 98), "sched_getaffinity": (204, 123), "epoll_wait": (232, None),
    "epoll_ctl": (233, 21), "getdents64": (217, 61), "set_tid_address": (218, 96),
    "restart_syscall": (219, 128), "fadvise64": (221, 223), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94),
    "openat": (257, 56), "newfstatat": (262, 79), "readlinkat": (267, 78),
    "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73),
    "set_robust_list": (273, 99), "get_robust_list": (274, 100), "epoll_pwait": (281, 22),
    "eventfd2": (290, 19), "epoll_create1": (291, 20), "dup3": (292, 24), "pipe2": (293, 59),
    "getcpu": (309, 168), "getrandom": (318, 278), "membarrier": (324, 283), "statx": (332, 291),
    "rseq": (334, 293), "close_range": (436, 436), "faccessat2": (439, 439),
    "epoll_pwait2": (441, 441), "rename": (82, None), "mkdir": (83, None), "rmdir": (84, None),
    "unlink": (87, None), "mkdirat": (258, 34), "unlinkat": (263, 35), "renameat": (264, 38),
    "renameat2": (316, 276), "ftruncate": (77, 46), "msync": (26, 227),
}  # fmt: skip
NEED_LANDLOCK = (
    "open", "openat", "rename", "mkdir", "rmdir", "unlink", "mkdirat", "unlinkat", "renameat",
    "renameat2",
)  # fmt: skip
"""Not allowed in strict mode, where there is no Landlock to decide which files may be touched."""
BY_ARGUMENT: dict[str, tuple[int, int]] = {
    "clone": (56, 220), "clone3": (435, 435), "kill": (62, 129), "tgkill": (234, 131),
    "prlimit64": (302, 261), "socketpair": (53, 199), "ioctl": (16, 29), "fcntl": (72, 25),
    "sendto": (44, 206), "recvfrom": (45, 207),
}  # fmt: skip
NATIVE: dict[str, tuple[int | None, int | None]] = {
    "execve": (59, 221), "arch_prctl": (158, None),
}  # fmt: skip
"""What a process needs to become another program and to start up."""
BUILDING: dict[str, tuple[int | None, int | None]] = {
    **NATIVE, "vfork": (58, None), "wait4": (61, 260), "umask": (95, 166), "chmod": (90, None),
    "fchmod": (91, 52), "fchmodat": (268, 53), "chdir": (80, 49), "fchdir": (81, 50),
    "fallocate": (285, 47), "waitid": (247, 95), "copy_file_range": (326, 285),
}  # fmt: skip
"""What a compiler needs, which starts others (assembler, linker)."""
NEW_NAMESPACES = 0x7E020080
"""Flags of `clone` that make namespaces."""
LAST_KNOWN = 441
"""Later calls return ENOSYS, so that a newer C library falls back to older ones."""

IOCTLS = (0x5401, 0x541B, 0x5451, 0x5421)
"""TCGETS, FIONREAD, FIOCLEX, FIONBIO."""
FCNTLS = (0, 1, 2, 3, 4, 1030, 1032)
"""DUPFD, GETFD, SETFD, GETFL, SETFL, DUPFD_CLOEXEC, GETPIPE_SZ. Not SETOWN: together with SETSIG
and O_ASYNC it sends any signal to any process of the same user."""
CLONE_THREAD, AF_UNIX, SOCK_STREAM, SOCK_TYPE_MASK = 0x10000, 1, 1, 0xF
MAP_SHARED, MAP_ANONYMOUS = 1, 0x20
WRITING = 0o3 | 0o100 | 0o1000 | 0o2000 | 0o20000000
"""Flags of `open`: WRONLY or RDWR, CREAT, TRUNC, APPEND, TMPFILE."""

ARCHES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, ENOSYS = 1, 38
X32_BIT = 0x40000000
OFFSET_NR, OFFSET_ARCH, OFFSET_ARGS = 0, 4, 16
LOAD, JEQ, JGT, JGE, JSET, AND, RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x54, 0x06


class JailError(Exception):
    """A required layer could not be put in place; the message names it."""


def errno_text() -> str:
    return os.strerror(ctypes.get_errno())


def own_machine() -> tuple[int, int]:
    """Column of the syscall table and the audit number of this machine."""
    machine = os.uname().machine
    if machine not in ARCHES:
        raise JailError(f"no system-call table for {machine}; x86_64 and aarch64 have one")
    return ARCHES[machine]


def instruction(code: int, jump_true: int, jump_false: int, value: int) -> bytes:
    return struct.pack("HBBI", code, jump_true, jump_false, value & 0xFFFFFFFF)


def returns(value: int) -> bytes:
    return instruction(RETURN, 0, 0, value)


DENY = returns(ERRNO | EPERM)


def load_argument(index: int, *, high: bool = False) -> bytes:
    return instruction(LOAD, 0, 0, OFFSET_ARGS + 8 * index + (4 if high else 0))


def when(number: int, body: list[bytes]) -> list[bytes]:
    """`body` for one call number, skipped otherwise; `body` must return."""
    return [instruction(JEQ, 0, len(body), number), *body]


def ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Runs of consecutive numbers, because the kernel's work per child grows with the filter."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def only_values(argument: int, values: tuple[int, ...]) -> list[bytes]:
    """Allow when the low half of an `int` argument is one of `values`."""
    checks = [load_argument(argument)]
    for value in values:
        checks += [instruction(JEQ, 0, 1, value), returns(ALLOW)]
    return [*checks, DENY]


def only_null(argument: int) -> list[bytes]:
    """Allow when a pointer argument is NULL."""
    return [
        load_argument(argument),
        instruction(JEQ, 0, 3, 0),
        load_argument(argument, high=True),
        instruction(JEQ, 0, 1, 0),
        returns(ALLOW),
        DENY,
    ]


def filter_head(
    *,
    is_strict: bool,
    is_watched: bool = False,
    may_read: bool = False,
    more: dict[str, tuple[int | None, int | None]] | None = None,
) -> list[bytes]:
    """The part of the filter that does not depend on the process.

    `is_strict`: no file can be opened, unless `may_read` allows it for reading. `is_watched`: the
    judge counts what is written, so no file may be written through memory. `more`: `NATIVE` or
    `BUILDING`; only the latter may start processes.
    """
    column, audit = own_machine()
    number = {name: numbers[column] for name, numbers in BY_ARGUMENT.items()}
    program = [
        instruction(LOAD, 0, 0, OFFSET_ARCH),
        instruction(JEQ, 1, 0, audit),
        returns(KILL),
        instruction(LOAD, 0, 0, OFFSET_NR),
        instruction(JGE, 0, 1, X32_BIT),
        returns(ERRNO | ENOSYS),
        instruction(JGT, 0, 1, LAST_KNOWN),
        returns(ERRNO | ENOSYS),
    ]
    left_out = {*(NEED_LANDLOCK if is_strict else ()), *(("mmap",) if is_watched else ())}
    allowed = PLAIN | (more or {})
    plain = [numbers[column] for name, numbers in allowed.items() if name not in left_out]
    if is_watched:
        own_memory = [
            load_argument(3),
            instruction(JSET, 0, 1, MAP_ANONYMOUS),
            returns(ALLOW),
            instruction(JSET, 0, 1, MAP_SHARED),
            DENY,
            returns(ALLOW),
        ]
        program += when(PLAIN["mmap"][column] or 0, own_memory)
    if may_read:
        for name, flags in (("open", 1), ("openat", 2)):
            if (call := PLAIN[name][column]) is not None:
                check = [load_argument(flags), instruction(JSET, 0, 1, WRITING), DENY]
                program += when(call, [*check, returns(ALLOW)])
    for low, high in ranges([each for each in plain if each is not None]):
        program += [
            instruction(JGE, 0, 2, low),
            instruction(JGT, 1, 0, high),
            returns(ALLOW),
        ]
    program += when(number["clone3"], [returns(ERRNO | ENOSYS)])
    a_thread = [load_argument(0), instruction(JSET, 0, 1, CLONE_THREAD), returns(ALLOW), DENY]
    a_process = [load_argument(0), instruction(JSET, 0, 1, NEW_NAMESPACES), DENY, returns(ALLOW)]
    program += when(number["clone"], a_process if more is BUILDING else a_thread)
    program += when(number["socketpair"], stream_pair())
    program += when(number["sendto"], only_null(4))
    program += when(number["recvfrom"], only_null(4))
    program += when(number["prlimit64"], only_null(2))
    program += when(number["ioctl"], only_values(1, IOCTLS))
    program += when(number["fcntl"], only_values(1, FCNTLS))
    return program


def stream_pair() -> list[bytes]:
    """Datagram pairs could send to any named socket of the machine; asyncio needs streams only."""
    return [
        load_argument(0),
        instruction(JEQ, 0, 4, AF_UNIX),
        load_argument(1),
        instruction(AND, 0, 0, SOCK_TYPE_MASK),
        instruction(JEQ, 0, 1, SOCK_STREAM),
        returns(ALLOW),
        DENY,
    ]


def filter_tail(pid: int) -> list[bytes]:
    """Signals to oneself only; everything else is refused with an error the program can see."""
    column, _ = own_machine()
    program: list[bytes] = []
    for name in ("kill", "tgkill"):
        program += when(BY_ARGUMENT[name][column], only_values(0, (pid,)))
    return [*program, DENY]


class FilterProgram(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install_filter(head: bytes) -> None:
    data = head + b"".join(filter_tail(os.getpid()))
    loaded = FilterProgram(len(data) // 8, data)
    if LIBC.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(loaded), 0, 0):
        raise JailError(f"seccomp: {errno_text()}")


def address_space() -> int:
    """Bytes of address space that this process has mapped."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def set_limits(job: dict[str, int], base_bytes: int) -> None:
    """Set hard resource limits; memory is a budget beyond what the interpreter has mapped."""
    stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
    stack = min(stack, job.get("stack_bytes", stack))
    data = job.get("data_bytes", resource.RLIM_INFINITY)
    address = job.get("address_bytes", base_bytes + job["memory_bytes"])
    address = resource.RLIM_INFINITY if address is None else address
    for kind, soft, hard in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_FSIZE, job["file_bytes"], job["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64, 64),
        # The soft limit comes first: SIGXCPU tells the judge which limit was exceeded.
        (resource.RLIMIT_CPU, job["cpu_s"], job["cpu_s"] + 1),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_STACK, stack, stack),
        (resource.RLIMIT_DATA, data, data),
        (resource.RLIMIT_AS, address, address),
    ):
        resource.setrlimit(kind, (soft, hard))


def drop_privileges() -> None:
    """Give up new privileges by exec, and root's capabilities. Root keeps its uid, because the
    interpreter may be installed in /root."""
    if LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise JailError(f"NO_NEW_PRIVS: {errno_text()}")
    for capability in range(NUM_CAPABILITIES):
        LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = struct.pack("Ii", 0x20080522, 0)
    if LIBC.capset(header, bytes(24)):
        raise JailError(f"capset: {errno_text()}")


def close_except(first: int, last: int) -> None:
    """Close every descriptor above 2 that is not in `first`..`last`."""
    for low, high in ((3, first - 1), (last + 1, 0xFFFFFFFF)):
        if LIBC.close_range(ctypes.c_uint(low), ctypes.c_uint(high), 0):
            os.closerange(low, min(high, 1 << 16))
