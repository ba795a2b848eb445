"""What a search found: one record per task, method and repetition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sdpo.evaluation import discovery_at_k, pass_at_k

Method = Literal["self_distillation", "best_of_k", "multi_turn"]
"""How a search proceeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """One finished search.

    Example:
        Discovery(task_id="clamp", method="self_distillation", seed=0, budget=256, attempts=48,
        attempts_to_solve=37, solution="def clamp(x, lo, hi): ...", solved=(37, 41), seconds=12.5)
    """

    task_id: str
    method: Method
    seed: int
    """Number of the repetition, 0-based; with the run's seed, method and task it decides the
    search."""
    budget: int
    """Attempts the search was allowed."""
    attempts: int
    """Attempts sampled and judged, those after a success in the same batch included."""
    attempts_to_solve: int | None
    """Place of the first solved attempt, 1-based; None when the search found nothing."""
    solution: str | None
    """Text of the first solved attempt."""
    solved: tuple[int, ...] = ()
    """Places of all solved attempts. Best-of-k samples on to its budget, so that the unbiased
    pass@k can be computed from their number."""
    seconds: float
    """Wall-clock time; searches that ran side by side share it equally."""
    stopped: str | None = None
    """Why the search ended before its budget without a solution, for instance a canary."""

    def solved_after(self, k: int) -> float:
        """Chance that the task is solved after `k` attempts: for best-of-k the unbiased estimate
        of pass@k from all samples, otherwise 0 or 1."""
        if self.method == "best_of_k":
            return pass_at_k(self.attempts, len(self.solved), min(k, self.attempts))
        return discovery_at_k([self.attempts_to_solve], k)

    @property
    def curve(self) -> tuple[float, ...]:
        """`solved_after` 1, 2, ..., budget attempts: entry k - 1 belongs to k."""
        return tuple(self.solved_after(k) for k in range(1, self.budget + 1))

    def row(self) -> dict[str, Any]:
        """The record as one line of discovery.jsonl."""
        return asdict(self) | {"solved": list(self.solved)}


def from_row(row: Mapping[str, Any]) -> Discovery:
    """The record of one line of discovery.jsonl."""
    fields: dict[str, Any] = {name: row[name] for name in Discovery.__slots__}
    fields["solved"] = tuple(row["solved"])
    return Discovery(**fields)
