"""Token and task weights by hand, and what normalisation keeps."""

from __future__ import annotations

import math

import pytest
import torch

from sdpo.losses.weighting import (
    TaughtTokens,
    entropy_weights,
    over_mean,
    position_weights,
    success_rate_weights,
)
from sdpo.records import Sample


def taught(length, entropy=None):
    """A rollout of `length` tokens; None: its teacher may not be asked."""
    sample = Sample(
        task_id="t", index=0, prompt_ids=(1,), completion_ids=(2,) * length,
        loss_mask=(True,) * length, sampler_logprobs=(-1.0,) * length, teacher_prompt_ids=(1,),
        advantage=0.0, component_weights={"distill": 1.0},
    )  # fmt: skip

    def score():
        assert entropy is not None
        return torch.zeros(length), entropy

    return TaughtTokens(sample=sample, device=torch.device("cpu"), score=score)


def by_entropy(entropies, beta, reduce=list):
    return over_mean([entropy_weights(taught(len(e), e), beta=beta) for e in entropies], reduce)


def test_position_weights_rise_from_the_floor():
    weights = position_weights(taught(10), w_min=0.25, tau=0.3, s=0.1)
    assert weights.shape == (10,)
    assert float(weights[3]) == pytest.approx(0.25 + 0.75 * 0.5)  # t/T = tau: half way
    assert float(weights[0]) == pytest.approx(0.25 + 0.75 / (1 + math.exp(3)))
    assert bool((weights.diff() > 0).all())
    assert float(weights[9]) == pytest.approx(1.0, abs=0.003)
    assert position_weights(taught(0), w_min=0.25, tau=0.3, s=0.1).shape == (0,)


def test_entropy_weights_average_to_one_over_all_tokens():
    entropies = [torch.tensor([0.0, 1.0]), torch.tensor([2.0, 0.5, 3.0])]
    weights = by_entropy(entropies, 1.0)
    flat = torch.cat(weights)
    assert float(flat.mean()) == pytest.approx(1.0)
    assert float(flat[0] / flat[1]) == pytest.approx(math.e)
    assert [len(w) for w in weights] == [2, 3]


def test_entropy_weights_use_the_whole_batch_of_all_ranks():
    """Two ranks with a summing `reduce` give the weights of one rank with everything."""
    halves = [torch.tensor([0.1, 2.0]), torch.tensor([1.0])]
    whole = by_entropy(halves, 0.7)
    raw = [torch.exp(-0.7 * h) for h in halves]
    totals = [float(sum(w.sum() for w in raw)), 3.0]
    for half, expected in zip(halves, whole, strict=True):
        (found,) = by_entropy([half], 0.7, lambda local: totals)
        torch.testing.assert_close(found, expected)


def test_entropy_weights_of_nothing():
    assert over_mean([]) == []
    assert [len(w) for w in by_entropy([torch.zeros(0)], 1.0)] == [0]


def test_success_rate_weights_prefer_undecided_tasks():
    weights = success_rate_weights([0.5, 0.1, 0.0, 1.0], [10, 10, 10, 0])
    raw = [0.5, 0.3, 0.0, 0.0]
    mean = (0.5 * 10 + 0.3 * 10) / 30
    assert weights == pytest.approx([r / mean for r in raw])
    tokens = [10, 10, 10, 0]
    assert sum(w * n for w, n in zip(weights, tokens, strict=True)) == pytest.approx(30)


def test_success_rate_weights_of_decided_tasks_are_zero():
    assert success_rate_weights([0.0, 1.0], [5, 5]) == [0.0, 0.0]
    assert success_rate_weights([], []) == []
