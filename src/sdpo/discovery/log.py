"""What a search has done, written as it happens, so that a long one can be read while it runs.

attempts.jsonl: every attempt of every search with what the judge said.

    task_id, method, seed, attempt     the search and the place in it, 1-based; unique
    text                               the completion; of a conversation every turn
    reward, solved, category, feedback the verdict
    seconds                            from the start of its search to its verdict

updates.jsonl: every update of self-distillation, under task_id, method, seed and `update`, 1-based:
`stage`, how many times the search has started from the initial weights, and the metrics of a
training step (`policy/entropy`, `policy/teacher_js`, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdpo.discovery.result import Discovery, Method
from sdpo.files import record_whole
from sdpo.metrics.jsonl import JsonLines, dumps, read_rows
from sdpo.records import Rollout, Verdict
from sdpo.teacher.layout import ShownAttempt

ATTEMPTS = "attempts.jsonl"
UPDATES = "updates.jsonl"

Key = tuple[str, Method, int]
"""Task id, method and number of the repetition: one search."""

SOLUTIONS = "solutions"
"""Folder of a search with the first solution of every task."""
_CONTINUED = "multi_turn"
"""The method whose only state is its attempts, so that a killed search continues from them. Trained
weights are not kept, and independent samples are quickly drawn again."""


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
    """The attempts and updates of one search, in order."""

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
        self.updates: list[Mapping[str, float]] = []
        """Metrics of the updates between attempts; for methods that train."""
        self.num_unjudged = 0
        """Attempts that could not be judged; they use up budget but are not among those made."""

    @property
    def num_sampled(self) -> int:
        """Attempts so far, judged or not; random numbers depend on it."""
        return len(self.made) + self.num_unjudged

    @property
    def left(self) -> int:
        """Attempts that remain."""
        return self.budget - self.num_sampled

    @property
    def solved(self) -> tuple[int, ...]:
        """Places of the solved attempts, 1-based."""
        return tuple(place for place, attempt in enumerate(self.made, start=1) if attempt.solved)

    @property
    def seconds(self) -> float:
        """When the last attempt was judged."""
        return self.made[-1].seconds if self.made else 0.0

    def add(self, rollout: Rollout, verdict: Verdict, *, seconds: float) -> Attempt:
        """Count one attempt; of a conversation all turns are kept, and what was said about them."""
        turns = enumerate(rollout.turns, start=1)
        said = [f"Answer {n}: {turn.feedback}" for n, turn in turns if turn.feedback]
        feedback = "\n\n".join([*said, *([verdict.feedback] if verdict.feedback else [])])
        self.made.append(
            Attempt(
                text=ShownAttempt.of(rollout, str, str).as_text(),
                reward=verdict.reward,
                solved=verdict.solved,
                category=verdict.info.get("category"),
                feedback=feedback or None,
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


class SearchLog:
    """Writes attempts.jsonl and updates.jsonl of a run directory and remembers the attempts of
    searches that can be continued.

    Example:
        log = SearchLog(run_dir, finished={("clamp", "best_of_k", 0)})
        tally = log.tally("clamp", "multi_turn", 0, budget=256)
        log.write(tally)
    """

    def __init__(self, run_dir: Path, finished: Collection[Key]) -> None:
        def keeps(row: Mapping[str, Any]) -> bool:
            return _key(row) in finished or row["method"] == _CONTINUED

        self._attempts = _Rows(run_dir / ATTEMPTS, keeps)
        self._updates = _Rows(run_dir / UPDATES, keeps)
        self._made: dict[Key, list[Attempt]] = {}
        for row in self._attempts.kept:
            if _key(row) not in finished:
                fields: dict[str, Any] = {name: row[name] for name in Attempt.__slots__}
                self._made.setdefault(_key(row), []).append(Attempt(**fields))
        self._written: dict[Key, tuple[int, int]] = {
            key: (len(made), 0) for key, made in self._made.items()
        }

    def tally(self, task_id: str, method: Method, seed: int, *, budget: int) -> Tally:
        """The tally of a search that begins or continues."""
        made = self._made.get((task_id, method, seed), [])
        return Tally(task_id, method, seed, budget=budget, made=made)

    def write(self, tally: Tally) -> None:
        """Append what is new since the last call."""
        task_id, method, seed = tally.key
        search = {"task_id": task_id, "method": method, "seed": seed}
        attempts, updates = self._written.get(tally.key, (0, 0))
        self._attempts.append(
            search | {"attempt": attempts + place} | asdict(attempt)
            for place, attempt in enumerate(tally.made[attempts:], start=1)
        )
        self._updates.append(
            search | {"update": updates + place} | dict(metrics)
            for place, metrics in enumerate(tally.updates[updates:], start=1)
        )
        self._written[tally.key] = (len(tally.made), len(tally.updates))

    def close(self) -> None:
        """Close both files."""
        self._attempts.close()
        self._updates.close()


class _Rows:
    """One of the files; opening it drops the rows of searches that start again."""

    def __init__(self, path: Path, keeps: Callable[[Mapping[str, Any]], bool]) -> None:
        self._file = JsonLines(path)
        self.kept = [row for row in read_rows(path) if keeps(row)]
        self._num_rows = 0
        if path.exists():
            with record_whole(path) as partial:
                partial.write_text(
                    "".join(dumps(row) + "\n" for row in self._numbered(self.kept)),
                    encoding="utf-8",
                )

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._file.append(self._numbered(rows))

    def close(self) -> None:
        self._file.close()

    def _numbered(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Rows with the `step` that every file of this kind has: their number."""
        for row in rows:
            self._num_rows += 1
            yield {**row, "step": self._num_rows}


def _key(row: Mapping[str, Any]) -> Key:
    return (row["task_id"], row["method"], row["seed"])
