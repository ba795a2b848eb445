"""Surrogates on one or two tokens, by hand; derivatives against finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from sdpo.losses.importance import clipped_surrogate, logit_surrogate, ratio, truncated_ratio
from sdpo.losses.policy_gradient import sequence_loss, sequence_mean, token_loss
from sdpo.losses.specs import PolicyGradientSpec

PLAIN = {"kind": "grpo", "normalization": "token", "eps_low": 0.2, "eps_high": 0.28}
SFT = {"kind": "sft", "normalization": "token"}


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def log(*values: float) -> torch.Tensor:
    return column(*values).log()


@pytest.mark.parametrize(
    ("ratio_value", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.56, 0.0),  # above 1.28: clipped, no gradient
        (0.5, 2.0, -1.0, -1.0),  # a good token that became unlikely keeps its gradient
        (1.5, -2.0, 3.0, 3.0),  # a bad token that became likely keeps its gradient
        (0.5, -2.0, 1.6, 0.0),  # below 0.8: clipped
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clip_higher(ratio_value, advantage, loss, slope):
    found = clipped_surrogate(column(ratio_value), column(advantage), 0.2, 0.28)
    assert [float(x) for x in found] == pytest.approx([loss, slope])


def test_grpo_on_policy_is_minus_the_advantage_without_old_logprobs():
    spec = PolicyGradientSpec(**PLAIN)
    loss, slope = token_loss(spec, log(0.3, 0.6), None, column(1.5, -0.5))
    assert loss.tolist() == slope.tolist() == [-1.5, 0.5]
    same = token_loss(spec, log(0.3, 0.6), log(0.3, 0.6), column(1.5, -0.5))
    assert torch.equal(same[0], loss)
    assert torch.equal(same[1], slope)


def test_cispo_keeps_the_gradient_of_clipped_tokens():
    spec = PolicyGradientSpec(**PLAIN | {"kind": "cispo"})
    loss, slope = token_loss(spec, log(0.6, 0.1), log(0.3, 0.2), column(2.0, 2.0))
    assert slope.tolist() == pytest.approx([-1.28 * 2.0, -0.8 * 2.0])
    assert loss.tolist() == pytest.approx([-1.28 * 2.0 * math.log(0.6), -0.8 * 2.0 * math.log(0.1)])


def test_sft_is_likelihood_whatever_the_advantage():
    loss, slope = token_loss(PolicyGradientSpec(**SFT), log(0.25), None, column(-3.0))
    assert float(loss) == pytest.approx(math.log(4))
    assert float(slope) == -1.0


def test_gspo_uses_the_geometric_mean_ratio_of_the_sequence():
    spec = PolicyGradientSpec(kind="gspo", normalization="token", eps_low=0.5, eps_high=0.5)
    new, old = log(0.4, 0.3, 0.9), log(0.2, 0.3, 0.1)
    sequences = torch.tensor([0, 0, 1])
    loss, slope = sequence_loss(
        spec, new, old, column(1.0, 1.0, 1.0), sequences, column(1.0, 1.0, 1.0)
    )
    first = math.sqrt(2.0)  # ratios 2 and 1
    assert loss.tolist() == pytest.approx([-first, -first, -1.5])
    assert slope.tolist() == pytest.approx([-first, -first, 0.0])


@pytest.mark.parametrize("kind", ["grpo", "gspo", "sft"])
def test_slopes_are_derivatives_of_the_summed_loss(kind):
    spec = PolicyGradientSpec(**SFT if kind == "sft" else PLAIN | {"kind": kind})
    rng = torch.Generator().manual_seed(0)
    new = -torch.rand(9, generator=rng, dtype=torch.float64)
    old = new + 0.4 * torch.randn(9, generator=rng, dtype=torch.float64)
    advantages = torch.randn(3, generator=rng, dtype=torch.float64).repeat_interleave(3)
    sequences = torch.arange(3).repeat_interleave(3)
    weights = torch.rand(9, generator=rng, dtype=torch.float64)

    def evaluate(logprob: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if kind == "gspo":
            return sequence_loss(spec, logprob, old, advantages, sequences, weights)
        loss, slope = token_loss(spec, logprob, old, advantages)
        return loss * weights, slope * weights

    slope = evaluate(new)[1]
    for i in range(9):
        step = torch.zeros(9, dtype=torch.float64)
        step[i] = 1e-6
        numeric = (evaluate(new + step)[0].sum() - evaluate(new - step)[0].sum()) / 2e-6
        assert float(slope[i]) == pytest.approx(float(numeric), abs=1e-7)


def test_sequence_mean_of_interleaved_lengths():
    means = sequence_mean(column(1.0, 3.0, 5.0), torch.tensor([1, 1, 0]))
    assert means.tolist() == [2.0, 2.0, 5.0]


def test_truncated_weights_cap_above_only():
    weights = truncated_ratio(log(0.9, 0.1, 0.5), log(0.1, 0.9, 0.5), 2.0)
    assert weights.tolist() == pytest.approx([2.0, 1 / 9, 1.0])
    assert truncated_ratio(log(0.9), log(0.1), None) is None


def test_ratios_do_not_overflow():
    assert bool(torch.isfinite(ratio(column(0.0), column(-1e4))).all())


def test_logit_surrogate_by_hand():
    """Two entries: one within the clip range, one clipped because its good ratio is above 1.28."""
    p, q, old = log(0.55, 0.45).view(1, 2), log(0.2, 0.8).view(1, 2), log(0.7, 0.3).view(1, 2)
    value, weighted = logit_surrogate(p, q, old, eps_low=0.2, eps_high=0.28)
    a, b = math.log(0.2 / 0.55), math.log(0.8 / 0.45)
    low = min(0.55 / 0.7 * a, 0.8 * a)
    assert float(value) == pytest.approx(-(0.7 * low + 0.3 * 1.28 * b))
    # Entry 0: bad, ratio 0.786 below 0.8: clipped. Entry 1: good, ratio 1.5 above 1.28: clipped.
    assert weighted[0].tolist() == [0.0, 0.0]
    near = log(0.65, 0.35).view(1, 2)
    _, weighted = logit_surrogate(near, q, old, eps_low=0.2, eps_high=0.28)
    expected = [-0.65 * math.log(0.2 / 0.65), -0.35 * math.log(0.8 / 0.35)]
    assert weighted[0].tolist() == pytest.approx(expected)


def test_impossible_specs_are_refused():
    for bad in (
        {"kind": "ppo"},
        {"normalization": "mean"},
        {"normalization": "fixed"},
        {"fixed_length": 4},
        {"kind": "sft"},
    ):
        with pytest.raises(ValueError, match=r"policy gradient|normalization|sft"):
            PolicyGradientSpec(**PLAIN | bad)
