"""Every text decoder of the installed transformers, tried as a tiny random model: docs/models.md.

python tests/families/table.py > docs/models.md
"""

from __future__ import annotations

import logging
import sys
import warnings

import torch
import transformers
from family_trial import Outcome, try_family
from tiny_families import families


def row(outcome: Outcome) -> str:
    training = outcome.refused or f"{outcome.training}, {outcome.gradient_gap:.0e}"
    return (
        f"| {outcome.family} | {outcome.sampling}, {outcome.sampling_gap:.0e} | {training} | "
        f"{outcome.head} |"
    )


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("sdpo").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    outcomes = []
    for family in families():
        print(family, file=sys.stderr, flush=True)
        outcomes.append(try_family(family))
    is_right = [outcome.is_right for outcome in outcomes]
    fast = [o for o in outcomes if o.sampling == "fast" and o.training == "blocks"]
    print(
        f"""# Models

Made by `python tests/families/table.py` with transformers {transformers.__version__} and torch
{torch.__version__}: a tiny random model of every text decoder that transformers knows, in float32
on a CPU. {sum(is_right)} of {len(outcomes)} are right, {len(fast)} of them on the fast paths for
sampling and training; {sum(bool(o.refused) for o in outcomes)} cannot be trained, which is said in
one sentence when a run starts. `sdpo check RECIPE` tries the model at hand in the same way.

- *Sampling*: `fast` computes a prompt once for all its attempts and decodes prompts together;
  `cached` decodes one prompt at a time with the model's own cache; `uncached` computes the whole
  sequence for every token, because the model's cache gives other logits than a plain pass. The
  number is the largest difference of a sampled log-prob from a plain pass, in nats.
- *Training*: `blocks` computes what sequences begin with once; `rows` gives each a row of its own.
  The number is the largest difference of a parameter's gradient from that of plain rows, relative
  to the largest gradient.
- *LM head*: what stands between hidden states and logits, measured.

| family | sampling | training | LM head |
|---|---|---|---|"""
    )
    for outcome in outcomes:
        print(row(outcome))


if __name__ == "__main__":
    main()
