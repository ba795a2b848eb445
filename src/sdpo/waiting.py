"""How threads of OpenMP wait for each other. Loaded before torch: it imports next to nothing."""

from __future__ import annotations

import os
import sys

_SPINS = "10000"
"""Looks of a waiting thread at what it waits for, before it sleeps. GNU's own default is 300,000;
docs/hardware.md has what more and fewer cost."""


def wait_politely() -> None:
    """Let threads sleep soon when they wait, unless the user has said how they wait. Without effect
    once torch is loaded.

    On a machine that others use too, the last thread of a parallel region comes late, and the
    others, spinning until then, take the very core that it is waiting for.
    """
    said = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    if not said and "torch" not in sys.modules:
        os.environ["GOMP_SPINCOUNT"] = _SPINS
