"""An engine without a model: completions are written down in advance. For tests of everything above
engines.

It keeps the engine's contract (order, truncation, stop token, log-probs per token) and nothing
else: no randomness, no weights. A user can test an environment's judge with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import torch

from sdpo.engines.base import Completion, GenerationRequest, Sampling
from sdpo.engines.completions import cut_at_stop
from sdpo.errors import EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What to say once.

    Example:
        Script(text="print(4)", logprob=-0.5)
    """

    text: str
    logprob: float = -1.0
    """Log-probability of every token of it, nats."""


class ScriptedEngine:
    """Says what `respond(prompt_ids, seed)` returns, encoded by `encode`, ended by `stop_id`.

    Example:
        ScriptedEngine(in_order(["4", "5"]), encode=tokenizer.encode, stop_id=258)
    """

    def __init__(
        self,
        respond: Callable[[tuple[int, ...], int], str | Script],
        *,
        encode: Callable[[str], Sequence[int]],
        stop_id: int,
    ) -> None:
        self.policy_version = 0
        self.requests: list[GenerationRequest] = []
        """Every generation request so far, for assertions."""
        self._respond = respond
        self._encode = encode
        self._stop_id = stop_id

    def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling
    ) -> list[list[Completion]]:
        """One scripted completion per seed; cut (and marked truncated) at `max_new_tokens`."""
        self.requests.extend(requests)
        return [
            [self._complete(request, seed, sampling) for seed in request.seeds]
            for request in requests
        ]

    def load_weights(self, model: torch.nn.Module, version: int) -> None:
        """Notes the version; there are no weights."""
        self.policy_version = version

    def _complete(self, request: GenerationRequest, seed: int, sampling: Sampling) -> Completion:
        limit = request.limit(sampling)
        said = self._respond(request.prompt_ids, seed)
        script = said if isinstance(said, Script) else Script(text=said)
        token_ids = (*self._encode(script.text), self._stop_id)
        completion = Completion(
            token_ids=token_ids, logprobs=(script.logprob,) * len(token_ids), truncated=False
        )
        if len(token_ids) > limit:
            completion = replace(
                completion,
                token_ids=token_ids[:limit],
                logprobs=completion.logprobs[:limit],
                truncated=True,
            )
        return cut_at_stop(completion, sampling)


def in_order(
    scripts: Sequence[str | Script], *, repeat: bool = False
) -> Callable[[tuple[int, ...], int], str | Script]:
    """A `respond` that goes through `scripts` call by call, from the start again when `repeat`;
    else it runs out loudly.
    """
    queue: Iterator[str | Script] = cycle(scripts) if repeat else iter(scripts)

    def respond(prompt_ids: tuple[int, ...], seed: int) -> str | Script:
        said = next(queue, None)
        if said is None:
            raise EngineError(
                f"the script has {len(scripts)} completions and one more was asked for"
            )
        return said

    return respond
