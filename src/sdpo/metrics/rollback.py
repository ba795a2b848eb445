"""Going back after a collapse: which checkpoint is good.

The canaries know the last step at which nothing was suspicious (`Alert.good`). That alone would
accept a model that is only half destroyed, so evaluations count too: a checkpoint is good when the
last evaluation before it was within the interval of the best one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sdpo.metrics import names

CURE = (
    "lower optim.lr, freeze the teacher (teacher.schedule.type=frozen), "
    "or set canaries.action=warn, in a new run"
)
"""What a user can do about a collapse."""


class EvaluationHistory:
    """The evaluations of one run: step, solved rate, lower bound of its 90% interval.

    Example:
        history = EvaluationHistory()
        history.observe(10, {"eval/solved": 0.4, "eval/solved_low": 0.3})
        history.newest_good([0, 10, 15], good=12)   # 10
    """

    def __init__(self) -> None:
        self._rows: list[tuple[int, float, float]] = []

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Remember the evaluation in `metrics`, if there is one."""
        if names.EVAL_SOLVED in metrics:
            self._rows.append(
                (step, metrics[names.EVAL_SOLVED], metrics[names.low(names.EVAL_SOLVED)])
            )

    def newest_good(self, checkpoints: Sequence[int], good: int) -> int | None:
        """The newest of `checkpoints` up to step `good` whose last evaluation was within the
        interval of the best one. If there is none, the one with the best evaluation; None without
        checkpoints."""
        rows = [row for row in self._rows if row[0] <= good]
        floor = max(rows, key=lambda row: row[1], default=(0, 0.0, 0.0))[2]
        candidates = [(self._solved(step), step) for step in checkpoints if step <= good]
        passing = [step for solved, step in candidates if solved >= floor]
        if passing:
            return max(passing)
        return max(candidates)[1] if candidates else None

    def restored(self, step: int, source: int) -> None:
        """Note that the weights at `step` are now those of checkpoint `source`."""
        earlier = [row for row in self._rows if row[0] <= source]
        if earlier:
            self._rows.append((step, *earlier[-1][1:]))

    def state(self) -> list[tuple[int, float, float]]:
        """Plain data for a checkpoint."""
        return list(self._rows)

    def load_state(self, state: Sequence[tuple[int, float, float]]) -> None:
        """Continue where `state` was taken."""
        self._rows = list(state)

    def _solved(self, step: int) -> float:
        return next((row[1] for row in reversed(self._rows) if row[0] <= step), 0.0)
