"""Specs as short as tests need them: the paper's settings, and changes."""

from __future__ import annotations

from typing import Any

from sdpo.losses.specs import DistillSpec, PolicyGradientSpec


def distill(**changes: Any) -> DistillSpec:
    """Jensen-Shannon over the student's top 100 and the tail, with a truncated weight per token."""
    settings = {
        "divergence": "jsd",
        "support": "student",
        "top_k": 100,
        "tail": True,
        "granularity": "logit",
        "importance": "token",
        "ratio_cap": 2.0,
        **changes,
    }
    if settings["divergence"] == "jsd":
        settings.setdefault("beta", 0.5)
    else:
        settings.pop("beta", None)
    if settings["importance"] == "logit":
        settings = {"eps_low": 0.2, "eps_high": 0.28, **settings, "ratio_cap": None}
    return DistillSpec(**settings)


def pg(**changes: Any) -> PolicyGradientSpec:
    """GRPO with clip-higher and one count of tokens."""
    plain = {"kind": "grpo", "normalization": "token"}
    if changes.get("kind") != "sft":
        plain |= {"eps_low": 0.2, "eps_high": 0.28, "ratio_cap": 2.0}
    return PolicyGradientSpec(**{**plain, **changes})
