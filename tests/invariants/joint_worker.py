"""A training run of processes that sample as one (`sdpo.engines.peers`), as `torchrun` starts it:
`joint_worker.py RUN OVERRIDES [judge | sampler]`. The local engine stands for vLLM's: whatever one
process samples, all do, and each finds out whether the others do the same.

With `judge` the second process's judge raises in the middle of its attempts, with `sampler` the
engine does where the second process has none, on both.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import processes_worker
import torch
import torch.distributed as dist
from processes_worker import RANK, train

import sdpo
from sdpo.engines import local
from sdpo.engines.base import Completion, GenerationRequest, Sampling
from sdpo.engines.peers import Peers
from sdpo.errors import EngineError
from sdpo.parallel import Parallel

Alone = local.LocalEngine


class JointEngine(Alone):
    """The local engine of all processes; `calls` is how often it has sampled."""

    calls = 0
    fails_at = 0
    _peers: Peers

    def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling
    ) -> list[list[Completion]]:
        if not dist.is_initialized():
            return super().generate(requests, sampling)
        own = [(request, seed, sampling) for request in requests for seed in request.seeds]
        found = iter(self._joined().run(own, self._sample))
        return [[next(found) for _ in request.seeds] for request in requests]

    def attend(self) -> None:
        self._joined().attend(self._sample)

    def _joined(self) -> Peers:
        if not hasattr(self, "_peers"):
            self._peers = Peers(2, Parallel(rank=int(RANK), world_size=2))
        return self._peers

    def _sample(self, asked: Sequence[tuple[GenerationRequest, int, Sampling]]) -> list[Completion]:
        JointEngine.calls += 1
        if self.fails_at == JointEngine.calls:
            raise EngineError("the sampler has failed")
        heard: list[Any] = [None, None]
        dist.all_gather_object(heard, asked, group=self._joined()._group)
        assert heard[0] == heard[1], "the processes sample different things"
        alone = [
            GenerationRequest(prompt_ids=r.prompt_ids, seeds=(s,), max_new_tokens=r.max_new_tokens)
            for r, s, _ in asked
        ]
        return [one for (one,) in super().generate(alone, asked[0][2])] if asked else []


def main(run: str, overrides: str, fails: str = "") -> None:
    torch.set_num_threads(1)
    JointEngine.fails_at = int(fails == "sampler")
    local.LocalEngine = JointEngine  # ty: ignore[invalid-assignment]
    judge = processes_worker.judge

    def failing(task: sdpo.Task, rollout: sdpo.Rollout) -> sdpo.Verdict:
        if fails == "judge" and RANK == "1" and rollout.policy_version == 1:
            raise sdpo.TaskError("this task cannot be judged")
        return judge(task, rollout)

    processes_worker.judge = failing
    said = ""
    try:
        train(Path(run), json.loads(overrides))
    except sdpo.SdpoError as error:
        said = str(error)
    Path(f"{run}.joint-{RANK}").write_text(f"{JointEngine.calls}\n{said}")


if __name__ == "__main__":
    main(*sys.argv[1:])
