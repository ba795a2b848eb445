"""Which checkpoint counts as good."""

from __future__ import annotations

import pytest

from sdpo.metrics.rollback import EvaluationHistory


def history(*rows: tuple[int, float]) -> EvaluationHistory:
    """Evaluations whose intervals reach 0.1 below their rate."""
    made = EvaluationHistory()
    for step, solved in rows:
        made.observe(step, {"eval/solved": solved, "eval/solved_low": solved - 0.1})
        made.observe(step + 1, {"train/solved": 0.0})
    return made


@pytest.mark.parametrize(
    ("rows", "checkpoints", "good", "expected"),
    [
        ([(0, 0.4)], [0], 0, 0),
        ([(0, 0.4), (10, 0.5)], [0, 10, 20], 15, 10),
        ([(0, 0.4), (10, 0.5)], [0, 5, 20], 15, 5),
        # Not suspicious to the canaries, but clearly worse than the best evaluation.
        ([(0, 0.4), (10, 0.5), (20, 0.3)], [10, 15, 20, 25], 30, 15),
        # All are worse than a best whose checkpoint is gone: the best that is left.
        ([(0, 0.9), (10, 0.5), (20, 0.3)], [10, 20], 30, 10),
        # An evaluation after the collapse says nothing about the weights before it.
        ([(0, 0.4), (20, 0.0)], [0, 10], 12, 10),
        ([(0, 0.4)], [10], 5, None),
        ([], [0, 10], 10, 10),
    ],
)
def test_newest_within_the_interval_of_the_best(rows, checkpoints, good, expected):
    assert history(*rows).newest_good(checkpoints, good) == expected


def test_restored_weights_keep_their_evaluation_and_state_resumes():
    made = history((0, 0.5), (10, 0.6), (20, 0.0))
    made.restored(22, 10)
    again = EvaluationHistory()
    again.load_state(made.state())
    assert again.newest_good([10, 20, 22, 25], 30) == made.newest_good([10, 20, 22, 25], 30) == 25
