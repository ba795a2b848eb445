"""Training runs of processes that share weights, as `torchrun` starts them: `sharding_worker.py
JOBS`, a JSON list of [run directory, overrides], trained one after the other.

Beside each run directory every rank leaves its weights after each step, as processes_worker.py
does, and what `look` found after the last step in `RUN.looked-RANK.json`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from processes_worker import RANK, train

from sdpo.errors import SdpoError
from sdpo.models.head import lm_head
from sdpo.models.packing import PackItem, hidden_rows, pack
from sdpo.models.weights import applied, copy_weights, own_part, reshard
from sdpo.training import learner as learner_module
from sdpo.training import step as step_module
from sdpo.training.learner import Learner
from sdpo.training.step import Updater


def look(learner: Learner) -> dict[str, Any]:
    """Bytes of what this process keeps between updates besides the copy that samples, and the
    logits under a teacher of zeros."""
    schedule: Any = learner.schedule.state()
    kept = [own_part(p) for p in learner.model.parameters()]
    kept += learner.optimizer.masters.values()
    for state in learner.optimizer._adamw.state.values():
        kept += [state["exp_avg"], state["exp_avg_sq"]]
    for part in ("initial", "weights", "average"):
        kept += (schedule[part] or {}).values()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    return {"bytes": sum(storages.values()), **_teacher_of_zeros(learner.model)}


@torch.no_grad()
def _teacher_of_zeros(model: Any) -> dict[str, float]:
    item = PackItem(prompt_ids=(5,), completion_ids=(9, 2, 7), loss_mask=(True, True, True))
    (batch,) = pack([item], budget_tokens=64)

    def logits() -> torch.Tensor:
        hidden = hidden_rows(model, batch)
        return hidden @ lm_head(model).weight_VD.detach().T

    before = logits()
    zeros = {name: torch.zeros_like(weight) for name, weight in copy_weights(model).items()}
    with applied(model, zeros):
        inside = logits()
    after = logits()
    reshard(model)
    return {
        "before": float(before.abs().max()),
        "inside": float(inside.abs().max()),
        "change": float((after - before).abs().max()),
    }


def main(jobs: list[tuple[str, list[str]]]) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    follow, step = Learner.follow, Updater.step

    def follow_and_look(self: Learner, *arguments: Any) -> dict[str, float]:
        row = follow(self, *arguments)
        found.update(look(self))
        return row

    def step_and_look(self: Updater, *arguments: Any, **named: Any) -> Any:
        found["sampler"] = sum(p.numel() for p in whole.parameters())
        return step(self, *arguments, **named)

    # What `optim.offload` moves is moved within the CPU's memory here.
    learner_module.check_offload = lambda *_: None  # ty: ignore[invalid-assignment]
    begin = Learner.__init__
    whole: Any = None

    def begin_and_keep(self: Learner, sampler: Any, *arguments: Any, **named: Any) -> None:
        nonlocal whole
        whole = sampler.policy.model
        begin(self, sampler, *arguments, **named)

    Learner.__init__ = begin_and_keep  # ty: ignore[invalid-assignment]
    Learner.follow = follow_and_look  # ty: ignore[invalid-assignment]
    Updater.step = step_and_look  # ty: ignore[invalid-assignment]
    for run, overrides in jobs:
        if Path(run).name == "not-finite":
            found = {"said": fail(Path(run), overrides)}
            found["sampler"] = float(sum(p.double().sum() for p in whole.parameters()))
        else:
            train(Path(run), overrides)
        Path(f"{run}.looked-{RANK}.json").write_text(json.dumps(found))


def fail(run: Path, overrides: list[str]) -> str:
    """What a run ends with whose loss is not finite on the second rank."""
    original = step_module.objective_loss

    def spoilt(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        if RANK == "1":
            return dataclasses.replace(result, loss=result.loss * float("nan"))
        return result

    step_module.objective_loss = spoilt  # ty: ignore[invalid-assignment]
    try:
        train(run, overrides)
    except SdpoError as error:
        return str(error)
    finally:
        step_module.objective_loss = original
    return ""


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
