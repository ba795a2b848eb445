"""Prefix-tree packing: tokens that several items begin with are computed once for all of them.

A micro-batch is one flat row without padding. A prompt's tokens stand in it once, followed by the
completions that continue it; teacher contexts share their task and demonstration the same way.
Positions count from the start of each item, and a token sees what precedes it within its own items
only (`sdpo.kernels`). Everything else in the model runs on the flat row. Models that cannot take
such a row (recurrent layers, unknown attention) get one row per item instead, with the same
results. No logits are made here: rows of hidden states go to the fused head.

Legend: N tokens of the row, R trained completion tokens, D hidden size, B items side by side,
T tokens of the longest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from sdpo.kernels.plan import Segment, fast_layers
from sdpo.kernels.tree import tree_plan
from sdpo.models.hidden import plain_hidden, recomputed_layers, tree_hidden
from sdpo.models.prefix_tree import PrefixTree
from sdpo.models.qualify import Refusal, shares_prefixes, tree_kind_of
from sdpo.models.structure import causal_lm
from sdpo.models.weights import is_sharded
from sdpo.records import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class PackItem:
    """One completion after its prompt.

    Example:
        PackItem(prompt_ids=(1, 5), completion_ids=(9, 2), loss_mask=(True, True))
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    """Completion tokens that train; all of them are seen."""

    @property
    def fed_ids(self) -> tuple[int, ...]:
        """What the model must read: everything before the last token that trains."""
        num_fed = max((t for t, trains in enumerate(self.loss_mask) if trains), default=None)
        return () if num_fed is None else self.prompt_ids + self.completion_ids[:num_fed]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MicroBatch:
    """Items that are computed in one forward pass, on the CPU.

    Example:
        pack(items, budget_tokens=4096)[0]
    """

    token_ids: torch.Tensor
    """[N] of the packed row."""
    position_ids: torch.Tensor
    """[N], each token's position within its items."""
    segments: tuple[Segment, ...]
    """The tree: runs of the row, depth first."""
    item_indices: tuple[int, ...]
    """Which of the items given to `pack`, in the order of their rows."""
    row_index: torch.Tensor
    """[R] places in the row of the tokens that predict the trained ones, item after item."""
    targets: torch.Tensor
    """[R] ids of the trained tokens."""
    row_items: torch.Tensor
    """[R] the item (as in `item_indices`) that each trained token belongs to."""
    sequences: tuple[tuple[int, ...], ...]
    """What the model reads of each item, in the order of `item_indices`."""


_IDLE = MicroBatch(
    token_ids=torch.zeros(1, dtype=torch.long),
    position_ids=torch.zeros(1, dtype=torch.long),
    segments=(Segment(start=0, stop=1, parent=None, position=0),),
    item_indices=(),
    row_index=torch.zeros(0, dtype=torch.long),
    targets=torch.zeros(0, dtype=torch.long),
    row_items=torch.zeros(0, dtype=torch.long),
    sequences=(),
)
"""One token and nothing that trains."""


def pack(
    items: Sequence[PackItem], *, budget_tokens: int, share_prefixes: bool = True
) -> list[MicroBatch]:
    """Micro-batches of at most `budget_tokens` packed tokens; the same items give the same ones.

    Items with equal prompts share its tokens, and any items a common beginning that is long enough
    to pay. What does not fit is split where least is computed twice; an item that alone exceeds the
    budget gets its own micro-batch. `share_prefixes` is False for models that cannot take a tree
    (`shares_prefixes`): then the budget counts every item in full.
    """
    for index, item in enumerate(items):
        _check_item(index, item)
    tree = PrefixTree(
        [item.fed_ids for item in items],
        [len(item.prompt_ids) for item in items],
        share=share_prefixes,
    )
    return [_lay_out(tree, items, chosen) for chosen in _split(tree, budget_tokens)]


def _check_item(index: int, item: PackItem) -> None:
    if len(item.loss_mask) != len(item.completion_ids):
        raise ValueError(
            f"item {index}: {len(item.loss_mask)} entries in loss_mask for "
            f"{len(item.completion_ids)} completion tokens"
        )
    if not item.prompt_ids and item.loss_mask and item.loss_mask[0]:
        raise ValueError(f"item {index}: nothing precedes its first trained token")


def _split(tree: PrefixTree, budget_tokens: int) -> list[list[int]]:
    """Items of each micro-batch, in tree order.

    A batch ends before a subtree that no longer fits but fits a fresh batch whole, and before an
    item that no longer fits.
    """
    sizes = tree.subtree_sizes()
    batches: list[list[int]] = [[]]
    laid: set[int] = set()
    used = 0
    for index in tree.order:
        path = tree.paths[index]
        above = new_above = 0
        for node_id in path:
            is_new = node_id not in laid
            is_whole = above + sizes[node_id] <= budget_tokens or node_id == path[-1]
            if is_new and is_whole:
                if used and used + new_above + sizes[node_id] > budget_tokens:
                    batches.append([])
                    laid, used = set(), 0
                break
            above += len(tree.nodes[node_id])
            new_above += len(tree.nodes[node_id]) * is_new
        batches[-1].append(index)
        used += sum(len(tree.nodes[node_id]) for node_id in path if node_id not in laid)
        laid.update(path)
    return [batch for batch in batches if batch]


def _lay_out(tree: PrefixTree, items: Sequence[PackItem], chosen: Sequence[int]) -> MicroBatch:
    ids, segments, places = tree.lay_out(chosen)
    row_index: list[int] = []
    targets: list[int] = []
    row_items: list[int] = []
    for index, own in zip(chosen, places, strict=True):
        item = items[index]
        before = len(item.prompt_ids) - 1
        trained = [t for t, trains in enumerate(item.loss_mask) if trains]
        row_index += [own[before + t] for t in trained]
        targets += [item.completion_ids[t] for t in trained]
        row_items += [index] * len(trained)
    positions = [segment.position + t for segment in segments for t in range(len(segment))]
    return MicroBatch(
        token_ids=torch.tensor(ids, dtype=torch.long),
        position_ids=torch.tensor(positions, dtype=torch.long),
        segments=tuple(segments),
        item_indices=tuple(chosen),
        row_index=torch.tensor(row_index, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        row_items=torch.tensor(row_items, dtype=torch.long),
        sequences=tuple(items[index].fed_ids for index in chosen),
    )


def hidden_rows(model: PreTrainedModel, micro_batch: MicroBatch) -> torch.Tensor:
    """Hidden states [R, D] before the LM head that predict each trained token, item after item.

    Differentiable unless gradients are off.
    """
    inner = causal_lm(model)
    if not len(micro_batch.row_index) and not is_sharded(inner):
        embeddings: Any = inner.get_input_embeddings()
        return embeddings.weight[:0]
    kind = tree_kind_of(inner)
    if isinstance(kind, Refusal):
        with recomputed_layers(inner, nullcontext):
            return _separate_rows(inner, micro_batch)
    with recomputed_layers(inner, partial(fast_layers, inner)):
        plan = tree_plan(micro_batch.segments, inner.device, kind=kind)
        hidden_ND = tree_hidden(inner, micro_batch.token_ids, micro_batch.position_ids, plan, kind)
    return hidden_ND[micro_batch.row_index.to(hidden_ND.device)]


def _separate_rows(model: PreTrainedModel, micro_batch: MicroBatch) -> torch.Tensor:
    """`hidden_rows` with one row per item, items of equal length side by side.

    Nothing is padded: padding would enter a recurrent state, and rotary scaling that follows the
    longest row would tie items to each other.
    """
    by_length: dict[int, list[int]] = {}
    for number, sequence in enumerate(micro_batch.sequences):
        if sequence:
            by_length.setdefault(len(sequence), []).append(number)
    hidden: dict[int, torch.Tensor] = {}
    for numbers in by_length.values():
        ids_BT = torch.tensor([micro_batch.sequences[number] for number in numbers])
        hidden |= zip(numbers, plain_hidden(model, ids_BT), strict=True)
    # The place of a row within its own item is the position of the token that predicts it.
    places_R = micro_batch.position_ids[micro_batch.row_index]
    rows = []
    for number, item in enumerate(micro_batch.item_indices):
        if number in hidden:
            own = places_R[micro_batch.row_items == item]
            rows.append(hidden[number][own.to(model.device)])
    return torch.cat(rows)


def packed_hidden(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    prompt: Callable[[Sample], tuple[int, ...]],
    *,
    budget_tokens: int,
) -> Iterator[tuple[list[Sample], torch.Tensor]]:
    """`samples`, each after its `prompt`, in micro-batches of `budget_tokens`: the samples of each
    and their hidden states [R, D], sample after sample; see `pack` and `hidden_rows`. A micro-batch
    is computed when it is asked for.

    Processes that share the weights of `model` must run it equally often: those with fewer
    micro-batches end with some of no samples, whose backward pass is due all the same.
    """
    items = [pack_item(sample, prompt(sample)) for sample in samples]
    batches = pack(items, budget_tokens=budget_tokens, share_prefixes=shares_prefixes(model))
    missing = most_of_all(model, len(batches)) - len(batches)
    for batch in batches:
        yield [samples[index] for index in batch.item_indices], hidden_rows(model, batch)
    for _ in range(missing):
        yield [], hidden_rows(model, _IDLE)


def most_of_all(model: torch.nn.Module, count: int) -> int:
    """The largest `count` of the processes that share the weights of `model`: `count` itself where
    it is not sharded. Collective."""
    inner = causal_lm(model)
    if not is_sharded(inner):
        return count
    most = torch.tensor(count, device=inner.device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return int(most)


def pack_item(sample: Sample, prompt_ids: tuple[int, ...]) -> PackItem:
    """`sample` after another prompt, for packing."""
    return PackItem(
        prompt_ids=prompt_ids, completion_ids=sample.completion_ids, loss_mask=sample.loss_mask
    )
