"""What the processes of `workers.py` share on their own side: they confine themselves once their
library is imported, and answer a line with a line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

MEMORY_BYTES = 4 << 30
"""Address space of the process: a number of 10^10 digits must not take the machine down."""


def confined(packages: Sequence[str]) -> str:
    """Bounds memory and locks the process down as far as the system can, but for reading
    `packages`; the layers in use."""
    try:
        import resource
    except ImportError:  # Windows
        return "none"
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # macOS refuses a bound of the address space; there the time limit alone ends a comparison.
    if sys.platform == "darwin":
        return "none"
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    from sdpo.sandbox.confine import confine
    from sdpo.sandbox.jail import JailError

    try:
        return confine(_paths_of(packages))
    except JailError:
        # Defence in depth: the algebra evaluates no code of the model's, so a system without
        # these layers may do without.
        return "none"


def _paths_of(packages: Sequence[str]) -> list[str]:
    found = [getattr(sys.modules.get(name), "__path__", None) for name in packages]
    return [folder for folders in found if folders is not None for folder in folders]


def reply(replies: TextIO, text: str) -> None:
    """Write one line."""
    replies.write(text + "\n")
    replies.flush()


def own_replies() -> TextIO:
    """Where to reply to; what a library prints goes elsewhere from now on."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies
