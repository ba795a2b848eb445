"""The scripted engine keeps the engine's contract."""

from __future__ import annotations

import pytest

from sdpo.engines.base import Completion, GenerationRequest, Sampling
from sdpo.errors import EngineError
from sdpo.testing.scripted import Script, ScriptedEngine, in_order


def engine(respond):
    return ScriptedEngine(respond, encode=lambda text: [ord(c) for c in text], stop_id=0)


def sampling(max_new_tokens):
    return Sampling(max_new_tokens=max_new_tokens, stop_ids=(0,))


REQUESTS = [
    GenerationRequest(prompt_ids=(1,), seeds=(10, 11)),
    GenerationRequest(prompt_ids=(2,), seeds=(12,)),
]


def test_scripts_go_out_in_order_with_their_logprobs():
    scripted = engine(in_order(["a", Script(text="bc", logprob=-0.5), "d"]))
    first, second = scripted.generate(REQUESTS, sampling(5))
    assert first[0] == Completion(token_ids=(97, 0), logprobs=(-1.0, -1.0), truncated=False)
    assert first[1] == Completion(token_ids=(98, 99, 0), logprobs=(-0.5,) * 3, truncated=False)
    assert second[0].token_ids == (100, 0)


def test_answers_can_depend_on_prompt_and_seed():
    scripted = engine(lambda prompt_ids, seed: f"{prompt_ids[0]}:{seed}")
    groups = scripted.generate(REQUESTS, sampling(9))
    texts = ["".join(map(chr, c.token_ids[:-1])) for group in groups for c in group]
    assert texts == ["1:10", "1:11", "2:12"]


def test_long_answers_are_truncated_without_a_stop_token():
    [[cut]] = engine(in_order(["abc"])).generate([REQUESTS[1]], sampling(3))
    assert cut == Completion(token_ids=(97, 98, 99), logprobs=(-1.0,) * 3, truncated=True)


def test_an_exhausted_script_says_so():
    with pytest.raises(EngineError, match="has 1 completions"):
        engine(in_order(["a"])).generate(REQUESTS, sampling(3))
    assert len(engine(in_order(["a"], repeat=True)).generate(REQUESTS, sampling(3))) == 2
