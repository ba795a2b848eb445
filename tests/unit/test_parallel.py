"""Sums over ranks: how gradients travel. What two processes make of it is
tests/invariants/test_processes.py."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from sdpo import parallel as module
from sdpo.parallel import GradientSums, Parallel


@pytest.fixture
def group():
    """A process group of this process alone: a sum over it is the tensor itself."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients() -> list[torch.Tensor]:
    shapes = [(3, 4), (1,), (0, 4), (40,), (2, 2), (5,)]
    found = [
        torch.arange(float(torch.Size(s).numel())).reshape(s) + i for i, s in enumerate(shapes)
    ]
    return [g.bfloat16() if i == 4 else g for i, g in enumerate(found)]


def test_gradients_come_back_from_their_buckets(group, monkeypatch):
    monkeypatch.setattr(module, "_BUCKET_BYTES", 64)
    given = gradients()
    Parallel(rank=0, world_size=2).sum_gradients(given)
    for found, expected in zip(given, gradients(), strict=True):
        assert found.equal(expected)
        assert found.dtype == expected.dtype


def test_a_bucket_holds_one_kind_and_no_more_than_fits(monkeypatch):
    monkeypatch.setattr(module, "_BUCKET_BYTES", 64)
    buckets = list(module._buckets(gradients()))
    # 48 + 4 + 0 bytes, 160 alone, bfloat16 alone, the rest.
    assert [len(bucket) for bucket in buckets] == [3, 1, 1, 1]
    assert list(module._buckets([])) == []


def test_a_bucket_travels_once_it_and_all_before_it_are_complete(group, monkeypatch):
    """Ranks whose micro-batches reached other weights send the same buckets in the same order."""
    monkeypatch.setattr(module, "_BUCKET_BYTES", 16)
    sent = []
    all_reduce = dist.all_reduce
    monkeypatch.setattr(
        dist,
        "all_reduce",
        lambda flat, **named: (sent.append(len(flat)), all_reduce(flat, **named))[1],
    )
    given = [torch.ones(4), torch.ones(1), torch.ones(2), torch.ones(3)]
    sums = GradientSums(given)
    sums.complete(given[1])  # Its bucket waits for the other tensor of it, and for the one before.
    sums.complete(given[2])
    assert sent == []
    sums.complete(given[3])
    assert sent == [3, 3]
    sums.finish()
    assert sent == [3, 3, 4]
    assert all(tensor.eq(1).all() for tensor in given)
