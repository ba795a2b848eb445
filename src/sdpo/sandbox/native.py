"""The child's side for programs in other languages: writes the source, then becomes the compiler or
the program.

Runs in `python -I -S` without this package; see zygote.py. The lock-down is in place before the
judge's first message is read, and `exec` takes it along. From then on nothing of ours is left in
the process: the judge learns what happened from exit status, signals and pipes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NoReturn

from sdpo.sandbox.runner import HELLO, receive, send

NOT_STARTED = 127
"""Exit code of a process that could not become the program, as in a shell."""


def serve(fds: Sequence[int], folder: str | None) -> NoReturn:
    """Become `argv` of the job; diagnostics go down the pipe that carried the greeting."""
    commands, results, _, _ = fds
    send(results, HELLO)
    job = receive(commands)
    receive(commands)
    try:
        if folder is None:
            raise OSError("there is no folder to work in")
        for name, text in job["files"].items():
            with open(name, "wb") as file:
                file.write(text.encode("utf-8", errors="replace"))
        os.lseek(0, 0, 0)
        os.dup2(results, 2)
        os.closerange(3, 256)
        os.execve(job["argv"][0], job["argv"], job["environment"])
    except OSError as error:
        os.write(2, str(error).encode())
    os._exit(NOT_STARTED)
