"""Hand-computed divergences over two or three entries."""

from __future__ import annotations

import math

import pytest
import torch

from sdpo.losses.divergence import support_divergence
from sdpo.losses.head.support import top_tokens
from sdpo.losses.specs import Divergence


def evaluate(p, q, **spec):
    if spec["kind"] == "jsd":
        spec = {"beta": 0.5, **spec}
    log_p, log_q = (torch.tensor([m], dtype=torch.float64).log() for m in (p, q))
    value, weighted = support_divergence(Divergence(**spec), log_p, log_p.exp(), log_q, log_q.exp())
    return float(value), weighted[0].tolist()


def test_reverse_kl_of_a_fair_and_a_biased_coin():
    value, weighted = evaluate([0.5, 0.5], [0.25, 0.75], kind="reverse_kl")
    assert value == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert weighted == pytest.approx([0.5 * math.log(2), 0.5 * math.log(2 / 3)])


def test_forward_kl_and_cross_entropy_share_the_derivative():
    value, weighted = evaluate([0.5, 0.5], [0.25, 0.75], kind="forward_kl")
    assert value == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert weighted == pytest.approx([-0.25, -0.75])
    value, weighted = evaluate([0.5, 0.5], [0.25, 0.75], kind="forward_ce")
    assert value == pytest.approx(math.log(2))
    assert weighted == pytest.approx([-0.25, -0.75])


def test_jsd_of_disjoint_masses_is_log_two_and_its_beta_form():
    value, _ = evaluate([1 - 1e-12, 1e-12], [1e-12, 1 - 1e-12], kind="jsd")
    assert value == pytest.approx(math.log(2), rel=1e-9)
    value, weighted = evaluate([0.5, 0.5], [0.25, 0.75], kind="jsd", beta=0.2)
    m = [0.45, 0.55]
    kl_p = 0.5 * math.log(0.5 / m[0]) + 0.5 * math.log(0.5 / m[1])
    kl_q = 0.25 * math.log(0.25 / m[0]) + 0.75 * math.log(0.75 / m[1])
    assert value == pytest.approx(0.8 * kl_p + 0.2 * kl_q)
    assert weighted == pytest.approx([0.8 * 0.5 * math.log(0.5 / x) for x in m])


def test_jsd_is_symmetric_at_one_half_and_not_elsewhere():
    p, q = [0.5, 0.3, 0.2], [0.1, 0.6, 0.3]
    assert evaluate(p, q, kind="jsd")[0] == pytest.approx(evaluate(q, p, kind="jsd")[0])
    tilted = [evaluate(*pair, kind="jsd", beta=0.1)[0] for pair in ((p, q), (q, p))]
    assert tilted[0] != pytest.approx(tilted[1], rel=1e-3)


def test_the_clip_bounds_the_advantage_of_each_entry():
    p, q = [0.5, 0.5], [0.5 * math.exp(-9), 1 - 0.5 * math.exp(-9)]
    value, weighted = evaluate(p, q, kind="reverse_kl", clip=5.0)
    log_ratio = math.log(q[1] / 0.5)
    assert weighted == pytest.approx([0.5 * 5.0, -0.5 * log_ratio])
    assert value == pytest.approx(0.5 * 5.0 - 0.5 * log_ratio)
    unclipped = evaluate([0.5, 0.5], [0.25, 0.75], kind="reverse_kl")
    loose = evaluate([0.5, 0.5], [0.25, 0.75], kind="reverse_kl", clip=5.0)
    assert loose[0] == pytest.approx(unclipped[0])
    assert loose[1] == pytest.approx(unclipped[1])


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jsd", "forward_ce"])
@pytest.mark.parametrize("clip", [None, 5.0])
def test_empty_entries_are_finite_in_float32(kind, clip):
    floor = 1e-30
    log_p = torch.tensor([[1.0, floor], [1.0, floor], [floor, 1.0]]).log()
    log_q = torch.tensor([[1.0, floor], [floor, 1.0], [1.0, floor]]).log()
    p, q = log_p.exp().round(), log_q.exp().round()
    spec = Divergence(kind=kind, clip=clip, beta=0.5 if kind == "jsd" else None)
    value, weighted = support_divergence(spec, log_p, p, log_q, q)
    assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(weighted).all())
    assert float(value[0]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("vocabulary", [64, 1280, 1300, 5003])
@pytest.mark.parametrize("top_k", [1, 5])
def test_two_stage_selection_finds_the_most_likely_tokens(vocabulary, top_k):
    rng = torch.Generator().manual_seed(0)
    log_p = torch.randn(20, vocabulary, generator=rng).log_softmax(-1)
    log_p[0, -top_k:] = 1.0  # beyond the last whole strip
    log_p[1] = -1.0  # all equal: any K different tokens will do
    ids = top_tokens(log_p, top_k)
    expected = log_p.topk(top_k)
    found = log_p.gather(1, ids).sort(-1, descending=True).values
    assert torch.equal(found, expected.values)
    assert torch.equal(ids[2:].sort(-1).values, expected.indices[2:].sort(-1).values)
    assert all(len(set(row.tolist())) == top_k for row in ids)


def test_impossible_parameters_are_refused():
    for bad in (
        {"kind": "tv"},
        {"kind": "jsd"},
        {"beta": 0.0},
        {"beta": 1.0},
        {"clip": 0.0},
        {"kind": "reverse_kl", "beta": 0.5},
    ):
        with pytest.raises(ValueError, match=r"divergence|beta|clip"):
            Divergence(**({"kind": "jsd"} | bad))
