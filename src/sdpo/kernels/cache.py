"""Preallocated keys and values of the fast sampler: each prompt once, one suffix per completion.

Memory: bytes per token x (prompts x longest prompt + completions x max_new_tokens). A token of
SmolLM2-135M in float32 takes 46 KB (30 layers x 2 x 3 heads x 64 x 4), so 8 prompts of 56 tokens
with 64 completions of 96 tokens take 0.3 GB. Slots have a fixed size; there are no pages, so
completions much shorter than max_new_tokens leave reserved memory unused (on a CPU the operating
system only backs what was written).

Shapes: K key-value heads, D head size, T tokens, P prompt columns, C suffix columns, G prompt
slots, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """What every layer stores per token.

    Example:
        CacheShape(layers=((3, 64, 64),) * 30, dtype=torch.float32, device=torch.device("cpu"))
    """

    layers: tuple[tuple[int, int, int], ...]
    """Per layer: key-value heads, size of a key, size of a value."""
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Of one token's keys and values in all layers."""
        numbers = sum(heads * (key + value) for heads, key, value in self.layers)
        return numbers * self.dtype.itemsize


class KvCache:
    """Prompt slots and suffix rows of every layer; written in place."""

    def __init__(
        self,
        shape: CacheShape,
        *,
        num_prompts: int,
        prompt_columns: int,
        num_rows: int,
        suffix_columns: int,
    ) -> None:
        prompt, suffix = (num_prompts, prompt_columns), (num_rows, suffix_columns)
        # Zeros, not empty: a column no token wrote yet is masked to weight 0, and 0 x NaN would
        # still be NaN.
        self.prompt_keys, self.prompt_values, self.suffix_keys, self.suffix_values = (
            [
                torch.zeros(
                    size[0],
                    layer[0],
                    size[1],
                    layer[part],
                    dtype=shape.dtype,
                    device=shape.device,
                )
                for layer in shape.layers
            ]
            for size, part in ((prompt, 1), (prompt, 2), (suffix, 1), (suffix, 2))
        )

    @property
    def num_bytes(self) -> int:
        """Of all of it."""
        parts = (self.prompt_keys, self.prompt_values, self.suffix_keys, self.suffix_values)
        return sum(tensor.nbytes for part in parts for tensor in part)

    def store_prompt(
        self,
        layer: int,
        slot: int,
        keys_KTD: torch.Tensor,
        values_KTD: torch.Tensor,
        path: Sequence[slice],
    ) -> None:
        """Fills a prompt slot with the tokens that stand at `path` in the row, in that order."""
        start = 0
        for run in path:
            stop = start + run.stop - run.start
            self.prompt_keys[layer][slot, :, start:stop] = keys_KTD[:, run]
            self.prompt_values[layer][slot, :, start:stop] = values_KTD[:, run]
            start = stop

    def move_rows(self, sources: Sequence[int], targets: Sequence[int], num_columns: int) -> None:
        """Copies the first `num_columns` of rows; sources and targets are disjoint."""
        for suffixes in (self.suffix_keys, self.suffix_values):
            for rows_RKCD in suffixes:
                for source, target in zip(sources, targets, strict=True):
                    rows_RKCD[target, :, :num_columns] = rows_RKCD[source, :, :num_columns]
