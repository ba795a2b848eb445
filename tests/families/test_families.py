"""Families are sampled and trained as their plain passes say, or refused in one sentence."""

from __future__ import annotations

import pytest
from family_trial import Outcome, try_family, try_model
from tiny_families import families
from tiny_wrappers import TEXT, build_wrapper

pytestmark = [
    # transformers' notes about kernels that are not installed, and its own deprecations
    pytest.mark.filterwarnings("ignore"),
]

EXPECTED = {
    "axk2": ("cached", "rows", "one matrix"),  # one norm inside another
    "bamba": ("uncached", "rows", "one matrix"),  # decodes differently with its own cache
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
    "minimax": ("cached", "rows", "one matrix"),
    "phi": ("fast", "blocks", "one matrix with a bias"),
    "qwen3_5_text": ("cached", "rows", "one matrix"),
    "recurrent_gemma": ("uncached", "rows", "one matrix with soft-cap 30"),
    "xlstm": ("uncached", "rows", "one matrix with soft-cap 30"),
}
REFUSED = {"modernbert-decoder": "its logits are not its LM head times its last hidden states"}


def check(outcome: Outcome) -> None:
    assert outcome.is_right, outcome


@pytest.mark.parametrize("family", EXPECTED)
def test_each_kind_of_trouble(family):
    outcome = try_family(family)
    check(outcome)
    assert not outcome.refused
    assert (outcome.sampling, outcome.training, outcome.head) == EXPECTED[family]


@pytest.mark.parametrize("family", REFUSED)
def test_a_head_of_several_layers_is_refused(family):
    assert REFUSED[family] in try_family(family).refused


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(set(families()) - set(EXPECTED)))
def test_every_other_family(family):
    outcome = try_family(family)
    check(outcome)
    assert bool(outcome.refused) == (family in REFUSED)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(TEXT))
def test_text_of_a_model_that_reads_images(family):
    outcome = try_model(family, build_wrapper(family))
    if family == "paligemma":
        assert "its logits depend on later tokens" in outcome.refused
    else:
        check(outcome)
        assert not outcome.refused
