"""Rows that a model decodes with the cache that it makes itself.

Prompts of one length are computed together, without padding: padding would enter a recurrent state.
What comes of them is put side by side afterwards, keys and values padded on the left and masked,
states as they are, so that rows of any length go on together; and the columns that only a row that
has ended needed go with it.

Shapes: P prompts, R completions of them, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

_CACHE_NAMES = ("past_key_values", "cache_params", "state")
"""What models call the cache that they return and take: most, Mamba, RWKV."""
_JOINABLE = {
    "DummyLayer",
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
    "LinearAttentionLayer",
}
"""Layers of a cache whose every tensor `_join` knows. By name, because not every transformers has
all. Not their subclasses: an index of keys, for instance, would count padding among the keys that
it chooses from once there are thousands."""

Together = Literal["any", "equal", "one", "none"]
"""Prompts that go together: of any length, of equal length, one with its completions; or the cache
is of no use."""


class CachedRows:
    """Rows after prompts of equal length, continued a token at a time with the model's own cache.

    Unless `together` is `one`, each prompt is computed once and its cache copied to its rows, and
    rows can be dropped, by what transformers has for beam search; else every row computes its
    prompt, and all stay. Rows of `any` length can be joined, and say which columns they see.

    Example:
        rows = CachedRows(model, [(5, 6, 7), (8, 9, 2)], [0, 0, 1], "any")
        rows.join([CachedRows(model, [(4,)], [0], "any")])
        rows.step(tokens_R)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        prompt_of_row: Sequence[int],
        together: Together,
    ) -> None:
        self.moves = together != "one"
        self._together = together
        self._model = model
        self._takes = inspect.signature(model.forward).parameters
        ids_PT = torch.tensor([tuple(prompt) for prompt in prompts], device=model.device)
        rows_R = torch.tensor(prompt_of_row, device=model.device)
        self._lengths = [ids_PT.shape[1]] * len(prompt_of_row)
        if self.moves:
            self.logits_RV = self._read(ids_PT, {})
            self._reorder(rows_R)
        else:
            self.logits_RV = self._read(ids_PT[rows_R], {})

    def step(self, tokens_R: torch.Tensor) -> None:
        """Reads one token of each row."""
        given = {self._cache_name: self._cache} | self._places()
        self.logits_RV = self._read(tokens_R[:, None], given)
        self._lengths = [length + 1 for length in self._lengths]

    def select(self, rows: Sequence[int]) -> None:
        """Goes on with these rows, in this order; the same one may be there twice."""
        self._reorder(torch.tensor(rows, device=self._model.device))
        before = max(self._lengths)
        self._lengths = [self._lengths[row] for row in rows]
        columns = max(self._lengths)
        if columns < before:
            for layer in self._cache.layers:
                _keep_columns(layer, columns)

    def join(self, others: Sequence[CachedRows]) -> None:
        """Goes on with the rows of `others` behind its own. Raises `ValueError` for a cache that is
        not made of layers known here."""
        parts = [self, *others]
        for part in parts:
            kinds = {type(layer).__name__ for layer in getattr(part._cache, "layers", ())}
            if type(part._cache) is not DynamicCache or not kinds <= _JOINABLE:
                names = sorted(kinds - _JOINABLE) or [type(part._cache).__name__]
                raise ValueError(f"{', '.join(names)} cannot be put side by side")
        for layers in zip(*(part._cache.layers for part in parts), strict=True):
            _join(layers)
        self.logits_RV = torch.cat([part.logits_RV for part in parts])
        self._lengths = [length for part in parts for length in part._lengths]

    def _places(self) -> dict[str, torch.Tensor]:
        """Which columns of the cache each row sees, and the position of its next token; nothing
        where no layer has columns."""
        if self._together != "any" or not any(
            isinstance(layer, DynamicLayer) for layer in self._cache.layers
        ):
            return {}
        # Of equal lengths too: what models make of no mask may be something else (Bamba).
        columns = max(self._lengths)
        lengths_R1 = torch.tensor(self._lengths, device=self._model.device)[:, None]
        columns_1C = torch.arange(columns + 1, device=self._model.device)[None]
        mask_RC = (columns_1C >= columns - lengths_R1).long()
        places = {"attention_mask": mask_RC, "position_ids": lengths_R1}
        return {name: place for name, place in places.items() if name in self._takes}

    def _reorder(self, rows_R: torch.Tensor) -> None:
        self._cache.reorder_cache(rows_R)
        self.logits_RV = self.logits_RV[rows_R]

    def _read(self, ids_RT: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
        """Logits [R, V] after the last token; the first time the model makes a cache itself."""
        # Not every forward pass can leave out the logits of a prompt.
        options = {"logits_to_keep": 1} if "logits_to_keep" in self._takes else {}
        output = self._model(input_ids=ids_RT, use_cache=True, **given, **options)
        self._cache_name = next(name for name in _CACHE_NAMES if getattr(output, name, None))
        self._cache: Any = getattr(output, self._cache_name)
        return output.logits[:, -1]


def _join(layers: Sequence[Any]) -> None:
    """Makes the first of these layers hold the rows of all."""
    first = layers[0]
    if isinstance(first, DynamicLayer) and first.is_initialized:
        columns = max(layer.keys.shape[2] for layer in layers)
        first.keys, first.values = (
            torch.cat([pad(part, (0, 0, columns - part.shape[2], 0)) for part in parts])
            for parts in zip(*((layer.keys, layer.values) for layer in layers), strict=True)
        )
    if isinstance(first, DynamicSlidingWindowLayer):
        first.cumulative_length = max(layer.cumulative_length for layer in layers)
    if isinstance(first, LinearAttentionLayer):
        for kind in ("conv_states", "recurrent_states"):
            states = getattr(first, kind)
            for index, state in states.items():
                if state is not None:
                    states[index] = torch.cat([getattr(layer, kind)[index] for layer in layers])


def _keep_columns(layer: Any, columns: int) -> None:
    """Drops what stands before the last `columns` tokens: no row that is left sees it."""
    if isinstance(layer, DynamicLayer) and layer.is_initialized:
        layer.keys, layer.values = layer.keys[:, :, -columns:], layer.values[:, :, -columns:]
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = columns
