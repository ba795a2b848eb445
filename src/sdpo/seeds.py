"""One seed decides everything: every random choice derives its own integer from the run's seed and
what it is for."""

from __future__ import annotations

import hashlib


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit integer that depends on `seed` and on each part of `purpose`, stable over processes
    and versions.

    Example:
        derive(0, "rollout", step, task.id, index)
    """
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in purpose)])
    # A task's name may hold half a surrogate pair, as JSON can write it.
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) >> 1
