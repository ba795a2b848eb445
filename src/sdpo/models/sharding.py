"""A policy whose weights are spread over the processes of a run (PyTorch's FSDP2), and the whole
copy of it that samples.

Every process keeps 1/N of each weight in float32, and its gradient, moments and teacher likewise;
N are the processes of a node, and the nodes repeat each other, so that between them only gradients
travel. For a model too large for a node N can be all processes.
A decoder layer is gathered in the compute type while it runs and forgotten after it; embeddings,
final norm and head form one more unit, which stays gathered from the forward pass to the end of the
backward pass, so that the fused head reads its matrix without another gathering (2.5 GB for the
152k tokens of Qwen3-8B, twice that while its gradient exists). Adapters, and weights in another
number format than the model's, are small and stay whole everywhere.

Sampling decodes different numbers of tokens on every process, so it cannot gather layer by layer.
The module that was loaded therefore stays as it is: outside of updates it holds the newest weights
in the compute type (`fill`: 2 bytes a weight in bfloat16), and samples, probes and checkpoints read
it like that of a single process. `empty` gives its memory back for an update.

All processes must run the same number of passes: see `hidden.py` and `packing.py`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from sdpo.config.schema import LoraConfig, ModelConfig
from sdpo.errors import ConfigError, ModelError
from sdpo.models.adapters import has_adapter
from sdpo.models.hidden import SHARDED_PASS, last_hidden
from sdpo.models.qualify import Refusal, tree_kind_of
from sdpo.models.structure import causal_lm, name_of, stands_for
from sdpo.models.weights import gathered, reshard
from sdpo.models.wrapper import tower_parameters
from sdpo.parallel import Parallel


class Shards:
    """The trained module `model`, of whose weights every process has its part, and `whole`, the
    module that samples.

    Example:
        shards = Shards(policy.model, init_device_mesh("cuda", (8,)))
        shards.empty(); train(shards.model); shards.fill()
    """

    def __init__(self, whole: Any, mesh: DeviceMesh) -> None:
        """Shards a copy of `whole` over the last dimension of `mesh`, on its device. Collective.
        Memory at its peak: `whole`, a layer (or embeddings and head) in float32, and this
        process's part."""
        self.whole = whole
        self.model = _sharded_copy(whole, mesh)
        reshard(self.model)
        nodes, count = mesh.size() // mesh.size(-1), mesh.size(-1)
        repeated = f" on each of {nodes} nodes" if nodes > 1 else ""
        self.sharing = f"{count} processes{repeated} share the weights"
        """What is spread, for the user."""
        named = dict(whole.named_parameters())
        self.trained: dict[str, DTensor] = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if isinstance(parameter, DTensor) and parameter.requires_grad
        }
        """The sharded parameters that train, by name; none where only adapters do."""
        self._pairs = [
            (named[name], parameter, named[name].dtype)
            for name, parameter in self.model.named_parameters()
            if isinstance(parameter, DTensor)
        ]

    @torch.no_grad()
    def fill(self) -> None:
        """Give `whole` the current weights, a tensor at a time."""
        reshard(self.model)
        for own, shard, dtype in self._pairs:
            own.data = gathered(shard, dtype=dtype)

    def empty(self) -> None:
        """Free the weights of `whole`, which cannot be used until `fill`."""
        for own, _, dtype in self._pairs:
            own.data = torch.empty(0, dtype=dtype, device=own.device)


def shards_of(whole: Any, config: ModelConfig, parallel: Parallel) -> Shards | None:
    """`whole` spread over the processes if `config.parallel` says so; None where each trains a
    replica. `auto` shards on several GPUs when all weights train: adapters leave so little to
    share that gathering costs more than it saves.

    Raises `ConfigError` for one process alone, `ModelError` for a model that cannot be sharded.
    """
    if config.parallel == "replicate":
        return None
    inner = causal_lm(whole)
    kind = tree_kind_of(inner)
    is_new = hasattr(FSDPModule, "set_reduce_scatter_unused_params")
    setting = f"model.parallel = {config.parallel!r}"
    if config.parallel == "auto":
        pays = inner.device.type == "cuda" and not isinstance(config.adapter, LoraConfig)
        if parallel.world_size == 1 or not pays or not is_new or isinstance(kind, Refusal):
            return None
    if parallel.world_size == 1:
        raise ConfigError(
            f"{setting}, but there is one process: start several with torchrun, or "
            "leave it at 'auto'"
        )
    if not is_new:
        raise ConfigError(
            f"{setting} needs torch 2.13, not {torch.__version__}: update it, or "
            "set model.parallel = 'replicate'"
        )
    if isinstance(kind, Refusal):
        raise ModelError(
            f"{setting}: {name_of(inner)} runs one sequence at a time "
            f"({kind.reason}), and processes with unequal numbers of sequences would wait for each "
            "other; set model.parallel = 'replicate'"
        )
    mesh = _mesh(inner.device, parallel, over_all=config.parallel == "shard_all")
    return Shards(whole, mesh)


def _mesh(device: torch.device, parallel: Parallel, *, over_all: bool) -> DeviceMesh:
    """The processes in one row that share weights, or in a row for each node; as `torchrun` counts
    them, node after node. Collective."""
    count = parallel.world_size
    rows = set(parallel.gather(int(os.environ.get("LOCAL_WORLD_SIZE", count))))
    per_node = rows.pop()
    # Unequal nodes cannot repeat each other, and nodes of one process would share nothing.
    if over_all or rows or per_node in (1, count):
        return init_device_mesh(device.type, (count,))
    return init_device_mesh(
        device.type, (count // per_node, per_node), mesh_dim_names=("nodes", "of_node")
    )


def _sharded_copy(whole: Any, mesh: DeviceMesh) -> Any:
    """A second module around the weights of `whole`, sharded; `whole` keeps its own."""
    tensors = [*whole.parameters(), *whole.buffers()]
    model = copy.deepcopy(whole, {id(tensor): tensor for tensor in tensors})
    inner = causal_lm(model)
    kept = _replicated(model)
    policy = MixedPrecisionPolicy(
        param_dtype=inner.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for unit in (*_layers(inner), inner):
        _widen(unit, kept)
        fully_shard(unit, mesh=mesh, mp_policy=policy, ignored_params=kept)
    for part in inner.modules():
        if isinstance(part, FSDPModule):
            # Losses are divided by counts over all processes already.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
    # A process whose tokens reach fewer experts must not leave the others waiting.
    root: Any = inner
    root.set_reduce_scatter_unused_params(True)
    setattr(inner, SHARDED_PASS, lambda **inputs: last_hidden(inner, **inputs))
    register_fsdp_forward_method(inner, SHARDED_PASS)
    stands_for(inner, causal_lm(whole))
    return model


def _replicated(model: Any) -> set[torch.nn.Parameter]:
    """Parameters that every process keeps whole."""
    inner = causal_lm(model)
    kept = {p for p in inner.parameters() if p.dtype != inner.dtype}
    kept |= {parameter for _, parameter in tower_parameters(model)}
    if has_adapter(model):
        kept |= {p for p in inner.parameters() if p.requires_grad}
    return kept


def _widen(unit: torch.nn.Module, kept: set[torch.nn.Parameter]) -> None:
    """Put float32 copies in the place of what will train, tied weights by one and the same; and
    contiguous ones, the only ones that can be sharded."""
    copies: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    for module in unit.modules():
        for name, parameter in module.named_parameters(recurse=False):
            trains = parameter.requires_grad
            dtype = torch.float32 if trains else parameter.dtype
            is_ready = parameter.dtype == dtype and parameter.is_contiguous()
            if isinstance(parameter, DTensor) or parameter in kept or is_ready:
                continue
            if parameter not in copies:
                data = parameter.detach().to(dtype).contiguous()
                copies[parameter] = torch.nn.Parameter(data, requires_grad=trains)
            setattr(module, name, copies[parameter])


def _layers(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The outermost layers below `module`."""
    for child in module.children():
        if isinstance(child, GradientCheckpointingLayer):
            yield child
        else:
            yield from _layers(child)
