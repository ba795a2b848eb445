"""A model's trainable weights by name: to copy, to average, or to lend to one forward pass.

Of a model whose weights are spread over processes (`sharding.py`) everything here is about this
process's part: copies, averages and what is lent are as large as that.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from sdpo.models.device import finish

Weights = Mapping[str, torch.Tensor]
"""Trainable parameters by name, in the module's compute type; of sharded ones this process's
part."""


def trainable(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Parameters that train, by name; tied ones once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of `tensor`, in the same memory: all of it, unless it is sharded."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether the weights of `model`, without adapters' wrapper, are spread over processes."""
    return isinstance(model, FSDPModule)


@torch.no_grad()
def gathered(
    shard: DTensor, *, dtype: torch.dtype, part: torch.Tensor | None = None
) -> torch.Tensor:
    """The whole weight that `shard` is a part of, in `dtype`, on every process; with `part`
    (float32) in the place of this process's own. Collective."""
    part = own_part(shard) if part is None else part
    return DTensor.from_local(
        part.to(dtype),
        shard.device_mesh,
        shard.placements,
        run_check=False,
        shape=shard.shape,
        stride=shard.stride(),
    ).full_tensor()


@torch.no_grad()
def set_weight(parameter: torch.nn.Parameter, whole: torch.Tensor) -> None:
    """Make `whole` the value of `parameter`; of a sharded one this process's part."""
    own_part(parameter).copy_(part_of(whole, like=parameter))


def part_of(whole: torch.Tensor, *, like: torch.Tensor) -> torch.Tensor:
    """This process's part of `whole`, a view, if it is sharded as `like` is."""
    if not isinstance(like, DTensor):
        return whole
    # Over the last dimension of its mesh; the first, if there are two, are nodes that repeat it.
    size = -(-len(whole) // like.device_mesh.size(-1))
    start = like.device_mesh.get_local_rank(-1) * size
    return whole[start : start + size]


@contextmanager
def applied(module: torch.nn.Module, weights: Weights | None) -> Generator[None]:
    """`module` computing with `weights` inside the block; None leaves it as it is.

    Swaps `Parameter.data`; nothing is copied. Sharded parameters exchange contents with their
    tensor of `weights` instead, which therefore holds the module's own inside the block: the
    module gathers from memory it has laid out itself. Use only without autograd: a graph built
    inside would see other storage.
    """
    if weights is None:
        yield
        return
    reshard(module)
    parameters = trainable(module)
    whole = {name: p for name, p in parameters.items() if not isinstance(p, DTensor)}
    own = {name: parameter.data for name, parameter in whole.items()}
    shards = [(own_part(p), weights[name]) for name, p in parameters.items() if name not in whole]
    try:
        _exchange(shards)
        for name, parameter in whole.items():
            parameter.data = weights[name]
        yield
    finally:
        reshard(module)
        _exchange(shards)
        for name, parameter in whole.items():
            parameter.data = own[name]


@torch.no_grad()
def _exchange(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for left, right in pairs:
        kept = left.clone()
        left.copy_(right)
        right.copy_(kept)
    if pairs:
        finish(pairs[0][0].device)  # gathering runs in a stream of its own


def reshard(module: torch.nn.Module) -> None:
    """Forget what was gathered of sharded weights, so that the next pass gathers them anew: after
    they were changed. Nothing for a module that is not sharded."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def copy_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A detached copy of the trainable weights in their own dtype."""
    reshard(module)
    return {name: own_part(p).clone() for name, p in trainable(module).items()}
