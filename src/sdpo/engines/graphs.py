"""Decode steps as CUDA graphs: one launch instead of some thousand.

A small model's step on a large GPU is bound by Python and kernel launches, not by arithmetic. A
step is captured once per size (rows rounded up to a power of two, suffix columns to a multiple of
64, so that a call needs few captures) and replayed; everything that changes between steps is in the
tensors of `DecodeState`, whose addresses stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch

from sdpo.engines.base import Sampling
from sdpo.engines.decode_state import DecodeState, decode_step
from sdpo.models.qualify import FastPath

_COLUMN_STEP = 64
"""Suffix columns are rounded up to this."""
_WARM_UP_STEPS = 2
"""Uncaptured runs before a capture: libraries allocate their workspaces on first use."""


class CapturedStep(NamedTuple):
    """A step that can be run again, and where it leaves what it sampled."""

    replay: Callable[[], None]
    tokens_R: torch.Tensor
    logprobs_R: torch.Tensor


Step = Callable[[], tuple[torch.Tensor, torch.Tensor]]


def capture_on_cuda(step: Step, undo: Callable[[], None], pool: Any) -> CapturedStep:
    """`step` as a CUDA graph; `undo` takes back what a warm-up run changed.

    Graphs of one `pool` share their memory: a replay overwrites what the one before left there.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP_STEPS):
            step()
            undo()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        tokens_R, logprobs_R = step()
    return CapturedStep(graph.replay, tokens_R, logprobs_R)


@dataclass(slots=True)
class StepGraphs:
    """Captured steps of one `DecodeState`, by rows, columns and sampling."""

    capture: Callable[[Step, Callable[[], None]], CapturedStep]
    _captured: dict[tuple[int, int, float, float], CapturedStep] = field(default_factory=dict)

    @classmethod
    def on_cuda(cls) -> StepGraphs:
        """Graphs that share one memory pool: logits of the largest step, not of every step."""
        return cls(capture=partial(capture_on_cuda, pool=torch.cuda.graph_pool_handle()))

    def step(
        self, fast: FastPath, state: DecodeState, sampling: Sampling, num_live: int, columns: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs one step for the live rows; outputs are overwritten by the next step."""
        rows = min(1 << (num_live - 1).bit_length(), state.num_rows)
        total = state.uniforms_RT.shape[1]
        columns = min(-(-columns // _COLUMN_STEP) * _COLUMN_STEP, total)
        key = (rows, columns, sampling.temperature, sampling.top_p)
        if key not in self._captured:
            self._captured[key] = self._capture(fast, state, sampling, rows, columns)
        captured = self._captured[key]
        captured.replay()
        return captured.tokens_R, captured.logprobs_R

    def _capture(
        self, fast: FastPath, state: DecodeState, sampling: Sampling, rows: int, columns: int
    ) -> CapturedStep:
        num_prompts, num_slots = state.rows_GS.shape

        def step() -> tuple[torch.Tensor, torch.Tensor]:
            plan = state.plan(
                rows,
                columns,
                num_prompts=num_prompts,
                num_slots=num_slots,
                prompt_columns=state.cache.prompt_keys[0].shape[2],
            )
            return decode_step(fast, state, plan, sampling)

        # A warm-up step writes one key and one value too; the real step writes the same again.
        before = state.tokens_R.clone(), state.lengths_R.clone()

        def undo() -> None:
            state.tokens_R.copy_(before[0])
            state.lengths_R.copy_(before[1])

        return self.capture(step, undo)
