import json
import math

import pytest

from sdpo.metrics.canaries import Canaries

HEALTHY = {
    "policy/entropy": 0.4,
    "rollouts/length_p90": 60.0,
    "train/truncated": 0.05,
    "rollouts/repeated_ngrams": 0.1,
    "rollouts/format_errors": 0.1,
    "rollouts/flat_failed": 0.3,
    "policy/teacher_js": 0.03,
    "policy/initial_kl": 0.01,
    "train/solved": 0.4,
    "eval/pass@4": 0.5,
    "eval/pass@16": 0.6,
    "probe/gain_recipe_high": 0.2,
}


def fired(bad, *, start=HEALTHY, patience=3, healthy_steps=8, bad_steps=12):
    """Canaries that fire when `bad` replaces healthy values, with the step of the alert."""
    canaries = Canaries(patience=patience)
    alerts = []
    for step in range(1, healthy_steps + 1):
        alerts += canaries.observe(step, start)
    assert alerts == []
    for step in range(healthy_steps + 1, healthy_steps + 1 + bad_steps):
        alerts += canaries.observe(step, {**start, **bad})
    return [(alert.canary, alert.step) for alert in alerts]


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"policy/entropy": 0.03}, ("entropy_collapse", 11)),
        ({"policy/entropy": 3.0}, ("entropy_explosion", 11)),
        ({"rollouts/length_p90": 120.0}, ("length_growth", 11)),
        ({"train/truncated": 0.5}, ("truncation", 11)),
        ({"rollouts/repeated_ngrams": 0.4}, ("repetition", 11)),
        ({"rollouts/format_errors": 0.6}, ("format_errors", 11)),
        ({"rollouts/flat_failed": 1.0}, ("flat_groups", 11)),
        ({"policy/teacher_js": 0.001}, ("teacher_collapse", 11)),
        ({"policy/initial_kl": 2.0}, ("initial_kl", 11)),
        ({"eval/pass@16": 0.3}, ("pass_at_k", 10)),
        ({"probe/gain_recipe_high": -0.01}, ("teacher_harms", 10)),
        # The mean of the last five steps is below 40% of the best from the fourth bad one on.
        ({"train/solved": 0.01}, ("solved_collapse", 14)),
    ],
)
def test_each_canary_fires_once_after_patience(bad, expected):
    assert fired(bad) == [expected]


@pytest.mark.parametrize(
    "fine",
    [
        {"policy/entropy": 0.1},
        {"policy/entropy": 0.7},
        {"rollouts/length_p90": 90.0},
        {"policy/teacher_js": 0.006},
        {"train/solved": 0.25},
        {"train/solved": 1.0, "rollouts/flat_failed": 0.0},
        {"eval/pass@16": 0.5},
        {"eval/pass@4": 0.1},
        {"probe/gain_recipe_high": 0.0},
        {"policy/entropy": math.nan},
    ],
)
def test_ordinary_learning_fires_nothing(fine):
    assert fired(fine) == []


def test_short_answers_may_double_and_tiny_entropies_may_triple():
    start = {"rollouts/length_p90": 4.0, "policy/entropy": 0.02}
    assert fired({"rollouts/length_p90": 9.0, "policy/entropy": 0.07}, start=start) == []


def test_a_hard_task_set_that_starts_flat_stays_quiet():
    assert fired({"rollouts/flat_failed": 1.0}, start={"rollouts/flat_failed": 0.97}) == []


def test_recovery_rearms():
    canaries = Canaries(patience=2)
    values = [0.1] * 3 + [0.9] * 3 + [0.1] + [0.9] + [0.1] + [0.9] * 2
    steps = []
    for step, value in enumerate(values, start=1):
        steps += [alert.step for alert in canaries.observe(step, {"train/truncated": value})]
    assert steps == [5, 11]


def test_an_alert_says_since_when_it_was_bad_and_what_to_do():
    canaries = Canaries(action="rollback", patience=3)
    alerts = []
    for step, value in enumerate([0.5, 0.4, 0.6, 0.01, 0.01, 0.01], start=1):
        alerts += canaries.observe(step, {"policy/entropy": value})
    (alert,) = alerts
    assert (alert.step, alert.since, alert.good, alert.action) == (6, 4, 2, "rollback")
    assert (alert.value, alert.baseline) == (0.01, 0.5)
    assert alert.message.startswith("policy/entropy is 0.01, below 0.05 (start 0.5)")
    assert json.loads(json.dumps(alert.row()))["canary"] == "entropy_collapse"


def test_resumed_canaries_continue_exactly():
    series = [0.4] * 6 + [0.01] * 6

    def run(canaries, steps):
        found = []
        for step in steps:
            metrics = {"policy/entropy": series[step], "train/solved": series[step]}
            found += canaries.observe(step, metrics)
        return found

    whole = run(Canaries(), range(12))
    for cut in range(12):
        first = Canaries()
        before = run(first, range(cut))
        second = Canaries()
        second.load_state(first.state())
        assert before + run(second, range(cut, 12)) == whole


def test_restart_after_a_rollback_keeps_the_baseline():
    canaries = Canaries(patience=1)
    for step in range(1, 4):
        canaries.observe(step, {"policy/entropy": 0.4})
    assert canaries.observe(4, {"policy/entropy": 0.01})
    canaries.restart(4)
    assert canaries.fired() == []
    assert canaries.good(9) == 4
    assert canaries.observe(4, {"policy/entropy": 0.01})[0].baseline == 0.4


def test_a_collapse_in_the_first_steps_is_not_its_own_baseline():
    canaries = Canaries()
    found = []
    for step, value in enumerate([0.05, 1.0, 1.0, 1.0], start=1):
        found += canaries.observe(step, {"train/truncated": value})
    assert [(alert.step, alert.since, alert.good) for alert in found] == [(4, 2, 0)]


def test_weights_count_as_good_up_to_the_last_that_every_canary_has_seen():
    canaries = Canaries(patience=1)
    assert canaries.good(0) == 0
    for step in range(1, 10):
        canaries.observe(step, {"policy/entropy": 0.4})
    assert canaries.good(9) == 8
    canaries.observe(5, {"eval/pass@4": 0.5})
    assert canaries.good(9) == 5
    canaries.observe(9, {"train/solved": 0.5})
    assert canaries.good(9) == 4
