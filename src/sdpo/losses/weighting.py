"""How strongly each token or task counts within a component. Factors only: `objective.py` divides
by counts.

Weights that are normalised use the whole optimizer batch, on all ranks, before the first forward; a
mean over a micro-batch would make the result depend on how the batch was split. Legend: T tokens of
one completion or of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sdpo.records import Sample

Reduce = Callable[[list[float]], list[float]]
"""Sums each number over ranks; the default is one process."""


def _one_process(values: list[float]) -> list[float]:
    return values


@dataclass(frozen=True, kw_only=True)
class TaughtTokens:
    """The trained tokens of one distilled rollout, as a weighting may look at them; T of them.

    Example:
        TaughtTokens(sample=sample, device=device, score=lambda: (logprobs_T, entropies_T))
    """

    sample: Sample
    device: torch.device
    score: Callable[[], tuple[Tensor, Tensor]]
    """What the next two read; a pass over the vocabulary, taken when one of them is asked for."""

    @cached_property
    def _scores(self) -> tuple[Tensor, Tensor]:
        return self.score()

    @property
    def teacher_logprob(self) -> Tensor:
        """[T] of the sampled tokens, in the teacher's context, at the sampling temperature."""
        return self._scores[0].float()

    @property
    def teacher_entropy(self) -> Tensor:
        """[T] of the target distribution over the whole vocabulary, nats."""
        return self._scores[1].float()

    @property
    def sampler_logprob(self) -> Tensor:
        """[T] as recorded while sampling: the student's before this step. NaN in an attempt that
        was not sampled here (`sdpo.envs.follow_ups`)."""
        sample = self.sample
        kept = [p for p, m in zip(sample.sampler_logprobs, sample.loss_mask, strict=True) if m]
        return torch.tensor(kept, dtype=torch.float32, device=self.device)

    def __len__(self) -> int:
        return self.sample.num_trained


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenWeighting:
    """A rule that weighs the tokens of one rollout.

    Example:
        TokenWeighting(weigh=lambda tokens: torch.exp(-tokens.teacher_entropy), is_relative=True)
    """

    weigh: Callable[[TaughtTokens], Tensor]
    is_relative: bool
    """Whether only ratios count: weights are divided by their mean over the batch (`over_mean`)."""


def uniform_weights(tokens: TaughtTokens) -> Tensor:
    """1 for every token [T]."""
    return torch.ones(len(tokens), device=tokens.device)


def position_weights(tokens: TaughtTokens, *, w_min: float, tau: float, s: float) -> Tensor:
    """w_t = w_min + (1-w_min) sigmoid((t/T - tau)/s) of one completion, float32 [T], t = 0..T-1
    (2605.21606)."""
    length = len(tokens)
    place_T = torch.arange(length, dtype=torch.float32, device=tokens.device) / max(length, 1)
    return w_min + (1.0 - w_min) * torch.sigmoid((place_T - tau) / s)


def entropy_weights(tokens: TaughtTokens, *, beta: float) -> Tensor:
    """exp(-beta H(q_t)) [T]; SRPO divides it by its mean."""
    return torch.exp(-beta * tokens.teacher_entropy)


def over_mean(raw: Sequence[Tensor], reduce: Reduce = _one_process) -> list[Tensor]:
    """Weights [T_i] of every rollout over their mean over all tokens of all ranks.

    `raw` are those of this rank's share of the batch; `reduce` sums the total and the count over
    ranks. With no token at all the result is empty; weights that are all 0 stay 0.
    """
    total, count = reduce(
        [
            math.fsum(float(w.sum(dtype=torch.float64)) for w in raw),
            float(sum(w.numel() for w in raw)),
        ]
    )
    if not total:
        return list(raw)
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
