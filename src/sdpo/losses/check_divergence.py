"""Whether a divergence of the user's own is what the head needs, tried before the first step.

It is called on random distributions, some of whose entries are not there, and its derivative is
compared with finite differences of its value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdpo.errors import ConfigError
from sdpo.losses.divergence import evaluate_custom
from sdpo.losses.head.support import LOG_NOTHING
from sdpo.losses.specs import CustomDivergence

_TOKENS, _ENTRIES, _MISSING = 5, 8, 2
_SPREAD = 2.0
"""Standard deviation of the logits: masses from 0.001 to 0.9."""
_STEP = 1e-5
"""Of the central differences in float64: their error is near 1e-10 times the third derivative."""
_TOLERANCE = 1e-5
"""Largest difference, relative to the largest derivative. Real mistakes are off by a factor."""


def check_divergence(custom: CustomDivergence, name: str) -> None:
    """Raises `ConfigError` that begins with `name` when `custom` does not return D per token and
    its derivative."""
    generator = torch.Generator().manual_seed(0)
    logits_RK, teacher_RK = (
        _SPREAD * torch.randn(_TOKENS, _ENTRIES, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    for logits in (logits_RK, teacher_RK):
        logits[0, -_MISSING:] = LOG_NOTHING
    log_q_RK = teacher_RK.log_softmax(-1)
    value_R, gradient_RK = _gradient(custom, name, logits_RK.log_softmax(-1), log_q_RK)
    expected_RK = torch.zeros_like(gradient_RK)
    for entry in range(_ENTRIES):
        step_K = torch.zeros(_ENTRIES, dtype=torch.float64)
        step_K[entry] = _STEP
        above, below = (
            _gradient(custom, name, (logits_RK + sign * step_K).log_softmax(-1), log_q_RK)[0]
            for sign in (1, -1)
        )
        expected_RK[:, entry] = (above - below) / (2 * _STEP)
    largest = float(expected_RK.abs().max())
    if largest == 0.0:
        raise ConfigError(f"{name}: the value does not depend on the student, so nothing is learnt")
    error_RK = (gradient_RK - expected_RK).abs()
    if float(error_RK.max()) > _TOLERANCE * largest:
        token, entry = divmod(int(error_RK.argmax()), _ENTRIES)
        raise ConfigError(
            f"{name}: its derivative is not that of its value. With respect to a logit it comes to "
            f"{float(gradient_RK[token, entry]):.6g} where finite differences of the value "
            f"{float(value_R[token]):.6g} give {float(expected_RK[token, entry]):.6g}; return the "
            "value alone, which autograd then differentiates, or p_k dD/dp_k as the second result"
        )


def _gradient(
    custom: CustomDivergence, name: str, log_p_RK: Tensor, log_q_RK: Tensor
) -> tuple[Tensor, Tensor]:
    """Value [R] and derivative with respect to the student's logits [R, K]."""
    before = log_p_RK.clone(), log_q_RK.clone()
    try:
        value_R, weighted_RK = evaluate_custom(custom, log_p_RK, log_q_RK)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ConfigError(
            f"{name}: called with log-masses of student and teacher [{_TOKENS}, {_ENTRIES}] it "
            f"raised {type(error).__name__}: {error}"
        ) from error
    if value_R.shape != log_p_RK.shape[:1] or weighted_RK.shape != log_p_RK.shape:
        raise ConfigError(
            f"{name}: log-masses of {_TOKENS} tokens and {_ENTRIES} entries gave a value of shape "
            f"{tuple(value_R.shape)} and a derivative of shape {tuple(weighted_RK.shape)}; return "
            f"the value of each token, ({_TOKENS},): sum over the last dimension only"
        )
    if not (torch.equal(before[0], log_p_RK) and torch.equal(before[1], log_q_RK)):
        raise ConfigError(f"{name}: it overwrites its arguments; work on new tensors")
    if not (bool(value_R.isfinite().all()) and bool(weighted_RK.isfinite().all())):
        raise ConfigError(
            f"{name}: its value or derivative is not finite; entries that are not there have a "
            f"log-mass of {LOG_NOTHING:g} on both sides and must add nothing"
        )
    return value_R, weighted_RK - log_p_RK.exp() * weighted_RK.sum(-1, keepdim=True)
