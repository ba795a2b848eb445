"""The gap between sampler and trainer, by hand and merged over micro-batches."""

from __future__ import annotations

import math

import pytest
import torch

from sdpo.metrics.sampler_gap import add_sampler_gap
from sdpo.metrics.values import Metrics


def test_gap_of_one_micro_batch_by_hand():
    metrics = Metrics()
    trainer, sampler = (
        torch.tensor([-1.0, -2.0, -0.5, -3.0]),
        torch.tensor([-1.5, -2.0, -0.25, -6.0]),
    )
    add_sampler_gap(metrics, trainer, sampler, ratio_cap=2.0)
    row = metrics.reduce()
    assert row["policy/sampler_gap"] == pytest.approx((0.5 + 0.25 + 3.0) / 4)
    assert row["policy/sampler_gap_max"] == 3.0
    assert row["policy/sampler_gap_p99"] == pytest.approx(0.5 + 0.97 * 2.5)
    assert row["policy/ratio_capped"] == 0.25  # e^3 is above 2, e^0.5 is not


def test_micro_batches_merge_to_the_whole():
    generator = torch.Generator().manual_seed(0)
    trainer, sampler = (torch.randn(90, generator=generator) for _ in range(2))
    whole, parts = Metrics(), Metrics()
    add_sampler_gap(whole, trainer, sampler, ratio_cap=2.0)
    for rows in (slice(0, 10), slice(10, 70), slice(70, 90)):
        add_sampler_gap(parts, trainer[rows], sampler[rows], ratio_cap=2.0)
    assert parts.reduce() == pytest.approx(whole.reduce())


def test_without_a_cap_no_ratio_is_capped_and_nothing_sampled_is_nothing_observed():
    metrics = Metrics()
    add_sampler_gap(metrics, torch.tensor([0.0]), torch.tensor([-9.0]), ratio_cap=None)
    assert metrics.reduce()["policy/ratio_capped"] == 0.0
    empty = Metrics()
    add_sampler_gap(empty, torch.tensor([]), torch.tensor([]), ratio_cap=2.0)
    assert all(math.isnan(value) for value in empty.reduce().values())


def test_the_pool_of_a_long_micro_batch_is_bounded():
    metrics = Metrics()
    gap = torch.linspace(0, 1, 100_000)
    add_sampler_gap(metrics, torch.zeros(100_000), -gap, ratio_cap=2.0)
    kind, numbers = metrics.state()["policy/sampler_gap_p99"]
    assert kind == "Percentile"
    assert len(numbers) <= 1 + 1024
    assert metrics.reduce()["policy/sampler_gap_p99"] == pytest.approx(0.99, abs=2e-3)
    assert metrics.reduce()["policy/sampler_gap_max"] == 1.0
