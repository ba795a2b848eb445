"""What becomes of a family: how it is sampled and trained, and how far from plain passes.

A trial ends in one of: right (fast or slow), refused in one sentence, wrong, or a crash. Sampled
log-probs are compared with a plain forward pass at the sampled tokens; gradients of a loss on
packed rows with those on rows of each item alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from tiny_families import VOCABULARY, build

from sdpo.engines.base import GenerationRequest, Sampling
from sdpo.engines.cache_use import cache_use_of
from sdpo.engines.local import LocalEngine
from sdpo.errors import SdpoError
from sdpo.losses.head.logits import token_statistics
from sdpo.models.head import head_form_of, lm_head
from sdpo.models.packing import PackItem, hidden_rows, pack
from sdpo.models.qualify import Refusal, fast_path_of, shares_prefixes, tree_kind_of
from sdpo.models.structure import backbone_of

LOGPROB_TOLERANCE = 1e-3
GRADIENT_TOLERANCE = 1e-3
_HOW = {"any": "cached", "equal": "by length", "one": "by prompt", "none": "uncached"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One row of the table."""

    family: str
    sampling: str = ""
    sampling_gap: float = float("nan")
    """Largest |log p sampled - log p of a plain pass|, nats."""
    training: str = ""
    gradient_gap: float = float("nan")
    """Largest difference of a parameter's gradient, relative to the largest norm."""
    head: str = ""
    loss_gap: float = float("nan")
    """Largest |log p of the fused head - log p of a plain pass|, nats."""
    refused: str = ""
    """The sentence, where training is refused."""

    @property
    def is_right(self) -> bool:
        """Sampled and trained as plain passes say."""
        return (
            not self.refused
            and self.sampling_gap <= LOGPROB_TOLERANCE
            and self.gradient_gap <= GRADIENT_TOLERANCE
            and self.loss_gap <= LOGPROB_TOLERANCE
        )

    @property
    def is_refused(self) -> bool:
        """Refused in one sentence, and right as far as it went."""
        samples_rightly = not self.sampling or self.sampling_gap <= LOGPROB_TOLERANCE
        return bool(self.refused) and "\n" not in self.refused and samples_rightly


def try_family(family: str, **extra: object) -> Outcome:
    """Raises what the family's code raises where the package lets it through."""
    return try_model(family, build(family, **extra))


def try_model(family: str, model: torch.nn.Module) -> Outcome:
    found: dict[str, object] = {}
    try:
        found["sampling_gap"] = sampling_gap(model)
        path = fast_path_of(model)
        slow = isinstance(path, Refusal)
        found["sampling"] = _HOW[cache_use_of(model)] if slow else "fast"
        found["head"] = str(head_form_of(model))
        kind = tree_kind_of(model)
        found["training"] = "rows" if isinstance(kind, Refusal) else kind
        found["gradient_gap"] = gradient_gap(model)
        found["loss_gap"] = loss_gap(model)
    except SdpoError as error:
        found["refused"] = str(error)
    return Outcome(family=family, **found)


def _draw(seed: int, count: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(3, VOCABULARY) for _ in range(count))


def sampling_gap(model: torch.nn.Module) -> float:
    requests = [
        GenerationRequest(prompt_ids=_draw(seed, length), seeds=(3 * seed, 3 * seed + 1))
        for seed, length in enumerate((5, 17, 23))
    ]
    sampling = Sampling(max_new_tokens=12, stop_ids=(3, 4, 5, 6))
    groups = LocalEngine(model).generate(requests, sampling)
    worst = 0.0
    for request, group in zip(requests, groups, strict=True):
        for completion in group:
            ids = torch.tensor([request.prompt_ids + completion.token_ids])
            start = len(request.prompt_ids)
            with torch.no_grad():
                logprobs = model(ids, use_cache=False).logits[0, start - 1 : -1].log_softmax(-1)
            plain = logprobs.gather(1, ids[0, start:, None])[:, 0]
            worst = max(worst, float((plain - torch.tensor(completion.logprobs)).abs().max()))
    return worst


@torch.no_grad()
def loss_gap(model: torch.nn.Module) -> float:
    item = PackItem(prompt_ids=_draw(5, 8), completion_ids=_draw(6, 9), loss_mask=(True,) * 9)
    (batch,) = pack([item], budget_tokens=100)
    fused, _ = token_statistics(hidden_rows(model, batch), lm_head(model), batch.targets)
    ids = torch.tensor([item.prompt_ids + item.completion_ids])
    logprobs = model(ids, use_cache=False).logits[0, 7:-1].log_softmax(-1)
    plain = logprobs.gather(1, batch.targets[:, None])[:, 0]
    return float((fused - plain).abs().max())


def gradient_gap(model: torch.nn.Module) -> float:
    prompt = _draw(7, 18)
    items = [
        PackItem(prompt_ids=prompt, completion_ids=_draw(n, n), loss_mask=(True,) * n)
        for n in (4, 9, 6)
    ]
    items.append(
        PackItem(prompt_ids=_draw(8, 6), completion_ids=_draw(9, 5), loss_mask=(True,) * 5)
    )

    def gradients(parts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        slopes = [torch.arange(p.numel()).sin().view_as(p) for p in parts]
        sum((p * s).sum() for p, s in zip(parts, slopes, strict=True)).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    packed = {}
    for batch in pack(items, budget_tokens=1000, share_prefixes=shares_prefixes(model)):
        rows = hidden_rows(model, batch)
        packed |= {i: rows[batch.row_items == i] for i in batch.item_indices}
    ours = gradients([packed[i] for i in range(len(items))])
    plain = []
    for item in items:
        ids = torch.tensor([item.prompt_ids + item.completion_ids])
        hidden = backbone_of(model)(input_ids=ids, use_cache=False).last_hidden_state[0]
        plain.append(hidden[len(item.prompt_ids) - 1 : -1])
    theirs = gradients(plain)
    size = max(float(g.norm()) for g in theirs.values())
    return max(
        float((ours.get(name, torch.zeros_like(g)) - g).norm()) / size for name, g in theirs.items()
    )
