"""Checkpoints that appear whole or not at all.

`checkpoints/step-N/` is an ordinary Hugging Face folder plus `state.pt` for exact resume, and of
sharded weights a folder that all processes write (`models/shard_files.py`). An interrupted or
failed write leaves the older checkpoints alone, whether the run waits for it or not.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, wait
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sdpo.errors import CheckpointError
from sdpo.files import atomic_write, delete_folder
from sdpo.models.adapters import adapter_weights, save_model
from sdpo.models.shard_files import (
    SHARDS,
    Layout,
    in_format,
    own_parts,
    parted,
    read_shards,
    write_shards,
)
from sdpo.models.weights import reshard, set_weight, trainable
from sdpo.parallel import PATIENCE, Parallel
from sdpo.run_folder import CHECKPOINTS, STATE, checkpoint_steps

WEIGHTS = "trainable.safetensors"
"""Trained weights under the model's own names, kept apart only where the Hugging Face files have
other names: for mixtures whose experts transformers fuses in memory."""
_UNWRITTEN = (OSError, RuntimeError, SafetensorError)
"""What a disk that is full, read-only or damaged raises."""
_TO_CPU = StagingOptions(
    use_pinned_memory=False,
    use_shared_memory=False,
    use_async_staging=False,
    use_non_blocking_copy=False,
)
_ALONE = Parallel()


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(
        self,
        run_dir: Path,
        *,
        keep: int,
        in_background: bool = False,
        parallel: Parallel = _ALONE,
        layout: Layout | None = None,
    ) -> None:
        """`layout` says which tensors of a state are this process's parts of weights that all
        processes share; without it the first process writes everything. Collective."""
        self.folder = run_dir / CHECKPOINTS
        self._keep = keep
        self._in_background = in_background
        self._parallel = parallel
        self._layout = layout
        self._group: dist.ProcessGroup | None = None
        """Of the thread that writes, which must not meet what the run exchanges meanwhile."""
        if in_background and layout is not None:
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._under_way: Future[None] | None = None

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        return checkpoint_steps(self.folder)

    def save(
        self,
        step: int,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        state: Mapping[str, Any],
        *,
        protect: int | None = None,
    ) -> None:
        """Write `step-N`, then delete all but the newest `keep` (and `protect`). `model` holds
        whole weights. Collective: every process calls it, and sharded states are written by all.
        In the background `state` is copied to the CPU and written while the run goes on; one
        checkpoint at a time.

        Raises `CheckpointError` when the disk is full or read-only; nothing older is lost and no
        partial folder remains.
        """
        self._parallel.agreed(self.finish)
        final = self.folder / f"step-{step}"
        with ExitStack() as stack:

            def begin() -> str:
                if not self._parallel.is_main:
                    return ""
                with self._explained(final):
                    partial = stack.enter_context(atomic_write(final))
                    partial.mkdir()
                    _write_model(partial, model, tokenizer)
                    return str(partial)

            partial = Path(self._parallel.gather(self._parallel.agreed(begin))[0])
            shards, rest = self._parallel.agreed(lambda: self._parts(state))
            begun = stack.pop_all()

        def complete() -> None:
            with self._explained(final), begun:
                if self._layout is not None:
                    write_shards(shards, partial / SHARDS, self._group)
                if self._parallel.is_main:
                    torch.save(rest, partial / STATE)
            if self._parallel.is_main:
                self._prune(step, protect)

        if self._in_background:
            self._under_way = _in_thread(complete)
        else:
            self._parallel.agreed(complete)

    def _parts(self, state: Mapping[str, Any]) -> tuple[dict[str, DTensor], Any]:
        """What is sharded in `state` and the rest, as they are now: copies, where they are written
        later."""
        shards, rest = parted(state, self._layout)
        if not self._in_background:
            return shards, rest
        staged = DefaultStager(_TO_CPU).stage({"shards": shards, "rest": rest})
        assert isinstance(staged, dict)
        return staged["shards"], staged["rest"]

    def finish(self) -> None:
        """Wait for what is being written in the background. Raises its `CheckpointError`."""
        if self._under_way is not None:
            wait([self._under_way])
            # An interrupt leaves it under way.
            done, self._under_way = self._under_way, None
            done.result()

    def _prune(self, step: int, protect: int | None) -> None:
        for old in self.steps()[: -self._keep]:
            if old not in (protect, step):
                delete_folder(self.folder / f"step-{old}")

    @contextlib.contextmanager
    def _explained(self, final: Path) -> Generator[None]:
        """What a disk does to a checkpoint as `CheckpointError`."""
        try:
            yield
        except (*_UNWRITTEN, CheckpointException) as error:
            raise CheckpointError(
                f"cannot write checkpoint {final}: {error}; "
                "free space or choose another `run` directory. "
                f"Complete checkpoints: {self.steps() or 'none'}"
            ) from error

    def load(self, step: int, model: PreTrainedModel) -> dict[str, Any]:
        """Put the weights of `step` into `model`, of sharded ones this process's parts, and return
        the saved state likewise; whoever wrote it, together or alone. Collective. Raises
        `CheckpointError` when damaged."""
        folder = self.folder / f"step-{step}"
        reshard(model)
        try:
            state = self._read_state(folder, model)
            weights = _read_weights(folder)
        except (*_UNWRITTEN, CheckpointException, pickle.UnpicklingError, EOFError) as error:
            older = [each for each in self.steps() if each < step]
            cure = (
                f"delete it to resume from step {older[-1]}"
                if older
                else "no older one is left; delete it to start from the beginning (the records so "
                "far are kept as *.jsonl.bak)"
            )
            raise CheckpointError(f"checkpoint {folder} is damaged: {error}; {cure}") from error
        with torch.no_grad():
            for name, parameter in trainable(model).items():
                if name not in weights:
                    raise CheckpointError(
                        f"checkpoint {folder} has no weight {name}; it is of another model"
                    )
                set_weight(parameter, weights[name])
        return state

    def _read_state(self, folder: Path, model: PreTrainedModel) -> dict[str, Any]:
        layout, device, path = self._layout, model.device, folder / STATE
        if (folder / SHARDS).is_dir():
            state = torch.load(path, map_location=device, weights_only=True)
            state = read_shards(state, folder / SHARDS, layout, device)
        elif layout is not None:
            # Mapped, not read: every process copies its own part only.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            state = own_parts(state, layout, device)
        else:
            return torch.load(path, map_location=device, weights_only=True)
        return in_format(state, {name: p.dtype for name, p in trainable(model).items()})


def _write_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    save_model(model, folder)
    tokenizer.save_pretrained(folder)
    trained = trainable(model)
    if not trained.keys() <= _saved_names(folder):
        weights = {name: p.detach().cpu().contiguous() for name, p in trained.items()}
        save_file(weights, folder / WEIGHTS)


def _in_thread(work: Callable[[], None]) -> Future[None]:
    """`work` under way in a thread that does not keep an ending process alive: a checkpoint that is
    not complete is none."""
    found: Future[None] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as problem:  # noqa: BLE001 - raised where it is waited for
            found.set_exception(problem)

    Thread(target=run, daemon=True, name="checkpoint").start()
    return found


def _saved_names(folder: Path) -> set[str]:
    names = set(adapter_weights(folder))
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return names


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    if (folder / WEIGHTS).is_file():
        return load_file(folder / WEIGHTS)
    weights = adapter_weights(folder)
    for path in sorted(folder.glob("model*.safetensors")):
        weights |= load_file(path)
    return weights
