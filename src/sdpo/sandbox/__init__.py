"""Runs untrusted programs and returns plain data.

    local.py (pool) -> child.py (one program, every status) -> worker.py (handle of a zygote, pipes)
    --- other processes, standard library only ---
    zygote.py -> jail.py, landlock.py, namespaces.py -> runner.py, values.py

languages.py, native_run.py -> zygote.py -> native.py: programs in other languages

`plain.py` and `values.py` are the two ends of one encoding. Nothing here knows what a right answer
is: the caller compares, in its own process.
"""

from sdpo.sandbox.languages import COMPILE_ERROR, LANGUAGES, LanguageName
from sdpo.sandbox.local import open_sandbox, require_linux
from sdpo.sandbox.native_run import NativeSandbox, open_language
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
    "COMPILE_ERROR",
    "LANGUAGES",
    "Failure",
    "Frame",
    "LanguageName",
    "Limits",
    "NativeSandbox",
    "Opaque",
    "Outcome",
    "Program",
    "Sandbox",
    "open_language",
    "open_sandbox",
    "require_linux",
]
