"""rollouts.jsonl and credit.jsonl of a run for its report: what every attempt counts for, and a
spread of attempts in full.

Both files may be far larger than memory. One pass notes where each group begins and counts
verdicts; then only the chosen groups are read. In a run that goes on, only new lines are.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sdpo.metrics.segments import Place
from sdpo.report.lines import GrowingLines
from sdpo.report.packed import Packed, fill
from sdpo.rollouts.record import with_contexts

Row = dict[str, Any]
Item = TypeVar("Item")
GroupKey = tuple[int, str, str]
"""Step, split and task of a group."""

MAX_BINS = 200
"""Points of the chart of verdicts; longer runs are added up into so many bins of steps."""
MANY_TOKENS = 1_500
"""Attempts with more tokens keep alternatives only where student and teacher disagree most: they
are nine tenths of the bytes, and nobody points at eight thousand tokens."""
KEPT_ALTERNATIVES = 400
"""Positions that keep theirs."""


@dataclass(slots=True)
class _Group:
    """Where the lines of one group are."""

    key: GroupKey
    place: Place


class RolloutIndex:
    """What a report needs to know of all rollouts.

    Example:
        index = RolloutIndex(run_dir / "rollouts.jsonl")
        index.update()
        groups = index.choose(3_600_000, first={(12, "train", "clamp")})
    """

    def __init__(self, path: Path) -> None:
        self._lines = GrowingLines(path)
        self._forget()

    def _forget(self) -> None:
        self._groups: list[_Group] = []
        self._verdicts: dict[tuple[str, int], Counter[str]] = {}
        self._solved_names: set[str] = set()
        self.held_out: dict[int, dict[str, list[int]]] = {}
        """Step of an evaluation to its tasks to [solved attempts, attempts]."""

    @property
    def num_rollouts(self) -> int:
        """Rollouts on disk."""
        return self._lines.count

    def update(self) -> None:
        """Read what is new. Raises `SdpoError` naming a line that is not JSON."""
        if self._lines.was_rewritten():
            self._forget()
        for place, line in self._lines.new():
            row = self._lines.parse(line)
            self._count(row)
            if row.get("text") is None:
                continue  # log.rollouts kept its verdict only
            key = (row["step"], row["split"], row["task"])
            if self._groups and self._groups[-1].key == key:
                self._groups[-1].place = self._groups[-1].place.to(place)
            else:
                self._groups.append(_Group(key, place))

    def _count(self, row: Row) -> None:
        name = row["category"] or ("solved" if row["solved"] else "not solved")
        if row["solved"]:
            self._solved_names.add(name)
        self._verdicts.setdefault((row["split"], row["step"]), Counter())[name] += 1
        if row["split"] == "eval":
            counts = self.held_out.setdefault(row["step"], {}).setdefault(row["task"], [0, 0])
            counts[0] += row["solved"]
            counts[1] += 1

    def verdicts(self) -> dict[str, Row]:
        """Per split, the number of attempts of each verdict category at each step:
        `{"step": [...], "categories": [(name, [...]), ...]}`, solved categories first, then the
        most frequent. More than `MAX_BINS` steps are added up into bins, named by their last
        step."""
        found: dict[str, Row] = {}
        for split in sorted({split for split, _ in self._verdicts}):
            steps = sorted(step for one, step in self._verdicts if one == split)
            bins = [
                (part[-1], sum((self._verdicts[split, step] for step in part), Counter()))
                for part in _bins(steps)
            ]
            totals = sum((counts for _, counts in bins), Counter())
            names = sorted(totals, key=lambda n: (n not in self._solved_names, -totals[n], n))
            found[split] = {
                "step": [step for step, _ in bins],
                "categories": [(name, [counts[name] for _, counts in bins]) for name in names],
                "solved": [name for name in names if name in self._solved_names],
            }
        return found

    def choose(self, budget: int, first: Collection[GroupKey]) -> list[Packed]:
        """Groups worth about `budget` compressed bytes, in file order.

        Those whose key is in `first` come before others; then one group of every step, evenly
        spread, then a second one, and so on.
        """
        units: dict[tuple[int, str], list[int]] = {}
        wanted: list[int] = []
        for number, group in enumerate(self._groups):
            if group.key in first:
                wanted.append(number)
            else:
                units.setdefault(group.key[:2], []).append(number)
        ordered = [units[key] for key in spread_order(sorted(units))]
        rounds = itertools.chain.from_iterable(itertools.zip_longest(*ordered))
        others = (number for number in rounds if number is not None)
        order = ((n, self._groups[n].place.length) for n in itertools.chain(wanted, others))
        chosen = fill(order, budget, self._load)
        return [chosen[number] for number in sorted(chosen)]

    def _load(self, number: int) -> Row:
        group = self._groups[number]
        rows = [row for row in self._lines.read(group.place) if row["text"] is not None]
        return _group(group.key, rows)


def _bins(steps: Sequence[int]) -> Iterator[Sequence[int]]:
    count = min(len(steps), MAX_BINS)
    edges = [round(i * len(steps) / count) for i in range(count + 1)]
    for low, high in itertools.pairwise(edges):
        yield steps[low:high]


def _group(key: GroupKey, rollouts: Sequence[Row]) -> Row:
    """The lines of a group, its prompt once; `teacher` may be the index that has the same one."""
    with_contexts(rollouts)
    step, split, task = key
    prompt = next((r["prompt"] for r in rollouts if not isinstance(r["prompt"], int)), None)
    repeated = ("step", "split", "task", "prompt")
    return {
        "step": step,
        "split": split,
        "task": task,
        "prompt": prompt,
        "rollouts": [{k: v for k, v in row.items() if k not in repeated} for row in rollouts],
    }


class CreditIndex:
    """Where the lines of credit.jsonl begin; none of them is parsed before it is chosen.

    Example:
        index = CreditIndex(run_dir / "credit.jsonl")
        index.update()
        rows, groups = index.choose(700_000, count=60)
    """

    def __init__(self, path: Path) -> None:
        self._lines = GrowingLines(path)
        self._places: list[Place] = []

    def update(self) -> None:
        """Find the new lines."""
        if self._lines.was_rewritten():
            self._places = []
        self._places += [place for place, _ in self._lines.new()]

    def choose(self, budget: int, count: int) -> tuple[list[Packed], set[GroupKey]]:
        """At most `count` rows worth about `budget` compressed bytes, evenly spread, in order; and
        the groups that they are of."""
        keys: dict[int, GroupKey] = {}

        def load(number: int) -> Row:
            (row,) = self._lines.read(self._places[number])
            keys[number] = (row["step"], row["split"], row["task"])
            return thinned(row)

        order = itertools.islice(spread_order(range(len(self._places))), count)
        chosen = fill(((number, self._places[number].length) for number in order), budget, load)
        return [chosen[number] for number in sorted(chosen)], {keys[number] for number in chosen}


def thinned(row: Row) -> Row:
    """A row of credit.jsonl; of a long attempt, alternatives only where the two sides disagree most
    and the texts of what is left."""
    ids = row["token_ids"]
    if len(ids) <= MANY_TOKENS:
        return row
    gaps = [
        abs((-20.0 if q is None else q) - (-20.0 if p is None else p))
        for p, q in zip(row["student_logprob"], row["teacher_logprob"], strict=True)
    ]
    kept = set(sorted(range(len(ids)), key=lambda i: -gaps[i])[:KEPT_ALTERNATIVES])
    sides = {
        side: [top if i in kept else [] for i, top in enumerate(row[side])]
        for side in ("student_top", "teacher_top")
    }
    shown = {*ids, *(t for tops in sides.values() for top in tops for t in top[::2])}
    texts = {token: text for token, text in row["texts"].items() if int(token) in shown}
    return {**row, **sides, "texts": texts}


def spread_order(items: Iterable[Item]) -> list[Item]:
    """First, last, then ever finer halves: every prefix of the result is spread over the whole."""
    rest = list(items)
    if len(rest) <= 2:
        return rest
    order = [0, len(rest) - 1]
    seen = set(order)
    spans = [(0, len(rest) - 1)]
    while spans:
        halves = []
        for low, high in spans:
            middle = (low + high) // 2
            if middle not in seen:
                seen.add(middle)
                order.append(middle)
                halves += [(low, middle), (middle, high)]
        spans = halves
    return [rest[place] for place in order]
