"""Log-probabilities of given tokens, the LM head in chunks.

Requests with the same prompt share its computation. Memory of logits: at most `_LOGITS_BYTES` in
float32, twice while they are reduced, whatever the number of tokens.

Shapes: T tokens of a packed row, D hidden size, V vocabulary, S scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from sdpo.engines.base import ScoreRequest
from sdpo.kernels.packed import PackedPlan, Span
from sdpo.kernels.plan import fast_layers
from sdpo.models.structure import FastPath, head_logits

_LOGITS_BYTES = 2**27


@dataclass(slots=True)
class _Pack:
    """Requests laid out in one row."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    """Index in the row whose hidden state predicts each scored token."""
    targets: list[int] = field(default_factory=list)
    members: list[int] = field(default_factory=list)
    """Requests, in the order of their tokens in `targets`."""

    def open_prompt(self, prompt_ids: tuple[int, ...]) -> Span:
        span = Span(start=len(self.ids), stop=len(self.ids) + len(prompt_ids))
        self.ids.extend(prompt_ids)
        self.positions.extend(range(len(prompt_ids)))
        self.spans.append(span)
        return span

    def add(self, index: int, prompt: Span, completion_ids: tuple[int, ...]) -> None:
        start, seen = len(self.ids), completion_ids[:-1]
        if seen:
            self.spans.append(Span(start=start, stop=start + len(seen), prompt=prompt))
        offset = prompt.stop - prompt.start
        self.ids.extend(seen)
        self.positions.extend(range(offset, offset + len(seen)))
        self.sources.extend((prompt.stop - 1, *range(start, start + len(seen))))
        self.targets.extend(completion_ids)
        self.members.append(index)


def score_packed(
    fast: FastPath, requests: Sequence[ScoreRequest], temperature: float, max_tokens: int
) -> list[list[float]]:
    """Log-probs per request on the fast path, in rows of about `max_tokens` tokens (a longer
    request has its own row).
    """
    scored: list[list[float]] = [[] for _ in requests]
    logits_of, device = head_logits(fast.model), fast.cache.device
    with fast_layers(fast.model):
        for pack in _packs(requests, max_tokens):
            hidden_TD = fast.backbone(
                input_ids=torch.tensor([pack.ids], device=device),
                position_ids=torch.tensor([pack.positions], device=device),
                use_cache=False,
                sdpo_plan=PackedPlan(spans=pack.spans),
            ).last_hidden_state[0]
            logprobs = chunked_logprobs(
                hidden_TD[torch.tensor(pack.sources, device=device)],
                torch.tensor(pack.targets, device=device),
                logits_of,
                temperature,
            )
            values, start = logprobs.tolist(), 0
            for index in pack.members:
                stop = start + len(requests[index].completion_ids)
                scored[index], start = values[start:stop], stop
    return scored


def chunked_logprobs(
    hidden_SD: torch.Tensor,
    targets_S: torch.Tensor,
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    temperature: float,
) -> torch.Tensor:
    """log softmax(logits / temperature) at the targets, float32 [S]."""
    if not len(targets_S):
        return hidden_SD.new_zeros(0, dtype=torch.float32)
    vocab_size = logits_of(hidden_SD[:1]).shape[-1]
    rows = max(1, _LOGITS_BYTES // (4 * vocab_size))
    parts = []
    for part_SD, part_S in zip(hidden_SD.split(rows), targets_S.split(rows), strict=True):
        logits_SV = logits_of(part_SD).float() / temperature
        chosen_S = logits_SV.gather(1, part_S[:, None])[:, 0]
        parts.append(chosen_S - logits_SV.logsumexp(dim=-1))
    return torch.cat(parts)


def _packs(requests: Sequence[ScoreRequest], max_tokens: int) -> Iterator[_Pack]:
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        if request.completion_ids:
            by_prompt.setdefault(request.prompt_ids, []).append(index)
    pack = _Pack()
    for prompt_ids, members in by_prompt.items():
        prompt: Span | None = None
        for index in members:
            completion_ids = requests[index].completion_ids
            needed = len(completion_ids) + (len(prompt_ids) if prompt is None else 0)
            if pack.ids and len(pack.ids) + needed > max_tokens:
                yield pack
                pack, prompt = _Pack(), None
            if prompt is None:
                prompt = pack.open_prompt(prompt_ids)
            pack.add(index, prompt, completion_ids)
    if pack.ids:
        yield pack
