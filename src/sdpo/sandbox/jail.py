"""Lock-down of the calling process: resource limits, no privileges, Landlock, seccomp. Linux on x86_64 and aarch64, no root needed.

Runs inside `python -I -S` without this package. `prepare()` does once what can be shared (the Landlock ruleset, the assembled
filter), `lock_down()` is called by every child before it sees a byte of the program.
"""

import ctypes
import os
import resource
import struct
import sys

LIBC = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
SECCOMP_MODE_FILTER = 2
SIGKILL = 9
NUM_CAPABILITIES = 64

# Name -> (x86_64, aarch64); None where the call does not exist.
PLAIN = {
    "read": (0, 63), "write": (1, 64), "open": (2, None), "close": (3, 57), "stat": (4, None),
    "fstat": (5, 80), "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67), "pwrite64": (18, 68),
    "readv": (19, 65), "writev": (20, 66), "access": (21, None), "pipe": (22, None), "select": (23, None),
    "sched_yield": (24, 124), "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23), "dup2": (33, None),
    "pause": (34, None), "nanosleep": (35, 101), "getitimer": (36, 102), "alarm": (37, None),
    "setitimer": (38, 103), "getpid": (39, 172), "sendto": (44, 206), "recvfrom": (45, 207),
    "shutdown": (48, 210), "getsockname": (51, 204), "getsockopt": (55, 209), "setsockopt": (54, 208),
    "exit": (60, 93), "uname": (63, 160), "fcntl": (72, 25), "getcwd": (79, 17), "readlink": (89, None),
    "gettimeofday": (96, 169), "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179),
    "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175),
    "getegid": (108, 177), "getppid": (110, 173), "getpgrp": (111, None), "getgroups": (115, 158),
    "getresuid": (118, 148), "getresgid": (120, 150), "sigaltstack": (131, 132), "statfs": (137, 43),
    "fstatfs": (138, 44), "sched_getparam": (143, 121), "sched_getscheduler": (145, 120),
    "gettid": (186, 178), "futex": (202, 98), "sched_getaffinity": (204, 123), "getdents64": (217, 61),
    "set_tid_address": (218, 96), "restart_syscall": (219, 128), "fadvise64": (221, 223),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115),
    "exit_group": (231, 94), "epoll_wait": (232, None), "epoll_ctl": (233, 21), "openat": (257, 56),
    "newfstatat": (262, 79), "readlinkat": (267, 78), "faccessat": (269, 48), "pselect6": (270, 72),
    "ppoll": (271, 73), "set_robust_list": (273, 99), "get_robust_list": (274, 100),
    "epoll_pwait": (281, 22), "eventfd2": (290, 19), "epoll_create1": (291, 20), "dup3": (292, 24),
    "pipe2": (293, 59), "getcpu": (309, 168), "getrandom": (318, 278), "membarrier": (324, 283),
    "statx": (332, 291), "rseq": (334, 293), "close_range": (436, 436), "faccessat2": (439, 439),
    "epoll_pwait2": (441, 441),
}  # fmt: skip
OPENS = ("open", "openat")
"""Left out of the filter in strict mode, where no Landlock says which files may be read."""
BY_ARGUMENT = {
    "clone": (56, 220), "clone3": (435, 435), "kill": (62, 129), "tgkill": (234, 131),
    "prlimit64": (302, 261), "socketpair": (53, 199), "ioctl": (16, 29),
}  # fmt: skip
IOCTLS = (0x5401, 0x541B, 0x5451, 0x5421)
"""TCGETS, FIONREAD, FIOCLEX, FIONBIO."""
CLONE_THREAD, AF_UNIX = 0x10000, 1

ARCHES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, ENOSYS = 1, 38
X32_BIT = 0x40000000
OFFSET_NR, OFFSET_ARCH, OFFSET_ARGS = 0, 4, 16
LOAD, JEQ, JGE, JSET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


class JailError(Exception):
    """A layer that must hold could not be put in place; the message names it."""


def own_machine():
    """Column of the syscall table and the audit number of this machine."""
    machine = os.uname().machine
    if machine not in ARCHES:
        raise JailError(f"no system-call table for {machine}; x86_64 and aarch64 have one")
    return ARCHES[machine]


def instruction(code, jump_true, jump_false, value):
    return struct.pack("HBBI", code, jump_true, jump_false, value & 0xFFFFFFFF)


def returns(value):
    return instruction(RETURN, 0, 0, value)


def load_argument(index, high=False):
    return instruction(LOAD, 0, 0, OFFSET_ARGS + 8 * index + (4 if high else 0))


def when(number, body):
    """`body` for one call number, skipped otherwise."""
    return [instruction(JEQ, 0, len(body), number), *body]


def filter_head(strict):
    """The part of the filter that does not depend on the process."""
    column, audit = own_machine()
    program = [
        instruction(LOAD, 0, 0, OFFSET_ARCH),
        instruction(JEQ, 1, 0, audit),
        returns(KILL),
        instruction(LOAD, 0, 0, OFFSET_NR),
        instruction(JGE, 0, 1, X32_BIT),
        returns(ERRNO | ENOSYS),
    ]
    for name, numbers in PLAIN.items():
        if numbers[column] is not None and not (strict and name in OPENS):
            program += [instruction(JEQ, 0, 1, numbers[column]), returns(ALLOW)]
    number = {name: numbers[column] for name, numbers in BY_ARGUMENT.items()}
    program += when(number["clone3"], [returns(ERRNO | ENOSYS)])
    program += when(
        number["clone"],
        [load_argument(0), instruction(JSET, 0, 1, CLONE_THREAD), returns(ALLOW), returns(ERRNO | EPERM)],
    )
    program += when(
        number["socketpair"],
        [load_argument(0), instruction(JEQ, 0, 1, AF_UNIX), returns(ALLOW), returns(ERRNO | EPERM)],
    )
    program += when(
        number["prlimit64"],
        [
            load_argument(2),
            instruction(JEQ, 0, 3, 0),
            load_argument(2, high=True),
            instruction(JEQ, 0, 1, 0),
            returns(ALLOW),
            returns(ERRNO | EPERM),
        ],
    )
    checks = [load_argument(1)]
    for request in IOCTLS:
        checks += [instruction(JEQ, 0, 1, request), returns(ALLOW)]
    program += when(number["ioctl"], [*checks, returns(ERRNO | EPERM)])
    return program


def filter_tail():
    """Signals to oneself only; everything else is refused with an error the program can see."""
    column, _ = own_machine()
    own = os.getpid()
    program = []
    for name in ("kill", "tgkill"):
        program += when(
            BY_ARGUMENT[name][column],
            [load_argument(0), instruction(JEQ, 0, 1, own), returns(ALLOW), returns(ERRNO | EPERM)],
        )
    return [*program, returns(ERRNO | EPERM)]


def install_filter(program):
    data = b"".join(program)
    buffer = ctypes.create_string_buffer(data, len(data))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    loaded = Program(len(program), ctypes.cast(buffer, ctypes.c_void_p))
    if LIBC.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(loaded), 0, 0):
        raise JailError(f"seccomp: {os.strerror(ctypes.get_errno())}")


FS_READ = 1 << 0 | 1 << 2 | 1 << 3
"""Execute, read file, read folder."""
FS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446


def landlock_abi():
    """Version of Landlock, 0 where there is none."""
    return max(0, LIBC.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1))


def landlock_ruleset(folders):
    """A ruleset descriptor that lets the process read `folders` and nothing else: no writing, TCP or outside signals."""
    abi = landlock_abi()
    if not abi:
        return None
    handled = FS_BY_ABI[min(abi, 5)]
    attributes = struct.pack("QQQ", handled, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = LIBC.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return None
    for path, access in [*((folder, FS_READ) for folder in folders), ("/dev/null", 1 << 1 | 1 << 2), ("/dev/urandom", 1 << 2)]:
        if not os.path.exists(path):
            continue
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rights = access if os.path.isdir(path) else access & ~(1 << 3)
        failed = LIBC.syscall(ADD_RULE, ruleset, 1, struct.pack("=Qi", rights & handled, handle), 0)
        os.close(handle)
        if failed:
            raise JailError(f"Landlock rule for {path}: {os.strerror(ctypes.get_errno())}")
    return ruleset


def readable_folders():
    """What an honest program reads: the interpreter's library without site-packages, shared libraries, time zones."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = os.path.dirname(os.__file__)
    entries = [
        os.path.join(library, name)
        for name in os.listdir(library)
        if name not in ("site-packages", "dist-packages", "test", "idlelib")
    ]
    shared = [os.path.join(sys.base_prefix, "lib", name) for name in (f"lib{version}.so.1.0", "libpython3.so")]
    return [*entries, *shared, "/lib", "/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu",
            "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo"]  # fmt: skip


def address_space():
    """Bytes of address space the process has now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def set_limits(memory_bytes, file_bytes, cpu_s, base_bytes):
    """Hard resource limits; memory is a budget on top of what the interpreter already maps."""
    for kind, bound in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_AS, base_bytes + memory_bytes),
    ):
        resource.setrlimit(kind, (bound, bound))


def drop_privileges():
    """No new privileges by exec; a root process also loses its capabilities (it keeps the uid: pyenv may live in /root)."""
    if LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise JailError("NO_NEW_PRIVS")
    if os.geteuid() == 0:
        for capability in range(NUM_CAPABILITIES):
            LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
        header = struct.pack("Ii", 0x20080522, 0)
        if LIBC.capset(header, bytes(24)):
            raise JailError(f"capset: {os.strerror(ctypes.get_errno())}")


def lock_down(job, prepared):
    """Everything at once, in the order that lets each step still happen; `prepared` is from `prepare`."""
    set_limits(job["memory_bytes"], job["file_bytes"], job["cpu_s"], prepared["base_bytes"])
    drop_privileges()
    if prepared["ruleset"] is not None and LIBC.syscall(RESTRICT_SELF, prepared["ruleset"], 0):
        raise JailError(f"Landlock: {os.strerror(ctypes.get_errno())}")
    if prepared["ruleset"] is not None:
        os.close(prepared["ruleset"])
    install_filter([*prepared["filter"], *filter_tail()])


def prepare():
    """What all children share."""
    ruleset = landlock_ruleset(readable_folders())
    return {
        "ruleset": ruleset,
        "filter": filter_head(strict=ruleset is None),
        "base_bytes": address_space(),
    }
