"""Tokens of which nobody knows how likely they were: weight 1, and no part in the sampler's gap."""

from __future__ import annotations

import math

import torch

from sdpo.losses.importance import truncated_ratio
from sdpo.metrics.sampler_gap import add_sampler_gap
from sdpo.metrics.values import Metrics


def test_an_unknown_sampler_corrects_nothing():
    student, sampler = torch.tensor([-1.0, -3.0, -0.5]), torch.tensor([-2.0, math.nan, -0.5])
    weights = truncated_ratio(student, sampler, 2.0)
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([2.0, 1.0, 1.0]))


def test_the_gap_is_that_of_known_tokens():
    metrics = Metrics()
    student, sampler = torch.tensor([-1.0, -3.0]), torch.tensor([-1.5, math.nan])
    add_sampler_gap(metrics, student, sampler, ratio_cap=2.0)
    assert metrics.reduce()["policy/sampler_gap"] == 0.5
    nothing = Metrics()
    add_sampler_gap(nothing, student[1:], sampler[1:], ratio_cap=2.0)
    assert not any(math.isnan(value) for value in nothing.reduce().values())
