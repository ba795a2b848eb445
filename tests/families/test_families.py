"""Families are sampled and trained as their plain passes say, or refused in one sentence."""

from __future__ import annotations

import pytest
from family_trial import Outcome, try_family, try_model
from table import row, said_of, without_numbers
from tiny_families import build, families
from tiny_wrappers import TEXT, build_wrapper

pytestmark = [
    # transformers' notes about kernels that are not installed, and its own deprecations
    pytest.mark.filterwarnings("ignore"),
]

EXPECTED = {
    "axk2": ("by length", "rows", "one matrix"),  # one norm inside another
    "bamba": ("cached", "rows", "one matrix"),  # decodes differently without positions
    "cohere2": ("fast", "blocks", "one matrix with scale 0.0625"),
    "deepseek_v3": ("fast", "blocks", "one matrix"),  # values of another size than keys
    "diffllama": ("cached", "blocks", "one matrix"),  # attends twice in a layer
    "doge": ("fast", "rows", "one matrix"),  # a parameter that no plan reads
    "falcon_h1": ("cached", "rows", "one matrix with scale 0.2"),
    "gemma2": ("fast", "blocks", "one matrix with soft-cap 30"),
    "gpt_oss": ("cached", "rows", "one matrix"),  # attention sinks
    "gptj": ("cached", "rows", "one matrix with a bias"),
    "granite": ("fast", "blocks", "one matrix with scale 0.125"),
    "inkling_text": ("cached", "rows", "one matrix with scale 0.0416667"),
    "llama4_text": ("cached", "rows", "one matrix"),  # a prefix that is not there
    "mamba": ("cached", "rows", "one matrix"),  # a cache of another name
    "minicpm3": ("fast", "blocks", "one matrix with scale 0.25"),
    "minimax": ("by prompt", "rows", "one matrix"),
    "phi": ("fast", "blocks", "one matrix with a bias"),
    "qwen3_5_text": ("cached", "rows", "one matrix"),
    "recurrent_gemma": ("uncached", "rows", "one matrix with soft-cap 30"),
    "xlstm": ("uncached", "rows", "one matrix with soft-cap 30"),
}
REFUSED = {
    "modernbert-decoder": "its logits are not its LM head times its last hidden states",
    "paligemma": "its logits depend on later tokens",
}


def check(outcome: Outcome) -> None:
    """Right, or refused if that is known, and so says docs/models.md. Of another transformers than
    the page's all that is known is that nothing is wrong: in 5.17 Doge looks ahead."""
    said = said_of(outcome.family)
    if said is None:
        assert outcome.is_right or outcome.is_refused, outcome
        return
    is_refused = outcome.family in REFUSED
    assert outcome.is_refused if is_refused else outcome.is_right, outcome
    assert without_numbers(row(outcome)) == said


@pytest.mark.parametrize("family", EXPECTED)
def test_each_kind_of_trouble(family):
    outcome = try_family(family)
    check(outcome)
    if not outcome.refused:
        assert (outcome.sampling, outcome.training, outcome.head) == EXPECTED[family]


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_trained_is_refused(family):
    make = build_wrapper if family in TEXT else build
    assert REFUSED[family] in try_model(family, make(family)).refused


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(set(families()) - set(EXPECTED)))
def test_every_other_family(family):
    check(try_family(family))


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(TEXT))
def test_text_of_a_model_that_reads_images(family):
    check(try_model(family, build_wrapper(family)))
