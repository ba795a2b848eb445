"""Processes that sample as one: each has prompts of its own, and all run the prompts of all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import torch.distributed as dist

from sdpo.errors import ConfigError
from sdpo.parallel import PATIENCE, Parallel

T = TypeVar("T")
R = TypeVar("R")


@runtime_checkable
class Joint(Protocol):
    """An engine that several processes run together: none can sample while another does not."""

    def attend(self) -> None:
        """Run what the other processes sample, until none of them has more. Due once this process
        has made its attempts, also after an error."""
        ...


class Peers:
    """`count` processes in a row, this one among them, that run an engine together.

    Every call of `run` here is a call on all of them, whether they have prompts or not.

    Example:
        peers = Peers(2, parallel); mine = peers.run(prompts, sample); peers.attend(sample)
    """

    def __init__(self, count: int, parallel: Parallel) -> None:
        """Collective over all processes of `parallel`, which `count` divides."""
        self._place = parallel.rank % count
        first = parallel.rank - self._place
        for start in range(0, parallel.world_size, count):
            # Every process takes part in making every group.
            group = dist.new_group(
                list(range(start, start + count)), backend="gloo", timeout=PATIENCE
            )
            if start == first:
                self._group = group
        self._count = count

    def run(self, own: Sequence[T], sample: Callable[[Sequence[T]], Sequence[R]]) -> Sequence[R]:
        """What `sample` makes of `own`, called with what all have, in the same order on each."""
        shares = self._shares(list(own))
        found = sample([item for share in shares for item in share or ()])
        start = sum(len(share or ()) for share in shares[: self._place])
        return found[start : start + len(own)]

    def attend(self, sample: Callable[[Sequence[T]], object]) -> None:
        """Call `sample` as the others do, until all are here; an error of it, which they have too,
        is raised then."""
        problem: Exception | None = None
        while True:
            shares = self._shares(None)
            if all(share is None for share in shares):
                break
            try:
                sample([item for share in shares for item in share or ()])
            except Exception as error:  # noqa: BLE001 - whoever asked comes here too
                problem = problem or error
        if problem is not None:
            raise problem

    def _shares(self, own: list[T] | None) -> list[list[T] | None]:
        """What every process brings; None is one that has no more to sample."""
        shares: list[list[T] | None] = [None] * self._count
        dist.all_gather_object(shares, own, group=self._group)
        return shares


def check_peers(count: int, parallel: Parallel) -> None:
    """Raises `ConfigError` for processes that cannot form rows of `count` within a node, as
    `torchrun` counts them."""
    if count == 1:
        return
    named = f"rollout.engine.tensor_parallel = {count}"
    if parallel.world_size == 1:
        raise ConfigError(f"{named}, but there is one process: start several with torchrun")
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", parallel.world_size))
    if per_node % count:
        fits = [str(number) for number in range(1, per_node + 1) if per_node % number == 0]
        raise ConfigError(
            f"{named} does not divide the {per_node} processes of a node: take {' or '.join(fits)}"
        )
