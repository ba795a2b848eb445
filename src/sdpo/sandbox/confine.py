"""Confines the calling process for good: for our own code that works on text of a model.

Weaker than the jail of a program, because what runs here is trusted and must go on importing its
library: files may be read. It can start no process, open no socket, write no file, and has no
privileges to lose.
"""

from __future__ import annotations

import os


def confine(packages: list[str]) -> str:
    """The layers in use. Where there is Landlock, only the standard library and `packages` (folders
    or files) can be read. Raises `JailError` if there is no system-call filter."""
    # Only Linux has what they import.
    from sdpo.sandbox import jail, landlock

    jail.own_machine()
    ruleset = landlock.ruleset(landlock.readable_paths(packages), [])
    jail.drop_privileges()
    if ruleset is not None:
        landlock.restrict(ruleset)
        os.close(ruleset)
    jail.install_filter(b"".join(jail.filter_head(is_strict=True, may_read=True)))
    return "seccomp" if ruleset is None else "landlock+seccomp"
