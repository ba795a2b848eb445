"""A model's trainable weights by name: to copy, to average, or to lend to one forward pass."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch

Weights = Mapping[str, torch.Tensor]
"""Trainable parameters by name, in the module's compute type."""


def trainable(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Parameters that train, by name; tied ones once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@contextmanager
def applied(module: torch.nn.Module, weights: Weights | None) -> Generator[None]:
    """`module` computing with `weights` inside the block; None leaves it as it is.

    Swaps `Parameter.data`; nothing is copied. Use only without autograd: a graph built inside would
    see other storage.
    """
    if weights is None:
        yield
        return
    parameters = trainable(module)
    own = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = weights[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]


def copy_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A detached copy of the trainable weights in their own dtype."""
    return {name: p.detach().clone() for name, p in trainable(module).items()}
