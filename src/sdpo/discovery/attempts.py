"""attempts.jsonl: every attempt of every search with what the judge said, one a line.

    task_id, method, seed, attempt     the search and the place in it, 1-based; unique
    text                               the completion
    reward, solved, category, feedback the verdict
    seconds                            from the start of its search to its verdict

Lines appear as attempts are judged, so a long search can be read while it runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdpo.discovery.records import Discovery, Method
from sdpo.metrics.jsonl import JsonLines, dumps, read_rows
from sdpo.records import Verdict

ATTEMPTS = "attempts.jsonl"

Key = tuple[str, Method, int]
"""Task id, method and number of the repetition: one search."""

_CONTINUED = "multi_turn"
"""The method whose state is its attempts alone, so that a killed search goes on where it was.
Trained weights are not kept, and independent samples are quickly drawn again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One judged attempt.

    Example:
        Attempt(text="def f(x): ...", reward=0.5, solved=False, category="wrong_answer",
        feedback="Wrong Answer ...", seconds=3.2)
    """

    text: str
    reward: float
    solved: bool
    category: str | None
    feedback: str | None
    seconds: float
    """From the start of its search; searches that run side by side share time equally."""


class Tally:
    """The attempts of one search, in order."""

    def __init__(
        self,
        task_id: str,
        method: Method,
        seed: int,
        *,
        budget: int,
        made: Iterable[Attempt] = (),
    ) -> None:
        self.key: Key = (task_id, method, seed)
        self.budget = budget
        self.made = list(made)

    @property
    def left(self) -> int:
        """Attempts that remain."""
        return self.budget - len(self.made)

    @property
    def solved(self) -> tuple[int, ...]:
        """Places of the solved attempts, 1-based."""
        return tuple(place for place, attempt in enumerate(self.made, start=1) if attempt.solved)

    @property
    def seconds(self) -> float:
        """When the last attempt was judged."""
        return self.made[-1].seconds if self.made else 0.0

    def add(self, text: str, verdict: Verdict, *, seconds: float) -> Attempt:
        """Count one attempt."""
        self.made.append(
            Attempt(
                text=text,
                reward=verdict.reward,
                solved=verdict.solved,
                category=verdict.info.get("category"),
                feedback=verdict.feedback,
                seconds=seconds,
            )
        )
        return self.made[-1]

    def result(self, *, seconds: float, stopped: str | None = None) -> Discovery:
        """The finished search."""
        task_id, method, seed = self.key
        solved = self.solved
        return Discovery(
            task_id=task_id,
            method=method,
            seed=seed,
            budget=self.budget,
            attempts=len(self.made),
            attempts_to_solve=solved[0] if solved else None,
            solution=self.made[solved[0] - 1].text if solved else None,
            solved=solved,
            seconds=seconds,
            stopped=stopped,
        )


class AttemptLog:
    """Writes attempts.jsonl of a run directory and knows what searches that go on had tried.

    Example:
        log = AttemptLog(run_dir, finished={("clamp", "best_of_k", 0)})
        tally = log.tally("clamp", "multi_turn", 0, budget=256)
        log.write(tally)
    """

    def __init__(self, run_dir: Path, finished: Collection[Key]) -> None:
        self._file = JsonLines(run_dir / ATTEMPTS)
        self._made: dict[Key, list[Attempt]] = {}
        self._num_rows = 0
        kept = []
        for row in read_rows(self._file.path):
            key: Key = (row["task_id"], row["method"], row["seed"])
            if key in finished or row["method"] == _CONTINUED:
                kept.append(row | {"step": len(kept) + 1})
            if key not in finished and row["method"] == _CONTINUED:
                self._made.setdefault(key, []).append(_attempt(row))
        self._keep(kept)

    def tally(self, task_id: str, method: Method, seed: int, *, budget: int) -> Tally:
        """A search that is to begin or go on."""
        made = self._made.setdefault((task_id, method, seed), [])
        return Tally(task_id, method, seed, budget=budget, made=made)

    def write(self, tally: Tally) -> None:
        """Append the attempts made since the last time."""
        task_id, method, seed = tally.key
        written = self._made.setdefault(tally.key, [])
        new = tally.made[len(written) :]
        rows: list[dict[str, Any]] = []
        for attempt in new:
            written.append(attempt)
            self._num_rows += 1
            search = {"step": self._num_rows, "task_id": task_id, "method": method, "seed": seed}
            rows.append(search | {"attempt": len(written)} | asdict(attempt))
        self._file.append(rows)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _keep(self, rows: list[dict[str, Any]]) -> None:
        """Replace the file's lines, which those of searches that start again leave."""
        self._num_rows = len(rows)
        if not self._file.path.exists():
            return
        partial = self._file.path.with_suffix(".partial")
        partial.write_text("".join(dumps(row) + "\n" for row in rows), encoding="utf-8")
        partial.rename(self._file.path)


def _attempt(row: Mapping[str, Any]) -> Attempt:
    fields: dict[str, Any] = {name: row[name] for name in Attempt.__slots__}
    return Attempt(**fields)
