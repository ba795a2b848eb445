"""Attention by its definition, slow and obvious on purpose, and a plan that is compared with it.

Legend: N tokens of a small row, H query heads, K key-value heads, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sdpo.kernels.plan import Plan, Scores, Segment, paths

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference of one layer's attention that rounding explains, relative to the largest
value; 1e-2 for half precisions."""


def tree_attention(
    query_HNE: torch.Tensor,
    key_KNE: torch.Tensor,
    value_KNE: torch.Tensor,
    segments: Sequence[Segment],
    scores: Scores,
) -> torch.Tensor:
    """Attention [N, H, E] of every token to those before it on its path. Memory: [H, N, N]."""
    repeats = len(query_HNE) // len(key_KNE)
    key_HNE, value_HNE = (x.repeat_interleave(repeats, dim=0) for x in (key_KNE, value_KNE))
    scores_HNN = scores.capped(query_HNE @ key_HNE.transpose(1, 2) * scores.scaling)
    visible_NN = _visible(segments, scores.window).to(query_HNE.device)
    weights_HNN = scores_HNN.masked_fill(~visible_NN, float("-inf")).softmax(-1)
    return (weights_HNN @ value_HNE).transpose(0, 1)


def _visible(segments: Sequence[Segment], window: int | None) -> torch.Tensor:
    """[N, N] whether the token in the row sees the one in the column."""
    num_tokens = segments[-1].stop
    position_N = torch.cat([torch.arange(len(s)) + s.position for s in segments])
    visible_NN = torch.zeros(num_tokens, num_tokens, dtype=torch.bool)
    for path in paths(segments):
        for place in range(path[-1].start, path[-1].stop):
            for run in path:
                visible_NN[place, run.start : min(run.stop, place + 1)] = True
    if window is not None:
        visible_NN &= position_N[:, None] - position_N < window
    return visible_NN


class Compared:
    """A plan whose every layer is compared with `tree_attention` of `segments`.

    It attends to drawn queries, keys and values: a trained model's own say little where its first
    token draws all attention, and what they are rounded to would differ more and more from layer to
    layer.
    """

    def __init__(self, plan: Plan, segments: Sequence[Segment]) -> None:
        self.agrees = True
        self._plan = plan
        self._segments = segments

    def attend(
        self,
        layer: int,
        query_1HTD: torch.Tensor,
        key_1KTD: torch.Tensor,
        value_1KTD: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:
        draw = torch.Generator().manual_seed(layer)
        # In the strides of the model's own, or compiled attention would be compiled once more.
        drawn = [
            torch.empty_like(x).copy_(torch.randn(x.shape, generator=draw))
            for x in (query_1HTD, key_1KTD, value_1KTD)
        ]
        output_1THD = self._plan.attend(layer, *drawn, scores)
        num_tokens = self._segments[-1].stop  # the row may be padded
        query_HNE, key_KNE, value_KNE = (x[0, :, :num_tokens].double().cpu() for x in drawn)
        expected_NHE = tree_attention(query_HNE, key_KNE, value_KNE, self._segments, scores)
        difference = (output_1THD[0, :num_tokens].double().cpu() - expected_NHE).abs().max()
        tolerance = _TOLERANCES.get(value_1KTD.dtype, 1e-2) * value_KNE.abs().max()
        self.agrees &= bool(difference <= tolerance)
        return output_1THD
