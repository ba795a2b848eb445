"""Processes of one run: plain data parallel over `torchrun`, nothing at all for a single process.

Every rank samples and judges its share (rollouts/shares.py); counts are summed before the first
forward, gradients after the last backward. Weights that ranks share instead of replicating are
models/sharding.py.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

_BUCKET_BYTES = 64 << 20
"""Enough to fill a network, and little beside the gradients of a model that needs several."""
_BUCKETS_UNDER_WAY = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """This process's place among `world_size` equal ones.

    Example:
        Parallel(rank=0, world_size=1)
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's items: every `world_size`-th, starting at `rank`."""
        return list(items[self.rank :: self.world_size])

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sums over all ranks, in float64."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        if dist.get_backend() == "nccl":
            total = total.cuda()
        dist.all_reduce(total)
        return total.tolist()

    def sum_gradients(self, gradients: Iterable[torch.Tensor]) -> None:
        """Sum each tensor over all ranks in place; losses are already divided by global counts.

        Tensors travel in buckets, of which the next is packed while one is on its way; that takes
        the memory of two buckets.
        """
        if self.world_size == 1:
            return
        under_way: list[_Bucket] = []
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            work = dist.all_reduce(flat, async_op=True)
            assert work is not None
            under_way.append(_Bucket(tensors=bucket, flat=flat, work=work))
            if len(under_way) == _BUCKETS_UNDER_WAY:
                under_way.pop(0).unpack()
        for bucket in under_way:
            bucket.unpack()

    def gather(self, item: T) -> list[T]:
        """`item` of every rank in rank order, on every rank."""
        if self.world_size == 1:
            return [item]
        items: list[T | None] = [None] * self.world_size
        dist.all_gather_object(items, item)
        return items  # ty: ignore[invalid-explicit-return]

    def gather_shares(self, items: Sequence[T]) -> list[T]:
        """The inverse of `share`: the items of all ranks in the order of what was shared out."""
        parts = self.gather(list(items))
        count = sum(len(part) for part in parts)
        return [parts[i % len(parts)][i // len(parts)] for i in range(count)]

    def agreed(self, work: Callable[[], T], errors: tuple[type[BaseException], ...]) -> T:
        """What `work`, in which no rank waits for another, returns here. One of `errors` that it
        raises on any rank is raised on all of them, which would otherwise wait for it."""
        found, raised = None, None
        try:
            found = work()
        except errors as problem:
            raised = problem
        for problem in self.gather(raised):
            if problem is not None:
                raise problem
        assert found is not None
        return found

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bucket:
    """Tensors whose sum over all ranks is on its way in one flat tensor."""

    tensors: Sequence[torch.Tensor]
    flat: torch.Tensor
    work: dist.Work

    def unpack(self) -> None:
        """Wait for the sum and put it into the tensors."""
        self.work.wait()
        parts = self.flat.split([tensor.numel() for tensor in self.tensors])
        for tensor, part in zip(self.tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def _buckets(tensors: Iterable[torch.Tensor]) -> Generator[list[torch.Tensor]]:
    """Runs of `tensors` of one kind and at most `_BUCKET_BYTES`; a larger tensor is alone."""
    bucket: list[torch.Tensor] = []
    used = 0
    for tensor in tensors:
        is_other = bool(bucket) and (tensor.dtype, tensor.device) != (
            bucket[0].dtype,
            bucket[0].device,
        )
        if bucket and (is_other or used + tensor.nbytes > _BUCKET_BYTES):
            yield bucket
            bucket, used = [], 0
        bucket.append(tensor)
        used += tensor.nbytes
    if bucket:
        yield bucket


def start_parallel() -> Parallel:
    """The process group that `torchrun` describes in the environment (nccl with CUDA, else gloo),
    or a single process."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return Parallel()
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            # Left to the operating system: to destroy it waits for collectives, so a rank that
            # fails while others sum gradients would hang instead of ending the run.
            dist.init_process_group("nccl")
        else:
            dist.init_process_group("gloo")
            # Gloo's threads that outlive the interpreter can abort a process whose run went well.
            atexit.register(_leave)
    return Parallel(rank=dist.get_rank(), world_size=world_size)


def _leave() -> None:
    # A caller of `sdpo.train` may have left already.
    if dist.is_initialized():
        dist.destroy_process_group()
