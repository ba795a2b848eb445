"""Every text decoder of the installed transformers, tried as a tiny random model: docs/models.md.

make models (python tests/families/table.py)
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from family_trial import Outcome, try_model
from tiny_families import NOT_BUILT, build, families
from tiny_wrappers import TEXT, build_wrapper

from sdpo.files import atomic_write

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
_HEADER = "| family | sampling | training | LM head |\n|---|---|---|---|"


def row(outcome: Outcome) -> str:
    sampling = f"{outcome.sampling}, {outcome.sampling_gap:.0e}" if outcome.sampling else ""
    training = outcome.refused or f"{outcome.training}, {outcome.gradient_gap:.0e}"
    return f"| {outcome.family} | {sampling} | {training} | {outcome.head} |"


def said_of(family: str) -> list[str] | None:
    """What docs/models.md says of `family` apart from measured numbers; None where it was made with
    another transformers."""
    text = DOCUMENT.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__} " not in text.replace("\n", " "):
        return None
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {family} |")]
    return without_numbers(line)


def without_numbers(line: str) -> list[str]:
    cells = [cell.strip() for cell in line.strip("| ").split("|")]
    return [cell.partition(", ")[0] for cell in cells]


def _tried(names: Sequence[str], make: Callable[[str], torch.nn.Module]) -> list[Outcome]:
    outcomes = []
    for family in names:
        print(family, file=sys.stderr, flush=True)
        try:
            outcomes.append(try_model(family, make(family)))
        except Exception as error:  # noqa: BLE001  # a crash is a row too
            outcomes.append(Outcome(family=family, training=f"CRASH: {error!r}"))
    return outcomes


def _counts(outcomes: Sequence[Outcome]) -> str:
    right = [outcome for outcome in outcomes if outcome.is_right]
    fast = [o for o in right if o.sampling == "fast" and o.training == "blocks"]
    refused = [outcome for outcome in outcomes if outcome.is_refused]
    wrong = len(outcomes) - len(right) - len(refused)
    return (
        f"{len(right)} of {len(outcomes)} are right ({len(fast)} of them on the fast paths for\n"
        f"sampling and training), {len(refused)} refused in one sentence, {wrong} wrong or crashing"
    )


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("sdpo").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    start = time.monotonic()
    decoders, wrappers = _tried(families(), build), _tried(sorted(TEXT), build_wrapper)
    text = f"""# Models

Made by `make models` with transformers {transformers.__version__} and torch {torch.__version__}: a
tiny random model of every text decoder that transformers knows, in float32 on a CPU.
{_counts(decoders)}.
`sdpo check RECIPE` tries the model at hand in the same way.

- *Sampling*: `fast` computes a prompt once for all its attempts and decodes prompts together;
  `cached` decodes prompts of any length together with the model's own cache, `by length` those of
  equal length, `by prompt` the attempts at one; `uncached` computes the whole sequence for every
  token, because the model's cache gives other logits than a plain pass. The number is the largest
  difference of a sampled log-prob from a plain pass, in nats.
- *Training*: `blocks` computes what sequences begin with once; `rows` gives each a row of its own.
  The number is the largest difference of a parameter's gradient from that of plain rows, relative
  to the largest gradient.
- *LM head*: what stands between hidden states and logits, measured.

Left out: encoders and the decoders of encoder-decoder models, and what transformers' own config
classes do not build or no tokenizer of one token a position feeds:
{", ".join(sorted(NOT_BUILT))}.

{_HEADER}
{chr(10).join(map(row, decoders))}

## Models that also read images

They load whole (`AutoModelForImageTextToText`) and are trained on text: towers stay out of training
and out of new adapters, and a checkpoint has their weights and the files of their processors
unchanged. vLLM does not take them here. Some families, with a tiny random tower each:
{_counts(wrappers)}.

{_HEADER}
{chr(10).join(map(row, wrappers))}
"""
    with atomic_write(DOCUMENT) as partial:
        partial.write_text(text, encoding="utf-8")
    print(f"{DOCUMENT}: {time.monotonic() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
