"""Token sequences as a prefix tree: what several sequences begin with is laid out once.

Plain Python on token ids. A segment of the tree is shared only where that pays (`MIN_SAVED`), so a
tree of rollouts is usually one prompt with its completions, and a tree of teacher contexts is the
task, the demonstrations below it and the attempts below those. Packing into rows and micro-batches
is `packing.py`; attention over the tree is `sdpo.kernels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdpo.kernels.plan import Segment

MIN_SAVED = 16
"""Minimum number of shared tokens that justifies a branch point. Each adds a few small attention
calls to every layer: at SmolLM2's size on an AVX2 core, four pairs of branches sharing 4 tokens
break even."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Tokens `start` to `stop` of sequence `owner` and of every other sequence below it.

    Example:
        Node(owner=0, start=0, stop=7, parent=None)
    """

    owner: int
    start: int
    stop: int
    parent: int | None

    def __len__(self) -> int:
        return self.stop - self.start


class PrefixTree:
    """The tree of `sequences`.

    Sequences with equal prompts always share them; without `share` every sequence is a tree of its
    own.
    """

    def __init__(
        self,
        sequences: Sequence[tuple[int, ...]],
        prompt_lengths: Sequence[int],
        *,
        share: bool = True,
    ) -> None:
        self._sequences = sequences
        self._prompt_lengths = prompt_lengths
        self.nodes: list[Node] = []
        self.paths: list[tuple[int, ...]] = [()] * len(sequences)
        """Nodes from the root that make up each sequence; empty for an empty one."""
        self.order: list[int] = []
        """Sequences depth first: neighbours share the most. Otherwise as given."""
        everything = list(range(len(sequences)))
        if share:
            self._branch(everything, 0, 0, ())
        else:
            for index in everything:
                self._end(index, 0, ())

    def subtree_sizes(self) -> list[int]:
        """Tokens of each node and everything below it."""
        sizes = [len(node) for node in self.nodes]
        for node_id in reversed(range(len(sizes))):  # parents stand before their children
            parent = self.nodes[node_id].parent
            if parent is not None:
                sizes[parent] += sizes[node_id]
        return sizes

    def lay_out(self, chosen: Sequence[int]) -> tuple[list[int], list[Segment], list[list[int]]]:
        """Token ids of a row that holds `chosen` (in tree order), its segments, and per sequence
        the place of each of its tokens.
        """
        ids: list[int] = []
        segments: list[Segment] = []
        numbers: dict[int, int] = {}
        places: list[list[int]] = []
        for index in chosen:
            parent: int | None = None
            own: list[int] = []
            for node_id in self.paths[index]:
                node = self.nodes[node_id]
                if node_id not in numbers:
                    numbers[node_id] = len(segments)
                    segments.append(
                        Segment(
                            start=len(ids),
                            stop=len(ids) + len(node),
                            parent=parent,
                            position=node.start,
                        )
                    )
                    ids.extend(self._sequences[node.owner][node.start : node.stop])
                parent = numbers[node_id]
                own.extend(range(segments[parent].start, segments[parent].stop))
            places.append(own)
        return ids, segments, places

    def _branch(self, members: list[int], start: int, at: int, path: tuple[int, ...]) -> None:
        """Lay out `members`: they agree on `at` tokens, of which `path` already holds `start`."""
        groups: dict[int | None, list[int]] = {}
        for index in members:
            sequence = self._sequences[index]
            groups.setdefault(sequence[at] if len(sequence) > at else None, []).append(index)
        for token, group in groups.items():
            # Sequences that end here are equal: they go nowhere else.
            end = at if token is None else common_length([self._sequences[i] for i in group])
            if len(group) > 1 and self._pays(group, start, end):
                self._branch(group, end, end, self._extend(path, group[0], start, end))
            elif len(group) == 1 or token is None:
                for index in group:
                    self._end(index, start, path)
            else:
                self._branch(group, start, end, path)

    def _pays(self, group: list[int], start: int, end: int) -> bool:
        lengths = {self._prompt_lengths[index] for index in group}
        has_one_prompt = len(lengths) == 1 and start < max(lengths) <= end
        return end > start and (has_one_prompt or (end - start) * (len(group) - 1) >= MIN_SAVED)

    def _end(self, index: int, start: int, path: tuple[int, ...]) -> None:
        length = len(self._sequences[index])
        if length > start:
            path = self._extend(path, index, start, length)
        self.paths[index] = path
        self.order.append(index)

    def _extend(self, path: tuple[int, ...], owner: int, start: int, stop: int) -> tuple[int, ...]:
        parent = path[-1] if path else None
        self.nodes.append(Node(owner=owner, start=start, stop=stop, parent=parent))
        return (*path, len(self.nodes) - 1)


def common_length(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all `sequences` begin with."""
    # What the smallest and the largest share, everything between them shares.
    low, high = min(sequences), max(sequences)
    for number, (a, b) in enumerate(zip(low, high, strict=False)):
        if a != b:
            return number
    return min(len(low), len(high))
