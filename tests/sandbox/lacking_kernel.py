"""Opens a sandbox in a process for which some system calls do not exist, as on older kernels and in
gVisor; prints the level, or the error.

    python lacking_kernel.py NUMBER...     system-call numbers of this machine
"""

from __future__ import annotations

import ctypes
import sys

from sdpo.errors import SandboxError
from sdpo.sandbox import Limits, Program, jail, open_sandbox


def forget(numbers: list[int]) -> None:
    """From now on these calls fail with ENOSYS, for this process and all it starts."""
    program = [jail.instruction(jail.LOAD, 0, 0, jail.OFFSET_NR)]
    for number in numbers:
        program += jail.when(number, [jail.returns(jail.ERRNO | jail.ENOSYS)])
    data = b"".join([*program, jail.returns(jail.ALLOW)])
    loaded = jail.FilterProgram(len(data) // 8, data)
    jail.LIBC.prctl(jail.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if jail.LIBC.prctl(jail.PR_SET_SECCOMP, jail.SECCOMP_MODE_FILTER, ctypes.byref(loaded), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


forget([int(number) for number in sys.argv[1:]])
try:
    with open_sandbox("auto", width=1) as sandbox:
        program = Program(source="def f(x):\n    return x\n", mode="function", entry_point="f")
        (outcome,) = sandbox.run(program, [[3]], Limits())
        print(sandbox.level, outcome.value)
except SandboxError as error:
    print(f"SandboxError: {error}")
