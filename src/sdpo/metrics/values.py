"""Metric values that know how to merge over micro-batches and processes, and the collector of one
step.

A bare float cannot be merged: a mean needs its count, a percentile its pool. Each value here
carries what its reduction needs, so splitting a step differently, or over more processes, reports
the same number. Nothing here writes or communicates: a process gathers `Metrics.state()` (plain
tuples) from its peers in any way it likes and merges them.

Example:
    metrics = Metrics()
    metrics.add("loss/total", Mean(sum=12.5, count=50))
    for state in gathered:
        metrics.merge(Metrics.from_state(state))
    row = metrics.reduce()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, Self

State = Mapping[str, tuple[str, tuple[float, ...]]]
"""Metric name to (kind, numbers): picklable and JSON-able, no class of ours inside."""


class Value(Protocol):
    """A metric before it becomes one number."""

    def merge(self, other: Self) -> Self:
        """The value of both sets of observations together."""
        ...

    def reduce(self) -> float:
        """The number to report; NaN when nothing was observed."""
        ...

    def numbers(self) -> tuple[float, ...]:
        """What the constructor of the same kind takes."""
        ...


@dataclass(frozen=True, slots=True)
class Mean:
    """A weighted mean, kept as its sum and its weight.

    Example:
        Mean.of([0.0, 1.0]) == Mean(sum=1.0, count=2.0)
    """

    sum: float
    count: float

    @classmethod
    def of(cls, observations: Iterable[float]) -> Mean:
        values = [float(x) for x in observations]
        return cls(math.fsum(values), float(len(values)))

    def merge(self, other: Mean) -> Mean:
        return Mean(self.sum + other.sum, self.count + other.count)

    def reduce(self) -> float:
        return self.sum / self.count if self.count else math.nan

    def numbers(self) -> tuple[float, ...]:
        return (self.sum, self.count)


@dataclass(frozen=True, slots=True)
class _One:
    """A value that is its own report."""

    value: float

    def reduce(self) -> float:
        return self.value

    def numbers(self) -> tuple[float, ...]:
        return (self.value,)


@dataclass(frozen=True, slots=True)
class Sum(_One):
    """A total, for instance of tokens."""

    def merge(self, other: Sum) -> Sum:
        return Sum(self.value + other.value)


@dataclass(frozen=True, slots=True)
class Last(_One):
    """The latest observation: of a quantity that is the same everywhere, such as the learning
    rate."""

    def merge(self, other: Last) -> Last:
        return other


@dataclass(frozen=True, slots=True)
class Max(_One):
    """The largest observation: of the seconds of processes that wait for the slowest."""

    def merge(self, other: Max) -> Max:
        return Max(max(self.value, other.value))


@dataclass(frozen=True, slots=True)
class Percentile:
    """A percentile, kept as the pool of its observations: percentiles of parts do not determine
    that of the whole.

    Example:
        Percentile(q=90.0, pool=(3.0, 5.0, 8.0))
    """

    q: float
    """Between 0 and 100; linear interpolation between neighbours."""
    pool: tuple[float, ...]

    def merge(self, other: Percentile) -> Percentile:
        if other.q != self.q:
            raise ValueError(
                f"a percentile {self.q:g} cannot be merged with a percentile {other.q:g}"
            )
        return Percentile(self.q, self.pool + other.pool)

    def reduce(self) -> float:
        if not self.pool:
            return math.nan
        ordered = sorted(self.pool)
        place = (len(ordered) - 1) * self.q / 100
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    def numbers(self) -> tuple[float, ...]:
        return (self.q, *self.pool)


_KINDS: dict[str, Callable[..., Value]] = {kind.__name__: kind for kind in (Mean, Sum, Last, Max)}
_KINDS[Percentile.__name__] = lambda q, *pool: Percentile(q, pool)


class Metrics:
    """The values of one step by name (`stage/what/stat`), merged as they are added."""

    def __init__(self) -> None:
        self._values: dict[str, Value] = {}

    def add(self, name: str, value: Value | float) -> None:
        """Merge `value` into `name`; a bare number is one observation of a mean.

        Raises `ValueError` when `name` already holds another kind of value.
        """
        new = Mean(float(value), 1.0) if isinstance(value, (int, float)) else value
        old = self._values.get(name)
        if old is not None and type(old) is not type(new):
            raise ValueError(
                f"metric {name!r} is a {type(old).__name__} and cannot take a {type(new).__name__}"
            )
        self._values[name] = new if old is None else old.merge(new)

    def merge(self, other: Metrics) -> None:
        """Take in everything `other` observed."""
        for name, value in other._values.items():
            self.add(name, value)

    def reduce(self) -> dict[str, float]:
        """One number per name, sorted by name; NaN where nothing was observed, so that rows keep
        their keys."""
        return {name: float(self._values[name].reduce()) for name in sorted(self._values)}

    def state(self) -> dict[str, tuple[str, tuple[float, ...]]]:
        """Plain data to send to another process; `from_state` takes it."""
        return {
            name: (type(value).__name__, value.numbers()) for name, value in self._values.items()
        }

    @classmethod
    def from_state(cls, state: State) -> Metrics:
        """The metrics that `state` was taken from."""
        metrics = cls()
        for name, (kind, numbers) in state.items():
            metrics.add(name, _KINDS[kind](*numbers))
        return metrics

    @classmethod
    def merged(cls, states: Iterable[State]) -> Metrics:
        """The metrics of all processes together, merged in the order given."""
        metrics = cls()
        for state in states:
            metrics.merge(cls.from_state(state))
        return metrics
