"""Runs whose attempts all have the same length, so that two systems do the same work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sdpo.engines.base import Sampling


def ignoring_eos(sampling: Callable[..., Sampling]) -> Callable[..., Sampling]:
    """`Sampler.sampling` that samples to the limit whatever comes."""

    def to_the_limit(*arguments: Any, **options: Any) -> Sampling:
        return replace(sampling(*arguments, **options), ignore_eos=True)

    return to_the_limit
