"""Inverse-CDF sampling against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sdpo.engines.base import Sampling
from sdpo.engines.completions import OpenCompletion
from sdpo.engines.sampling import check_sampling, sample_tokens, uniforms
from sdpo.errors import EngineError

PROBS = (0.2, 0.3, 0.5)
LARGEST = 1.0 - 2.0**-24


def sampling(**kwargs):
    return Sampling(**{"max_new_tokens": 4, "stop_ids": (), **kwargs})


def draw(probs, numbers, **kwargs):
    logits = torch.tensor(probs).log().expand(len(numbers), -1).clone()
    tokens, logprobs = sample_tokens(logits, torch.tensor(numbers), sampling(**kwargs))
    return tokens.tolist(), logprobs.tolist()


def test_number_falls_into_its_tokens_interval():
    tokens, logprobs = draw(PROBS, [0.0, 0.19, 0.21, 0.49, 0.51, LARGEST])
    assert tokens == [0, 0, 1, 1, 2, 2]
    assert logprobs == pytest.approx([math.log(PROBS[token]) for token in tokens], abs=1e-6)


def test_tokens_without_mass_are_never_drawn():
    tokens, _ = draw((0.0, 0.0, 0.4, 0.0, 0.6, 0.0), [0.0, 0.3, 0.5, LARGEST])
    assert tokens == [2, 2, 4, 4]


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_p": 0.9}])
def test_rows_of_the_head_beyond_the_vocabulary_are_never_drawn(settings):
    """As if the logits ended before them: log-probs are of the tokens alone."""
    logits = torch.tensor([1.0, 2.0, 0.5, 9.0, 9.5]).expand(50, -1)
    numbers = torch.linspace(0, LARGEST, 50)
    tokens, logprobs = sample_tokens(logits.clone(), numbers, sampling(vocabulary=3, **settings))
    shorter = sample_tokens(logits[:, :3].clone(), numbers, sampling(**settings))
    assert int(tokens.max()) < 3
    torch.testing.assert_close((tokens, logprobs), shorter)


@pytest.mark.parametrize("size", [127, 128, 129, 256, 300, 5000])
def test_every_number_finds_its_token_in_a_vocabulary_of_any_size(size, monkeypatch):
    monkeypatch.setattr("sdpo.engines.sampling._CACHED", 7 * 300)  # several rows, or one
    # Summed by blocks inside; half of the tokens, and most of the first blocks, have no mass.
    generator = torch.Generator().manual_seed(size)
    logits = 3 * torch.randn(size, generator=generator)
    logits[torch.rand(size, generator=generator) < 0.5] = -math.inf
    logits[1 : size // 2] = -math.inf
    logits[0], logits[-1] = 1.0, 1.0
    numbers = torch.cat((torch.linspace(0, LARGEST, 2000), torch.tensor([0.0, LARGEST])))
    tokens, logprobs = sample_tokens(logits.expand(len(numbers), -1).clone(), numbers, sampling())
    exact = logits.double().softmax(-1)
    assert logprobs.tolist() == pytest.approx(exact[tokens].log().tolist(), abs=1e-5)
    upper = exact.cumsum(-1)[tokens]
    assert (numbers < upper + 1e-6).all()
    assert (numbers > upper - exact[tokens] - 1e-6).all()
    assert (int(tokens[-2]), int(tokens[-1])) == (0, size - 1)


def test_temperature_sharpens_the_distribution():
    squares = [p * p / sum(q * q for q in PROBS) for p in PROBS]
    tokens, logprobs = draw(PROBS, [0.0, 0.2, 0.9], temperature=0.5)
    assert tokens == [0, 1, 2]
    assert logprobs == pytest.approx([math.log(p) for p in squares], abs=1e-6)


def test_top_p_keeps_the_smallest_sufficient_set_and_renormalises():
    tokens, logprobs = draw(PROBS, [0.0, 0.37, 0.38, LARGEST], top_p=0.7)
    assert tokens == [1, 1, 2, 2]
    expected = {1: math.log(0.3 / 0.8), 2: math.log(0.5 / 0.8)}
    assert logprobs == pytest.approx([expected[token] for token in tokens], abs=1e-6)


def test_top_p_never_drops_the_most_likely_token():
    tokens, logprobs = draw(PROBS, [0.0, LARGEST], top_p=1e-6)
    assert tokens == [2, 2]
    assert logprobs == pytest.approx([0.0, 0.0], abs=1e-6)


def test_greedy_takes_the_lowest_of_equal_tokens_with_certainty():
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0]])
    tokens, logprobs = sample_tokens(logits, torch.tensor([0.9]), sampling(temperature=0.0))
    assert (tokens.tolist(), logprobs.tolist()) == ([1], [0.0])


def test_frequencies_match_probabilities():
    numbers = uniforms(range(4000), 5).flatten()
    logits = torch.tensor(PROBS).log().expand(len(numbers), -1).clone()
    tokens, _ = sample_tokens(logits, numbers, sampling())
    frequencies = tokens.bincount(minlength=3) / len(numbers)
    # Four standard deviations of a share at 20,000 draws are below 0.015.
    assert frequencies.tolist() == pytest.approx(PROBS, abs=0.015)


def test_number_t_depends_on_seed_and_t_alone():
    alone, together = uniforms([7], 3), uniforms([1, 2**63, 7], 50)
    assert torch.equal(alone[0], together[2, :3])
    assert together.unique().numel() > 140
    assert 0.0 <= float(together.min()) <= float(together.max()) < 1.0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("size", "place"), [(3, 1), (300, 0), (300, 140), (300, 299)])
def test_logits_that_are_not_finite_are_refused(temperature, size, place):
    logits = torch.zeros(1, size)
    logits[0, place] = float("nan")
    options = sampling(temperature=temperature)
    tokens, logprobs = sample_tokens(logits, torch.tensor([0.5]), options)
    with pytest.raises(EngineError, match="not finite at token 0"):
        OpenCompletion(prompt=0, seed=0, limit=4).append(
            int(tokens[0]), float(logprobs[0]), options
        )


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_values_out_of_range_are_named(wrong):
    with pytest.raises(EngineError, match=next(iter(wrong))):
        check_sampling(sampling(**wrong))
