"""Runs untrusted programs and returns plain data.

    local.py (pool) -> child.py (one program, every status) -> worker.py (handle of a zygote, pipes)
    --- other processes, standard library only ---
    zygote.py -> jail.py, landlock.py, namespaces.py -> runner.py, values.py

`plain.py` and `values.py` are the two ends of one encoding. Nothing here knows what a right answer
is: the caller compares, in its own process.
"""

from sdpo.sandbox.local import open_sandbox, require_linux
from sdpo.sandbox.protocol import (
    Failure,
    Frame,
    Limits,
    Opaque,
    Outcome,
    Program,
    Sandbox,
)

__all__ = [
    "Failure",
    "Frame",
    "Limits",
    "Opaque",
    "Outcome",
    "Program",
    "Sandbox",
    "open_sandbox",
    "require_linux",
]
