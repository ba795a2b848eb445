"""Sampling speed of families that decode with a cache of their own: all prompts together, prompts
of one length at a time, and one prompt at a time.

    python benchmarks/families.py                             hybrids and gpt-oss, 32 prompts
    python benchmarks/families.py --families lfm2 --layers 4

Weights are random; prompts have 20 to 60 tokens, as many different lengths as 32 prompts draw.
Contenders take turns in one process. Tokens are counted per second of processor time, which a busy
machine changes less than the time that passes. Sampled log-probs are compared with those of a plain
pass on the way.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import sys
import time
import warnings
from itertools import groupby
from pathlib import Path

import torch
import transformers

from sdpo.engines.base import GenerationRequest, Sampling
from sdpo.engines.cache_use import cache_use_of
from sdpo.engines.local import LocalEngine
from sdpo.models.device import keep_freed_memory

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "families"))
from tiny_families import VOCABULARY, build

FAMILIES = (
    "falcon_h1",
    "gpt_oss",
    "granitemoehybrid",
    "jamba",
    "lfm2",
    "mamba2",
    "nemotron_h",
    "qwen3_5_text",
    "qwen3_next",
    "xlstm",
)


def make_requests(count: int) -> list[GenerationRequest]:
    draw = random.Random(0)
    return [
        GenerationRequest(
            prompt_ids=tuple(draw.randrange(3, VOCABULARY) for _ in range(draw.randint(20, 60))),
            seeds=(index,),
        )
        for index in range(count)
    ]


def gap(model, request, completion) -> float:
    """Mean |log p sampled - log p of a plain pass|, nats."""
    ids = torch.tensor([request.prompt_ids + completion.token_ids])
    start = len(request.prompt_ids)
    with torch.no_grad():
        logprobs = model(ids, use_cache=False).logits[0, start - 1 : -1].log_softmax(-1)
    plain = logprobs.gather(1, ids[0, start:, None])[:, 0]
    return float((plain - torch.tensor(completion.logprobs)).abs().mean())


def measure(family: str, args: argparse.Namespace) -> None:
    model = build(family, num_hidden_layers=args.layers) if args.layers else build(family)
    requests = make_requests(args.prompts)
    sampling = Sampling(max_new_tokens=args.new_tokens, stop_ids=(), ignore_eos=True)
    by_length = sorted(requests, key=lambda request: len(request.prompt_ids))
    contenders = {
        "together": [requests],
        "by length": [list(g) for _, g in groupby(by_length, lambda r: len(r.prompt_ids))],
        "one by one": [[request] for request in requests],
    }
    engine = LocalEngine(model, max_sequences=args.prompts)
    engine.generate(requests[:1], Sampling(max_new_tokens=2, stop_ids=()))  # trials are past
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, batches in contenders.items():
            start, tokens = time.process_time(), 0
            for batch in batches:
                sampled = engine.generate(batch, sampling)
                tokens += sum(len(c.token_ids) for group in sampled for c in group)
                if name == "together":
                    found = [group[0] for group in sampled]
            rates[name].append(tokens / (time.process_time() - start))
    worst = max(gap(model, r, c) for r, c in zip(requests, found, strict=True))
    middle = {name: statistics.median(rate) for name, rate in rates.items()}
    print(
        f"{family:18} {cache_use_of(model):6}"
        + "".join(f" {middle[name]:11.0f}" for name in contenders)
        + f" {middle['together'] / middle['by length']:6.1f}x"
        + f" {middle['together'] / middle['one by one']:6.1f}x  {worst:.0e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    keep_freed_memory()  # as runs do
    warnings.filterwarnings("ignore")
    logging.getLogger("sdpo").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    print(
        f"{'family':18} {'cache':6} {'together':>11} {'by length':>11} {'one by one':>11} "
        f"{'gain':>7} {'gain':>7}  nats   (tokens per processor second, median of {args.rounds})"
    )
    for family in args.families:
        measure(family, args)


if __name__ == "__main__":
    main()
