"""Micro-batches side by side on a CPU.

A pass is many operations, most of them short: at the end of each all threads wait for the slowest
one, and what a single thread does between them, all others watch. Two passes at once, each on half
of the threads, wait for nobody.

Results come in the order of the micro-batches and gradients are added in it (`optim.py`), so no
number depends on which pass was ready first. Accelerators, and models that take no packed trees
(their forward passes may keep a state), get one micro-batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from sdpo.training.packing import MicroBatch, PackItem, concurrent_passes, pack, shares_prefixes

_Result = TypeVar("_Result")

_LANES = 2


class Lanes:
    """Micro-batches of some items, as many of them at once as pays.

    Example:
        lanes = Lanes(model, items, budget_tokens=4096)
        for micro_batch, rows in lanes.run(lambda number, batch: hidden_rows(model, batch)): ...
    """

    def __init__(
        self, model: PreTrainedModel, items: Sequence[PackItem], *, budget_tokens: int
    ) -> None:
        """Micro-batches that are computed at once have at most `budget_tokens` together; an item
        that alone exceeds its share of them makes all go one by one."""
        self._model = model
        shares = shares_prefixes(model)
        self._count = _LANES if shares and _can_halve_threads(model) else 1
        share = max(1, budget_tokens // self._count)
        self.micro_batches = pack(items, budget_tokens=share, share_prefixes=shares)
        if self._count > 1 and any(len(m.token_ids) > share for m in self.micro_batches):
            self._count = 1
            self.micro_batches = pack(items, budget_tokens=budget_tokens, share_prefixes=shares)

    def run(
        self, work: Callable[[int, MicroBatch], _Result]
    ) -> Iterator[tuple[MicroBatch, _Result]]:
        """Every micro-batch and what `work`, given its number too, returns for it; in order.

        `work` runs in threads of its own, with gradients on or off as here. Its exceptions are
        raised here. When the iterator is closed early, what has not started never does.
        """
        if min(self._count, len(self.micro_batches)) < 2:
            for number, micro_batch in enumerate(self.micro_batches):
                yield micro_batch, work(number, micro_batch)
            return
        needs_graph, num_threads = torch.is_grad_enabled(), torch.get_num_threads()

        def in_thread(number: int, micro_batch: MicroBatch) -> _Result:
            with torch.set_grad_enabled(needs_graph):
                return work(number, micro_batch)

        pool = ThreadPoolExecutor(
            self._count, "lane", torch.set_num_threads, (num_threads // self._count,)
        )
        with concurrent_passes(self._model):
            try:
                results = [
                    pool.submit(in_thread, number, micro_batch)
                    for number, micro_batch in enumerate(self.micro_batches)
                ]
                for micro_batch, result in zip(self.micro_batches, results, strict=True):
                    yield micro_batch, result.result()
            finally:
                pool.shutdown(cancel_futures=True)
                # Part of what a thread sets holds for the process.
                torch.set_num_threads(num_threads)


def _can_halve_threads(model: PreTrainedModel) -> bool:
    return model.device.type == "cpu" and torch.get_num_threads() % _LANES == 0
