"""Group advantages and token credit on a handful of numbers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdpo.losses.advantages import group_advantages, rlcsd_advantages, rlsd_advantages
from sdpo.losses.specs import RlcsdCredit, RlsdCredit
from sdpo.objectives import linear_decay

REWARDS = st.lists(st.floats(-10, 10), min_size=1, max_size=16)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_advantages_are_centred_rewards_without_std():
    assert group_advantages([1.0, 0.0, 0.0, 1.0]) == [0.5, -0.5, -0.5, 0.5]
    assert group_advantages([1.0, 0.0, 0.0, 0.0]) == [0.75, -0.25, -0.25, -0.25]


def test_std_is_optional_and_biased():
    assert group_advantages([1.0, 0.0], divide_by_std=True) == pytest.approx([1.0, -1.0], rel=1e-5)


@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, 0.7])
@pytest.mark.parametrize("divide_by_std", [False, True])
def test_flat_groups_are_exactly_zero(reward, divide_by_std, size):
    rewards = [reward] * size  # the mean of three floats 0.1 is not 0.1
    assert group_advantages(rewards, divide_by_std=divide_by_std) == [0.0] * size


def test_groups_of_none_and_of_one():
    assert group_advantages([]) == []
    assert group_advantages([0.3]) == [0.0]


def test_a_reward_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="finite"):
        group_advantages([1.0, math.nan])


@given(REWARDS)
def test_advantages_sum_to_zero_and_keep_order(rewards):
    advantages = group_advantages(rewards)
    assert math.fsum(advantages) == pytest.approx(0.0, abs=1e-9)
    pairs = list(zip(advantages, rewards, strict=True))
    for (a, r), (b, s) in itertools.combinations(pairs, 2):
        assert (a - b) * (r - s) >= 0


def test_linear_decay():
    assert [linear_decay(0.5, step, 50) for step in (0, 25, 50, 80)] == [0.5, 0.25, 0.0, 0.0]


def test_rlsd_by_hand():
    credit = RlsdCredit(mix=0.5, clip=0.2)
    gap = column(math.log(1.1), math.log(1.1), 3.0, -3.0, math.nan)
    found = rlsd_advantages(column(1.0, -1.0, 1.0, 1.0, 2.0), gap, credit)
    expected = [0.5 + 0.5 * 1.1, -(0.5 + 0.5 / 1.1), 1.1, 0.9, 2.0]
    assert found.tolist() == pytest.approx(expected)


@given(st.floats(-3, 3), st.floats(-1000, 1000), st.floats(0, 1))
def test_rlsd_never_turns_a_sign(advantage, gap, mix):
    found = float(rlsd_advantages(column(advantage), column(gap), RlsdCredit(mix=mix, clip=0.2)))
    assert math.copysign(1, found) == math.copysign(1, advantage) or advantage == 0
    assert abs(found) <= 1.2 * abs(advantage) + 1e-12


def test_rlsd_at_mix_zero_is_grpo():
    found = rlsd_advantages(column(0.5, -0.25), column(2.0, -2.0), RlsdCredit(mix=0.0, clip=0.2))
    assert found.tolist() == [0.5, -0.25]


def test_rlcsd_by_hand():
    credit = RlcsdCredit(scale=1.0, mix=0.5, tau=0.1)
    teacher = column(math.log(0.6))
    negatives = torch.tensor([[0.5, 0.7]], dtype=torch.float64).log()
    same = rlcsd_advantages(column(1.0), teacher, negatives, credit)
    assert float(same) == 1.0  # e = log 0.6 - log mean(0.5, 0.7) = 0
    negatives = torch.tensor([[0.3, 0.5, math.nan]], dtype=torch.float64).log()
    e = math.log(0.6 / 0.4)
    found = rlcsd_advantages(column(1.0), teacher, negatives, credit)
    assert float(found) == pytest.approx(1.0 + 0.5 * math.tanh(e / 0.1))


def test_rlcsd_threshold_bound_and_missing_demonstrations():
    teacher = column(0.0)
    negatives = column(-0.01).view(1, 1)
    weak = RlcsdCredit(scale=1.0, mix=0.02, tau=1.0)
    assert float(rlcsd_advantages(column(1.0), teacher, negatives, weak)) == 1.0
    strong = RlcsdCredit(scale=100.0, mix=0.5, tau=1e-3)
    assert float(rlcsd_advantages(column(1.0), teacher, negatives, strong)) == 3.0
    nothing = column(math.nan).view(1, 1)
    assert float(rlcsd_advantages(column(1.0), teacher, nothing, strong)) == 1.0
    untaught = column(math.nan)
    assert float(rlcsd_advantages(column(1.0), untaught, negatives, strong)) == 1.0


@given(st.floats(-3, 3), st.floats(-5, 0), st.floats(-5, 0))
def test_rlcsd_never_turns_a_sign(advantage, teacher, negative):
    found = float(
        rlcsd_advantages(
            column(advantage),
            column(teacher),
            column(negative).view(1, 1),
            RlcsdCredit(scale=10.0, mix=0.5, tau=0.02),
        )
    )
    assert found * advantage >= 0
    assert found == 0 or advantage != 0
