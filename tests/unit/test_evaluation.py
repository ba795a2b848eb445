"""Estimators against brute force."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo.evaluation import bootstrap, discovery_at_k, pass_at_k


@given(
    st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))
)
def test_pass_at_k_is_the_share_of_subsets_with_a_success(case):
    n, c, k = case
    subsets = list(combinations(range(n), k))
    expected = sum(any(i < c for i in subset) for subset in subsets) / len(subsets)
    assert pass_at_k(n, c, k) == pytest.approx(expected)


def test_pass_at_k_needs_k_attempts():
    with pytest.raises(ValueError, match="pass@5"):
        pass_at_k(4, 1, 5)


def test_bootstrap_covers_the_mean_and_repeats():
    values = [0.0, 1.0, 1.0, 0.5, 0.25]
    first, second = bootstrap(values), bootstrap(values)
    assert first == second
    assert first.low <= first.mean <= first.high
    assert first.mean == pytest.approx(0.55)
    assert bootstrap([0.3]).low == bootstrap([0.3]).high == 0.3


def test_bootstrap_interval_matches_the_normal_approximation():
    values = [0.0] * 200 + [1.0] * 200
    interval = bootstrap(values, level=0.9)
    half = 1.645 * (0.25 / 400) ** 0.5
    assert interval.high - 0.5 == pytest.approx(half, rel=0.1)
    assert 0.5 - interval.low == pytest.approx(half, rel=0.1)


def test_discovery_counts_the_first_solution():
    assert discovery_at_k([1, 5, None, 3], 3) == 0.5
    assert discovery_at_k([1, 5, None, 3], 5) == 0.75
