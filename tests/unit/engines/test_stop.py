"""Texts that end a completion, in the engines that sample here and in those that know no text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sdpo.chat import Chat
from sdpo.engines.base import Completion, GenerationRequest, Sampling, StopTexts
from sdpo.engines.completions import cut_at_stop
from sdpo.engines.local import LocalEngine
from sdpo.models import qualify
from sdpo.testing import byte_tokenizer, tiny_model

CHAT = Chat(byte_tokenizer())
FREE = Sampling(max_new_tokens=24, stop_ids=(), vocabulary=128)
REQUESTS = [GenerationRequest(prompt_ids=CHAT.text_ids(f"say {n}"), seeds=(1, 2, 3)) for n in "ab"]


def stopping(*texts):
    return replace(FREE, stop=StopTexts(texts=texts, decode=CHAT.decode_all))


def said(text, sampling, *, truncated=True):
    ids = CHAT.text_ids(text)
    completion = Completion(
        token_ids=ids, logprobs=tuple(-float(i) for i in range(len(ids))), truncated=truncated
    )
    return cut_at_stop(completion, sampling)


@pytest.mark.parametrize(
    ("text", "stops", "kept"),
    [
        ("one</a>two</a>", ("</a>",), "one</a>"),
        ("one</b>two</a>", ("</a>", "</b>"), "one</b>"),
        ("</a>", ("</a>",), "</a>"),
        ("déjà vu. and on", ("vu.",), "déjà vu."),
        ("aé", ("é",), "aé"),
        ("a" * 40 + "STOP" + "b" * 40, ("STOP",), "a" * 40 + "STOP"),
    ],
)
def test_a_completion_ends_with_the_token_that_completes_a_text(text, stops, kept):
    cut = said(text, stopping(*stops))
    assert CHAT.decode(cut.token_ids) == kept
    assert len(cut.logprobs) == len(cut.token_ids)
    assert not cut.truncated


def test_what_says_none_of_the_texts_stays_as_it_is():
    assert said("</ a>", stopping("</a>")).truncated
    assert said("</a>", FREE).truncated
    assert said("</a> and on", replace(stopping("</a>"), ignore_eos=True)).truncated


@pytest.mark.parametrize("way", ["fast", "slow"])
def test_sampling_stops_where_the_same_completion_would_be_cut(way, monkeypatch):
    if way == "slow":
        refusal = qualify.Refusal(reason="of this test")
        monkeypatch.setattr("sdpo.engines.local.fast_path_of", lambda model: refusal)
    engine = LocalEngine(tiny_model())
    free = engine.generate(REQUESTS, FREE)
    # Texts that these completions do say: one in the middle of each prompt's first.
    texts = [CHAT.decode_all(group[0].token_ids[3:20])[1:3] for group in free]
    sampling = stopping(*filter(None, texts))
    found = engine.generate(REQUESTS, sampling)
    expected = [[cut_at_stop(completion, sampling) for completion in group] for group in free]
    assert [[c.token_ids for c in g] for g in found] == [[c.token_ids for c in g] for g in expected]
    assert [[c.truncated for c in g] for g in found] == [[c.truncated for c in g] for g in expected]
    assert any(len(c.token_ids) < 24 for group in found for c in group), "nothing was stopped"
