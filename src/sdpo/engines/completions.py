"""Completions while they are sampled; plain Python, for both ways of sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from sdpo.engines.base import Completion, GenerationRequest, Sampling
from sdpo.errors import EngineError


@dataclass(slots=True, kw_only=True, eq=False)
class OpenCompletion:
    """A completion that is being sampled: it grows, where the `Completion` handed out is frozen."""

    prompt: int
    """Index among the distinct prompts of the call."""
    seed: int
    limit: int
    """Tokens at which it ends at the latest."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    is_finished: bool = False
    is_stopped: bool = False
    """Ended by a stop token and not by the limit."""

    def append(self, token: int, logprob: float, sampling: Sampling) -> None:
        """Takes one sampled token and notes whether it is the last. Raises `EngineError` for a
        log-prob that is not finite."""
        if not math.isfinite(logprob):
            raise EngineError(
                f"the model's logits are not finite at token {len(self.token_ids)} of a "
                "completion; the weights have probably diverged"
            )
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        self.is_stopped = not sampling.ignore_eos and (
            token in sampling.stop_ids
            or (sampling.stop is not None and sampling.stop.ends(self.token_ids))
        )
        self.is_finished = self.is_stopped or len(self.token_ids) == self.limit

    def close(self) -> Completion:
        return Completion(
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            truncated=not self.is_stopped,
        )


def open_completions(
    requests: Sequence[GenerationRequest], sampling: Sampling
) -> tuple[list[tuple[int, ...]], list[list[OpenCompletion]]]:
    """Every prompt once, and the open completions of each request in the order of its seeds."""
    indices: dict[tuple[int, ...], int] = {}
    groups = []
    for request in requests:
        if not request.prompt_ids:
            raise EngineError("a prompt has no tokens; there is nothing to continue")
        prompt = indices.setdefault(request.prompt_ids, len(indices))
        limit = request.limit(sampling)
        groups.append(
            [OpenCompletion(prompt=prompt, seed=seed, limit=limit) for seed in request.seeds]
        )
    return list(indices), groups


def cut_at_stop(completion: Completion, sampling: Sampling) -> Completion:
    """`completion` up to the token that completes the first text of `sampling.stop`, for engines
    that know no text; as it is where there is none."""
    stop, ids = sampling.stop, completion.token_ids
    if stop is None or sampling.ignore_eos:
        return completion
    end = next((n for n in range(1, len(ids) + 1) if stop.ends(ids[:n])), None)
    if end is None:
        return completion
    return Completion(token_ids=ids[:end], logprobs=completion.logprobs[:end], truncated=False)
