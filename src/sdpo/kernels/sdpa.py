"""PyTorch's fused attention on a CPU, for where it is faster than scores, softmax and product one
after the other.

It multiplies small tiles. Matrix units (AMX) are good at that; without them it runs at a quarter of
the speed of batched products.

Legend: B batch, K key-value heads, Q queries of each, M keys, E head size.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from sdpo.kernels.plan import Scores


def is_fused_faster(scores: Scores, x: Tensor) -> bool:
    """Whether `fused_attention` can compute these scores, and faster, for queries like `x`."""
    return scores.softcap is None and x.device.type == "cpu" and _has_matrix_units(x.dtype)


@functools.cache
def _has_matrix_units(dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()


def fused_attention(
    query_BKQE: Tensor, key_BKME: Tensor, value_BKME: Tensor, bias: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """Attention [B, K, Q, E] and the log of every query's sum of exponentials [B, K, Q] in float32,
    by which attention to several sets of keys is joined. Scores are in float32.

    `bias` is added to the scores: [B, 1, Q, M] in the queries' type, where B or Q may be 1.
    """
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query_BKQE, key_BKME, value_BKME, 0.0, False, attn_mask=bias, scale=scaling
    )
