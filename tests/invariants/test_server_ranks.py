"""Two ranks that sample with the same servers: the first sends weights, both use them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_processes import WORKER, two_processes

from sdpo.metrics.jsonl import read_rows
from sdpo.testing import byte_tokenizer, tiny_model

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "engines"))
from stub_vllm import serving

STEPS = 2


@pytest.mark.parametrize("staleness", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_ranks_share_servers(tmp_path, staleness):
    model = tmp_path / "model"
    tiny_model(num_layers=1).save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    run = tmp_path / "run"
    with serving(*(tiny_model(num_layers=1, seed=seed) for seed in (3, 4))) as servers:
        urls = json.dumps([server.url for server in servers])
        overrides = [
            f"model.name={model}", "model.device=cpu", "model.dtype=float32", f"steps={STEPS}",
            "rollout.tasks_per_step=4", "rollout.group_size=4", "rollout.max_completion_tokens=6",
            "rollout.max_prompt_tokens=200", "optim.lr=1e-2", "eval.samples=1", "eval.max_tasks=2",
            "teacher.context.max_tokens=400", "discover.window_tokens=400", "checkpoint.every=0",
            "rollout.engine.type=server", f"rollout.engine.urls={urls}",
            f"rollout.engine.weights.path={tmp_path / 'weights'}",
            f"rollout.staleness={staleness}",
        ]  # fmt: skip
        two_processes(WORKER, json.dumps({str(run): overrides}))
        sent = [server.paths().count("/update_weight_version") for server in servers]
        names = {server.label for server in servers}
    assert sent == [sent[0]] * 2
    # The start and each update, from one rank.
    assert sent[0] == 1 + STEPS
    assert len(names) == 1
    steps = [row for row in read_rows(run / "metrics.jsonl") if "policy/sampler_gap_max" in row]
    is_fresh = [True] * STEPS if not staleness else [True, False]
    assert [row["policy/sampler_gap_max"] < 1e-4 for row in steps] == is_fresh
    assert [row.get("rollouts/staleness") for row in steps] == ([0, 1] if staleness else [None] * 2)
    for step in range(1, STEPS + 1):
        first, second = (load_file(f"{run}.step-{step}.rank-{rank}.safetensors") for rank in (0, 1))
        assert all(torch.equal(first[name], second[name]) for name in first)
