"""Processes of one run: plain data parallel over `torchrun`, nothing at all for a single process.

Every rank samples and judges its share (rollouts/shares.py); counts are summed before the first
forward, gradients after the last backward. Weights that ranks share instead of replicating are
models/sharding.py.

Whatever can fail on one rank while others go on to wait for it is called through `agreed`, or
through `from_main` where one rank works for all: then it fails on all of them alike.
"""

from __future__ import annotations

import atexit
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from sdpo.errors import ProcessLost, SdpoError, first_line

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""How long a rank waits for the others: one of them may write a checkpoint or judge for hours. One
that has ended is not waited for."""
_TURN = timedelta(seconds=5)
"""How long a process waits for what another has to say."""
_CLOSED = ("closed by peer", "reset by peer", "Broken pipe", "gloo/transport", "ncclRemoteError")
"""What PyTorch's backends say of a connection whose other end is gone."""
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
        total = _to_send(torch.tensor(values, dtype=torch.float64))
        dist.all_reduce(total)
        return total.tolist()

    def sum_gradients(self, gradients: Iterable[torch.Tensor]) -> None:
        """Sum each tensor over all ranks in place; losses are already divided by global counts."""
        if self.world_size > 1:
            GradientSums(gradients).finish()

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

    def agreed(self, work: Callable[[], T]) -> T:
        """What `work`, in which no rank waits for another, returns here. An `SdpoError` or an
        interrupt that it raises on any rank is raised on all of them, which would otherwise wait
        for it; any other exception here, `ProcessLost` on the others."""
        if self.world_size == 1:
            return work()
        found, raised = self._tried(work)
        self._raise_first(self.gather(_as_sent(raised)), raised)
        return found  # ty: ignore[invalid-explicit-return]

    def from_main(self, work: Callable[[], T]) -> T:
        """What `work` returns on the main rank, which alone does it, on every rank; what it raises
        there as `agreed` does."""
        if self.world_size == 1:
            return work()
        found, raised = self._tried(work) if self.is_main else (None, None)
        problem, found = self.gather((_as_sent(raised), found))[0]
        self._raise_first([problem], raised)
        return found  # ty: ignore[invalid-explicit-return]

    def _tried(self, work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
        try:
            return work(), None
        except (Exception, KeyboardInterrupt) as problem:  # noqa: BLE001 - raised on all ranks
            return None, problem

    def _raise_first(
        self, problems: Sequence[BaseException | None], own: BaseException | None
    ) -> None:
        """Raises the first of what the ranks have sent; where it arose, with its traceback."""
        for rank, problem in enumerate(problems):
            if problem is not None:
                raise own if own is not None and rank == self.rank else problem

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


class GradientSums:
    """Sums of `gradients` over all ranks, in place, which travel while a backward pass makes more.

    They travel in buckets, the last tensors first, since a backward pass completes those first;
    a bucket starts once it is complete and all before it have started, so that every rank sends
    the same ones in the same order. A rank that holds nothing back calls `finish` alone. At most
    two are under way, which is the memory this takes.

    Example:
        sums = GradientSums(gradients); sums.complete(gradients[-1]); sums.finish()
    """

    def __init__(self, gradients: Iterable[torch.Tensor]) -> None:
        self._waiting = deque(_buckets(reversed(list(gradients))))
        self._missing = {id(tensor) for bucket in self._waiting for tensor in bucket}
        self._under_way: deque[_Bucket] = deque()

    def complete(self, gradient: torch.Tensor) -> None:
        """This rank adds nothing more to `gradient`."""
        self._missing.discard(id(gradient))
        while self._waiting and not any(id(t) in self._missing for t in self._waiting[0]):
            self._start(self._waiting.popleft())

    def finish(self) -> None:
        """Wait until every tensor is its sum. Collective."""
        while self._waiting:
            self._start(self._waiting.popleft())
        while self._under_way:
            self._under_way.popleft().unpack()

    @torch.no_grad()
    def _start(self, tensors: Sequence[torch.Tensor]) -> None:
        flat = _to_send(torch.cat([tensor.reshape(-1) for tensor in tensors]))
        work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self._under_way.append(_Bucket(tensors=tensors, flat=flat, work=work))
        if len(self._under_way) == _BUCKETS_UNDER_WAY:
            self._under_way.popleft().unpack()


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


def _to_send(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` where the backend can send it from: nccl knows no CPU."""
    return tensor.cuda() if dist.get_backend() == "nccl" else tensor


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
        rank = int(os.environ["RANK"])
        # Left to the operating system with nccl: to destroy it waits for collectives, so a rank
        # that fails while others sum gradients would hang instead of ending the run.
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if backend == "nccl":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            dist.init_process_group(
                backend,
                store=_store_of_this_start(rank, world_size),
                rank=rank,
                world_size=world_size,
                timeout=PATIENCE,
            )
        else:
            dist.init_process_group(backend, timeout=PATIENCE)
        if backend == "gloo":
            # Gloo's threads that outlive the interpreter can abort a process whose run went well.
            atexit.register(_leave)
    return Parallel(rank=dist.get_rank(), world_size=world_size)


def _agents_store(timeout: timedelta) -> dist.TCPStore:
    """The store that torchrun keeps for its processes."""
    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timeout,
    )


def _store_of_this_start(rank: int, world_size: int) -> dist.Store:
    """A part of the agent's store that no earlier start has written to.

    The store outlives the processes that torchrun starts again (`--max-restarts`), with the
    addresses of the dead in it; to connect to one is to wait for `PATIENCE`. Restarts cannot be
    told apart by `TORCHELASTIC_RESTART_COUNT`, which differs between machines. So rank 0 draws a
    name, and hands it to each rank under a word which that process made up: an answer to it
    cannot be old."""
    store = _agents_store(PATIENCE)
    if rank > 0:
        word = uuid.uuid4().hex
        store.set(f"sdpo/hello/{rank}", word)
        name = store.get(f"sdpo/welcome/{word}").decode()
        store.set(f"sdpo/here/{name}/{rank}", "")
        return dist.PrefixStore(f"sdpo/{name}", store)
    name = uuid.uuid4().hex
    missing = set(range(1, world_size))
    while missing:
        for other in sorted(missing):
            hello = f"sdpo/hello/{other}"
            if store.check([hello]):  # Perhaps of a dead one, who will not answer.
                store.set(f"sdpo/welcome/{store.get(hello).decode()}", name)
        missing = {r for r in missing if not store.check([f"sdpo/here/{name}/{r}"])}
        time.sleep(0.01)
    return dist.PrefixStore(f"sdpo/{name}", store)


@contextmanager
def joined() -> Generator[Parallel]:
    """The group of `start_parallel` for a block. Raises `ProcessLost` instead of what a backend
    says when another process of the group has ended."""
    parallel = start_parallel()
    try:
        yield parallel
    except RuntimeError as error:
        if parallel.world_size == 1 or not any(text in str(error) for text in _CLOSED):
            raise
        raise ProcessLost(
            f"another of the {parallel.world_size} processes has ended, and process "
            f"{parallel.rank} ends with it; what is saved stays, and the same command continues"
        ) from error


@contextmanager
def speaking_first() -> Generator[bool]:
    """Whether no other process of this start has entered the block before; the others wait for the
    first to leave it, since `torchrun` ends the rest when one has ended. True where there is nobody
    to ask, which is anywhere but under `torchrun`."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        yield True
        return
    start = os.environ["TORCHELASTIC_RESTART_COUNT"]
    try:
        store = _agents_store(_TURN)
        is_first = store.add(f"sdpo/spoken/{start}", 1) == 1
        if not is_first:
            store.wait([f"sdpo/said/{start}"])
    except RuntimeError:  # The machine with the store is gone, or whoever was first is.
        yield True
        return
    try:
        yield is_first
    finally:
        if is_first:
            store.set(f"sdpo/said/{start}", "")


def _as_sent(problem: BaseException | None) -> BaseException | None:
    """What the other ranks raise for it: not every exception can be rebuilt in another process."""
    if problem is None or isinstance(problem, SdpoError | KeyboardInterrupt):
        return problem
    name = type(problem).__name__
    return ProcessLost(f"another process has failed with {name}: {first_line(problem)}")


def _leave() -> None:
    # A caller of `sdpo.train` may have left already.
    if dist.is_initialized():
        dist.destroy_process_group()
