"""Decode steps as CUDA graphs: one launch instead of some thousand.

A small model's step on a large GPU is bound by Python and kernel launches, not by arithmetic. A
step is captured once per size (rows rounded up to a power of two, suffix columns to a multiple of
64) and replayed; everything that changes between steps lies in the tensors of `DecodeState`, whose
addresses stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from sdpo.engines.architecture import FastPath
from sdpo.engines.base import Sampling

if TYPE_CHECKING:
    from sdpo.engines.decode import DecodeState

_COLUMN_STEP = 64
_WARM_UP_STEPS = 2
"""Uncaptured runs before a capture: libraries allocate their workspaces on first use."""


@dataclass(slots=True)
class StepGraphs:
    """Captured steps of one `DecodeState`, by rows and columns; all share one memory pool."""

    _captured: dict[
        tuple[int, int, float, float], tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]
    ] = field(default_factory=dict)

    def step(
        self, fast: FastPath, state: DecodeState, sampling: Sampling, num_live: int, columns: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs one step for the live rows; outputs are overwritten by the next step."""
        rows = min(1 << (num_live - 1).bit_length(), state.num_rows)
        total = state.uniforms_RT.shape[1]
        columns = min(-(-columns // _COLUMN_STEP) * _COLUMN_STEP, total)
        key = (rows, columns, sampling.temperature, sampling.top_p)
        if key not in self._captured:
            self._captured[key] = _capture(fast, state, sampling, rows, columns)
        graph, tokens_R, logprobs_R = self._captured[key]
        graph.replay()
        return tokens_R, logprobs_R


def _capture(
    fast: FastPath, state: DecodeState, sampling: Sampling, rows: int, columns: int
) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
    from sdpo.engines.decode import decode_step

    num_prompts, num_slots = state.rows_GS.shape
    prompt_columns = state.cache.prompt_keys[0].shape[2]

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        plan = state.plan(
            rows,
            columns,
            num_prompts=num_prompts,
            num_slots=num_slots,
            prompt_columns=prompt_columns,
        )
        return decode_step(fast, state, plan, sampling)

    # A warm-up step advances the rows like a real one: put them back.
    before = state.tokens_R.clone(), state.lengths_R.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP_STEPS):
            step()
            state.tokens_R.copy_(before[0])
            state.lengths_R.copy_(before[1])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens_R, logprobs_R = step()
    return graph, tokens_R, logprobs_R
