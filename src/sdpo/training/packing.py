"""Prefix-tree packing: a prompt's tokens are computed once for all completions that follow it.

Micro-batches are flat rows without padding: prompt, completion, completion, ..., prompt, ...
Positions continue from the prompt in every branch, and a branch sees its prompt and itself only.
Attention runs per tree: the prompt causally, all its branches in one padded batch against [prompt |
own tokens]. Everything else in the model runs on the flat row. Models that cannot take this
(recurrent layers, unknown attention) run on right-padded rows instead, with the same results.

Legend: N tokens of a row, R trained completion tokens, D hidden size, H query heads, K key-value
heads, B branches of a tree, L longest branch, P prompt length, E head size.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from sdpo.engines.architecture import causal_lm, evaluating, probe
from sdpo.engines.attention import PackedPlan, Scores, Span, causal_attention, engine_attention
from sdpo.errors import ModelError


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


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A prompt and the completions that follow it.

    Example:
        Tree(prompt_ids=(1, 5), items=(0, 1))
    """

    prompt_ids: tuple[int, ...]
    items: tuple[int, ...]
    """Indices of its completions among the items given to `pack`."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Trees that are computed in one forward pass.

    Example:
        MicroBatch(trees=(Tree(...),), completions={0: (9, 2)}, loss_masks={0: (True, True)})
    """

    trees: tuple[Tree, ...]
    completions: dict[int, tuple[int, ...]]
    loss_masks: dict[int, tuple[bool, ...]]

    @property
    def item_indices(self) -> tuple[int, ...]:
        """Items in the order of their rows."""
        return tuple(item for tree in self.trees for item in tree.items)

    @cached_property
    def layout(self) -> Layout:
        """Where everything lies in the flat row."""
        return _lay_out(self)


@dataclass(slots=True, kw_only=True)
class Layout:
    """The flat row of a micro-batch.

    Example:
        MicroBatch(...).layout.ids
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    trees: list[tuple[Span, list[Span]]] = field(default_factory=list)
    """Prompt and branches of every tree."""
    row_index: list[int] = field(default_factory=list)
    """[R] place of the token that predicts each trained completion token, item after item."""


def pack(items: Sequence[PackItem], *, budget_tokens: int) -> list[MicroBatch]:
    """Micro-batches of about `budget_tokens` packed tokens, deterministic in the order of `items`.

    Items with equal prompts share its tokens. A group that does not fit is split and its prompt
    computed again; an item that alone exceeds the budget gets its own micro-batch.
    """
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for index, item in enumerate(items):
        by_prompt.setdefault(item.prompt_ids, []).append(index)
    batches: list[MicroBatch] = []
    trees: list[Tree] = []
    used = 0

    def close() -> None:
        nonlocal used
        if trees:
            chosen = [index for tree in trees for index in tree.items]
            batches.append(
                MicroBatch(
                    trees=tuple(trees),
                    completions={index: items[index].completion_ids for index in chosen},
                    loss_masks={index: items[index].loss_mask for index in chosen},
                )
            )
            trees.clear()
        used = 0

    for prompt_ids, members in by_prompt.items():
        branch: list[int] = []
        for index in members:
            length = len(items[index].completion_ids)
            needed = length + (0 if branch else len(prompt_ids))
            if used and used + needed > budget_tokens:
                if branch:
                    trees.append(Tree(prompt_ids=prompt_ids, items=tuple(branch)))
                    branch = []
                close()
                needed = length + len(prompt_ids)
            branch.append(index)
            used += needed
        trees.append(Tree(prompt_ids=prompt_ids, items=tuple(branch)))
    close()
    return batches


def hidden_rows(model: PreTrainedModel, micro_batch: MicroBatch) -> torch.Tensor:
    """Hidden states [R, D] before the LM head that predict each trained token, item after item;
    differentiable."""
    inner = causal_lm(model)
    if not _takes_trees(inner):
        return _padded_rows(inner, micro_batch)
    layout = micro_batch.layout
    with engine_attention(inner), _checkpointing(inner):
        hidden_ND = inner.base_model(
            input_ids=torch.tensor([layout.ids], device=inner.device),
            position_ids=torch.tensor([layout.positions], device=inner.device),
            use_cache=False,
            sdpo_plan=TreePlan(layout, inner.device),
        ).last_hidden_state[0]
    return hidden_ND[torch.tensor(layout.row_index, device=inner.device, dtype=torch.long)]


@contextmanager
def recomputing(model: PreTrainedModel) -> Generator[None]:
    """A block for `backward()`: with checkpointing it runs layers again, which must attend as they
    did going forward."""
    inner = causal_lm(model)
    with engine_attention(inner) if _takes_trees(inner) else nullcontext():
        yield


def check_head(model: PreTrainedModel) -> None:
    """Raises `ModelError` unless logits are hidden states times one matrix, which the fused loss
    relies on."""
    inner = causal_lm(model)
    config = inner.config.get_text_config()
    for name, neutral in (
        ("final_logit_softcapping", None),
        ("logit_scale", 1.0),
        ("logits_scaling", 1.0),
    ):
        value = getattr(config, name, None)
        if value not in (None, neutral):
            raise ModelError(
                f"{type(inner).__name__} has {name} = {value}: "
                "training with a transformed LM head is not supported"
            )
    head = inner.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise ModelError(f"{type(inner).__name__} has no plain linear LM head to train with")


class TreePlan:
    """Attention of one micro-batch; index tensors are made once and used by every layer."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self._trees = [
            (slice(prompt.start, prompt.stop), _Branches.of(branches, device))
            for prompt, branches in layout.trees
        ]
        spans = [s for prompt, branches in layout.trees for s in (prompt, *branches)]
        self._longest = max(layout.positions) + 1
        self._one_by_one = PackedPlan(spans=spans)

    def attend(
        self,
        layer: int,
        query_1HNE: torch.Tensor,
        key_1KNE: torch.Tensor,
        value_1KNE: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:
        """Attention output [1, N, H, E]."""
        is_windowed = scores.window is not None and scores.window < self._longest
        if is_windowed:
            return self._one_by_one.attend(layer, query_1HNE, key_1KNE, value_1KNE, scores)
        full = Scores(scaling=scores.scaling, window=None, softcap=None)
        parts = []
        for prompt, branches in self._trees:
            key, value = key_1KNE[:, :, prompt], value_1KNE[:, :, prompt]
            attended = causal_attention(query_1HNE[:, :, prompt], key, value, full)
            parts.append(attended[0].transpose(0, 1))
            if branches is not None:
                parts.append(
                    branches.attend(query_1HNE, key_1KNE, value_1KNE, key, value, scores.scaling)
                )
        return torch.cat(parts)[None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Branches:
    """The completions of one prompt as a padded batch."""

    places_BL: torch.Tensor
    """Where each token lies in the row; padding repeats the branch's first token."""
    valid: torch.Tensor
    """Which of the flattened [B L] places are real, in row order."""

    @classmethod
    def of(cls, spans: Sequence[Span], device: torch.device) -> _Branches | None:
        if not spans:
            return None
        lengths = torch.tensor([span.stop - span.start for span in spans])
        starts = torch.tensor([span.start for span in spans])
        column_L = torch.arange(int(lengths.max()))
        is_real_BL = column_L < lengths[:, None]
        places_BL = starts[:, None] + column_L * is_real_BL
        return cls(
            places_BL=places_BL.to(device), valid=is_real_BL.flatten().nonzero()[:, 0].to(device)
        )

    def attend(
        self,
        query_1HNE: torch.Tensor,
        key_1KNE: torch.Tensor,
        value_1KNE: torch.Tensor,
        prompt_key_1KPE: torch.Tensor,
        prompt_value_1KPE: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Output [tokens of all branches, H, E], in row order. Memory: B copies of the prompt's
        keys and values."""
        num_branches, longest = self.places_BL.shape
        query, key, value = (
            x[0][:, self.places_BL].transpose(0, 1) for x in (query_1HNE, key_1KNE, value_1KNE)
        )
        prompt_length = prompt_key_1KPE.shape[2]
        key = torch.cat([prompt_key_1KPE.expand(num_branches, -1, -1, -1), key], dim=2)
        value = torch.cat([prompt_value_1KPE.expand(num_branches, -1, -1, -1), value], dim=2)
        # Padding lies after the real tokens of its branch, so the causal mask hides it from all of
        # them.
        mask_LM = torch.ones(
            longest, prompt_length + longest, dtype=torch.bool, device=query.device
        ).tril(prompt_length)
        output_BHLE = torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask_LM,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return output_BHLE.transpose(1, 2).flatten(0, 1)[self.valid]


def _lay_out(micro_batch: MicroBatch) -> Layout:
    layout = Layout()
    for tree in micro_batch.trees:
        prompt = Span(start=len(layout.ids), stop=len(layout.ids) + len(tree.prompt_ids))
        layout.ids += tree.prompt_ids
        layout.positions += range(len(tree.prompt_ids))
        branches = []
        for index in tree.items:
            # The last token predicts nothing that trains.
            seen = micro_batch.completions[index][:-1]
            start = len(layout.ids)
            if seen:
                branches.append(Span(start=start, stop=start + len(seen), prompt=prompt))
            layout.ids += seen
            layout.positions += range(len(tree.prompt_ids), len(tree.prompt_ids) + len(seen))
            layout.row_index += [
                prompt.stop - 1 if t == 0 else start + t - 1
                for t, trains in enumerate(micro_batch.loss_masks[index])
                if trains
            ]
        layout.trees.append((prompt, branches))
    return layout


_tree_models: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def _takes_trees(model: PreTrainedModel) -> bool:
    """Whether the model's attention can be replaced, found out once by trying."""
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        # The engine caps scores in place, which has no gradient.
        return False
    if model not in _tree_models:
        with torch.no_grad(), evaluating(model):
            _tree_models[model] = probe(model) is not None
    return _tree_models[model]


def _padded_rows(model: PreTrainedModel, micro_batch: MicroBatch) -> torch.Tensor:
    """`hidden_rows` on one right-padded row per item; what stands after a token cannot reach it, so
    no mask is needed."""
    rows: list[tuple[int, ...]] = []
    index: list[int] = []
    width = max(
        len(tree.prompt_ids) + len(micro_batch.completions[item])
        for tree in micro_batch.trees
        for item in tree.items
    )
    for tree in micro_batch.trees:
        for item in tree.items:
            first = len(rows) * width + len(tree.prompt_ids) - 1
            index += [first + t for t, trains in enumerate(micro_batch.loss_masks[item]) if trains]
            ids = tree.prompt_ids + micro_batch.completions[item]
            rows.append(ids + (0,) * (width - len(ids)))
    with _checkpointing(model):
        hidden_BND = model.base_model(
            input_ids=torch.tensor(rows, device=model.device), use_cache=False
        ).last_hidden_state
    return hidden_BND.flatten(0, 1)[torch.tensor(index, device=model.device, dtype=torch.long)]


class _checkpointing:
    """Train mode while a checkpointed model records a graph: transformers recomputes activations in
    no other mode."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        # The flag of the layers themselves: the model's property has another name in every
        # transformers release.
        is_checkpointed = any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
        self._is_on = is_checkpointed and torch.is_grad_enabled()

    def __enter__(self) -> None:
        if self._is_on:
            self._model.train()

    def __exit__(self, *_: object) -> None:
        if self._is_on:
            self._model.eval()
