"""How strongly each token or task counts within a component. Factors only: `objective.py` divides
by counts.

Weights that are normalised use the whole optimizer batch, on all ranks, before the first forward; a
mean over a micro-batch would make the result depend on how the batch was split. Legend: T tokens of
one completion or of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Reduce = Callable[[list[float]], list[float]]
"""Sums each number over ranks; the default is one process."""


def _one_process(values: list[float]) -> list[float]:
    return values


def position_weights(
    length: int, *, w_min: float, tau: float, s: float, device: torch.device | str = "cpu"
) -> Tensor:
    """w_t = w_min + (1-w_min) sigmoid((t/T - tau)/s) of one completion, float32 [T], t = 0..T-1
    (2605.21606)."""
    place_T = torch.arange(length, dtype=torch.float32, device=device) / max(length, 1)
    return w_min + (1.0 - w_min) * torch.sigmoid((place_T - tau) / s)


def entropy_weights(
    entropies: Sequence[Tensor], *, beta: float, reduce: Reduce = _one_process
) -> list[Tensor]:
    """exp(-beta H(q_t)) over its mean, per rollout [T_i] (SRPO).

    `entropies` are the teacher's, of every token routed to distillation in this rank's share of the
    batch; `reduce` sums the total and the count over ranks. With no token at all the result is
    empty.
    """
    raw = [torch.exp(-beta * entropy_T) for entropy_T in entropies]
    total, count = reduce(
        [
            math.fsum(float(w.sum(dtype=torch.float64)) for w in raw),
            float(sum(w.numel() for w in raw)),
        ]
    )
    if not total:
        return raw
    return [w * (count / total) for w in raw]


def success_rate_weights(
    solved_rates: Sequence[float], counts: Sequence[float], *, reduce: Reduce = _one_process
) -> list[float]:
    """sqrt(p(1-p)) per task over its mean over the batch's distilled tokens (SC-SDPO, 2605.27765).

    `counts` are the distilled tokens of each task, so that the weighted mean over tokens stays 1
    and the learning rate keeps its meaning. When every task is all solved or all failed, each
    weight is 0: nothing is learnt, as the method says.
    """
    raw = [math.sqrt(rate * (1.0 - rate)) for rate in solved_rates]
    total, count = reduce(
        [math.fsum(w * n for w, n in zip(raw, counts, strict=True)), math.fsum(counts)]
    )
    return [w * (count / total) if total else 0.0 for w in raw]
