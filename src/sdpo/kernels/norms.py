"""RMS norms of a model on a CPU, computed in rows that stay in cache.

transformers writes a norm as eight operations over the whole input in float32, each a pass through
memory, and autograd keeps two of their results. Here a pass reads the input once, the backward pass
input and gradient once, and what is kept is the input and one number a row. Two AMX threads, 4,096
x 576 in bfloat16: 1.6 times as fast forward and 2.2 backward; 64 rows, without a graph: 1.3.

Legend: R rows of a block, N rows, D hidden size.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdpo.kernels.dtypes import math_dtype

_BLOCK = 1 << 18
"""Numbers of a block: 1 MiB in float32, of which the backward pass holds three."""

_is_plain: dict[type, bool] = {}


@contextmanager
def fused_norms(model: torch.nn.Module) -> Generator[None]:
    """Inside the block those norms of a CPU model that are x / rms(x) x weight are computed by
    `rms_norm`; others, such as Gemma's with weights counted from 1, as before."""
    norms: list[torch.nn.Module] = []
    try:
        for module in model.modules():
            if "RMSNorm" in type(module).__name__ and _is_fusable(module):
                module.forward = partial(_forward, module)
                norms.append(module)
        yield
    finally:
        for module in norms:
            del module.forward  # the instance attribute; the class's method is back


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) x weight over the last dimension, in the type of `x`; squares and
    sums in float32 (float64 for float64). Differentiable in both tensors."""
    if x.numel() <= _BLOCK and not torch.is_grad_enabled():
        # A decode step: blocks and buffers would take longer than what is computed in them.
        wide = x.to(math_dtype(x.dtype), copy=True)
        return wide.mul_(_scale(wide, wide.new_full((), eps))).to(x.dtype).mul_(weight_D)
    x_ND = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled():
        output: Any = _RmsNorm.apply(x_ND, weight_D, eps)
    else:
        output, _ = _normalised(x_ND, weight_D, eps)
    return output.view(x.shape)


def _forward(module: Any, x: Tensor, *others: Any, **options: Any) -> Tensor:
    if others or options or x.dtype != module.weight.dtype:
        # A gate, or a mixture of types: what that gives is the module's own business.
        return type(module).forward(module, x, *others, **options)
    return rms_norm(x, module.weight, _eps(module))


def _eps(module: Any) -> Any:
    """A number; None where the module finds its own or has none."""
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _is_fusable(module: Any) -> bool:
    """Whether `rms_norm` is what `module` computes: found out on drawn numbers, once per class."""
    weight, eps = getattr(module, "weight", None), _eps(module)
    if weight is None or weight.device.type != "cpu" or eps is None or "forward" in vars(module):
        return False
    kind = type(module)
    if kind not in _is_plain:
        draw = torch.Generator().manual_seed(0)
        weight_D = torch.randn(weight.shape, generator=draw)
        # Rows of several sizes, next to the smallest of which `eps` counts.
        x_RD = torch.randn(5, len(weight), generator=draw) * torch.logspace(-4, 4, 5)[:, None]
        with torch.no_grad():
            expected_RD = torch.func.functional_call(module, {"weight": weight_D}, x_RD)
            found_RD = rms_norm(x_RD, weight_D, eps)
        _is_plain[kind] = found_RD.dtype == expected_RD.dtype and torch.allclose(
            found_RD, expected_RD, rtol=1e-4, atol=1e-6
        )
    return _is_plain[kind]


class _RmsNorm(torch.autograd.Function):
    """Block after block in buffers that the next block uses again."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        output_ND, scale_N1 = _normalised(x_ND, weight_D, eps)
        ctx.save_for_backward(x_ND, weight_D, scale_N1)
        return output_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x_ND, weight_D, scale_N1 = ctx.saved_tensors
        num_rows, size = x_ND.shape
        grad_x_ND = torch.empty_like(x_ND)
        wide_D = weight_D.to(scale_N1.dtype)
        grad_weight_D = torch.zeros_like(wide_D) if ctx.needs_input_grad[1] else None
        buffers = _buffers(x_ND, 3)
        for start in range(0, num_rows, len(buffers[0])):
            rows = slice(start, start + len(buffers[0]))
            unit_RD, slope_RD, product_RD = (buffer[: len(x_ND[rows])] for buffer in buffers)
            unit_RD.copy_(x_ND[rows]).mul_(scale_N1[rows])
            slope_RD.copy_(grad_ND[rows])
            torch.mul(unit_RD, slope_RD, out=product_RD)
            if grad_weight_D is not None:
                grad_weight_D += product_RD.sum(0)
            # dx = (w dy - x/rms mean(x/rms w dy)) / rms
            mean_R1 = torch.mv(product_RD, wide_D).div_(-size)[:, None]
            slope_RD.mul_(wide_D).addcmul_(unit_RD, mean_R1).mul_(scale_N1[rows])
            grad_x_ND[rows].copy_(slope_RD)
        if grad_weight_D is not None:
            grad_weight_D = grad_weight_D.to(weight_D.dtype)
        return grad_x_ND, grad_weight_D, None


def _normalised(x_ND: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The output, and 1 / rms of every row [N, 1]."""
    output_ND = torch.empty_like(x_ND)
    scale_N1 = x_ND.new_empty((len(x_ND), 1), dtype=math_dtype(x_ND.dtype))
    wide_eps = scale_N1.new_full((), eps)
    (buffer_RD,) = _buffers(x_ND, 1)
    for x_RD, scale_R1, output_RD in zip(
        *(x.split(len(buffer_RD)) for x in (x_ND, scale_N1, output_ND)), strict=True
    ):
        wide_RD = buffer_RD[: len(x_RD)].copy_(x_RD)
        _scale(wide_RD, wide_eps, out=scale_R1)
        # Rounded before the weight is applied, as transformers does.
        output_RD.copy_(wide_RD.mul_(scale_R1)).mul_(weight_D)
    return output_ND, scale_N1


def _scale(x: Tensor, eps: Tensor, out: Tensor | None = None) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over the last dimension, in as few calls as there are: a call takes
    longer than what it computes on one number a row."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcmul(eps, norm, norm, value=1 / x.shape[-1], out=out).rsqrt_()


def _buffers(x_ND: Tensor, count: int) -> list[Tensor]:
    """Room for a block each, in the wide type."""
    num_rows, size = x_ND.shape
    shape = max(1, min(num_rows, _BLOCK // size)), size
    return [x_ND.new_empty(shape, dtype=math_dtype(x_ND.dtype)) for _ in range(count)]
