"""The rule of token weights that an objective's settings name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import assert_never

import torch

from sdpo.config.objective import (
    CustomWeightingConfig,
    DistillingConfig,
    EntropyWeightingConfig,
    NoWeightingConfig,
    ObjectiveConfig,
    PositionWeightingConfig,
    SignWeightingConfig,
)
from sdpo.custom import load_function
from sdpo.errors import ConfigError
from sdpo.losses.weighting import (
    TaughtTokens,
    TokenWeighting,
    entropy_weights,
    position_weights,
    uniform_weights,
)


def token_weighting(objective: ObjectiveConfig) -> TokenWeighting:
    """How strongly each distilled token counts."""
    weighting = NoWeightingConfig()
    if isinstance(objective, DistillingConfig):
        weighting = objective.weighting
    match weighting:
        case NoWeightingConfig() | SignWeightingConfig():
            # A sign gate compares with the student of the update: the loss applies it.
            return TokenWeighting(weigh=uniform_weights, is_relative=False)
        case PositionWeightingConfig(w_min=w_min, tau=tau, s=s):
            weigh = partial(position_weights, w_min=w_min, tau=tau, s=s)
            return TokenWeighting(weigh=weigh, is_relative=False)
        case EntropyWeightingConfig(beta=beta):
            return TokenWeighting(weigh=partial(entropy_weights, beta=beta), is_relative=True)
        case CustomWeightingConfig(relative=relative):
            return TokenWeighting(weigh=_custom_weights(weighting), is_relative=relative)
        case _:
            assert_never(weighting)


def _custom_weights(config: CustomWeightingConfig) -> Callable[[TaughtTokens], torch.Tensor]:
    """The function that `config` names, whose every result is checked: a sum over tokens would
    hide a weight of the wrong shape or sign."""
    function = load_function("objective.weighting", config.path, config.options, "tokens")

    def weigh(tokens: TaughtTokens) -> torch.Tensor:
        weights = function(tokens)
        is_tensor = isinstance(weights, torch.Tensor)
        shape = tuple(weights.shape) if is_tensor else type(weights).__name__
        if not is_tensor or shape != (len(tokens),):
            problem = f"gave {shape}; return a tensor with one weight a token, ({len(tokens)},)"
        elif not bool((weights.isfinite() & (weights >= 0)).all()):
            problem = f"gave the weight {float(weights.min())}; weights are finite, from 0 on"
        else:
            return weights.detach().to(tokens.device, torch.float32)
        raise ConfigError(
            f"objective.weighting.path = {config.path!r} on task {tokens.sample.task_id!r} "
            f"{problem}"
        )

    return weigh
