"""How a policy's weights reach vLLM servers.

    transfer.begin(weights, label)         once for a set of weights
    transfer.send(server)                  for each server that is up; returns once it has them
    transfer.end()                         when no server needs them any more

`FolderTransfer` writes a file that the servers read; it works on any device. `NcclTransfer` sends
from GPU to GPU by vLLM's own weight-transfer engine.
"""

from __future__ import annotations

import importlib
import shutil
import socket
import weakref
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file

from sdpo.engines.server_http import Server
from sdpo.errors import EngineError

Weights = Mapping[str, torch.Tensor]
"""Tensors under the names of a checkpoint's files."""


class Transfer(Protocol):
    """One way for weights to go."""

    at_once: int
    """Servers that may be sent to at the same time."""

    def begin(self, weights: Weights, label: str) -> None:
        """Make `weights` ready to be sent."""
        ...

    def send(self, server: Server) -> None:
        """Give them to `server`. Raises `Unavailable` or `EngineError`."""
        ...

    def end(self) -> None:
        """Let go of what `begin` and `send` do not need any more."""
        ...


class FolderTransfer:
    """Weights as a file in a folder that the trainer and the servers see under one path.

    The file of the last weights stays until the next ones are everywhere, and until this process
    ends. Servers read it with `reload_weights`.

    Example:
        FolderTransfer(Path("/mnt/shared/weights"))
    """

    at_once = 1024

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()
        self._folder = self._path
        self._old: list[Path] = []

    def begin(self, weights: Weights, label: str) -> None:
        """Write them. Raises `EngineError` where that cannot be done."""
        self._folder = self._path / label
        try:
            self._folder.mkdir(parents=True)
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
            save_file(tensors, self._folder / "model.safetensors")
        except OSError as error:
            raise EngineError(
                f"the weights for the servers cannot be written to {self._folder} ({error}); set "
                "rollout.engine.weights.path to a folder with room that they see too"
            ) from error

    def send(self, server: Server) -> None:
        """Let `server` read the file."""
        # One that was started with `--load-format dummy` would read none.
        reading = {"overrides": {"load_config": {"load_format": "auto"}}}
        server.post("/collective_rpc", {"method": "update_config", "kwargs": reading})
        arguments = {"weights_path": str(self._folder)}
        server.post("/collective_rpc", {"method": "reload_weights", "kwargs": arguments})

    def end(self) -> None:
        """Remove the file of the weights before these."""
        for folder in self._old:
            shutil.rmtree(folder, ignore_errors=True)
        self._old = [self._folder]


class NcclTransfer:
    """Weights from this GPU to those of each server, by vLLM's `nccl` weight-transfer engine. Needs
    vLLM here too, and servers started with `--weight-transfer-config '{"backend": "nccl"}'`.

    Every server has a communicator of its own, so that one that dies takes no other with it.
    """

    at_once = 1

    def __init__(self, address: str) -> None:
        """`address` is this machine's, as the servers reach it."""
        self._address = address
        self._engines: dict[str, Any] = {}
        self._weights: Weights = {}

    def begin(self, weights: Weights, label: str) -> None:
        """Keep them until `end`. Raises `EngineError` for weights that are not on a GPU."""
        devices = {tensor.device.type for tensor in weights.values()}
        if devices != {"cuda"}:
            raise EngineError(
                f"rollout.engine.weights.type = 'nccl' sends from a GPU, and the weights are on "
                f"{', '.join(sorted(devices))}; take rollout.engine.weights.type = 'folder'"
            )
        self._weights = weights

    def send(self, server: Server) -> None:
        """Broadcast them to the workers of `server`."""
        engine = self._engines.pop(server.url, None) or self._open(server)
        engine.send_weights()
        # Only now: a communicator of which a call has failed is of no more use.
        self._engines[server.url] = engine

    def end(self) -> None:
        """Let go of the weights."""
        self._weights = {}

    def metadata(self) -> list[Any]:
        """vLLM's description of each tensor to come, in order."""
        meta = _library("vllm.distributed.weight_transfer.base").ParamMeta
        return [meta(name, t.dtype, tuple(t.shape)) for name, t in self._weights.items()]

    def __iter__(self) -> Generator[tuple[str, torch.Tensor]]:
        yield from self._weights.items()

    def _open(self, server: Server) -> Any:
        library = _library("vllm.distributed.weight_transfer.nccl_engine")
        workers = server.get("/get_world_size")["world_size"]
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        return library.NCCLTrainerWeightTransferEngine.trainer_init(
            library.NCCLTrainerInitInfo(
                master_address=self._address, master_port=port, world_size=1 + workers, rank=0
            ),
            client=_Control(server),
            source=self,
        )


class _Control:
    """The side of vLLM's weight-transfer engine that talks to the server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._server.post("/init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self._server.post("/start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._server.post("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._server.post("/finish_weight_update", {"weight_version": weight_version})


def _library(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EngineError(
            "rollout.engine.weights.type = 'nccl' needs vLLM here too: pip install 'sdpo[vllm]'"
        ) from error
