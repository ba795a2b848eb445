"""One engine over two updates: `in_process_worker.py FAMILY full|lora`.

A process each: vLLM keeps memory and process groups of a model as long as its process lives.
"""

from __future__ import annotations

import sys

import pytest
from tiny_policies import build, check, move

from sdpo.engines.vllm import VllmEngine

if __name__ == "__main__":
    model = build(sys.argv[1], has_adapter=sys.argv[2] == "lora")
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
