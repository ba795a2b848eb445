"""Padded stand-in with the contract of prefix-tree packing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class PackItem:
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    items: tuple[PackItem, ...]
    item_indices: tuple[int, ...]


def pack(items: Sequence[PackItem], *, budget_tokens: int) -> list[MicroBatch]:
    batches, current, used = [], [], 0
    for index, item in enumerate(items):
        size = len(item.prompt_ids) + len(item.completion_ids)
        if current and used + size > budget_tokens:
            batches.append(current)
            current, used = [], 0
        current.append(index)
        used += size
    if current:
        batches.append(current)
    return [MicroBatch(items=tuple(items[i] for i in b), item_indices=tuple(b)) for b in batches]


def hidden_rows(model: PreTrainedModel, micro_batch: MicroBatch) -> torch.Tensor:
    rows = [list(i.prompt_ids + i.completion_ids) for i in micro_batch.items]
    width = max(map(len, rows))
    ids = torch.tensor([r + [0] * (width - len(r)) for r in rows], device=model.device)
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows], device=model.device)
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    parts = []
    for row, item in enumerate(micro_batch.items):
        start = len(item.prompt_ids) - 1
        keep = [start + t for t, trains in enumerate(item.loss_mask) if trains]
        parts.append(hidden[row, keep])
    return torch.cat(parts)
