"""The sharded part of a checkpoint: every process writes its part of masters, moments and teacher
into one folder (`torch.distributed.checkpoint`), and any number of processes reads it.

What else a state holds stays a tree of plain values, in which a sharded tensor is named by a
`{"sharded": KEY}`. Legend of paths: the keys that lead to a value in that tree.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.distributed.tensor as dtensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from sdpo.models.weights import own_part, part_of

SHARDS = "shards"
"""The folder inside a checkpoint."""
_KEY = "sharded"
_MOMENTS = ("exp_avg", "exp_avg_sq")

_Path = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which tensors of a learner's state are parts of which parameters.

    Example:
        Layout(parameters={"lm_head.weight": sharded}, order=("lm_head.weight",))
    """

    parameters: Mapping[str, DTensor]
    """The sharded ones that train, by name."""
    order: Sequence[str]
    """Names of all that train in the order in which AdamW numbers them."""

    def parameter(self, path: _Path) -> DTensor | None:
        """The parameter whose part stands at `path` of the state; None for what is whole."""
        name = path[-1]
        if name in _MOMENTS and isinstance(path[-2], int):
            name = self.order[path[-2]]
        return self.parameters.get(name)


def parted(state: Any, layout: Layout | None) -> tuple[dict[str, DTensor], Any]:
    """What is sharded in `state`, by a name, and the tree of the rest, in which its names stand.
    Without a `layout` nothing is sharded. Copies nothing."""
    shards: dict[str, DTensor] = {}
    known: dict[int, str] = {}

    def take(path: _Path, tensor: Any) -> Any:
        parameter = layout.parameter(path) if layout is not None else None
        if parameter is None or not isinstance(tensor, torch.Tensor):
            return tensor
        if id(tensor) not in known:  # a frozen teacher is the initial model
            known[id(tensor)] = key = "/".join(map(str, path))
            shards[key] = DTensor.from_local(
                tensor.detach(),
                parameter.device_mesh,
                parameter.placements,
                run_check=False,
                shape=parameter.shape,
                stride=parameter.stride(),
            )
        return {_KEY: known[id(tensor)]}

    rest = _mapped(state, take)
    return shards, rest


def write_shards(
    shards: Mapping[str, DTensor], folder: Path, group: dist.ProcessGroup | None = None
) -> None:
    """Write `shards` into `folder`, each process its part. Collective, over `group` where another
    thread exchanges something meanwhile; a failure of one process is raised on all."""
    dcp.save(dict(shards), checkpoint_id=str(folder), process_group=group)


def read_shards(state: Any, folder: Path, layout: Layout | None, device: torch.device) -> Any:
    """`state` as `parted` left it, with its tensors: this process's parts, or whole ones
    without a `layout`. Collective with a `layout`."""
    keys: list[str] = []
    _mapped(state, lambda _, leaf: keys.append(leaf[_KEY]) if _is_named(leaf) else None)
    sizes = dcp.FileSystemReader(str(folder)).read_metadata().state_dict_metadata
    tensors: dict[str, torch.Tensor] = {}
    for key in dict.fromkeys(keys):
        stored = sizes[key]
        assert isinstance(stored, TensorStorageMetadata)
        dtype = stored.properties.dtype
        if layout is None:
            tensors[key] = torch.empty(stored.size, dtype=dtype, device=device)
        else:
            like = next(iter(layout.parameters.values()))
            tensors[key] = dtensor.empty(
                stored.size, dtype=dtype, device_mesh=like.device_mesh, placements=like.placements
            )
    with warnings.catch_warnings():
        # One process is meant.
        warnings.filterwarnings("ignore", message="torch.distributed is")
        dcp.load(tensors, checkpoint_id=str(folder), no_dist=layout is None)
    parts = {key: own_part(tensor) for key, tensor in tensors.items()}
    return _mapped(state, lambda _, leaf: parts[leaf[_KEY]] if _is_named(leaf) else leaf)


def own_parts(state: Any, layout: Layout, device: torch.device) -> Any:
    """A state that holds whole tensors as one process of several needs it: its parts, copied to
    `device`, and the rest."""
    known: dict[int, torch.Tensor] = {}

    def take(path: _Path, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        parameter = layout.parameter(path)
        if id(leaf) not in known:
            part = leaf if parameter is None else part_of(leaf, like=parameter)
            known[id(leaf)] = part.to(device, copy=True)
        return known[id(leaf)]

    return _mapped(state, take)


def in_format(state: Any, dtypes: Mapping[str, torch.dtype]) -> Any:
    """`state` with a teacher that the model can compute with: in the number formats `dtypes` of its
    parameters. Sharded ones are float32; float32 averages stay what they are."""
    known: dict[int, torch.Tensor] = {}

    def take(path: _Path, leaf: Any) -> Any:
        if path[:1] != ("schedule",) or path[1] not in ("initial", "weights") or len(path) < 3:
            return leaf
        return known.setdefault(id(leaf), leaf.to(dtypes[path[2]]))

    return _mapped(state, take)


def _is_named(leaf: Any) -> bool:
    return isinstance(leaf, dict) and leaf.keys() == {_KEY}


def _mapped(node: Any, change: Callable[[_Path, Any], Any], path: _Path = ()) -> Any:
    """A tree of dicts and lists with `change(path, leaf)` in the place of every leaf."""
    if isinstance(node, Mapping) and not _is_named(node):
        return {key: _mapped(value, change, (*path, key)) for key, value in node.items()}
    if isinstance(node, list | tuple):
        items = [_mapped(value, change, (*path, i)) for i, value in enumerate(node)]
        return items if isinstance(node, list) else tuple(items)
    return change(path, node)
