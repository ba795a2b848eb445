"""The GPUs that a recipe is checked for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdpo.errors import ConfigError

RESERVED = 0.08
"""Share of a card that is not for tensors: the CUDA context, NCCL's buffers, kernels' workspaces
and the gaps between blocks of the allocator."""
_WRITTEN = re.compile(r"(?:(\d+)x)?(\d+)x(\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cards:
    """Equal cards on equal nodes; one process (rank) each.

    Example:
        Cards.parse("2x8x80")
    """

    nodes: int
    per_node: int
    gigabytes: float
    """Memory of each, in 10^9 bytes."""

    @classmethod
    def parse(cls, written: str) -> Cards:
        """Of `8x80` (cards x GB) or `2x8x80` (nodes x cards x GB). Raises `ConfigError`."""
        found = _WRITTEN.fullmatch(written.strip().lower())
        if found is None or not all(float(part) for part in found.groups() if part is not None):
            raise ConfigError(
                f"--gpus = {written!r} is not CARDSxGB or NODESxCARDSxGB, such as 8x80 or 2x8x80"
            )
        nodes, per_node, gigabytes = found.groups()
        return cls(nodes=int(nodes or 1), per_node=int(per_node), gigabytes=float(gigabytes))

    @property
    def ranks(self) -> int:
        return self.nodes * self.per_node

    @property
    def usable(self) -> int:
        """Bytes of a card that tensors can have."""
        return int(self.gigabytes * 1e9 * (1 - RESERVED))

    def __str__(self) -> str:
        nodes = f"{self.nodes} nodes of " if self.nodes > 1 else ""
        cards = "1 card" if self.per_node == 1 else f"{self.per_node} cards"
        return f"{nodes}{cards} with {self.gigabytes:g} GB"
