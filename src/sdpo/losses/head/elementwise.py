"""The elementwise half of the pass, on one tile: from logits to outputs, and to the logit gradient.

Two ways with one arithmetic. Eager (CPU, and small problems): buffers are given, every step is in
place, exp is taken once. Compiled (large problems on CUDA, where memory traffic decides): the same
functions traced by torch.compile into a few kernels; logits stay raw, probabilities are recomputed
from the log-normaliser instead of being stored.

Legend: R tokens of a tile, V vocabulary, K tokens of the support.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdpo.losses.head.support import DivergenceGradient, Tile, divergence_of_tile
from sdpo.losses.specs import CustomDivergence, DistillSpec
from sdpo.losses.token_batch import OldSupport

_COMPILE_ELEMENTS = 1 << 27
"""Logits of a pass from which compiling pays: below, a pass takes milliseconds either way, and
tests and probes should not wait for a compiler."""


class Factors(NamedTuple):
    """Weights of a tile's terms, divided by global counts and by the temperature."""

    distill_R1: Tensor | None
    slope_R1: Tensor | None
    kl: Tensor | None
    """Scalar; a tensor, because a number would be compiled in and changes every step."""


class TileResult(NamedTuple):
    """Divergence [R] (None: not measured) and KL to the initial model [R] (None: not asked for)."""

    divergence_R: Tensor | None
    initial_kl_R: Tensor | None


def softmax_tile(log_p_RV: Tensor, p_RV: Tensor, scratch_RV: Tensor, entropy_R: Tensor) -> None:
    """Logits become log-probabilities in place; `p` and the entropy are filled in."""
    torch.exp(log_softmax_(log_p_RV), out=p_RV)
    torch.sum(torch.mul(p_RV, log_p_RV, out=scratch_RV), -1, out=entropy_R).neg_()


def log_softmax_(logits_RV: Tensor) -> Tensor:
    """Log-softmax over the vocabulary, in place."""
    return torch.log_softmax(logits_RV, -1, out=logits_RV)


def finish_tile(
    spec: DistillSpec | None,
    needs_gradient: bool,
    log_p_RV: Tensor,
    p_RV: Tensor,
    teacher: tuple[Tensor, Tensor, Tensor] | None,
    log_r_RV: Tensor | None,
    targets_R1: Tensor,
    factors: Factors,
    old: OldSupport | None,
) -> tuple[TileResult, Tensor | None]:
    """Divergence, KL and, when needed, the logit gradient written over `log_p` (the formula of
    `fused.py`).

    `teacher` is (log q, q, scratch). Overwrites everything but targets, factors and old.
    """
    initial_kl_R = value_R = pull = None
    if log_r_RV is not None:
        log_r_RV = torch.sub(log_p_RV, log_r_RV, out=log_r_RV).mul_(p_RV)
        initial_kl_R = log_r_RV.sum(-1)
    if teacher is not None and spec is not None:
        log_q_RV, q_RV, scratch_RV = teacher
        tile = Tile(log_p=log_p_RV, p=p_RV, log_q=log_q_RV, q=q_RV, scratch=scratch_RV)
        value_R, pull = divergence_of_tile(spec, tile, old)
    if needs_gradient:
        kl = None if log_r_RV is None or initial_kl_R is None else (log_r_RV, initial_kl_R)
        write_gradient(log_p_RV, p_RV, targets_R1, factors, pull, kl)
    return TileResult(value_R, initial_kl_R), log_p_RV if needs_gradient else None


def write_gradient(
    out_RV: Tensor,
    p_RV: Tensor,
    targets_R1: Tensor,
    factors: Factors,
    pull: DivergenceGradient | None,
    kl: tuple[Tensor, Tensor] | None,
) -> None:
    """Sum the gradients of all components into `out`. `kl` is p log(p/r) [R, V] and its sum [R].

    Everything that multiplies p_j by a number of its row is gathered in that number first, so that
    the whole gradient is one pass over [R, V], plus one for each [R, V] term, plus scatters of K.
    """
    rest_R1 = torch.zeros_like(p_RV[:, :1])
    if factors.slope_R1 is not None:
        rest_R1 = rest_R1 - factors.slope_R1
    if kl is not None:
        assert factors.kl is not None
        rest_R1 = rest_R1 - factors.kl * kl[1][:, None]
    weight_R1 = factors.distill_R1
    if pull is None or weight_R1 is None:
        if pull is not None and pull.ids is not None:
            # The divergence was only measured: undo the zeroing that measured its tail.
            assert pull.p_support is not None
            pull.put(p_RV, pull.p_support)
        torch.mul(p_RV, rest_R1, out=out_RV)
    else:
        torch.mul(p_RV, weight_R1 * pull.base[:, None] + rest_R1, out=out_RV)
        if pull.ids is None:
            assert pull.weighted is not None
            out_RV.addcmul_(pull.weighted, weight_R1)
        else:
            assert pull.support is not None
            assert pull.p_support is not None
            pull.put(out_RV, weight_R1 * pull.support + rest_R1 * pull.p_support)
    if kl is not None:
        assert factors.kl is not None
        out_RV.addcmul_(kl[0], factors.kl)
    if factors.slope_R1 is not None:
        out_RV.scatter_add_(1, targets_R1, factors.slope_R1)


class CompiledTile(NamedTuple):
    """The two compiled functions of a pass.

    `measure(logits, targets)` -> log-normaliser [R, 1], entropy [R], log-probability [R, 1].
    `finish(logits p, normaliser p, logits q, normaliser q, logits r, targets, factors, old)` ->
    `TileResult`; the gradient overwrites the student's logits.
    """

    measure: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    finish: Callable[..., TileResult]


def compiled_tile(
    spec: DistillSpec | None, needs_gradient: bool, device: torch.device, elements: int
) -> CompiledTile | None:
    """Compiled functions where they pay and can be had; None means eager."""
    if device.type != "cuda" or elements < _COMPILE_ELEMENTS or not _has_triton():
        return None
    if spec is not None and isinstance(spec.divergence, CustomDivergence):
        return None  # A function may take its own autograd pass, which a traced tile cannot hold.
    return compile_tile(spec, needs_gradient)


@cache
def compile_tile(
    spec: DistillSpec | None, needs_gradient: bool, backend: str = "inductor"
) -> CompiledTile:
    """Compiled functions for one spec; kept, since a training run uses one or two."""

    def finish(*arguments: Any) -> TileResult:
        return _finish_logits(spec, needs_gradient, *arguments)

    return CompiledTile(
        measure=torch.compile(_measure, backend=backend),
        finish=torch.compile(finish, backend=backend),
    )


@cache
def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    return has_triton()


def _measure(logits_RV: Tensor, targets_R1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    normaliser_R1 = logits_RV.logsumexp(-1, keepdim=True)
    log_p_RV = logits_RV - normaliser_R1
    entropy_R = -(log_p_RV.exp() * log_p_RV).sum(-1)
    return normaliser_R1, entropy_R, logits_RV.gather(1, targets_R1) - normaliser_R1


def _finish_logits(
    spec: DistillSpec | None,
    needs_gradient: bool,
    logits_p_RV: Tensor,
    normaliser_p_R1: Tensor,
    logits_q_RV: Tensor | None,
    normaliser_q_R1: Tensor | None,
    logits_r_RV: Tensor | None,
    targets_R1: Tensor,
    factors: Factors,
    old: OldSupport | None,
) -> TileResult:
    """`finish_tile` on raw logits; in-place steps act on temporaries, which the compiler
    removes."""
    log_p_RV = logits_p_RV - normaliser_p_R1
    teacher = log_r_RV = None
    if logits_q_RV is not None and normaliser_q_R1 is not None and spec is not None:
        log_q_RV = logits_q_RV - normaliser_q_R1
        teacher = (log_q_RV, log_q_RV.exp(), torch.empty_like(log_q_RV))
    if logits_r_RV is not None:
        log_r_RV = logits_r_RV.log_softmax(-1)
    finished, gradient_RV = finish_tile(
        spec,
        needs_gradient,
        log_p_RV,
        log_p_RV.exp(),
        teacher,
        log_r_RV,
        targets_R1,
        factors,
        old,
    )
    if gradient_RV is not None:
        logits_p_RV.copy_(gradient_RV)
    return finished
