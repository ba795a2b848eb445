import json
import math
import pickle
import random

import pytest

from sdpo.metrics.values import Last, Max, Mean, Metrics, Percentile, Sum


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([Mean(6.0, 3), Mean(2.0, 1)], 2.0),
        ([Mean.of([1, 2]), Mean.of([])], 1.5),
        ([Sum(3), Sum(4)], 7.0),
        ([Last(1), Last(9)], 9.0),
        ([Max(9), Max(1)], 9.0),
        ([Percentile(50, (4.0, 1.0)), Percentile(50, (2.0,))], 2.0),
        ([Percentile(90, tuple(map(float, range(11))))], 9.0),
        ([Percentile(75, (0.0, 1.0))], 0.75),
    ],
)
def test_parts_reduce_to_the_value_of_the_whole(parts, expected):
    metrics = Metrics()
    for part in parts:
        metrics.add("x", part)
    assert metrics.reduce() == {"x": expected}


@pytest.mark.parametrize("empty", [Mean(0, 0), Percentile(50, ())])
def test_nothing_observed_is_nan_and_keeps_its_key(empty):
    metrics = Metrics()
    metrics.add("x", empty)
    assert math.isnan(metrics.reduce()["x"])


def test_a_bare_number_is_one_observation_of_a_mean():
    metrics = Metrics()
    for value in (1, 0, 0.5):
        metrics.add("x", value)
    assert metrics.reduce()["x"] == 0.5


def test_kinds_do_not_mix():
    metrics = Metrics()
    metrics.add("x", Sum(1))
    with pytest.raises(ValueError, match="'x' is a Sum"):
        metrics.add("x", Mean(1, 1))
    with pytest.raises(ValueError, match="percentile 50"):
        Percentile(50, ()).merge(Percentile(90, ()))


def test_split_over_processes_reports_the_same_as_one_process():
    rng = random.Random(0)
    lengths = [float(rng.randrange(200)) for _ in range(64)]

    def observe(values):
        metrics = Metrics()
        for value in values:
            metrics.add("mean", value)
            metrics.add("p90", Percentile(90, (value,)))
            metrics.add("total", Sum(value))
        return metrics

    whole = observe(lengths).reduce()
    states = [observe(lengths[i::3]).state() for i in range(3)]
    travelled = pickle.loads(pickle.dumps(json.loads(json.dumps(states))))
    assert Metrics.merged(travelled).reduce() == pytest.approx(whole)
    assert list(whole) == sorted(whole)
