"""What vLLM is opened with, without vLLM."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sdpo.config.load import load_config
from sdpo.engines.vllm import VllmEngine
from sdpo.errors import EngineError
from sdpo.rollouts.sampler import _longest

sys.path.insert(0, str(Path(__file__).parents[2] / "families"))
from tiny_wrappers import build_wrapper


def test_a_sequence_is_as_long_as_the_run_makes_any():
    sizes = ["rollout.max_prompt_tokens=700", "rollout.max_completion_tokens=90"]
    contexts = ["teacher.context.max_tokens=800", "discover.window_tokens=600"]
    assert _longest(load_config([*sizes, *contexts])) == 890
    assert _longest(load_config([*sizes, *contexts, "discover.window_tokens=900"])) == 990
    # Held-out tasks come with recipes of their own.
    assert _longest(load_config([*sizes, *contexts, 'eval.holdout=["quickstart"]'])) is None


@pytest.mark.filterwarnings("ignore")  # transformers' notes about missing kernels
def test_a_model_that_reads_images_is_refused():
    with pytest.raises(EngineError, match=r"reads more than text.*engine.type = 'local'"):
        VllmEngine(build_wrapper("qwen2_5_vl"))
